"""The signals of one matured arrival, as functions on arrays by key; `streamadapt.drift.signals`
explains them.

What is judged is a cell, or a row of a loss that judges rows: `judged` is the columns, or 1.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.numbers import at_most, first_largest, sum_like_numpy
from streamadapt.records import Array
from streamadapt.tasks.loss_kernels import LOG, LossSettings, length_of, loss_of, scale_of

__all__ = [
    "ERROR",
    "FARTHEST",
    "LOSS",
    "REFERENCE",
    "RESIDUAL",
    "WARM",
    "SignalRoom",
    "SignalSettings",
    "Signals",
    "UsualState",
    "empty_signals",
    "empty_usual",
    "signal_room",
    "signals",
]

REFERENCE: Final = 500
"""The number of first entries that define the usual embedding, and the usual losses."""
FARTHEST: Final = 20.0
"""An error is clipped at this many mean errors before it enters the mean, because the mean is kept
forever."""
WARM: Final = 20
"""The number of losses of a cell after which its usual loss is known."""
LOSS: Final = 0
ERROR: Final = 1
RESIDUAL: Final = 2
"""The places of the signals in `Signals.means`."""


class SignalSettings(NamedTuple):
    """The task's loss, and whether it is a classification."""

    loss: LossSettings
    classify: bool


class UsualState(NamedTuple):
    """The base's usual error in each cell, (keys, rows, columns).

    Attributes
    ----------
    count : ndarray, int64
        How many errors it is the mean of.
    mean : ndarray
        Original units.
    """

    count: Any
    mean: Array


class SignalRoom(NamedTuple):
    """Room for one arrival.

    Attributes
    ----------
    losses, scales, residuals : ndarray, (rows * judged,)
        0, 1 and 0 where nothing is judged.
    known : ndarray, (rows * judged,), bool
        What is judged.
    picked : ndarray, (rows * judged,)
    """

    losses: Array
    scales: Array
    residuals: Array
    known: Any
    picked: Array


class Signals(NamedTuple):
    """What detectors receive of one arrival; NaN where there is nothing.

    Attributes
    ----------
    means : ndarray, (3,)
        ``loss``, ``error`` and ``residual``.
    losses, residuals : ndarray, (judged,)
        By column.
    """

    means: Array
    losses: Array
    residuals: Array


def empty_usual(keys: int, rows: int, columns: int) -> UsualState:
    """Return the state before the first arrival."""
    shape = keys, rows, columns
    return UsualState(np.zeros(shape, np.int64), np.zeros(shape))


def empty_signals(judged: int) -> Signals:
    """Return room for the signals of one arrival."""
    return Signals(np.zeros(3), np.zeros(judged), np.zeros(judged))


def signal_room(rows: int, judged: int) -> SignalRoom:
    """Return room to work in."""
    n = rows * judged
    return SignalRoom(np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n, np.bool_), np.zeros(n))


@compiled
def signals(p: Any, s: Any, key: int, w: Any, base: Any, target: Any, mask: Any,
            out: Any) -> None:  # fmt: skip
    """Write the signals of one matured arrival, and follow the base's usual error.

    Parameters
    ----------
    base, target : ndarray, (rows, columns)
    mask : ndarray, (rows, columns), bool
        Where the target is known.
    out : Signals
    """
    if p.loss.form == LOG:
        judge_rows(p.loss, w, base, target, mask)
    else:
        judge_cells(p.loss, s, key, w, base, target, mask)
    follow(s, key, base, target, mask)
    relative = ratio(w)
    out.means[LOSS] = relative
    out.means[ERROR] = zero_one(p, base, target, relative)
    judged = out.losses.shape[0]
    for j in range(judged):
        out.losses[j] = column_mean(w, w.losses, j, judged) / column_mean(w, w.scales, j, judged)
        out.residuals[j] = column_mean(w, w.residuals, j, judged)
    out.means[RESIDUAL] = known_mean(w, out.residuals)


