"""How far a number may be from the recorded one: one table, by the kind of number.

Every tolerance is relative to ``max(|value|, the base's mean error)`` of its number. The code that
wrote the files gave `EXACT` (``python -m parity.comparing --table exact``).
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

GAIN_WAS_FLOAT32: Table = PARITY | {"loss": Tolerance(0.05), "other": Tolerance(1.0)}
"""For outputs near 1e7 and 1e8: the gain that wrote the files was a float32, so its predictions
were rounded to about 1 and 6, and its losses and weights depend on that."""
FAR_CASES = ("forecast-far", "one-far", "one-far-early")
EXACT["served beside choice"] = Tolerance(0.0)

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


def table_for(case: str) -> Table:
    """Return the table for a case."""
    return GAIN_WAS_FLOAT32 if case in FAR_CASES else PARITY
