"""What a drift monitor does with each value besides detecting, as functions on arrays by key:
values are bounded, non-finite ones refused, and alarms held back for a while after an alarm."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.records import Array

__all__ = ["WatchSettings", "WatchState", "empty_watch", "plain_step", "watch_step"]

FARTHEST: Final = 30.0
"""A value is clipped at this many mean sizes of the signal, or at this number if that is larger: a
single outlier would dominate ADWIN's variance for thousands of values."""
MEAN_OF: Final = 100
"""The mean size follows the values like a mean of this number of them."""
MOST: Final = 1e6
"""Every value is clipped at this number, also while the mean size is not known yet."""


class WatchSettings(NamedTuple):
    """`cool_down`: the number of values after an alarm in which there is no other."""

    cool_down: int


class WatchState(NamedTuple):
    """Of each key.

    Attributes
    ----------
    counts, sizes : ndarray, (keys, channels)
        The number of values so far, up to `MEAN_OF`, int64; and their mean size.
    refused : ndarray, (keys,), int64
        The number of values that were not finite.
    quiet : ndarray, (keys,), int64
        The number of values until the next alarm is possible.
    firing, fired : ndarray, (keys, channels), bool
        The channels that fire now, and those that fired at the last alarm.
    """

    counts: Any
    sizes: Array
    refused: Any
    quiet: Any
    firing: Any
    fired: Any


def empty_watch(keys: int, channels: int) -> WatchState:
    """Return the state before the first value."""
    each = keys, channels
    return WatchState(
        np.zeros(each, np.int64),
        np.zeros(each),
        np.zeros(keys, np.int64),
        np.zeros(keys, np.int64),
        np.zeros(each, np.bool_),
        np.zeros(each, np.bool_),
    )


@compiled
def bounded(s: Any, key: int, i: int, value: Any) -> Any:
    """Return a value of channel i, clipped by the sizes of the values before it."""
    count, size = s.counts[key, i], s.sizes[key, i]
    bound = min(FARTHEST * max(size, 1.0), MOST) if count > 0 else MOST
    result = min(max(value, -bound), bound)
    count = min(count + 1, MEAN_OF)
    s.counts[key, i] = count
    s.sizes[key, i] = size + (abs(result) - size) / count
    return result


@compiled
def alarm(p: Any, s: Any, key: int, firing: Any) -> Any:
    """Return whether this is an alarm: any channel fires, and no alarm was shortly before."""
    raised = firing and s.quiet[key] == 0
    s.quiet[key] = p.cool_down if raised else max(s.quiet[key] - 1, 0)
    if raised:
        for i in range(s.firing.shape[1]):
            s.fired[key, i] = s.firing[key, i]
    return raised


def plain_step(update: Callable[..., Any]) -> Callable[..., bool]:
    """Return a function for one value of each channel, not compiled.

    Parameters
    ----------
    update : callable (q, d, row, value) -> bool
        A detector; `q` are its settings and `d` its state.

    Returns
    -------
    callable (p, s, q, d, key, values) -> bool
        Whether this is an alarm. The values are (channels,); channel i of a key has the row
        ``key * channels + i`` of the detector's state.
    """

    def run(p: Any, s: Any, q: Any, d: Any, key: int, values: Any) -> Any:
        seen, firing = False, False
        for i in range(values.shape[0]):
            s.firing[key, i] = False
            if math.isfinite(values[i]):
                value = bounded(s, key, i, values[i])
                s.firing[key, i] = update(q, d, key * values.shape[0] + i, value)
                seen, firing = True, firing or s.firing[key, i]
            else:
                s.refused[key] += 1
        return alarm(p, s, key, firing) if seen else False

    return run


@cache
def watch_step(update: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function for kernels; `update` is a marked function."""
    return compiled(plain_step(update))
