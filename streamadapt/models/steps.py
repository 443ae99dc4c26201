"""Frozen models as compiled functions: one window at a time, or the windows of a lot."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from streamadapt.compiled import Kernel, compiled
from streamadapt.models.origin import FLOAT32_MAX, less_one
from streamadapt.numbers import softmax
from streamadapt.records import Array

__all__ = [
    "BaseSteps",
    "LinearRoom",
    "LinearSettings",
    "LotOfWindows",
    "NoSettings",
    "answer_loop",
    "forward_kernel",
    "linear",
    "persistence",
]


class BaseSteps(NamedTuple):
    """A frozen model as a compiled function.

    Attributes
    ----------
    predict : callable (p, w, far, x, out) -> None
        Writes the answer for a window, `x` (window, channels), to `out` (rows, columns), both
        float64; ``p`` and ``w`` are the settings and the room. With `far`, a channel is so far
        from zero that float32 would round its changes; otherwise the answer has the precision of
        float32.
    settings, room : NamedTuple
        The room must not be used by two threads.
    """

    predict: Callable[..., None]
    settings: Any
    room: Any


class NoSettings(NamedTuple):
    """The settings, and the room, of a base that needs none."""

    nothing: int


class LinearSettings(NamedTuple):
    """What a ridge regression predicts from, float32.

    Attributes
    ----------
    forecast, classify, subtract_last : bool
    weights : ndarray, (features, responses)
    input_loc, input_scale : ndarray, (channels,)
    output_loc, output_scale : ndarray, (columns,)
    """

    forecast: bool
    classify: bool
    subtract_last: bool
    weights: Any
    input_loc: Any
    input_scale: Any
    output_loc: Any
    output_scale: Any


class LinearRoom(NamedTuple):
    """`scaled` is (window, channels)."""

    scaled: Array


class LotOfWindows(NamedTuple):
    """Where the answers for a lot of windows go.

    Attributes
    ----------
    history : ndarray, (window + entries, channels), float64
        Window n is ``history[n + 1 : n + 1 + window]``.
    window : int
    rows : ndarray, (entries,), int64
        The place of each entry's prediction.
    experts : ndarray, (places, experts, rows, columns), float64
        The answers are written to the first expert.
    bases : ndarray, (places, rows, columns), float64
        The answers less the origin, rounded to float32, as learners get them.
    origin : ndarray, (columns,), float64
    out : ndarray, (rows, columns), float64
        Room for one answer.
    """

    history: Array
    window: int
    rows: Any
    experts: Array
    bases: Array
    origin: Array
    out: Array


@compiled
def rounded(value: float, far: bool) -> Any:
    """Return a number as float32 has it, or as it is where float32 would be too coarse."""
    return value if far else np.float64(np.float32(value))


@compiled
def persistence(p: Any, w: Any, far: bool, x: Any, out: Any) -> None:
    """``out[h] = x[last]``."""
    rows, columns = out.shape
    last = x.shape[0] - 1
    for h in range(rows):
        for j in range(columns):
            out[h, j] = x[last, j]


@compiled
def linear(p: Any, w: Any, far: bool, x: Any, out: Any) -> None:
    """Scale the window, multiply by the weights, and give the result its unit back; for classes,
    the softmax."""
    window, channels = x.shape
    for i in range(window):
        for j in range(channels):
            less = rounded(rounded(x[i, j], far) - p.input_loc[j], far)
            w.scaled[i, j] = rounded(less / p.input_scale[j], far)
    if p.forecast:
        by_channel(p, w.scaled, far, out)
    else:
        by_window(p, w.scaled, far, out[0])
    if p.classify:
        softmax(out[0])
        for k in range(out.shape[1]):
            out[0, k] = rounded(out[0, k], far)
        return
    rows, columns = out.shape
    for h in range(rows):
        for j in range(columns):
            scaled = rounded(out[h, j] * p.output_scale[j], far)
            out[h, j] = rounded(scaled + p.output_loc[j], far)


@compiled
def by_channel(p: Any, scaled: Any, far: bool, out: Any) -> None:
    """Forecast each channel from its own window; the last row of weights is the constant's.

    In the strong form the window is less its last value, and so is the forecast.
    """
    rows, columns = out.shape
    last, constant = scaled.shape[0] - 1, p.weights.shape[0] - 1
    for j in range(columns):
        level = scaled[last, j] if p.subtract_last else 0.0
        for h in range(rows):
            total = np.float64(p.weights[constant, h])
            for i in range(constant):
                total += rounded(scaled[i, j] - level, far) * p.weights[i, h]
            out[h, j] = rounded(rounded(total, far) + level, far)


@compiled
def by_window(p: Any, scaled: Any, far: bool, out: Any) -> None:
    """Predict from the whole window, the oldest entry first; the last weight is the constant's."""
    window, channels = scaled.shape
    for k in range(out.shape[0]):
        total = np.float64(p.weights[window * channels, k])
        for i in range(window):
            for j in range(channels):
                total += scaled[i, j] * p.weights[i * channels + j, k]
        out[k] = rounded(total, far)


@cache
def forward_kernel(predict: Callable[..., None]) -> Kernel:
    """Return the kernel that answers for one window.

    Its arguments are settings, room, `far`, the window (window, channels), and room for the
    answer, (rows, columns), all float64.
    """

    def run(p: Any, w: Any, far: bool, x: Any, out: Any) -> None:
        predict(p, w, far, x, out)

    return Kernel(run, f"the base {predict.__name__}")


@cache
def answer_loop(predict: Callable[..., None]) -> Kernel:
    """Return the kernel that answers for a lot of windows.

    Its arguments are settings, room, `far` and a `LotOfWindows`. It returns how many answers there
    are before the first with a number that is not finite, or too large for float32.
    """

    def run(p: Any, w: Any, far: bool, lot: Any) -> int:
        rows, columns = lot.out.shape
        for n in range(lot.rows.shape[0]):
            at = lot.rows[n]
            predict(p, w, far, lot.history[n + 1 : n + 1 + lot.window], lot.out)
            for h in range(rows):
                for j in range(columns):
                    value = lot.out[h, j]
                    if not abs(value) <= FLOAT32_MAX:
                        return n
                    lot.experts[at, 0, h, j] = value
                    lot.bases[at, h, j] = np.float64(less_one(value, lot.origin[j]))
        return len(lot.rows)

    return Kernel(run, f"the base {predict.__name__} over a lot")
