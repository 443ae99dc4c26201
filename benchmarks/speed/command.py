"""Speed of the core against its rivals: ``python -m benchmarks.speed --json FILE``.

Measures CPU time on one thread: whole pipelines against the commit before the compiled core, and
against loops written by hand with river; learners against torch, scikit-learn and hnswlib.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.speed.context import Context
from benchmarks.speed.page import page, write_plot
from benchmarks.speed.processes import OLD_COMMIT, ROOT, OldCommit
from benchmarks.speed.rounds import Measured
from benchmarks.speed.scenarios import SCENARIOS, measure

__all__ = ["main"]

PAGE = ROOT / "docs" / "speed.md"
PLOTS = "plots"
"""The folder of the plot, beside the page."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a side of a scenario failed."""
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    page_path = asked.markdown or (None if asked.only else PAGE)
    results: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="streamadapt-speed-") as temporary:
        old = OldCommit(Path(temporary), asked.old and asked.old.resolve())
        try:
            for name in [name for name in SCENARIOS if name in (asked.only or SCENARIOS)]:
                results.append(_measured(name, asked, old, Path(temporary)))
                _write(results, asked.json, page_path)
        finally:
            old.remove()
    _print(results)
    return 1 if any(m.failed for m in results) else 0


def _measured(name: str, asked: argparse.Namespace, old: OldCommit, temporary: Path) -> Measured:
    folder, start = temporary / name, time.monotonic()
    folder.mkdir()

    def progress(text: str) -> None:
        print(f"{name}: {text}", file=sys.stderr, flush=True)

    ctx = Context(asked.data, folder, old, progress, asked.rounds, asked.share)
    found = measure(name, ctx)
    figures = found.as_json()
    if "skipped" in figures or "error" in figures:
        progress(f"skipped: {found.problem}" if found.skipped else f"failed: {figures['error']}")
    if figures["ratio"] is not None:
        progress(f"{figures['ratio']:.3g} times {figures['rival_name']}")
    progress(f"{time.monotonic() - start:.0f} s")
    return found


def _write(results: Sequence[Measured], json_path: Path | None, page_path: Path | None) -> None:
    """Write the results after every scenario: an interrupted run keeps the finished ones."""
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        figures = {m.name: m.as_json() for m in results}
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if page_path is not None:
        page_path.parent.mkdir(parents=True, exist_ok=True)
        plot = write_plot(results, page_path.parent / PLOTS)
        text = page(results, "" if plot is None else f"{PLOTS}/{plot.name}")
        page_path.write_text(text, encoding="utf-8")


def _print(results: Sequence[Measured]) -> None:
    table = Table("scenario", "ours", "rival", "its time", "ratio", "unit")
    for m in results:
        figures = m.as_json()
        numbers = ("-" if figures[k] is None else f"{figures[k]:.4g}" for k in ("ours", "rival"))
        own, theirs = numbers
        ratio = "-" if figures["ratio"] is None else f"{figures['ratio']:.3g}"
        why = "skipped" if m.skipped else "failed"
        table.add_row(m.name, own, figures["rival_name"] or why, theirs, ratio, m.unit)
    Console().print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures here, as one JSON object"
    )
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the page here, and its plot into plots/ beside it (default: docs/speed.md of "
        "this checkout; with --only no page)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(SCENARIOS),
        metavar="ID",
        help=f"of {', '.join(SCENARIOS)}",
    )
    parser.add_argument(
        "--old",
        type=Path,
        metavar="FOLDER",
        help=f"a checkout of {OLD_COMMIT[:7]}, the rival of several scenarios (default: one is "
        f"made with git worktree, and removed in the end)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("STREAMADAPT_DATA", "../shared/data")),
        metavar="DIR",
        help="folder with ETTh1.csv, los_speed.csv and elec.csv (default: STREAMADAPT_DATA, or "
        "../shared/data)",
    )
    _add_sizes(parser)
    return parser


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=15,
        metavar="N",
        help="rounds of each side (default: %(default)s)",
    )
    parser.add_argument(
        "--share",
        type=_share,
        default=1.0,
        metavar="X",
        help="the share of the usual entries of a round and of a warm-up, for a quick look "
        "(default: %(default)s)",
    )


def _positive(text: str) -> int:
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError(f"{rounds}: a number >= 1")
    return rounds


def _share(text: str) -> float:
    share = float(text)
    if not 0.0 < share <= 1.0:
        raise argparse.ArgumentTypeError(f"{share}: a number in (0, 1]")
    return share
