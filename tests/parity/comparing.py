"""The differences between what was recorded and what was found, one line each.

Also a command, for one or more cases: ``PYTHONPATH=tests python -m parity.comparing NAME ...``.
With ``--fresh`` the pipeline starts from nothing instead of from the checkpoint: so other code can
be compared before it can read these checkpoints.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity import tolerances
from parity.all_cases import CASES
from parity.case import Case
from parity.files import FOLDER, load, unpack
from parity.recording import Arrays, Record, base_error, record
from parity.streams import digest
from parity.tolerances import Table, Tolerance, kind_of


def differences(wanted: Record, found: Record, table: Table) -> list[str]:
    """Return what differs by more than the table allows; nothing if all is well."""
    names = wanted.facts["names"]
    lines = [
        f"{name}: {found.facts.get(name)!r:.300} instead of {value!r:.300}"
        for name, value in wanted.facts.items()
        if found.facts.get(name) != value
    ]
    if set(wanted.arrays) != set(found.arrays):
        lines.append(f"columns: {sorted(found.arrays)} instead of {sorted(wanted.arrays)}")
        return lines
    unit = base_error(wanted)
    for column in wanted.arrays:
        line = _difference(
            wanted.arrays, found.arrays, column, unit, table[kind_of(column, names)]
        )
        if line:
            lines.append(f"{column} ({kind_of(column, names)}): {line}")
    return lines


def _difference(
    wanted: Arrays, found: Arrays, column: str, unit: float, tolerance: Tolerance
) -> str:
    one, two = wanted[column], found[column]
    if one.shape != two.shape:
        return f"{two.shape} instead of {one.shape}"
    far = farness(one, two, unit).reshape(len(one), -1).max(axis=1, initial=0.0)
    beyond = np.flatnonzero(~(far <= tolerance.relative))
    if len(beyond) <= math.ceil((1.0 - tolerance.share) * len(far) - 1e-9):
        return ""
    first = int(beyond[0])
    return (
        f"{len(beyond)} of {len(far)} differ by more than {tolerance.relative:g}, by up to "
        f"{far.max():.3g}; the first at {first}: {two[first].ravel()[:4]} instead of "
        f"{one[first].ravel()[:4]}"
    )


def farness(one: Any, two: Any, unit: float) -> Any:
    """Return the distances, relative to max(|value|, unit); infinite where one alone is NaN."""
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    with np.errstate(invalid="ignore", divide="ignore"):
        far = np.abs(one - two) / np.maximum(np.abs(one), unit)
    return np.where(same, 0.0, np.where(np.isfinite(far), far, np.inf))


def replayed(case: Case, folder: Path) -> tuple[Record, Record]:
    """Return what was recorded, and what the present code predicts from the checkpoint."""
    wanted = unpack(FOLDER / f"{case.name}.zip", folder)
    before, after = case.parts()
    _check_stream(wanted, [*before, *after])
    return wanted, record(load(case, folder), after)


def replayed_from_nothing(case: Case, folder: Path) -> tuple[Record, Record]:
    """The same without the checkpoint: the present code learns the entries before it, too."""
    wanted = unpack(FOLDER / f"{case.name}.zip", folder / "recorded")
    before, after = case.parts()
    _check_stream(wanted, [*before, *after])
    pipeline = case.make(folder)
    pipeline.on_rejected = lambda item, error: None
    pipeline.observe(before)
    return wanted, record(pipeline, after)


def _check_stream(wanted: Record, items: Any) -> None:
    stream = wanted.facts.pop("stream")
    assert stream == digest(items), "the stream differs from the recorded one"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m parity.comparing", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all cases")
    parser.add_argument("--fresh", action="store_true", help="start from nothing")
    parser.add_argument("--table", choices=["exact", "parity"], default="parity")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    table = tolerances.EXACT if asked.table == "exact" else tolerances.PARITY
    worst = 0
    for name in asked.names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            replay = replayed_from_nothing if asked.fresh else replayed
            lines = differences(*replay(CASES[name], Path(folder)), table)
        print(name, "differs" if lines else "is the same", *lines, sep="\n  ", flush=True)
        worst |= bool(lines)
    return worst


if __name__ == "__main__":
    sys.exit(main())
