"""The Page-Hinkley test (Page 1954) as functions on arrays by key, equal to river's to the bit.

Two sums of deviations from the running mean, one for increases and one for decreases, each with a
tolerance `delta`: a drift is a sum that has moved by more than `threshold` from its extreme. The
first value after a drift starts from nothing, as in river.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.records import Array

__all__ = [
    "PageHinkleySettings",
    "PageHinkleyState",
    "empty_page_hinkley",
    "load_page_hinkley",
    "of_river",
    "page_hinkley_settings",
    "save_page_hinkley",
    "update",
]


class PageHinkleySettings(NamedTuple):
    """The arguments of river's class; `up` and `down` say which changes are tested."""

    min_instances: float
    delta: float
    threshold: float
    alpha: float
    up: bool
    down: bool


class PageHinkleyState(NamedTuple):
    """Of each key, (keys,).

    Attributes
    ----------
    n, mean : ndarray
        Of the values so far.
    sum_increase, sum_decrease : ndarray
    min_increase, max_decrease : ndarray
        Their extremes.
    detected : ndarray, bool
        Whether the newest value was a drift.
    """

    n: Array
    mean: Array
    sum_increase: Array
    sum_decrease: Array
    min_increase: Array
    max_decrease: Array
    detected: Any


def page_hinkley_settings(
    min_instances: int = 30,
    delta: float = 0.005,
    threshold: float = 50.0,
    alpha: float = 1 - 0.0001,
    mode: str = "both",
) -> PageHinkleySettings:
    """Return settings, checked.

    Raises
    ------
    TypeError
        With what was expected.
    """
    numbers = {"min_instances": min_instances, "delta": delta, "threshold": threshold,
               "alpha": alpha}  # fmt: skip
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise TypeError(f"{name}: a number, got {value!r}")
    if mode not in ("up", "down", "both"):
        raise TypeError(f"mode: one of up, down, both, got {mode!r}")
    up, down = mode != "down", mode != "up"
    return PageHinkleySettings(
        float(min_instances), float(delta), float(threshold), float(alpha), up, down
    )


def empty_page_hinkley(keys: int, settings: PageHinkleySettings) -> PageHinkleyState:
    """Return the states before the first value."""
    del settings
    sums, extremes = (np.zeros(keys), np.zeros(keys)), (np.zeros(keys), np.zeros(keys))
    detected = np.zeros(keys, np.bool_)
    state = PageHinkleyState(np.zeros(keys), np.zeros(keys), *sums, *extremes, detected)
    for key in range(keys):
        reset(state, key)
    return state


@compiled
def reset(s: Any, key: int) -> None:
    """Start from nothing."""
    s.n[key], s.mean[key] = 0.0, 0.0
    s.sum_increase[key], s.sum_decrease[key] = 0.0, 0.0
    s.min_increase[key], s.max_decrease[key] = np.inf, -1.0
    s.detected[key] = False


@compiled
def update(p: Any, s: Any, key: int, x: Any) -> Any:
    """Take in one value; return whether it is a drift."""
    if s.detected[key]:
        reset(s, key)
    s.n[key] += 1.0
    s.mean[key] += 1.0 / s.n[key] * (x - s.mean[key])
    away = x - s.mean[key]
    increase = p.alpha * s.sum_increase[key] + away - p.delta
    decrease = p.alpha * s.sum_decrease[key] + away + p.delta
    s.sum_increase[key], s.sum_decrease[key] = increase, decrease
    if increase < s.min_increase[key]:
        s.min_increase[key] = increase
    if decrease > s.max_decrease[key]:
        s.max_decrease[key] = decrease
    risen = p.up and increase - s.min_increase[key] > p.threshold
    fallen = p.down and s.max_decrease[key] - decrease > p.threshold
    s.detected[key] = s.n[key] >= p.min_instances and (risen or fallen)
    return s.detected[key]


# -- states


def save_page_hinkley(s: PageHinkleyState, key: int) -> dict[str, Any]:
    """Return a copy of one key's state."""
    return {name: array[key].item() for name, array in s._asdict().items()}


def load_page_hinkley(s: PageHinkleyState, key: int, saved: Mapping[str, Any]) -> None:
    """Take over what `save_page_hinkley` or `of_river` returned."""
    for name in s._fields:
        getattr(s, name)[key] = saved[name]


def of_river(detector: Any) -> dict[str, Any]:
    """Return the state of a `river.drift.PageHinkley` in the form of `save_page_hinkley`."""
    return {
        "n": float(detector._x_mean.n),
        "mean": float(detector._x_mean.get()),
        "sum_increase": float(detector._sum_increase),
        "sum_decrease": float(detector._sum_decrease),
        "min_increase": float(detector._min_increase),
        "max_decrease": float(detector._max_decrease),
        "detected": bool(detector.drift_detected),
    }
