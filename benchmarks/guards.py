"""Every guard on every scenario, in one table: ``python -m benchmarks.guards --json FILE``.

All guards mix the same experts, so one pass through the deployed pipeline is enough for all of
them: they run side by side, each charged for its own predictions, with the scenario's own delays.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.guards_page import cell, page
from benchmarks.guards_runs import GUARDS, RUNS, SHOWN, Compared

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    asked = _parser().parse_args(arguments)
    found: dict[str, Compared] = {}
    try:
        for compared in _compared(asked.only or list(RUNS), asked.data, asked.jobs):
            found[compared.name] = compared
            _write(_ordered(found), asked.json, asked.markdown)
    except FileNotFoundError as exc:
        _say(f"no file {exc.filename}; give the folder that holds it with --data")
        return 2
    _print(_ordered(found))
    return 0


def _ordered(found: dict[str, Compared]) -> list[Compared]:
    return [found[name] for name in SHOWN if name in found]


def _compared(names: Sequence[str], data: Path, jobs: int) -> Iterator[Compared]:
    """Run the scenarios, `jobs` at a time, and yield each when it is done."""
    if jobs == 1:
        yield from (_compare(name, data) for name in names)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(_compare, name, data) for name in names]
        try:
            for future in as_completed(running):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _compare(name: str, data: Path) -> Compared:
    torch.set_num_threads(1)  # the tensors are small: more threads would slow it down
    start = time.monotonic()
    _say(f"{name} ...")
    compared = RUNS[name](data, lambda text: _say(f"{name}: {text}"))
    summary = ", ".join(f"{k} {compared.figures[k]:.4f}" for k in ("base", "two-layer"))
    _say(f"{name}: {summary}, {time.monotonic() - start:.0f} s")
    return compared


def _write(found: Sequence[Compared], json_path: Path | None, markdown: Path | None) -> None:
    """Write the results after every scenario: an interrupted run keeps the finished ones."""
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(
            json.dumps({c.name: c.as_json() for c in found}, indent=2) + "\n", encoding="utf-8"
        )
    if markdown is not None:
        markdown.write_text(page(found), encoding="utf-8")


def _print(found: Sequence[Compared]) -> None:
    table = Table(
        title="served, by guard; in brackets: the worst block of 500, as a ratio to the base"
    )
    table.add_column("guard", no_wrap=True)
    for compared in found:
        table.add_column(compared.name, justify="right")
    for name in ("base", "best expert", *GUARDS):
        table.add_row(name, *(cell(compared, name) for compared in found))
    Console().print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guards", description=__doc__)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures here, as one JSON object"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument(
        "--only", nargs="+", choices=list(RUNS), metavar="NAME", help=f"of {', '.join(RUNS)}"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="scenarios at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/data"),
        metavar="DIR",
        help="folder with ETTh1.csv, los_speed.csv and elec.csv (default: %(default)s)",
    )
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
