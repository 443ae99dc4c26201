"""Numbers far from zero: learners work in float32, on what is left of a value after its channel's
origin is subtracted.

A float32 has 24 bits. The total of a meter at 2e8 that grows by 1 would be rounded to multiples of
16, and all that there is to learn would be gone. So values, targets and predictions are float64
everywhere but in the learners, and a channel whose changes are small against its level has an
origin: a number near that level. A channel for which float32 is fine has the origin 0: nothing is
subtracted, and not a bit changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamadapt.records import Array, Mask

if TYPE_CHECKING:  # these modules import this one, or a package that does
    pass

__all__ = ["FLOAT32_MAX", "agreed_origin", "column_origin", "less_origin", "too_coarse"]

FLOAT32_MAX = float(np.finfo(np.float32).max)
SPACING = 2.0**-23
"""Of float32 numbers, relative to their size."""
FINE = 64.0
"""Float32 is fine for a channel whose usual change is at least so many spacings of float32 at its
level."""

COARSE = SPACING * FINE


def too_coarse(level: Array, change: Array) -> Mask:
    """Return where the spacing of float32 at `level` is not small against `change`; both are in
    the same unit."""
    coarse: Mask = np.abs(level) * COARSE > change
    return coarse


def column_origin(values: Array, unit: Array | None = None) -> Array:
    """Return the origin of each column of a history or a window, (columns,): 0 where float32 is
    fine.

    Parameters
    ----------
    values : ndarray, (n, columns), float64
        Oldest first. NaN is missing; so are zeros before the first other value, which stand for a
        channel not seen yet.
    unit : ndarray, (columns,), > 0, optional
        What counts as a change in a column that does not change. Default: 1.

    Returns
    -------
    ndarray, (columns,), float64
        The median, rounded to a float32; the usual change is the median of the changes that are
        not zero. Medians, because one value that is far off must neither make nor move an origin.
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

    Nothing else tells the outputs' level where the base knows no scaling. One wrong label or one
    wild prediction must not set it, so both have to be about as far from zero.

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

    Numbers up to the greatest float32 may be further than that from their origin: they stay within
    it.
    """
    if origin is None:
        return values.astype(np.float32)
    return np.clip(values - origin, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
