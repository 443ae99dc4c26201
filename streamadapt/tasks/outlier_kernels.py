"""Outliers among labels, as functions on arrays by key; `LabelOutliers` explains them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.numbers import at_least, at_most
from streamadapt.records import Array

__all__ = [
    "CLIP",
    "FIRST",
    "OutlierRoom",
    "OutlierSettings",
    "OutlierState",
    "empty_outliers",
    "judge",
    "outlier_room",
]

FIRST: Final = 10
"""The usual sizes start at the medians of this number of labels."""
BELIEVED: Final = 2
"""Before this number of labels, a label is compared with the base's output: nothing else is known
yet."""
YOUNG_LIMIT: Final = 35.0
"""The limit for the first labels, unless the configured limit is lower, if the base has a scale of
its outputs: little has been learned yet."""
LEVELS: Final = 100.0
"""The largest error of a first label, in multiples of the base's output, if the base has no scale
of its outputs."""
RATE: Final = 0.01
"""How fast the usual sizes follow the labels, per label."""
CLIP: Final = 10.0
"""A larger distance counts as this many usual sizes when the usual sizes are updated."""
IN_A_ROW: Final = 5
"""This many outliers in a row are no mistake, but a change of the stream."""


class OutlierSettings(NamedTuple):
    """`limit` is in usual sizes; `unit`, (outputs,), is the base's scale of the outputs, if
    `scaled`."""

    limit: float
    unit: Array
    scaled: bool


class OutlierState(NamedTuple):
    """Of each output, (keys, outputs, ...).

    Attributes
    ----------
    labels, errors : ndarray, (keys, outputs, FIRST)
        The first labels.
    known : ndarray, (keys, outputs), int64
        How many of them there are.
    usual : ndarray, (keys, outputs, 3)
        The centre of the labels, their distance from it, and the base's error.
    run : ndarray, (keys, outputs), int64
        Outliers in a row.
    changed : ndarray, (keys, outputs), bool
        Whether the first labels started again after a change.
    """

    labels: Array
    errors: Array
    known: Any
    usual: Array
    run: Any
    changed: Any


class OutlierRoom(NamedTuple):
    """Room to sort in, (FIRST,)."""

    sorted: Array


def empty_outliers(keys: int, outputs: int) -> OutlierState:
    """Return the state before the first label."""
    each = keys, outputs
    return OutlierState(
        np.zeros((*each, FIRST)),
        np.zeros((*each, FIRST)),
        np.zeros(each, np.int64),
        np.zeros((*each, 3)),
        np.zeros(each, np.int64),
        np.zeros(each, np.bool_),
    )


def outlier_room() -> OutlierRoom:
    """Return room to work in."""
    return OutlierRoom(np.zeros(FIRST))


@compiled
def judge(p: Any, s: Any, key: int, w: Any, labels: Any, errors: Any, levels: Any,
          outliers: Any) -> Any:  # fmt: skip
    """Write which outputs of a label are outliers, and learn from the others; return whether any
    is.

    Parameters
    ----------
    labels, errors, levels : ndarray, (outputs,)
        The label, its distance from the base's output, and the size of that output. NaN errors
        are passed over.
    outliers : ndarray, (outputs,), bool
    """
    found = False
    for i in range(labels.shape[0]):
        outliers[i] = False
        if p.limit < np.inf and errors[i] == errors[i]:
            outliers[i] = is_outlier(p, s, key, i, errors[i], levels[i])
            if not outliers[i]:
                learn(s, key, i, w, labels[i], errors[i])
        found = found or outliers[i]
    return found


@compiled
def is_outlier(p: Any, s: Any, key: int, i: int, error: Any, level: Any) -> Any:
    """Judge a label of output i; after `IN_A_ROW` outliers, accept the last one and start
    again."""
    largest = largest_error(p, s, key, i, level)
    if error > largest and largest > 0.0:
        s.run[key, i] += 1
        if s.run[key, i] < IN_A_ROW:
            return True
        s.known[key, i] = 0
        s.changed[key, i] = True
    s.run[key, i] = 0
    return False


@compiled
def largest_error(p: Any, s: Any, key: int, i: int, level: Any) -> Any:
    """Return the largest accepted distance of a label from the base; 0 if nothing limits it."""
    known = s.known[key, i]
    usual = at_least(s.usual[key, i, 1], s.usual[key, i, 2])
    if s.changed[key, i] or known == FIRST or (known >= BELIEVED and not p.scaled):
        return p.limit * usual if known >= BELIEVED else 0.0
    if not p.scaled:
        return LEVELS * level
    return at_most(p.limit, YOUNG_LIMIT) * at_least(usual, p.unit[i])


@compiled
def learn(s: Any, key: int, i: int, w: Any, label: Any, error: Any) -> None:
    """Update the usual sizes of output i with an accepted label."""
    usual, known = s.usual[key, i], s.known[key, i]
    if known < FIRST:
        s.labels[key, i, known], s.errors[key, i, known] = label, error
        s.known[key, i] = known + 1
        start(usual, s.labels[key, i], s.errors[key, i], known + 1, w.sorted)
        return
    middle, distance, scale = usual[0], usual[1], usual[2]
    away = clipped(abs(label - middle), distance)
    usual[0] = middle + RATE * (away if label > middle else -away)
    usual[1] = distance + RATE * (away - distance)
    usual[2] = scale + RATE * (clipped(error, scale) - scale)


@compiled
def start(usual: Any, labels: Any, errors: Any, n: int, room: Any) -> None:
    """Set the usual sizes to the medians of the first n labels."""
    for k in range(n):
        room[k] = labels[k]
    middle = median(room, n)
    for k in range(n):
        room[k] = abs(labels[k] - middle)
    usual[0], usual[1] = middle, median(room, n)
    for k in range(n):
        room[k] = errors[k]
    usual[2] = median(room, n)


@compiled
def median(x: Any, n: int) -> Any:
    """Sort the first n numbers, by insertion, and return their median."""
    for i in range(1, n):
        number, k = x[i], i
        while k > 0 and x[k - 1] > number:
            x[k] = x[k - 1]
            k -= 1
        x[k] = number
    half = n // 2
    return x[half] if n % 2 == 1 else (x[half - 1] + x[half]) / 2.0


@compiled
def clipped(size: Any, usual: Any) -> Any:
    """Return a size, at most `CLIP` usual sizes."""
    return at_most(size, CLIP * usual) if usual > 0.0 else size
