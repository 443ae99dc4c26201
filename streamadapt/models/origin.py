"""Numbers far from zero: learners work in float32, on values less the origin of their channel.

A float32 has 24 bits. A meter reading of 2e8 that grows by 1 would be rounded to multiples of 16,
and nothing would be left to learn. Therefore values, targets and predictions are float64
everywhere but in the learners, and a channel whose changes are small against its level has an
origin: a number near that level. A channel for which float32 is exact enough has the origin 0:
nothing is subtracted, and no bit changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.records import Array, Mask

__all__ = [
    "FLOAT32_MAX",
    "agreed_origin",
    "column_origin",
    "less_one",
    "less_origin",
    "too_coarse",
]

FLOAT32_MAX = float(np.finfo(np.float32).max)
SPACING = 2.0**-23
"""The distance between neighbouring float32 numbers, relative to their size."""
FINE = 64.0
"""Float32 is exact enough for a channel whose usual change is at least this number of float32
spacings at its level."""

COARSE = SPACING * FINE


def too_coarse(level: Array, change: Array) -> Mask:
    """Return a mask that is True where the spacing of float32 at `level` is not small against
    `change`; both have the same unit."""
    coarse: Mask = np.abs(level) * COARSE > change
    return coarse


def column_origin(values: Array, unit: Array | None = None) -> Array:
    """Return the origin of each column of a history or a window, (columns,): 0 if float32 is exact
    enough.

    Parameters
    ----------
    values : ndarray, (n, columns), float64
        Oldest first. NaN is missing. Zeros before the first other value count as missing too: they
        stand for a channel without a value so far.
    unit : ndarray, (columns,), > 0, optional
        The assumed change of a column that does not change. Default: 1.

    Returns
    -------
    ndarray, (columns,), float64
        The median, rounded to a float32; the usual change is the median of the changes that are
        not zero. Medians, because a single outlier must neither cause nor move an origin.
    """
    origin = np.zeros(values.shape[1])
    for c in range(values.shape[1]):
        column = values[:, c]
        started = np.flatnonzero(~np.isnan(column) & (column != 0.0))
        if not len(started):
            continue
        column = column[started[0] :]
        column = column[~np.isnan(column)]
        changes = np.abs(np.diff(column))
        changes = changes[changes > 0.0]
        usual = (
            float(np.median(changes)) if len(changes) else 1.0 if unit is None else float(unit[c])
        )
        level = float(np.median(column))
        if abs(level) * COARSE > usual:
            origin[c] = np.float32(level)
    return origin


def agreed_origin(said: Array, target: Array, known: Mask, unit: Array) -> Array:
    """Return the origin of each output of a regression, (columns,), from its first label.

    If the base knows no scaling, only the first label shows the level of the outputs. One wrong
    label or one wild prediction must not set the origin, so label and prediction must be about
    equally far from zero.

    Parameters
    ----------
    said, target : ndarray, (1, columns)
        The base's output and the label.
    known : ndarray, (1, columns), bool
    unit : ndarray, (columns,)
        The outputs' scale.
    """
    near = known & (np.abs(target - said) < 0.5 * np.abs(target))
    on = near[0] & too_coarse(target[0], unit)
    origin: Array = np.where(on, target[0], 0.0).astype(np.float32).astype(np.float64)
    return origin


def less_origin(
    values: Array, origin: Array | None
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return ``values - origin`` as float32, (..., columns); the subtraction is done in float64.

    A difference beyond the largest float32 is clipped to it.
    """
    if origin is None:
        return values.astype(np.float32)
    return np.clip(values - origin, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)


@compiled
def less_one(value: float, origin: float) -> Any:
    """Return the same of one number, in kernels."""
    return np.float32(min(max(value - origin, -FLOAT32_MAX), FLOAT32_MAX))
