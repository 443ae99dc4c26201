"""Converts inputs, outputs, waiting predictions and matured examples to the units of learners: the
original units minus the origin of each channel."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from streamadapt.models.contract import Base, BaseOutput, Spec
from streamadapt.models.origin import FLOAT32_MAX, less_origin
from streamadapt.records import Array, Mask
from streamadapt.tasks import Issued, Matured, Window

__all__ = [
    "base_inputs",
    "finite_output",
    "learner_inputs",
    "moved_issued",
    "moved_matured",
    "scaled_newest",
    "warn_of_rounding",
]


log = logging.getLogger(__name__)


def base_inputs(window: Window, spec: Spec, base: Base) -> Tensor:
    """Return the inputs of the base, (window, channels), original units, in its input dtype."""
    far = spec.input_origin is not None or spec.output_origin is not None
    filled = torch.from_numpy(window.fill_unseen(_original(spec.input_loc, spec.input_origin)))
    return filled.to(spec.device, base.input_dtype(far=far))


def learner_inputs(window: Window, spec: Spec) -> Tensor:
    """Return the inputs of learners, (window, channels), float32, minus the origin."""
    filled = window.fill_unseen(_original(spec.input_loc, spec.input_origin))
    return torch.from_numpy(less_origin(filled, _numbers(spec.input_origin))).to(spec.device)


def finite_output(output: BaseOutput, spec: Spec) -> tuple[Array, BaseOutput, Mask | None]:
    """Replace the numbers in a base's output that are not finite.

    Returns
    -------
    ndarray, (rows, columns), float64
        The output in original units, all finite.
    BaseOutput
        The output minus the origin, float32: the input of learners.
    ndarray, (rows, columns), bool, or None
        The cells without a usable number; None if every cell has one.
    """
    if output.embedding is not None:
        output = output._replace(embedding=output.embedding.nan_to_num())
    exact: Array = output.output.cpu().double().numpy()
    if bool((np.abs(exact) <= FLOAT32_MAX).all()):
        if spec.output_origin is None and output.output.dtype == torch.float32:
            return exact, output, None
        return exact, output._replace(output=_for_learners(exact, spec)), None
    # Not at the top: that module imports the learners, which import this module.
    from streamadapt.models.contract import without_nonfinite

    loc = torch.from_numpy(_original(spec.output_loc, spec.output_origin)).to(
        output.output.device, output.output.dtype
    )
    finite, silent = without_nonfinite(output, spec.kind, loc)
    exact = finite.output.cpu().double().numpy()
    return exact, finite._replace(output=_for_learners(exact, spec)), silent


def moved_issued(issued: Issued, spec: Spec) -> Issued:
    """Return a waiting prediction whose base output is minus this spec's output origin."""
    output = np.nan_to_num(issued.experts[0])
    return replace(issued, base=issued.base._replace(output=_for_learners(output, spec)))


def moved_matured(matured: Matured, spec: Spec) -> Matured:
    """Return a matured example of a regression, with base output and target minus this spec's
    output origin."""
    output = _for_learners(np.nan_to_num(matured.experts[0]), spec)
    target = _for_learners(matured.target, spec)
    rows = replace(matured.rows, base=matured.rows.base._replace(output=output), target=target)
    return replace(matured, rows=rows, path=rows)


def scaled_newest(inputs: Tensor, spec: Spec, missing: Mask) -> Array:
    """Return the newest entry of a window as monitors get it, (channels,): scaled, float64, NaN
    where `missing`."""
    newest = ((inputs[-1] - spec.input_loc) / spec.input_scale).cpu().double().numpy()
    return np.where(missing, np.nan, newest)


def warn_of_rounding(base: Base, spec: Spec) -> None:
    """Log a warning, once for each base, if float32 rounds the changes of its inputs."""
    origin = spec.input_origin
    if origin is None or base.warned_of_rounding or base.input_dtype(far=True) == torch.float64:
        return
    base.warned_of_rounding = True
    channels = torch.nonzero(origin).flatten().tolist()
    spacing = float(np.spacing(np.float32(origin.abs().max().item())))
    log.warning(
        "the base gets float32 numbers, and channel %s is so far from zero (near %g) that these "
        "are %g apart: its changes are rounded to multiples of that. Give the base differences "
        "from the previous entry instead of totals; learners and losses are not rounded",
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
    exact: Array = loc.cpu().double().numpy()
    return exact if origin is None else exact + origin.cpu().numpy()
