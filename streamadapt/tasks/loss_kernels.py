"""The losses of `streamadapt.tasks.losses` in kernels, a cell at a time.

A loss that judges rows has one cell a row: the probability of the true class.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from streamadapt.compiled import compiled
from streamadapt.tasks.losses import Log, Loss, Pinball

__all__ = [
    "ABSOLUTE",
    "LOG",
    "PINBALL",
    "SQUARED",
    "LossSettings",
    "bounded",
    "length_of",
    "loss_of",
    "loss_settings",
    "probabilities_of_truth",
    "scale_of",
    "slope_of",
]

ABSOLUTE: Final = 0
SQUARED: Final = 1
PINBALL: Final = 2
LOG: Final = 3
LEAST: Final = Log.floor
"""Smaller probabilities count as this one."""
_FORMS: Final = {"absolute": ABSOLUTE, "squared": SQUARED, "pinball": PINBALL, "log": LOG}


class LossSettings(NamedTuple):
    """`form` is one of the constants of this module; `quantile` is of the pinball loss."""

    form: int
    quantile: float


def loss_settings(loss: Loss) -> LossSettings:
    """Return what kernels must know of a loss."""
    return LossSettings(_FORMS[loss.name], loss.quantile if isinstance(loss, Pinball) else 0.5)


@compiled
def bounded(c: Any, p: Any) -> Any:
    """Return the prediction that is judged: a probability is at least `LEAST`."""
    return LEAST if c.form == LOG and p < LEAST else p


@compiled
def loss_of(c: Any, p: Any, y: Any) -> Any:
    """Return ``l(p)``, given the target y."""
    if c.form == LOG:
        return -math.log(bounded(c, p))
    if c.form == SQUARED:
        return (p - y) * (p - y)
    if c.form == PINBALL:
        return max(c.quantile * (y - p), (c.quantile - 1.0) * (y - p))
    return abs(p - y)


@compiled
def slope_of(c: Any, p: Any, y: Any) -> Any:
    """Return ``l'(p)``; 0 where p is the target, for losses that have a corner there."""
    if c.form == LOG:
        return -1.0 / bounded(c, p)
    if c.form == SQUARED:
        return 2.0 * (p - y)
    if p == y:
        return 0.0
    if c.form == PINBALL:
        return 1.0 - c.quantile if p > y else -c.quantile
    return 1.0 if p > y else -1.0


@compiled
def scale_of(c: Any, error: Any) -> Any:
    """Return what losses are divided by, given the base's mean absolute error."""
    if c.form == LOG:
        return 1.0
    return error * error if c.form == SQUARED else error


@compiled
def length_of(c: Any, scale: Any) -> Any:
    """Convert a scale of losses to the unit of the predictions."""
    return math.sqrt(scale) if c.form == SQUARED else scale


@compiled
def probabilities_of_truth(predictions: Any, target: Any, out: Any) -> None:
    """Write the probability of the true class, ``p . y``, of each row.

    Parameters
    ----------
    predictions : ndarray, (any number, rows, columns)
    target : ndarray, (rows, columns)
    out : ndarray, (any number, rows, 1)
    """
    size, rows, columns = predictions.shape
    for k in range(size):
        for h in range(rows):
            total = 0.0
            for j in range(columns):
                total += predictions[k, h, j] * target[h, j]
            out[k, h, 0] = total
