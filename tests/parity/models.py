"""The frozen models of the cases: plain arithmetic of float32, so that they have the same bits on
every machine; and one small network for test-time adaptation."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from parity.streams import Numbers, Values
from streamadapt import FrozenModel, Linear
from streamadapt.models.contract import Base, as_base

FOLDER = Path(__file__).parent / "files"


def one_output(inputs: Tensor) -> Tensor:
    """Predict one number from two channels; wrong by a factor and a constant."""
    return (inputs[-1, 0] - inputs[-1, 1]).reshape(1, 1)


def two_outputs(inputs: Tensor) -> Tensor:
    """Predict two numbers from two channels; wrong by a factor and a constant."""
    return torch.stack([inputs[-1, 0] - inputs[-1, 1], inputs[-1, 1] - 3.0]).reshape(1, 2)


def far_output(inputs: Tensor) -> Tensor:
    """Predict a number near ten million from a channel near a million."""
    return (inputs[-1, 0] * 10.0 + inputs[-1, 1] - 1_000_000.0).reshape(1, 1)


def three_classes(inputs: Tensor) -> Tensor:
    """Return three probabilities: ratios of squares, so that no exponential is needed."""
    s = inputs[-1, 0] + 0.5 * inputs[-1, 1]
    low, middle, high = (
        1.0 + (s - 1.5) * (s - 1.5),
        torch.ones_like(s),
        1.0 + (s + 1.5) * (s + 1.5),
    )
    total = low + middle + high
    return torch.stack([low / total, middle / total, high / total]).reshape(1, 3)


def two_classes(inputs: Tensor) -> Tensor:
    """Return two probabilities."""
    s = inputs[-1, 0]
    positive = 0.25 + 0.2 * s / (1.0 + s.abs())
    return torch.stack([1.0 - positive, positive]).reshape(1, 2)


def scaled(model: Base, channels: int, columns: int | None = None) -> Base:
    """Give a model a scaling: 0 and 2 for the inputs, 1 and 2 for the outputs."""
    base = as_base(model)
    base.input_loc, base.input_scale = torch.zeros(channels), torch.full((channels,), 2.0)
    if columns is not None:
        base.output_loc, base.output_scale = torch.ones(columns), torch.full((columns,), 2.0)
    return base


def linear(task: str) -> Linear:
    """Return a fitted ridge regression with its scaling and sufficient statistics; see
    `parity.make`."""
    return Linear.load(FOLDER / f"base-{task}.safetensors")


def _weights(seed: int, *shape: int) -> Tensor:
    rows = 1 if len(shape) == 1 else shape[0]
    values: Values = Numbers(seed).noise(rows, shape[-1])
    return torch.tensor(values.reshape(shape) * 0.5, dtype=torch.float32)


def _norm(seed: int, width: int) -> nn.BatchNorm1d:
    layer = nn.BatchNorm1d(width)
    with torch.no_grad():
        layer.weight.copy_(1.0 + 0.5 * _weights(seed, width))
        layer.bias.copy_(_weights(seed + 1, width))
        layer.running_mean.copy_(0.5 * _weights(seed + 2, width))
        layer.running_var.copy_(1.0 + 0.5 * _weights(seed + 3, width).abs())
    return layer


def _layer(seed: int, inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(_weights(seed, outputs, inputs))
        layer.bias.copy_(_weights(seed + 1, outputs))
    return layer


@cache
def network() -> FrozenModel:
    """Return a classifier of six channels with two batch normalisations."""
    net = nn.Sequential(
        nn.Flatten(), _layer(50, 6, 8), _norm(52, 8), nn.ReLU(),
        _layer(60, 8, 8), _norm(62, 8), nn.ReLU(), _layer(70, 8, 3),
    )  # fmt: skip
    return FrozenModel(net, softmax=True, embedding="6")


def source_samples() -> Tensor:
    """Return samples of what the network was made for, (samples, 1, channels)."""
    return torch.tensor(Numbers(80).noise(80, 6).reshape(80, 1, 6), dtype=torch.float32)
