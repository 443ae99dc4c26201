"""The models that are files: fitted linear bases, and a liquid network with weights that never
change. They are kept, since a fit may have other last bits on another machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from parity.streams import Numbers, triangle, walk
from streamadapt import Batch, Linear
from streamadapt.learners.liquid.learner import Network
from streamadapt.models.fit import fit_forecast, fit_supervised


def write_models(folder: Path) -> None:
    """Write them into `folder`."""
    x, times = walk(Numbers(99), 300, 2), np.arange(300)
    series = x + 10.0 + 3.0 * triangle(300)[:, None]
    fit_forecast(Batch(series, times), 6, 3).save(folder / "base-forecast.safetensors")
    y = 1.5 * x[:, :1] - x[:, 1:] + 2.0
    fit_supervised(Batch(x, times, y), 3).save(folder / "base-regression.safetensors")
    _classifier().save(folder / "base-classification.safetensors")
    save_file(_liquid(), folder / "liquid.safetensors")


def _classifier() -> Linear:
    """Return a linear classifier of two channels and a window of two; nothing fits one."""
    weights = torch.tensor(Numbers(98).noise(5, 3) * 0.5, dtype=torch.float32)
    scaling = {
        "input_loc": torch.zeros(2), "input_scale": torch.ones(2),
        "output_loc": torch.zeros(3), "output_scale": torch.ones(3),
    }  # fmt: skip
    return Linear("classification", weights, 2, subtract_last=False, scaling=scaling)


def _liquid() -> dict[str, torch.Tensor]:
    """Return weights of a CfC of six inputs, five units and three outputs."""
    net = Network().build("cfc", 6, 5, 3, torch.Generator().manual_seed(0))
    numbers = Numbers(97)
    return {
        name: torch.tensor(numbers.noise(1, t.numel()) * 0.3, dtype=t.dtype).reshape(t.shape)
        for name, t in net.state_dict().items()
    }
