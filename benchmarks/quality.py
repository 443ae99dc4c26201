"""Measure how much adaptation improves the predictions: ``python -m benchmarks.quality --json
FILE``.

Runs each scenario through the deployed pipeline, judges the predictions against the data outside
of it, and checks that the pipeline's own counts agree.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
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
    """Run the command; return the exit status."""
    asked = _parser().parse_args(arguments)
    results: dict[str, Measured] = {}
    try:
        for measured in _measured(asked.only or list(SCENARIOS), asked.data, asked.jobs):
            results[measured.name] = measured
            _write(_ordered(results), measured, asked.json, asked.markdown)
    except FileNotFoundError as exc:
        _say(f"no file {exc.filename}; give the folder that holds it with --data")
        return 2
    console = Console()
    for group in groups_of(_ordered(results)):
        for part in _fitting(group, console):
            console.print(_table(part))
    return 0


def _fitting(group: Sequence[Measured], console: Console) -> list[Sequence[Measured]]:
    """Split a group whose table is wider than the terminal into one group per scenario."""
    wide = console.measure(_table(group)).minimum > console.width
    return [[measured] for measured in group] if wide else [group]


def _ordered(results: Mapping[str, Measured]) -> list[Measured]:
    return [results[name] for name in SCENARIOS if name in results]


def _measured(names: Sequence[str], data: Path, jobs: int) -> Iterator[Measured]:
    """Run the scenarios, `jobs` at a time, and yield each when it is done."""
    if jobs == 1:
        yield from (_measure(name, data) for name in names)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(_measure, name, data) for name in names]
        try:
            for future in as_completed(running):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _measure(name: str, data: Path) -> Measured:
    torch.set_num_threads(1)  # the tensors are small: more threads would slow it down
    start = time.monotonic()
    _say(f"{name} ...")
    measured = SCENARIOS[name](data, lambda text: _say(f"{name}: {text}"))
    shown = {k: measured.figure(k) for k in ("served", "base") if k in measured.figures}
    summary = ", ".join(f"{k} {figure:.4f}" for k, figure in shown.items())
    _say(f"{name}: {measured.measure.key}: {summary or 'done'}, {time.monotonic() - start:.0f} s")
    return measured


def _write(
    results: Sequence[Measured], newest: Measured, json_path: Path | None, page: Path | None
) -> None:
    """Write the results after every scenario: an interrupted run keeps the finished ones."""
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(
            json.dumps({m.name: m.as_json() for m in results}, indent=2) + "\n", encoding="utf-8"
        )
    if page is not None:
        write_plot(newest, page.parent / PLOTS)
        page.write_text(
            results_page(results, {m.name: f"{PLOTS}/{m.name}.png" for m in results}),
            encoding="utf-8",
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures here, as one JSON object"
    )
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the page of results here, and its plots into plots/ beside it",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(SCENARIOS),
        metavar="NAME",
        help=f"of {', '.join(SCENARIOS)}",
    )
    parser.add_argument(
        "--jobs",
        type=_jobs,
        default=1,
        metavar="N",
        help="scenarios to run at a time; their costs per entry are then "
        "measured beside each other "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/data"),
        metavar="DIR",
        help="folder with ETTh1.csv, los_speed.csv and elec.csv (default: %(default)s)",
    )
    return parser


def _jobs(text: str) -> int:
    jobs = int(text)
    if jobs < 1:
        raise argparse.ArgumentTypeError(f"{jobs}: a number >= 1")
    return jobs


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
