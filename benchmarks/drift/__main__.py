"""Quality of drift detection: ``python -m benchmarks.drift --json FILE``.

Delay, missed changes, false alarms and cost of every detector on streams with known changes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.drift.channels import families
from benchmarks.drift.compare import SEEDS, Compared, compare, made
from benchmarks.drift.measured import sureness
from benchmarks.drift.page import PROTOCOL, page
from benchmarks.drift.plot import write_plot

__all__ = ["main"]

CHANNELS = "channels"
PLOT = "plots/drift.png"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    names = list(dict.fromkeys(name for name, _, _ in made()))
    asked = _parser(names).parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [one for one in made(asked.seeds) if not asked.only or one[0] in asked.only]
    compared = compare(chosen, _say)
    many = families(progress=_say) if not asked.only or CHANNELS in asked.only else []
    sure = sureness() if any(name == "glucose" for name, _, _ in chosen) else None
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {
            "protocol": PROTOCOL,
            **compared.as_json(),
            "sensor": None if sure is None else sure._asdict(),
            CHANNELS: [family.as_json() for family in many],
        }
        asked.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if asked.markdown is not None:
        asked.markdown.parent.mkdir(parents=True, exist_ok=True)
        write_plot(compared, asked.markdown.parent / PLOT)
        asked.markdown.write_text(page(compared, many, sure), encoding="utf-8")
    for group in compared.groups():
        Console().print(_table(compared, group))
    return 0


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures here, as one JSON object"
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the page here, its plot beside it"
    )
    parser.add_argument("--only", nargs="+", choices=[*names, CHANNELS], metavar="NAME",
                        help=f"streams, of {', '.join(names)}; or {CHANNELS}")  # fmt: skip
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=SEEDS, metavar="N", help="default: 0 1 2"
    )
    return parser


def _table(compared: Compared, group: str) -> Table:
    table = Table(
        "detector:signal",
        "detected",
        "by chance",
        "delay",
        "false per 10,000",
        "repeats",
        title=group,
    )
    for row in compared.rows(group):
        tally = compared.total(row, group)
        delay = "" if tally.delay is None else f"{tally.delay:.0f}"
        cells = [
            f"{tally.detected}/{tally.count}",
            f"{tally.chance:.1f}",
            delay,
            f"{tally.false_rate or 0.0:.1f}",
        ]
        table.add_row(":".join(row), *cells, str(tally.repeats))
    return table


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
