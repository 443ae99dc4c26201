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

from benchmarks.plots import write_plot
from benchmarks.results_page import results_page
from benchmarks.results_page_tables import groups_of
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.measure import Measured

__all__ = ["main"]

PLOTS = "plots"
"""The folder of the plots, beside the page."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(1)  # the tensors are small: more threads would only wait for each other
    results: list[Measured] = []
    for name in asked.only or SCENARIOS:
        start = time.monotonic()
        _say(f"{name} ...")
        try:
            measured = SCENARIOS[name](asked.data, lambda text, name=name: _say(f"{name}: {text}"))  # type: ignore[misc]
        except FileNotFoundError as exc:
            _say(f"{name}: no file {exc.filename}; give the folder that holds it with --data")
            return 2
        shown = {k: measured.figure(k) for k in ("served", "base") if k in measured.figures}
        said = ", ".join(f"{k} {figure:.4f}" for k, figure in shown.items())
        _say(f"{name}: {measured.measure.key}: {said or 'done'}, {time.monotonic() - start:.0f} s")
        results.append(measured)
        _write(results, asked.json, asked.markdown)
    Console().print(*(_table(group) for group in groups_of(results)))
    return 0


def _write(results: Sequence[Measured], json_path: Path | None, page: Path | None) -> None:
    """Write what there is, after every scenario: a long run that is interrupted keeps what it has."""
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps({m.name: m.as_json() for m in results}, indent=2) + "\n", encoding="utf-8")
    if page is not None:
        write_plot(results[-1], page.parent / PLOTS)
        page.write_text(results_page(results, {m.name: f"{PLOTS}/{m.name}.png" for m in results}), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, as one JSON object")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the page of results here, and its plots into plots/ beside it",
    )
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), metavar="NAME", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR",
                        help="folder with ETTh1.csv, los_speed.csv and elec.csv (default: %(default)s)")  # fmt: skip
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _table(group: Sequence[Measured]) -> Table:
    first = group[0]
    columns = [(m, measure) for m in group for measure in first.measures]
    table = Table(title="; ".join(m.title for m in first.measures))
    table.add_column("expert", no_wrap=True)
    for measured, measure in columns:
        title = measured.name if len(first.measures) == 1 else f"{measured.name} {measure.key}"
        table.add_column(title, justify="right", no_wrap=True)
    for name in first.figures:
        cells = (f"{m.figure(name, measure.key):.4f}" for m, measure in columns)
        table.add_row(name, *cells, style="bold" if name == "served" else None)
    return table


if __name__ == "__main__":
    sys.exit(main())