@compiled
def usual_of(s: Any, key: int, h: int, j: int) -> Any:
    """Return the usual error of a cell; NaN before it is known."""
    warm = s.count[key, h, j] >= WARM and s.mean[key, h, j] > 0.0
    return s.mean[key, h, j] if warm else np.nan


@compiled
def judge_cells(loss: Any, s: Any, key: int, w: Any, base: Any, target: Any, mask: Any) -> None:
    """Write losses, scales and residuals of the cells whose usual error is known."""
    rows, columns = mask.shape
    for h in range(rows):
        for j in range(columns):
            usual, i = usual_of(s, key, h, j), h * columns + j
            w.known[i] = mask[h, j] and usual == usual
            w.losses[i], w.scales[i], w.residuals[i] = 0.0, 1.0, 0.0
            if w.known[i]:
                w.scales[i] = scale_of(loss, usual)
                w.losses[i] = loss_of(loss, base[h, j], target[h, j])
                w.residuals[i] = (target[h, j] - base[h, j]) / length_of(loss, w.scales[i])


@compiled
def judge_rows(loss: Any, w: Any, base: Any, target: Any, mask: Any) -> None:
    """Write losses and residuals of rows of classes."""
    rows, columns = mask.shape
    for h in range(rows):
        truth, whole = 0.0, True
        for j in range(columns):
            truth += base[h, j] * target[h, j]
            whole = whole and mask[h, j]
        w.known[h] = whole
        w.scales[h] = 1.0
        w.losses[h] = loss_of(loss, truth, 1.0) if whole else 0.0
        w.residuals[h] = 1.0 - truth if whole else 0.0


@compiled
def follow(s: Any, key: int, base: Any, target: Any, mask: Any) -> None:
    """Update the usual errors: means of the first `REFERENCE` errors of each cell."""
    rows, columns = mask.shape
    for h in range(rows):
        for j in range(columns):
            if mask[h, j] and s.count[key, h, j] < REFERENCE:
                error, usual = abs(target[h, j] - base[h, j]), usual_of(s, key, h, j)
                if usual == usual:
                    error = at_most(error, FARTHEST * usual)
                s.count[key, h, j] += 1
                s.mean[key, h, j] += (error - s.mean[key, h, j]) / s.count[key, h, j]


@compiled
def ratio(w: Any) -> Any:
    """Return the sum of the losses over the sum of their scales; NaN if nothing is judged."""
    n = 0
    for i in range(w.known.shape[0]):
        if w.known[i]:
            w.picked[n] = w.scales[i]
            n += 1
    return sum_like_numpy(w.losses) / sum_like_numpy(w.picked[:n]) if n > 0 else np.nan


@compiled
def zero_one(p: Any, base: Any, target: Any, relative: Any) -> Any:
    """Return 1 if the base was wrong, 0 if it was right, NaN if nothing is judged."""
    if math.isnan(relative):
        return np.nan
    if not p.classify:
        return 1.0 if relative > 1.0 else 0.0
    for h in range(base.shape[0]):
        if first_largest(base[h]) != first_largest(target[h]):
            return 1.0
    return 0.0


@compiled
def column_mean(w: Any, values: Any, j: int, judged: int) -> Any:
    """Return the mean over the known rows of column j of (rows * judged,), in numpy's order; NaN
    if there are none."""
    n, total = 0, 0.0
    for i in range(j, values.shape[0], judged):
        n += 1 if w.known[i] else 0
        w.picked[i] = values[i] if w.known[i] else 0.0
        total += w.picked[i]
    if n == 0:
        return np.nan
    return (sum_like_numpy(w.picked) if judged == 1 else total) / n


@compiled
def known_mean(w: Any, values: Any) -> Any:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    n = 0
    for j in range(values.shape[0]):
        if not math.isnan(values[j]):
            w.picked[n] = values[j]
            n += 1
    return sum_like_numpy(w.picked[:n]) / n if n > 0 else np.nan
