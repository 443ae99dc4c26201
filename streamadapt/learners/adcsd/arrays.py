"""What ADCSD's functions work on."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import torch

from streamadapt.models.contract import Spec
from streamadapt.records import Array

__all__ = [
    "HIDDEN",
    "NO_STEP",
    "ADCSDRoom",
    "ADCSDSettings",
    "ADCSDState",
    "Sums",
    "Weights",
    "drawn",
    "room_for",
]

HIDDEN: Final = 128
BRANCHES: Final = 2
"""Seasonal part, trend."""


NO_STEP: Final = -1.0
"""In the place of a gradient's norm before the first step."""


class ADCSDSettings(NamedTuple):
    """`rate` is Adam's lr; `optimiser` the place of its name in `OPTIMISERS`."""

    rate: float
    share_norm: bool
    huber: bool
    optimiser: int


class Weights(NamedTuple):
    """The weights of both branches, float32, or the gradient by them.

    Each is (S, 2, rows, numbers) per key, with S = 1 + the optimiser's number of moments: the
    weights, then their moments. A gradient is (2, rows, numbers).

    A forecast has ``M = T N`` cells, horizon by horizon.

    Attributes
    ----------
    weight_in, bias_in : rows of H
        Linear(1, H).
    norm_weight, norm_bias : rows of H
        The affine of LayerNorm: M rows, or one with `share_norm`. A gradient has one, of the
        newest cell or the sum over all.
    weight_out : a row of H
    bias_out : a row of 1
        Linear(H, 1).
    gate : a row of N, or of M with `share_norm`
        The lambda of the paper.
    shift : a row of 0, or of M with `share_norm`, for both branches together
    """

    weight_in: Array
    bias_in: Array
    norm_weight: Array
    norm_bias: Array
    weight_out: Array
    bias_out: Array
    gate: Array
    shift: Array


class ADCSDState(NamedTuple):
    """Per key.

    Attributes
    ----------
    weights : Weights
    steps : (), int64
        How many steps were made.
    norm : (), float64
        The norm of the gradient of the newest step, or `NO_STEP`; no checkpoint has it.
    """

    weights: Any
    steps: Array
    norm: Array


class Sums(NamedTuple):
    """Sums over the cells of the gradient a in front of the affine, see
    `streamadapt.learners.adcsd.backward`.

    Attributes
    ----------
    across, along : (2, H), float32
    rest : (2, 5), float64
    """

    across: Array
    along: Array
    rest: Array


class ADCSDRoom(NamedTuple):
    """float32 where nothing is said.

    Attributes
    ----------
    parts : (2, M), float64
        The seasonal part and the trend of a forecast, in scaled units.
    middle : (2,), float64
        What was subtracted from the parts for `along`.
    along, across : (2, M)
    slope, offset : (2, H)
        ``z = along slope + across offset``: what LayerNorm makes of them, before its affine.
    z, active, steep : (2, H)
        Of one cell: z, gelu(gamma z + beta), and the derivative of gelu there.
    branches : (2,)
        Of one cell: what the two branches say.
    d_beta, d_gamma : (H,)
        Of one cell and branch: derivatives of the loss.
    product : (H,)
        Of a sum of products.
    squares : (the longest row,)
        Sums of squares of derivatives; their place does not matter.
    gradient : Weights
        The gradient; of `norm_weight` and `norm_bias` one row for each branch.
    sums : Sums
    """

    parts: Array
    middle: Array
    along: Array
    across: Array
    slope: Array
    offset: Array
    z: Array
    active: Array
    steep: Array
    branches: Array
    d_beta: Array
    d_gamma: Array
    unused: Array
    product: Array
    squares: Array
    gradient: Any
    sums: Any


def zeros(spec: Spec, slots: tuple[int, ...], rows: int, *, share_norm: bool) -> Weights:
    """Return zeros in the place of all weights.

    Parameters
    ----------
    slots : tuple of int
        (S,), or () for a gradient.
    rows : int
        Of the affine.
    """
    cells = spec.rows * spec.columns

    def filled(*shape: int) -> Array:
        return np.zeros((*slots, *shape), np.float32)

    return Weights(
        weight_in=filled(BRANCHES, 1, HIDDEN),
        bias_in=filled(BRANCHES, 1, HIDDEN),
        norm_weight=filled(BRANCHES, rows, HIDDEN),
        norm_bias=filled(BRANCHES, rows, HIDDEN),
        weight_out=filled(BRANCHES, 1, HIDDEN),
        bias_out=filled(BRANCHES, 1, 1),
        gate=filled(BRANCHES, 1, cells if share_norm else spec.columns),
        shift=filled(1, 1, cells if share_norm else 0),
    )


def drawn(spec: Spec, moments: int, *, share_norm: bool) -> Weights:
    """Return the first weights, linear layers as torch.nn.Linear draws them and no correction, and
    zeros for their moments."""
    generator, cells = spec.generator(), spec.rows * spec.columns
    rows = 1 if share_norm else cells
    weights = zeros(spec, (1 + moments,), rows, share_norm=share_norm)
    outer = HIDDEN**-0.5
    for array, bound in (
        (weights.weight_in, 1.0),
        (weights.bias_in, 1.0),
        (weights.weight_out, outer),
        (weights.bias_out, outer),
    ):
        unit = torch.rand(array.shape[1:], generator=generator, dtype=torch.float32)
        array[0] = unit * (2.0 * bound) - bound
    weights.norm_weight[0] = 1.0
    return weights


def room_for(spec: Spec, *, share_norm: bool) -> ADCSDRoom:
    """Return room for a step."""
    cells = spec.rows * spec.columns

    def rows(*shape: int) -> Array:
        return np.zeros((*shape, HIDDEN), np.float32)

    return ADCSDRoom(
        parts=np.zeros((BRANCHES, cells)),
        middle=np.zeros(BRANCHES),
        along=np.zeros((BRANCHES, cells), np.float32),
        across=np.zeros((BRANCHES, cells), np.float32),
        slope=rows(BRANCHES),
        offset=rows(BRANCHES),
        z=rows(BRANCHES),
        active=rows(BRANCHES),
        steep=rows(BRANCHES),
        branches=np.zeros(BRANCHES, np.float32),
        d_beta=rows(),
        d_gamma=rows(),
        unused=rows(),
        product=rows(),
        squares=np.zeros(max(HIDDEN, cells), np.float32),
        gradient=zeros(spec, (), 1, share_norm=share_norm),
        sums=Sums(rows(BRANCHES), rows(BRANCHES), np.zeros((BRANCHES, 5))),
    )
