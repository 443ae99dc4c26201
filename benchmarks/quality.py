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
    Console().print(*_tables(results))
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


def _tables(results: Sequence[Measured]) -> list[Table]:
    """One table for the scenarios that have the same experts."""
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for measured in results:
        groups.setdefault(tuple(measured.errors), []).append(measured)
    return [_table(names, group) for names, group in groups.items()]


def _table(names: Sequence[str], group: Sequence[Measured]) -> Table:
    table = Table(title="mean absolute error")
    table.add_column("expert", no_wrap=True)
    for measured in group:
        table.add_column(measured.name, justify="right", no_wrap=True)
    for name in names:
        table.add_row(name, *(f"{m.figure(name):.4f}" for m in group), style="bold" if name == "served" else None)
    rows = ("worst block / base", *(f"{m.worst_block('served'):.3f}" for m in group))
    table.add_row(*rows, style="dim")
    return table


if __name__ == "__main__":
    sys.exit(main())
