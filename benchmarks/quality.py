"""How much better adaptation makes the predictions: ``python -m benchmarks.quality --json FILE``.

Runs each scenario through the pipeline that is deployed, judges the predictions against the data outside of it, and
checks that the pipeline counted the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.results_page import results_page
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.measure import Measured

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(1)  # the tensors are small: more threads would only wait for each other
    results = []
    for name in asked.only or SCENARIOS:
        start = time.monotonic()
        _say(f"{name} ...")
        try:
            measured = SCENARIOS[name](asked.data, lambda text, name=name: _say(f"{name}: {text}"))  # type: ignore[misc]
        except FileNotFoundError as exc:
            _say(f"{name}: no file {exc.filename}; give the folder that holds it with --data")
            return 2
        _say(f"{name}: served {measured.figure('served'):.4f}, base {measured.figure('base'):.4f}, "
             f"{time.monotonic() - start:.0f} s")  # fmt: skip
        results.append(measured)
        # Written after every scenario: a long run that is interrupted keeps what it has.
        if asked.json is not None:
            asked.json.write_text(json.dumps({m.name: m.as_json() for m in results}, indent=2) + "\n", encoding="utf-8")
    Console().print(_table(results))
    if asked.markdown is not None:
        asked.markdown.write_text(results_page(results), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, as one JSON object")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page of results here")
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), metavar="NAME", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR",
                        help="folder with ETTh1.csv and los_speed.csv (default: %(default)s)")  # fmt: skip
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _table(results: Sequence[Measured]) -> Table:
    table = Table(title="mean absolute error (worst 500-prediction block, relative to the base)")
    table.add_column("expert")
    for measured in results:
        table.add_column(measured.name, justify="right")
    for name in dict.fromkeys(name for measured in results for name in measured.errors if name != "served"):
        table.add_row(name, *(_cell(measured, name) for measured in results))
    table.add_row("served", *(_cell(measured, "served") for measured in results), style="bold")
    return table


def _cell(measured: Measured, name: str) -> str:
    if name not in measured.errors:
        return ""
    return f"{measured.figure(name):.4f} ({measured.worst_block(name):.3f})"


if __name__ == "__main__":
    sys.exit(main())
