"""Numbers far from zero: learners work in float32, on what is left of a value after its channel's origin is subtracted.

A float32 has 24 bits. The total of a meter at 2e8 that grows by 1 would be rounded to multiples of 16, and all that
there is to learn would be gone. So values, targets and predictions are float64 everywhere but in the learners, and a
channel whose changes are small against its level has an origin: a number near that level. A channel for which float32
is fine has the origin 0: nothing is subtracted, and not a bit changes.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from streamadapt.losses import Array, Mask

if TYPE_CHECKING:  # these modules import this one, or a package that does
    from streamadapt.base import Base
    from streamadapt.learners.base import BaseOutput, Spec
    from streamadapt.tasks import Issued, Matured, Window

__all__ = [
    "FLOAT32_MAX",
    "agreed_origin",
    "base_inputs",
    "column_origin",
    "finite_output",
    "learner_inputs",
    "less_origin",
    "moved_issued",
    "moved_matured",
    "too_coarse",
    "warn_of_rounding",
]

FLOAT32_MAX = float(np.finfo(np.float32).max)
SPACING = 2.0**-23
"""Of float32 numbers, relative to their size."""
FINE = 64.0
"""Float32 is fine for a channel whose usual change is at least so many spacings of float32 at its level."""

COARSE = SPACING * FINE

log = logging.getLogger(__name__)


def too_coarse(level: Array, change: Array) -> Mask:
    """Return where the spacing of float32 at `level` is not small against `change`; both are in the same unit."""
    coarse: Mask = np.abs(level) * COARSE > change
    return coarse


def column_origin(values: Array, unit: Array | None = None) -> Array:
    """Return the origin of each column of a history or a window, (columns,): 0 where float32 is fine.

    Parameters
    ----------
    values : ndarray, (n, columns), float64
        Oldest first. NaN is missing; so are zeros before the first other value, which stand for a channel not seen yet.
    unit : ndarray, (columns,), > 0, optional
        What counts as a change in a column that does not change. Default: 1.

    Returns
    -------
    ndarray, (columns,), float64
        The median, rounded to a float32; the usual change is the median of the changes that are not zero. Medians,
        because one value that is far off must neither make nor move an origin.
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
        usual = float(np.median(changes)) if len(changes) else 1.0 if unit is None else float(unit[c])
        level = float(np.median(column))
        if abs(level) * COARSE > usual:
            origin[c] = np.float32(level)
    return origin


def agreed_origin(said: Array, target: Array, known: Mask, unit: Array) -> Array:
    """Return the origin of each output of a regression, (columns,), from its first label.

    Nothing else tells the outputs' level where the base knows no scaling. One wrong label or one wild prediction must
    not set it, so both have to be about as far from zero.

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


def less_origin(values: Array, origin: Array | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return ``values - origin`` as float32, (..., columns); the subtraction is done in float64.

    Numbers up to the greatest float32 may be further than that from their origin: they stay within it.
    """
    if origin is None:
        return values.astype(np.float32)
    return np.clip(values - origin, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)


def base_inputs(window: Window, spec: Spec, base: Base) -> Tensor:
    """Return what the base is asked with, (window, channels), original units, in the precision that it takes."""
    far = spec.input_origin is not None or spec.output_origin is not None
    filled = torch.from_numpy(window.fill_unseen(_original(spec.input_loc, spec.input_origin)))
    return filled.to(spec.device, base.input_dtype(far=far))


def learner_inputs(window: Window, spec: Spec) -> Tensor:
    """Return what learners are given, (window, channels), float32, less the origin."""
    filled = window.fill_unseen(_original(spec.input_loc, spec.input_origin))
    return torch.from_numpy(less_origin(filled, _numbers(spec.input_origin))).to(spec.device)


def finite_output(said: BaseOutput, spec: Spec) -> tuple[Array, BaseOutput, Mask | None]:
    """Take what is no number out of a base's output.

    Returns
    -------
    ndarray, (rows, columns), float64
        The output in original units, all finite.
    BaseOutput
        The same less the origin, float32: what learners are given.
    ndarray, (rows, columns), bool, or None
        The cells that the base said nothing about; None if it said something about all.
    """
    if said.embedding is not None:
        said = said._replace(embedding=said.embedding.nan_to_num())
    exact: Array = said.output.cpu().double().numpy()
    if bool((np.abs(exact) <= FLOAT32_MAX).all()):
        as_it_is = spec.output_origin is None and said.output.dtype == torch.float32
        return exact, said if as_it_is else said._replace(output=_for_learners(exact, spec)), None
    from streamadapt.base import without_nonfinite  # here: it imports the learners, which import this module

    loc = torch.from_numpy(_original(spec.output_loc, spec.output_origin)).to(said.output.device, said.output.dtype)
    finite, silent = without_nonfinite(said, spec.kind, loc)
    exact = finite.output.cpu().double().numpy()
    return exact, finite._replace(output=_for_learners(exact, spec)), silent


def moved_issued(issued: Issued, spec: Spec) -> Issued:
    """Return a prediction that waits, as it would have been kept had the outputs had this spec's origin."""
    said = np.nan_to_num(issued.experts[0])
    return replace(issued, base=issued.base._replace(output=_for_learners(said, spec)))


def moved_matured(matured: Matured, spec: Spec) -> Matured:
    """Return a matured example of a regression with the origin of this spec."""
    said = _for_learners(np.nan_to_num(matured.experts[0]), spec)
    target = _for_learners(matured.target, spec)
    rows = replace(matured.rows, base=matured.rows.base._replace(output=said), target=target)
    return replace(matured, rows=rows, path=rows)


def warn_of_rounding(base: Base, spec: Spec) -> None:
    """Log, once for a base, that it is given numbers in which float32 cannot tell the changes."""
    origin = spec.input_origin
    if origin is None or base.warned_of_rounding or base.input_dtype(far=True) == torch.float64:
        return
    base.warned_of_rounding = True
    channels = torch.nonzero(origin).flatten().tolist()
    spacing = float(np.spacing(np.float32(origin.abs().max().item())))
    log.warning(
        "the base is given float32 numbers, and channel %s is so far from zero (near %g) that these are %g apart: its "
        "changes are rounded to that. Give the base differences from the entry before instead of totals; "
        "learners and losses are not rounded",
        ", ".join(map(str, channels[:8])) + (" ..." if len(channels) > 8 else ""),
        float(origin.abs().max()),
        spacing,
    )


def _for_learners(exact: Array, spec: Spec) -> Tensor:
    return torch.from_numpy(less_origin(exact, _numbers(spec.output_origin))).to(spec.device)


def _numbers(origin: Tensor | None) -> Array | None:
    return None if origin is None else origin.cpu().numpy()


def _original(loc: Tensor, origin: Tensor | None) -> Array:
    """Return a location in original units, float64."""
    found: Array = loc.cpu().double().numpy()
    return found if origin is None else found + origin.cpu().numpy()
