"""Trains a liquid network offline on a history, for the learner ``update = "none"``."""

from __future__ import annotations

from collections.abc import Iterator
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
    stretches = _Stretches(steps, streams, chunk, seed)
    dt = inputs.new_ones(steps) if dt is None else dt
    trainer = _Trainer(network, lr, epochs, loss)
    means = []
    for _ in range(epochs):
        total, count, state = 0.0, 0, None
        for at in stretches.chunks():
            value, state = trainer.step(inputs[at], targets[at], dt[at], state)
            total, count = total + value, count + 1
        trainer.end_epoch()
        means.append(total / count)
    return means


class _Stretches:
    """A history cut into equal stretches, which are read side by side, in chunks.

    Parameters
    ----------
    steps : int
        Length of the history.
    streams : int
        Number of stretches.
    chunk : int
        Number of steps in a chunk.
    seed : int
        Of the offset that is drawn for each epoch.

    Raises
    ------
    ConfigError
        If a stretch would be shorter than a chunk and one step.
    """

    def __init__(self, steps: int, streams: int, chunk: int, seed: int) -> None:
        self._distance = steps // streams
        self._length = (self._distance - 1) // chunk * chunk
        if self._length < chunk:
            raise ConfigError(
                "streams",
                streams,
                f"streams of at least a chunk and one step: {steps} steps are too few",
            )
        self._streams, self._chunk = streams, chunk
        # The largest offset for all stretches that leaves the last one inside the history.
        self._largest_offset = steps - (streams - 1) * self._distance - self._length
        self._generator = torch.Generator().manual_seed(seed)

    def chunks(self) -> Iterator[Tensor]:
        """Yield the steps of each chunk of one epoch, (streams, chunk), int64."""
        offset = int(torch.randint(self._largest_offset + 1, (), generator=self._generator))
        starts = torch.arange(self._streams, dtype=torch.int64) * self._distance + offset
        for begin in range(0, self._length, self._chunk):
            yield starts[:, None] + torch.arange(begin, begin + self._chunk, dtype=torch.int64)


class _Trainer:
    """Adam on the parameters of a network; its rate falls to a tenth over the epochs."""

    def __init__(self, network: Recurrent, lr: float, epochs: int, loss: str) -> None:
        self._network = network
        self._loss = loss
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._adam = torch.optim.Adam(self._parameters, lr=lr)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self._adam, epochs, eta_min=lr / 10.0
        )

    def step(
        self, inputs: Tensor, targets: Tensor, dt: Tensor, state: Tensor | None
    ) -> tuple[float, Tensor]:
        """Train on one chunk of every stream; return the loss and the detached state at its end.

        Parameters
        ----------
        inputs, targets : Tensor, (streams, chunk, inputs or outputs)
        dt : Tensor, (streams, chunk)
        state : Tensor, (streams, state_size), or None
            At the start of the chunk; None: zeros.
        """
        with torch.enable_grad():
            outputs, state = self._network(inputs, state, dt)
            loss = _loss(outputs, targets, self._loss)
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._adam.step()
        self._adam.zero_grad()
        self._network.constrain_()
        return float(loss.detach()), state.detach()

    def end_epoch(self) -> None:
        """Lower the rate."""
        self._schedule.step()


def _loss(outputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Return the mean over the known cells; zero, with zero gradients, if no cell is known."""
    known = ~targets.isnan()
    targets = torch.where(known, targets, 0.0)
    if loss == "cross-entropy":
        cells = -targets * torch.log_softmax(outputs, -1)
        return cells.sum() / known.any(-1).sum().clamp_min(1)
    if loss not in ("mae", "mse"):
        raise ConfigError("loss", loss, "mae, mse or cross-entropy")
    error = torch.where(known, outputs - targets, 0.0)
    return (error.abs() if loss == "mae" else error.square()).sum() / known.sum().clamp_min(1)
