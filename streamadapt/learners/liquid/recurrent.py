"""What CfC and LTC share: a sequence in, outputs and the last state out, and time that passes
unevenly."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from streamadapt.errors import ShapeError

__all__ = ["Recurrent", "draw_linear", "linear_without_numbers"]


class Recurrent(nn.Module, ABC):
    """A network whose state lives on from one step to the next; all of its parameters are module
    attributes.

    Attributes
    ----------
    inputs : int
        Numbers it is given at each step.
    state_size : int
    output_size : int
        Numbers it returns at each step, before the readout.
    readout : nn.Linear or None
        From the outputs to what is wanted of them.
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
            Time since the step before, in units of the network's own; each row's and step's own.
            Default: 1.
        sequences : bool
            Whether to return the output of every step or that of the last one only.

        Returns
        -------
        outputs : Tensor, (batch, steps, outputs), or (batch, outputs) without `sequences`
        state : Tensor, (batch, state_size)

        Raises
        ------
        ShapeError
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
        said = outputs.transpose(0, 1) if sequences else outputs[-1]
        return (said if self.readout is None else self.readout(said)), state

    @abstractmethod
    def run(self, x: Tensor, state: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Run over (steps, batch, inputs) with dt (steps, batch, 1): (steps, batch, output_size)
        and the last state."""

    def constrain_(self) -> None:
        """Put parameters back that a step has taken where they may not be (in place)."""


def linear_without_numbers(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer that no random number was drawn for; `draw_linear` does, from the
    caller's generator."""
    made: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, inputs, outputs, dtype=torch.float32
    )
    return made


@torch.no_grad()
def draw_linear(linear: nn.Linear, generator: torch.Generator | None) -> None:
    """Weights: Glorot's uniform distribution; biases: uniform within 1 / sqrt(inputs)."""
    inputs = linear.weight.shape[1]
    nn.init.xavier_uniform_(linear.weight, generator=generator)
    linear.bias.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
