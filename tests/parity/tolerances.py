"""How far a number may be from the recorded one: one table, by the kind of number.

Every tolerance is relative to ``max(|value|, the base's mean error)`` of its number. While the
code is the code that wrote the files, and so is the machine, all bits must be the same. Once other
code takes over, set `IN_FORCE` to `PARITY`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Tolerance(NamedTuple):
    """How far a number may be, and in which share of the predictions at least."""

    relative: float
    share: float = 1.0


Table = dict[str, Tolerance]

EXACT: Table = {
    kind: Tolerance(0.0)
    for kind in ("expert", "adcsd", "choice", "served", "served beside adcsd", "loss", "other")
}
"""The same bits."""

PARITY: Table = {
    "expert": Tolerance(1e-6),
    "adcsd": Tolerance(1e-4),
    # Neighbours, trees, coefficients that are set to zero: a last bit can choose another one.
    "choice": Tolerance(1e-6, share=0.999),
    "served": Tolerance(1e-6),
    "served beside adcsd": Tolerance(1e-5),
    "served beside choice": Tolerance(1e-6, share=0.999),
    "loss": Tolerance(1e-5),
    # Weights, intervals, probabilities of asking, estimates, scores.
    "other": Tolerance(1e-5),
}
"""Other code, or another machine: the same arithmetic in another order."""
EXACT["served beside choice"] = Tolerance(0.0)

IN_FORCE = EXACT
"""What the tests use on the machine that wrote the files; on another one they use `PARITY`."""

ADCSD = "adcsd"
CHOICES = ("error-memory", "river-Hoeffding", "river-ARF", "dictionary")
"""The first letters of the names of experts with discrete choices."""


def kind_of(column: str, experts: Sequence[str]) -> str:
    """Return the row of the table for a column of `parity.recording.Record.arrays`."""
    if column.startswith("expert:"):
        name = column.removeprefix("expert:")
        return ADCSD if name.startswith(ADCSD) else _choice(name) or "expert"
    if column == "served":
        if any(name.startswith(ADCSD) for name in experts):
            return "served beside adcsd"
        return "served beside choice" if any(map(_choice, experts)) else "served"
    return "loss" if column == "loss_sum" else "other"


def _choice(name: str) -> str:
    return "choice" if name.startswith(CHOICES) else ""
