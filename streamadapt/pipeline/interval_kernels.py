"""Prediction intervals as functions on arrays by key: `issue` for a prediction, `learn` for a
matured one.

All arrays of cells are (rows, columns), float64.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.numbers import at_least, at_most
from streamadapt.records import Array

__all__ = [
    "DELAY_RATE",
    "DELAY_SPAN",
    "ERROR_CAP",
    "FLOOR",
    "KEPT_ROWS",
    "SCALE_RATE",
    "IntervalSettings",
    "IntervalState",
    "empty_intervals",
    "issue",
    "learn",
]

SCALE_RATE: Final = 0.01
"""The rate per error of the running mean of the served error; the first 1 / SCALE_RATE errors have
equal weights."""
ERROR_CAP: Final = 10.0
"""The running mean clips errors at this many running means: one outlier must not widen the next
hundred intervals."""
FLOOR: Final = 1e-9
"""The smallest running mean, in the unit of the target, so that exact predictions have an
interval, too."""
DELAY_SPAN: Final = 30.0
"""The number of outstanding errors that halves the step; see `Intervals`."""
DELAY_RATE: Final = 0.001
"""The rate of the running mean of the number of outstanding errors; it is small, because a varying
step would bias the coverage."""
KEPT_ROWS: Final = 3
"""What is kept of an interval until its target is known: the served prediction, the half-width,
and the number of known errors at the time of the prediction."""


class IntervalSettings(NamedTuple):
    """`allowed` is the allowed share of misses, `rate` the step of the quantile."""

    allowed: float
    rate: float


class IntervalState(NamedTuple):
    """Of each cell, (keys, rows, columns).

    Attributes
    ----------
    quantile : ndarray
        The half-width, in running means of the error.
    scale : ndarray
        The running mean of the absolute error, original units.
    seen : ndarray
        The number of known errors.
    delay : ndarray
        The mean number of outstanding errors.
    """

    quantile: Array
    scale: Array
    seen: Array
    delay: Array


def empty_intervals(keys: int, cells: tuple[int, ...], first: float) -> IntervalState:
    """Return the state of (rows, columns) before the first error; `first` is the first
    quantile."""
    shape = keys, *cells
    return IntervalState(np.full(shape, first), np.zeros(shape), np.zeros(shape), np.zeros(shape))


@compiled
def issue(p: Any, s: Any, key: int, served: Any, kept: Any) -> None:
    """Write what is kept of an interval, (3, rows, columns); half-widths are NaN before the first
    error."""
    rows, columns = served.shape
    for h in range(rows):
        for j in range(columns):
            kept[0, h, j], kept[2, h, j] = served[h, j], s.seen[key, h, j]
            kept[1, h, j] = np.nan
            if s.seen[key, h, j] > 0.0:
                kept[1, h, j] = at_least(s.quantile[key, h, j], 0.0) * s.scale[key, h, j]


@compiled
def learn(p: Any, s: Any, key: int, kept: Any, target: Any, known: Any, weight: float,
          counts: Any) -> None:  # fmt: skip
    """Compare the known targets with their intervals.

    Parameters
    ----------
    kept : ndarray, (3, rows, columns)
        What `issue` wrote; NaN where a prediction was issued without an interval.
    target : ndarray, (rows, columns)
    known : ndarray, (rows, columns), bool
    weight : float
        Nothing is learned with weight 0.
    counts : ndarray, (keys, 2), int64
        Cells that had an interval, and how many of their targets were inside; added to.
    """
    if weight == 0.0:
        return
    rows, columns = target.shape
    for h in range(rows):
        for j in range(columns):
            half, then = kept[1, h, j], kept[2, h, j]
            if known[h, j] and then == then:
                error = abs(target[h, j] - kept[0, h, j])
                follow_delay(s, key, h, j, then)
                if half == half:
                    move(p, s, key, h, j, error > half)
                    counts[key, 0] += 1
                    counts[key, 1] += 0 if error > half else 1
                follow_error(s, key, h, j, error)


@compiled
def follow_delay(s: Any, key: int, h: int, j: int, then: Any) -> None:
    """Move the mean number of errors that became known between prediction and target."""
    seen, delay = s.seen[key, h, j], s.delay[key, h, j]
    s.delay[key, h, j] = delay + at_least(1.0 / (seen + 1.0), DELAY_RATE) * (seen - then - delay)


@compiled
def move(p: Any, s: Any, key: int, h: int, j: int, missed: Any) -> None:
    """Move the quantile: ``q <- q + g (missed - a),  g = rate / (1 + n / 30)``."""
    step = p.rate / (1.0 + s.delay[key, h, j] / DELAY_SPAN)
    s.quantile[key, h, j] += step * ((1.0 if missed else 0.0) - p.allowed)


@compiled
def follow_error(s: Any, key: int, h: int, j: int, error: Any) -> None:
    """Move the mean of the served error."""
    s.seen[key, h, j] += 1.0
    scale = s.scale[key, h, j]
    capped = at_most(error, ERROR_CAP * scale) if scale > 0.0 else error
    rate = at_least(1.0 / s.seen[key, h, j], SCALE_RATE)
    s.scale[key, h, j] = at_least(scale + rate * (capped - scale), FLOOR)
