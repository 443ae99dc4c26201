"""What the guard's rules learn from: one matured arrival, as losses and regrets by group."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled, inlined
from streamadapt.numbers import at_least, at_most, clip, total
from streamadapt.records import Array, Mask
from streamadapt.tasks.loss_kernels import (
    LOG,
    LossSettings,
    bounded,
    loss_of,
    scale_of,
    slope_of,
)

__all__ = [
    "LOSS_CAP",
    "REGRET_CAP",
    "SCALE_CAP",
    "SCALE_FLOOR",
    "SCALE_RATE",
    "Arrival",
    "Matured",
    "Shared",
    "Signal",
    "empty_arrival",
    "empty_signal",
    "follow_error",
    "group_losses",
    "group_regrets",
    "take_in",
]

SCALE_RATE: Final = 0.01
"""How fast the running scale of the base's error follows it, per arrival."""
SCALE_FLOOR: Final = 1e-3
"""Smallest scale, in units of the output's own scale."""
SCALE_CAP: Final = 20.0
"""The largest error that the running scale follows, in running scales: otherwise a single outlier
would make all other errors look alike for hundreds of arrivals. One outlier in twenty targets, of
whatever size, cannot make the scale grow without end: it multiplies the scale by at most 1 + .01 x
19, and each of the targets in between can multiply it by .99."""
REGRET_CAP: Final = 5.0
"""The largest linearised regret, in scales: one outlier must not decide the weights."""
LOSS_CAP: Final = 5.0
"""The same for the scaled losses of fixed share."""


class Shared(NamedTuple):
    """What the guard knows of its task.

    Attributes
    ----------
    loss : LossSettings
    floor : ndarray, (rows, columns), float64
        The smallest running error of the base.
    """

    loss: LossSettings
    floor: Array


class Matured(NamedTuple):
    """What a guard learns from.

    Attributes
    ----------
    experts : ndarray, (experts, rows, columns), float64
        The predictions of the experts as they were issued; the base is the first.
    own : ndarray, (aggregators, rows, columns), float64
        The outputs of the aggregators for the same predictions; the served one is the last.
    target : ndarray, (rows, columns), float64
        Anything, NaN too, where it is not known.
    mask : ndarray, (rows, columns), bool
        Where it is known.
    weight : float, >= 0
        A loss of weight two has twice as many scales.
    """

    experts: Array
    own: Array
    target: Array
    mask: Mask
    weight: float


class Arrival(NamedTuple):
    """Room for one matured arrival. What is judged is a cell, or a row of a loss that judges rows:
    then `judged` is 1, and else `columns`.

    Attributes
    ----------
    target : ndarray, (rows, columns)
        The base's prediction where the target is not known.
    known : ndarray, (rows, judged), bool
    scale : ndarray, (rows, judged)
        What losses are divided by.
    own, slope, cells : ndarray, (judged,)
        Of one row: the mixture, its slope of the loss, and losses or regrets.
    """

    target: Array
    known: Mask
    scale: Array
    own: Array
    slope: Array
    cells: Array


class Signal(NamedTuple):
    """Room for what a rule learns from.

    Attributes
    ----------
    values : ndarray, (experts, groups_h, groups_c)
        The mean loss or regret over the known cells of each group.
    cells : ndarray, (groups_h, groups_c)
        How many these are; a group without any has no news.
    """

    values: Array
    cells: Array


def empty_arrival(rows: int, columns: int, judged: int) -> Arrival:
    """Return room for arrivals of outputs of this shape."""
    target, known, scale = (
        np.zeros((rows, columns)),
        np.zeros((rows, judged), np.bool_),
        (rows, judged),
    )
    return Arrival(target, known, np.zeros(scale), *(np.zeros(judged) for _ in range(3)))


def empty_signal(experts: int, groups_h: int, groups_c: int) -> Signal:
    """Return room for a signal of that number of experts and groups."""
    return Signal(np.zeros((experts, groups_h, groups_c)), np.zeros((groups_h, groups_c)))


@compiled
def follow_error(error: Any, floor: Any, base: Any, target: Any, mask: Any) -> None:
    """Move the running mean of the base's absolute error in each known cell.

    It starts at the first error. All arguments are (rows, columns).
    """
    rows, columns = error.shape
    for h in range(rows):
        for j in range(columns):
            if mask[h, j]:
                now, usual = abs(base[h, j] - target[h, j]), error[h, j]
                if usual != 0.0:
                    now = usual + SCALE_RATE * (at_most(now, SCALE_CAP * usual) - usual)
                error[h, j] = at_least(now, floor[h, j])


