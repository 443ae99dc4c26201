"""The base class of CfC and LTC: it maps a sequence with uneven time steps to outputs and a last
state."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from streamadapt.errors import ShapeError

__all__ = ["Recurrent", "draw_linear", "linear_without_numbers"]


class Recurrent(nn.Module, ABC):
    """A recurrent network: it passes a state from one step to the next. All of its parameters are
    module attributes.

    Attributes
    ----------
    inputs : int
        The number of inputs at each step.
    state_size : int
    output_size : int
        The number of outputs at each step, before the readout.
    readout : nn.Linear or None
        A linear layer after the outputs.
    """

    inputs: int
    state_size: int
    output_size: int
    readout: nn.Linear | None

    def forward(
        self,
        inputs: Tensor,
        state: Tensor | None = None,
        dt: Tensor | None = None,
        *,
        sequences: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Run over a batch of sequences.

        Parameters
        ----------
        inputs : Tensor, (batch, steps, inputs)
        state : Tensor, (batch, state_size)
            Default: zeros.
        dt : Tensor, (batch, steps), >= 0
            Time since the previous step, in the network's time units. Default: 1.
        sequences : bool
            Whether to return the output of every step, or only that of the last step.

        Returns
        -------
        outputs : Tensor, (batch, steps, outputs), or (batch, outputs) without `sequences`
        state : Tensor, (batch, state_size)

        Raises
        ------
        ShapeError
            If a shape is wrong.
        """
        if inputs.ndim != 3 or inputs.shape[2] != self.inputs or inputs.shape[1] == 0:
            raise ShapeError(
                f"inputs must be (batch, steps, {self.inputs}), got {tuple(inputs.shape)}"
            )
        batch, steps, _ = inputs.shape
        if state is None:
            state = inputs.new_zeros(batch, self.state_size)
        elif state.shape != (batch, self.state_size):
            raise ShapeError(f"state must be {(batch, self.state_size)}, got {tuple(state.shape)}")
        if dt is None:
            dt = inputs.new_ones(batch, steps)
        elif dt.shape != (batch, steps):
            raise ShapeError(
                f"dt must be {(batch, steps)}, one number for each row and step, got "
                f"{tuple(dt.shape)}"
            )
        # Time first, and a last axis for dt: a (batch,) vector of times would broadcast along the
        # units.
        outputs, state = self.run(inputs.transpose(0, 1), state, dt.T.unsqueeze(-1))
        output = outputs.transpose(0, 1) if sequences else outputs[-1]
        return (output if self.readout is None else self.readout(output)), state

    @abstractmethod
    def run(self, x: Tensor, state: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Run over inputs (steps, batch, inputs) with dt (steps, batch, 1); return the outputs,
        (steps, batch, output_size), and the last state."""

    def constrain_(self) -> None:
        """Move parameters back into their allowed ranges after a gradient step, in place."""


def linear_without_numbers(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer with undefined weights, without drawing a random number; `draw_linear`
    draws the weights from the caller's generator."""
    made: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, inputs, outputs, dtype=torch.float32
    )
    return made


@torch.no_grad()
def draw_linear(linear: nn.Linear, generator: torch.Generator | None) -> None:
    """Draw weights from Glorot's uniform distribution, and biases uniformly from
    [-1 / sqrt(inputs), 1 / sqrt(inputs)]."""
    inputs = linear.weight.shape[1]
    nn.init.xavier_uniform_(linear.weight, generator=generator)
    linear.bias.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
