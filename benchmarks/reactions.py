"""The effect of each reaction to drift: ``python -m benchmarks.reactions --json FILE``.

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
from benchmarks.reactions_runs import CASES, NONE, PART, REACTIONS, Run, ablate

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, dict[str, Run]] = {}
    start = time.process_time()
    try:
        for name in asked.only or CASES:
            results[name] = ablate(name, asked.data, _say, part=asked.part)
            _write(results, asked, time.process_time() - start)
    except FileNotFoundError as exc:
        _say(f"no file {exc.filename}; give the folder that holds it with --data")
        return 2
    Console().print(_table(results))
    return 0


def _write(
    results: Mapping[str, Mapping[str, Run]], asked: argparse.Namespace, spent: float
) -> None:
    """Write the results after every scenario."""
    ordered = {name: results[name] for name in CASES if name in results}
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {
            name: {r: run.as_json() for r, run in runs.items()} for name, runs in ordered.items()
        }
        protocols = {name: CASES[name].protocol for name in ordered}
        result = {
            "figures": figures,
            "protocols": protocols,
            "part": asked.part,
            "process_seconds": spent,
        }
        asked.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if asked.markdown is not None:
        asked.markdown.write_text(page(ordered, asked.part), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reactions", description=__doc__)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures here, as one JSON object"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument(
        "--only", nargs="+", choices=list(CASES), metavar="NAME", help=f"of {', '.join(CASES)}"
    )
    parser.add_argument(
        "--part",
        type=_part,
        default=PART,
        metavar="X",
        help="of the long streams, the first part of this size (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/data"),
        metavar="DIR",
        help="folder with ETTh1.csv, los_speed.csv and elec.csv (default: %(default)s)",
    )
    return parser


def _part(text: str) -> float:
    part = float(text)
    if not 0.0 < part <= 1.0:
        raise argparse.ArgumentTypeError(f"{part}: a number in (0, 1]")
    return part


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
