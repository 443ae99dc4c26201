"""Trains a liquid network offline on a history, for the learner ``update = "none"``."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners.liquid.recurrent import Recurrent

__all__ = ["fit"]


def fit(  # noqa: PLR0913 - the settings of one training
    network: Recurrent,
    inputs: Tensor,
    targets: Tensor,
    dt: Tensor | None = None,
    *,
    epochs: int = 20,
    chunk: int = 32,
    streams: int = 16,
    lr: float = 3e-3,
    loss: Literal["mae", "mse", "cross-entropy"] = "mse",
    seed: int = 0,
) -> list[float]:
    """Train a network in place on one long history, by truncated backpropagation through time.

    The history is cut into `streams` equal parts that are processed in parallel. Each part is
    processed from its start in chunks, and the (detached) state is passed from chunk to chunk, as
    in a running learner. In every epoch the parts start at a random offset. The optimiser is Adam;
    its rate falls to a tenth (cosine), and gradients are clipped at norm 1.
    ``safetensors.torch.save_file(network.state_dict(), path)`` writes the file that
    `streamadapt.Liquid` can load.

    Parameters
    ----------
    network : CfC or LTC
        Its outputs (of the readout, if there is one) are compared with the targets at every step.
    inputs : Tensor, (steps, inputs), scaled
    targets : Tensor, (steps, outputs), scaled
        The correct output at each step; NaN if it is unknown. Probabilities (one-hot) for
        "cross-entropy".
    dt : Tensor, (steps,), optional
        Time since the previous step; default: 1.
    epochs : int
    chunk : int
        The number of steps through which gradients are propagated.
    streams : int
        The number of parts.
    seed : int
        The seed of the offsets; the initial weights are the network's.

    Returns
    -------
    list of float
        Mean loss of each epoch.

    Raises
    ------
    ShapeError, ConfigError
    """
    steps = len(inputs)
    if targets.ndim != 2 or len(targets) != steps or (dt is not None and dt.shape != (steps,)):
        raise ShapeError(
            f"targets must be ({steps}, outputs) and dt ({steps},), as many as inputs"
        )
    length = (steps // streams - 1) // chunk * chunk
    if length < chunk:
        raise ConfigError(
            "streams",
            streams,
            f"streams of at least a chunk and one step: {steps} steps are too few",
        )
    dt = inputs.new_ones(steps) if dt is None else dt
    parameters = [p for p in network.parameters() if p.requires_grad]
    adam = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs, eta_min=lr / 10.0)
    generator = torch.Generator().manual_seed(seed)
    # An offset for all stretches that leaves the last one inside the history.
    slack = steps - (streams - 1) * (steps // streams) - length
    means = []
    for _ in range(epochs):
        offset = int(torch.randint(slack + 1, (), generator=generator))
        starts = torch.arange(streams, dtype=torch.int64) * (steps // streams) + offset
        total, count, state = 0.0, 0, None
        for begin in range(0, length, chunk):
            # (streams, chunk)
            at = starts[:, None] + torch.arange(begin, begin + chunk, dtype=torch.int64)
            with torch.enable_grad():
                said, state = network(inputs[at], state, dt[at])
                value = _loss(said, targets[at], loss)
                gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            adam.step()
            adam.zero_grad()
            network.constrain_()
            state = state.detach()
            total, count = total + float(value.detach()), count + 1
        schedule.step()
        means.append(total / count)
    return means


def _loss(outputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Return the mean loss of the known cells; zero, with zero gradients, if no cell is known."""
    known = ~targets.isnan()
    targets = torch.where(known, targets, 0.0)
    if loss == "cross-entropy":
        cells = -targets * torch.log_softmax(outputs, -1)
        return cells.sum() / known.any(-1).sum().clamp_min(1)
    if loss not in ("mae", "mse"):
        raise ConfigError("loss", loss, "mae, mse or cross-entropy")
    error = torch.where(known, outputs - targets, 0.0)
    return (error.abs() if loss == "mae" else error.square()).sum() / known.sum().clamp_min(1)
