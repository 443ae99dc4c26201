"""ADWIN (Bifet & Gavalda 2007) as functions on arrays by key, equal to river's to the bit.

A window of values is kept as buckets of 1, 2, 4, ... values, up to `max_buckets` of each size, by
their totals and variances. Every `clock` values, each place where the window can be cut between
two buckets is tested: if the means of both parts differ by more than chance explains, with
probability `delta`, the oldest bucket goes, and this is a drift. The first value after a drift
starts a new window, as in river.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.errors import CheckpointError
from streamadapt.records import Array

__all__ = [
    "LEVELS",
    "AdwinSettings",
    "AdwinState",
    "adwin_settings",
    "empty_adwin",
    "load_adwin",
    "of_river",
    "save_adwin",
    "update",
]

LEVELS: Final = 32
"""Sizes of buckets: up to 2**31 values each. A full window loses its oldest bucket."""


class AdwinSettings(NamedTuple):
    """The arguments of river's class."""

    delta: float
    clock: int
    max_buckets: int
    min_window_length: float
    grace_period: float


class AdwinState(NamedTuple):
    """Windows, by key.

    Attributes
    ----------
    totals, variances : ndarray, (keys, LEVELS, max_buckets + 1)
        Of each bucket, the oldest first; level i has buckets of 2**i values. A variance is the sum
        of squared distances from the mean.
    counts : ndarray, (keys, LEVELS), int64
        Buckets of each level.
    levels : ndarray, (keys,), int64
        Levels in use.
    width, total, variance : ndarray, (keys,)
        Of the whole window: its number of values, their sum, and the sum of their squared
        distances from the mean.
    tick, detections : ndarray, (keys,), int64
        Values and drifts since the window started.
    detected : ndarray, (keys,), bool
        Whether the newest value was a drift.
    """

    totals: Array
    variances: Array
    counts: Any
    levels: Any
    width: Array
    total: Array
    variance: Array
    tick: Any
    detections: Any
    detected: Any