@compiled
def take_in(c: Any, error: Any, a: Any, y: Any) -> Any:
    """Write an arrival to `a`, follow the base's error, and return whether there is anything to
    learn.

    Parameters
    ----------
    c : Shared
    error : ndarray, (rows, columns)
        The running error of the base.
    a : Arrival
    y : Matured
    """
    if y.weight == 0.0 or not _mark_known(c, a, y.mask):
        return False
    rows, columns = y.target.shape
    for h in range(rows):
        for j in range(columns):
            a.target[h, j] = y.target[h, j] if y.mask[h, j] else y.experts[0, h, j]
    follow_error(error, c.floor, y.experts[0], a.target, y.mask)
    for h in range(rows):
        for j in range(a.scale.shape[1]):
            usual = error[h, j] if error[h, j] > 0.0 else c.floor[h, j]
            a.scale[h, j] = scale_of(c.loss, usual) / y.weight
    return True


@compiled
def _mark_known(c: Any, a: Any, mask: Any) -> Any:
    """Write what can be judged, a row only if all its cells are known; return whether anything
    can."""
    rows, columns = mask.shape
    found = False
    for h in range(rows):
        whole = True
        for j in range(columns):
            whole = whole and mask[h, j]
            if c.loss.form != LOG:
                a.known[h, j] = mask[h, j]
                found = found or mask[h, j]
        if c.loss.form == LOG:
            a.known[h, 0] = whole
            found = found or whole
    return found


@compiled
def group_losses(loss: Any, a: Any, experts: Any, signal: Any) -> None:
    """Write ``min(l(p_k) / scale, 5)``, the mean over the known cells of each group.

    Parameters
    ----------
    loss : LossSettings
    a : Arrival
    experts : ndarray, (experts, rows, judged)
    signal : Signal
    """
    size, rows, judged = experts.shape
    target, scale, known, cells, values = a.target, a.scale, a.known, a.cells, signal.values
    _begin(known, signal)
    for h in range(rows):
        for k in range(size):
            for j in range(judged):
                scaled = loss_of(loss, experts[k, h, j], target[h, j]) / scale[h, j]
                cells[j] = _or_nothing(at_most(scaled, LOSS_CAP), known[h, j])
            _add(cells, values, k, h)
    _finish(signal)


@compiled
def group_regrets(loss: Any, a: Any, experts: Any, own: Any, signal: Any) -> None:
    """Write ``clip(-l'(own) (p_k - own) / scale, -5, 5)``, the mean over the known cells of each
    group.

    Parameters
    ----------
    loss : LossSettings
    a : Arrival
    experts : ndarray, (experts, rows, judged)
    own : ndarray, (rows, judged)
        The mixture that is charged.
    signal : Signal
    """
    size, rows, judged = experts.shape
    mine, slope, known, cells, values = a.own, a.slope, a.known, a.cells, signal.values
    _begin(known, signal)
    for h in range(rows):
        for j in range(judged):
            mine[j] = bounded(loss, own[h, j])
            slope[j] = slope_of(loss, mine[j], a.target[h, j]) / a.scale[h, j]
        for k in range(size):
            for j in range(judged):
                regret = -slope[j] * (experts[k, h, j] - mine[j])
                cells[j] = _or_nothing(clip(regret, -REGRET_CAP, REGRET_CAP), known[h, j])
            _add(cells, values, k, h)
    _finish(signal)


@inlined
def _or_nothing(value: Any, known: Any) -> Any:
    """Return the value; 0 where it is not known, or not a number: that speaks for nobody."""
    return value if known and value == value else 0.0


@compiled
def _begin(known: Any, signal: Any) -> None:
    """Count the known cells of each group, and set the sums to zero."""
    values, cells = signal.values, signal.cells
    size, groups_h, groups_c = values.shape
    rows, judged = known.shape
    for i in range(groups_h):
        for j in range(groups_c):
            cells[i, j] = 0.0
            for k in range(size):
                values[k, i, j] = 0.0
    for h in range(rows):
        for j in range(judged):
            if known[h, j]:
                cells[h if groups_h > 1 else 0, j if groups_c > 1 else 0] += 1.0


@inlined
def _add(cells: Any, values: Any, k: int, h: int) -> None:
    """Add the cells (judged,) of expert k and row h to the sums of their groups (experts,
    groups_h, groups_c)."""
    _, groups_h, groups_c = values.shape
    i = h if groups_h > 1 else 0
    if groups_c == 1:
        values[k, i, 0] += total(cells)
    else:
        for j in range(groups_c):
            values[k, i, j] += cells[j]


@compiled
def _finish(signal: Any) -> None:
    """Divide the sums of each group by its number of cells."""
    values, cells = signal.values, signal.cells
    size, groups_h, groups_c = values.shape
    for i in range(groups_h):
        for j in range(groups_c):
            count = at_least(cells[i, j], 1.0)
            for k in range(size):
                values[k, i, j] /= count
