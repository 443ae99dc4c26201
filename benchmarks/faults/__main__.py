"""Faults that the engine survives: ``python -m benchmarks.faults --json FILE``.

Every kind of fault is caused on purpose, again and again, and the output seen by a reader is
compared with an undisturbed run. All traffic stays on this machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.faults.counts import Counts

__all__ = ["KINDS", "main"]

KINDS = {
    "kill": "kills",
    "kill-effectively-once": "kills",
    "kill-exactly-once": "kills",
    "rebalance": "rebalances",
    "broker": "brokers",
    "cluster": "clusters",
    "zombie": "zombies",
    "disk": "disks",
    "checkpoint": "damage",
    "bad-records": "bad_records",
    "soak": "soak",
}
"""Each kind's module in this folder; its function is the kind's name, with underscores."""

APPENDED = {"cluster", "zombie"}
"""Kinds that append each trial to a file, and run only the trials missing in it."""

Measure = Callable[..., Counts]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if every trial survived."""
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, Counts] = {}
    for kind in asked.only or KINDS:
        start = time.monotonic()
        print(f"{kind} ...", file=sys.stderr, flush=True)
        found[kind] = measure(kind)(asked.quick, *([asked.trials] if kind in APPENDED else []))
        found[kind].more.setdefault("broker", "none")
        print(f"{kind}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        if asked.json is not None:  # each time: if a later kind fails, earlier results stay
            asked.json.parent.mkdir(parents=True, exist_ok=True)
            figures = {kind: counts.as_json() for kind, counts in found.items()}
            asked.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    console = Console()
    console.print(_table(found))
    for kind, counts in found.items():
        if "rows" in counts.more:
            console.print(_rows(kind, counts.more["rows"]))
    return 0 if all(counts.survived == counts.tried for counts in found.values()) else 1


def measure(kind: str) -> Measure:
    """Return the function of a kind: its arguments are whether to be quick, and for those of
    `APPENDED` the folder of the file."""
    module = importlib.import_module(f"benchmarks.faults.{KINDS[kind]}")
    found: Measure = getattr(module, kind.replace("-", "_"))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures here, as one JSON object"
    )
    parser.add_argument(
        "--only", nargs="+", choices=[*KINDS], metavar="KIND", help=f"of {', '.join(KINDS)}"
    )
    parser.add_argument(
        "--trials",
        type=Path,
        metavar="FOLDER",
        default=Path("build"),
        help=f"where {' and '.join(sorted(APPENDED))} append their trials (default: build); a "
        f"later run goes on there",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few trials of each: minutes instead of an hour or two",
    )
    return parser


def _table(found: dict[str, Counts]) -> Table:
    table = Table("fault", "tried", "survived", "lost", "doubled", "state differs", "more")
    for kind, counts in found.items():
        five = [counts.tried, counts.survived, counts.lost, counts.doubled, counts.state_differs]
        more = (f"{name} {value}" for name, value in counts.more.items() if name != "rows")
        table.add_row(kind, *map(str, five), ", ".join(more))
    return table


def _rows(kind: str, rows: Sequence[dict[str, object]]) -> Table:
    """Return the table of a kind: a row for each fault and setting."""
    table = Table(*(name.replace("_", " ") for name in (rows[0] if rows else ())), title=kind)
    for row in rows:
        table.add_row(*map(str, row.values()))
    return table


if __name__ == "__main__":
    # An orderly end, so that the started brokers and processes end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