def adwin_settings(
    delta: float = 0.002,
    clock: int = 32,
    max_buckets: int = 5,
    min_window_length: int = 5,
    grace_period: int = 10,
) -> AdwinSettings:
    """Return settings, checked.

    Raises
    ------
    TypeError
        With what was expected.
    """
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not delta > 0.0:
        raise TypeError(f"delta: a number > 0, got {delta!r}")
    for name, value, least in (
        ("clock", clock, 1),
        ("max_buckets", max_buckets, 1),
        ("min_window_length", min_window_length, 0),
        ("grace_period", grace_period, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise TypeError(f"{name}: a whole number, {least} or more, got {value!r}")
    return AdwinSettings(
        float(delta), clock, max_buckets, float(min_window_length), float(grace_period)
    )


def empty_adwin(keys: int, settings: AdwinSettings, levels: int = LEVELS) -> AdwinState:
    """Return empty windows; each has 3.3 kB with the default settings."""
    buckets = keys, levels, settings.max_buckets + 1
    return AdwinState(
        totals=np.zeros(buckets),
        variances=np.zeros(buckets),
        counts=np.zeros((keys, levels), np.int64),
        levels=np.ones(keys, np.int64),
        width=np.zeros(keys),
        total=np.zeros(keys),
        variance=np.zeros(keys),
        tick=np.zeros(keys, np.int64),
        detections=np.zeros(keys, np.int64),
        detected=np.zeros(keys, np.bool_),
    )


@compiled
def update(p: Any, s: Any, key: int, x: Any) -> Any:
    """Take in one value; return whether it is a drift."""
    if s.detected[key]:
        reset(s, key)
    insert(p, s, key, x)
    s.tick[key] += 1
    found = False
    if s.tick[key] % p.clock == 0 and s.width[key] > p.grace_period:
        while differs(p, s, key):
            delete_oldest(s, key)
            found = True
    s.detections[key] += 1 if found else 0
    s.detected[key] = found
    return found


@compiled
def reset(s: Any, key: int) -> None:
    """Start a new window."""
    for level in range(s.levels[key]):
        drop(s, key, level, s.counts[key, level])
    s.levels[key] = 1
    s.width[key], s.total[key], s.variance[key] = 0.0, 0.0, 0.0
    s.tick[key], s.detections[key], s.detected[key] = 0, 0, False


@compiled
def insert(p: Any, s: Any, key: int, x: Any) -> None:
    """Put a value into the window, with Welford's update of the variance."""
    append(s, key, 0, x, 0.0)
    width = s.width[key] + 1.0
    if width > 1.0:
        away = x - s.total[key] / (width - 1.0)
        s.variance[key] += (width - 1.0) * away * away / width
    s.width[key] = width
    s.total[key] += x
    level, size = 0, 1.0
    while s.counts[key, level] > p.max_buckets:
        if level + 1 == s.counts.shape[1]:
            delete_oldest(s, key)
            return
        merge(s, key, level, size)
        level += 1
        size *= 2.0


@compiled
def append(s: Any, key: int, level: int, total: Any, variance: Any) -> None:
    """Put a bucket behind those of its level."""
    at = s.counts[key, level]
    s.totals[key, level, at], s.variances[key, level, at] = total, variance
    s.counts[key, level] = at + 1


@compiled
def drop(s: Any, key: int, level: int, n: int) -> None:
    """Remove the n oldest buckets of a level."""
    totals, variances, count = s.totals[key, level], s.variances[key, level], s.counts[key, level]
    for k in range(n, count):
        totals[k - n], variances[k - n] = totals[k], variances[k]
    for k in range(count - n, count):
        totals[k], variances[k] = 0.0, 0.0
    s.counts[key, level] = count - n


@compiled
def merge(s: Any, key: int, level: int, size: Any) -> None:
    """Make one bucket of the next level from the two oldest of a level."""
    totals, variances = s.totals[key, level], s.variances[key, level]
    apart = totals[0] / size - totals[1] / size
    between = size * 0.5 * apart * apart
    if level + 2 > s.levels[key]:
        s.levels[key] = level + 2
    append(s, key, level + 1, totals[0] + totals[1], variances[0] + variances[1] + between)
    drop(s, key, level, 2)


@compiled
def delete_oldest(s: Any, key: int) -> None:
    """Remove the oldest bucket from the window."""
    last = s.levels[key] - 1
    n = size_of(last)
    total, variance = s.totals[key, last, 0], s.variances[key, last, 0]
    s.width[key] -= n
    s.total[key] -= total
    width = s.width[key]
    away = total / n - s.total[key] / width
    s.variance[key] -= variance + n * width * away * away / (n + width)
    drop(s, key, last, 1)
    while last > 0 and s.counts[key, last] == 0:
        last -= 1
    s.levels[key] = last + 1


@compiled
def size_of(level: int) -> Any:
    """Return the number of values of a bucket."""
    size = 1.0
    for _ in range(level):
        size *= 2.0
    return size


@compiled
def differs(p: Any, s: Any, key: int) -> Any:
    """Return whether the window can be cut into parts whose means differ by more than chance."""
    width = s.width[key]
    odds = 2.0 * math.log(width) / p.delta
    if not odds > 0.0:
        return False
    log_odds, spread = math.log(odds), s.variance[key] / width
    n0, n1, u0, u1 = 0.0, width, 0.0, s.total[key]
    size = size_of(s.levels[key] - 1)
    for level in range(s.levels[key] - 1, -1, -1):
        count = s.counts[key, level]
        for k in range(count - 1 if level == 0 else count):
            n0 += size
            n1 -= size
            u0 += s.totals[key, level, k]
            u1 -= s.totals[key, level, k]
            if n0 >= p.min_window_length and n1 >= p.min_window_length and n1 > 0.0:
                bound = bound_of(p, n0, n1, spread, log_odds)
                if abs(u0 / n0 - u1 / n1) > bound:
                    return True
        size *= 0.5
    return False


@compiled
def bound_of(p: Any, n0: Any, n1: Any, spread: Any, log_odds: Any) -> Any:
    """Return how far the means of n0 and n1 values may differ by chance; NaN if nothing tells."""
    m = 1.0 / (n0 - p.min_window_length + 1.0) + 1.0 / (n1 - p.min_window_length + 1.0)
    square = 2.0 * m * spread * log_odds
    return math.sqrt(square) + 2.0 / 3.0 * log_odds * m if square >= 0.0 else np.nan


# -- states


def save_adwin(s: AdwinState, key: int) -> dict[str, Any]:
    """Return a copy of a window."""
    used = slice(int(s.levels[key]))
    return {
        "totals": s.totals[key, used].copy(),
        "variances": s.variances[key, used].copy(),
        "counts": s.counts[key, used].copy(),
        "width": float(s.width[key]),
        "total": float(s.total[key]),
        "variance": float(s.variance[key]),
        "tick": int(s.tick[key]),
        "detections": int(s.detections[key]),
        "detected": bool(s.detected[key]),
    }


def load_adwin(s: AdwinState, key: int, saved: Mapping[str, Any]) -> None:
    """Take over what `save_adwin` or `of_river` returned.

    Raises
    ------
    CheckpointError
        If it was saved with another `max_buckets`, or cannot be a window.
    """
    counts = np.asarray(saved["counts"], np.int64)
    shape, most = np.shape(saved["totals"]), s.totals.shape[2]
    if shape != (len(counts), most) or shape != np.shape(saved["variances"]):
        raise CheckpointError(f"a saved ADWIN has buckets {shape}, expected (levels, {most})")
    if not 0 < len(counts) <= s.totals.shape[1] or not ((counts >= 0) & (counts < most)).all():
        raise CheckpointError(f"a saved ADWIN has {counts.tolist()} buckets")
    reset(s, key)
    used = slice(len(counts))
    s.totals[key, used], s.variances[key, used] = saved["totals"], saved["variances"]
    s.counts[key, used], s.levels[key] = counts, len(counts)
    for name in ("width", "total", "variance", "tick", "detections", "detected"):
        getattr(s, name)[key] = saved[name]


_HEAD: Final = struct.Struct("<diQdddddd4iQ")
"""delta, clock, max_buckets, min_window_length, grace_period; total, variance, width, sum of all
widths; numbers of buckets now and at most, tick, detections; levels."""
_TAIL: Final = struct.Struct("<diQii")
"""The arguments again."""


def of_river(detector: Any) -> dict[str, Any]:
    """Return the window of a `river.drift.ADWIN` in the form of `save_adwin`.

    River keeps it as bytes: numbers of fixed length, and arrays after their lengths.

    Raises
    ------
    CheckpointError
        If the bytes have another form.
    """
    data: bytes = detector._helper.__getstate__()
    try:
        head = _HEAD.unpack_from(data)
        rows, at = [], _HEAD.size
        most = head[2] + 1
        level = struct.Struct(f"<3Q{most}dQ{most}d")
        for _ in range(head[13]):
            rows.append(level.unpack_from(data, at))
            at += level.size
    except struct.error as error:
        raise CheckpointError(f"river's ADWIN has a state of another form: {error}") from error
    lengths = {(row[0] + 1, row[2], row[3 + most]) for row in rows}
    if len(data) != at + _TAIL.size or lengths != {(most, most, most)}:
        raise CheckpointError("river's ADWIN has a state of another form")
    return {
        "totals": np.array([row[3 : 3 + most] for row in rows]),
        "variances": np.array([row[4 + most :] for row in rows]),
        "counts": np.array([row[1] for row in rows], np.int64),
        "width": head[7],
        "total": head[5],
        "variance": head[6],
        "tick": head[11],
        "detections": head[12],
        "detected": bool(detector.drift_detected),
    }
