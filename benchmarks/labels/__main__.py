"""The cost of few, bad, late and missing labels: ``python -m benchmarks.labels --json FILE``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.labels.page import page
from benchmarks.labels.streams import elec2_stream, glucose_stream
from benchmarks.labels.tables import PROTOCOL, budgets, conversions, robustness

__all__ = ["main", "measure"]


def measure(folder: Path, rows: int, clicks: int) -> dict[str, Any]:
    """Run all measurements."""
    figures: dict[str, Any] = {
        "budgets": [],
        "robustness": [],
        "estimates": [],
        "entries": {},
        "protocol": PROTOCOL,
    }
    for stream in (elec2_stream(folder, rows), glucose_stream(rows)):
        figures["entries"][stream.name] = len(stream.entries)
        figures["budgets"] += budgets(stream, _say)
        judged, estimated = robustness(stream, _say)
        figures["robustness"] += judged
        figures["estimates"] += estimated
    figures["entries"]["conversions"] = clicks
    figures["conversions"] = conversions(clicks, _say)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labels", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--rows", type=int, default=8_000, metavar="N",
                        help="entries of each stream (default: %(default)s)")  # fmt: skip
    parser.add_argument("--clicks", type=int, default=6_000, metavar="N",
                        help="entries of the conversions (default: %(default)s)")  # fmt: skip
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR",
                        help="folder with elec.csv (default: %(default)s)")  # fmt: skip
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        figures = measure(asked.data, asked.rows, asked.clicks)
    except FileNotFoundError as exc:
        _say(f"no file {exc.filename}; give the folder that holds it with --data")
        return 2
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    text = page(figures)
    if asked.markdown is not None:
        asked.markdown.write_text(text, encoding="utf-8")
    print(text)
    return 0


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
