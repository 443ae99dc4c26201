"""What each reaction to drift is worth: ``python -m benchmarks.reactions --json FILE``.

Served error without any reaction and with each one, on every scenario that drifts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.reactions_page import page
from benchmarks.reactions_runs import CASES, NONE, REACTIONS, Run, ablate

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, dict[str, Run]] = {}
    start = time.process_time()
    try:
        for name in asked.only or CASES:
            results[name] = ablate(name, asked.data, _say)
            _write(results, asked.json, asked.markdown, time.process_time() - start)
    except FileNotFoundError as exc:
        _say(f"no file {exc.filename}; give the folder that holds it with --data")
        return 2
    Console().print(_table(results))
    return 0


def _write(
    results: Mapping[str, Mapping[str, Run]], json_path: Path | None, markdown: Path | None, spent: float
) -> None:
    """Write what there is, after every scenario."""
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        figures = {name: {r: run.as_json() for r, run in runs.items()} for name, runs in results.items()}
        protocols = {name: CASES[name].protocol for name in results}
        said = {"figures": figures, "protocols": protocols, "process_seconds": spent}
        json_path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    if markdown is not None:
        markdown.write_text(page(results), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reactions", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, as one JSON object")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR",
                        help="folder with ETTh1.csv, los_speed.csv and elec.csv (default: %(default)s)")  # fmt: skip
    return parser


def _table(results: Mapping[str, Mapping[str, Run]]) -> Table:
    table = Table("scenario", "alarms", "base", *(NONE, *REACTIONS), title="served error")
    for name, runs in results.items():
        served = [f"{runs[r].served:.4f}" for r in (NONE, *REACTIONS)]
        table.add_row(name, str(runs[REACTIONS[0]].alarms), f"{runs[NONE].base:.4f}", *served)
    return table


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
