"""ADCSD on a GPU: the same formulas in torch, with automatic derivatives.

A wide panel has tens of thousands of rows of 128 numbers, which a GPU moves faster than a CPU
does. The functions take a learner whose tensors `allocate` has made, with the names that the
arrays of the CPU have in checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from streamadapt.learners.adcsd.arrays import HIDDEN
from streamadapt.learners.adcsd.forward import KERNEL
from streamadapt.learners.base import masked_mean
from streamadapt.learners.optimizer import Optimiser
from streamadapt.records import Array

__all__ = ["allocate", "correct", "learn"]


def allocate(learner: Any, named: Iterable[tuple[str, Array]]) -> None:
    """Make the learner's tensors from the arrays that it starts with on a CPU.

    Parameters
    ----------
    named : iterable of (str, ndarray)
        The weights in the order of `streamadapt.learners.adcsd.arrays.Weights`, each (1, ...).
    """
    for name, array in named:
        tensor = torch.from_numpy(array[0].copy()).to(learner.spec.device)
        setattr(learner, name, nn.Parameter(tensor))
    weights = list(learner.parameters(recurse=False))
    learner.optimiser = Optimiser(weights, learner.optimiser_name, learner.lr, {})


def correct(learner: Any, output: Tensor) -> Tensor:
    """Return the corrected forecast, (rows, columns)."""
    spec = learner.spec
    scaled = (output - spec.output_loc) / spec.output_scale
    half = KERNEL // 2
    padded = torch.cat([scaled[:1].expand(half, -1), scaled, scaled[-1:].expand(half, -1)])
    trend = padded.unfold(0, KERNEL, 1).mean(-1)  # (T + 4, N) -> (T, N, 5) -> (T, N)
    parts = torch.stack([scaled - trend, trend]).unsqueeze(-1)  # (2, T, N, 1)
    hidden = parts * learner.weight_in + learner.bias_in  # (2, T, N, H)
    axes = (HIDDEN,) if learner.share_norm else tuple(hidden.shape[1:])
    normed = torch.stack([F.layer_norm(branch, axes) for branch in hidden])
    active = F.gelu(torch.addcmul(learner.norm_bias, normed, learner.norm_weight))
    branches = (active @ learner.weight_out + learner.bias_out).squeeze(-1)  # (2, T, N)
    correction = (learner.gate * branches).sum(0)
    if learner.share_norm:
        correction = correction + learner.shift
    corrected: Tensor = output + correction * spec.output_scale
    return corrected


def learn(learner: Any, output: Tensor, target: Tensor, mask: Tensor) -> None:
    """Make one step on one matured forecast."""
    if learner.weight == 0.0 or not bool(mask.any()):
        return
    scale = learner.spec.output_scale
    with torch.enable_grad():
        error = correct(learner, output) - torch.where(mask, target, output)
        if learner.loss == "huber":
            scaled = error / scale
            cells = F.huber_loss(scaled, torch.zeros_like(scaled), reduction="none") * scale
        else:
            cells = error.abs()
        loss = masked_mean(cells, mask)
    learner.optimiser.step(loss, learner.boost * learner.weight)
