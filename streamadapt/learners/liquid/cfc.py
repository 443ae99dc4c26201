"""CfC: a liquid network in closed form."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from streamadapt.errors import ConfigError
from streamadapt.learners.liquid.recurrent import Recurrent, draw_linear, linear_without_numbers
from streamadapt.learners.liquid.wirings import Wiring

__all__ = ["ACTIVATIONS", "Activation", "CfC", "CfCLayer", "Mode"]

Mode: TypeAlias = Literal["default", "pure", "no_gate"]
Activation: TypeAlias = Literal["lecun_tanh", "silu", "relu", "tanh", "gelu"]


def _lecun_tanh(x: Tensor) -> Tensor:
    """Return ``1.7159 tanh(0.666 x)``; weights of ncps were trained with these rounded
    constants."""
    return 1.7159 * torch.tanh(0.666 * x)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "lecun_tanh": _lecun_tanh,
    "silu": F.silu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}


class CfCLayer(nn.Module):
    """One closed-form continuous-time cell [1]_, run over a sequence.

    With ``z = backbone([x, h])`` (or [x, h] itself)::

        default   h' = f1 (1 - s) + s f2
        no_gate   h' = f1 + s f2
                  f1 = tanh(W1 z), f2 = tanh(W2 z), s = sigmoid(A(z) dt + B(z))
        pure      h' = a - a f exp(-dt (|w| + |f|)),  f = W1 z

    Costs O(backbone (inputs + units) + units backbone) time per step.

    Parameters
    ----------
    backbone : tuple of int
        The number of units of each hidden layer of the backbone; () for no backbone.
    mask : Tensor, (units, inputs + units), optional
        1 where W1 and W2 have a synapse; A and B have all synapses, as in ncps. Only without a
        backbone.
    generator : torch.Generator
        Draws the initial weights.

    References
    ----------
    .. [1] Hasani et al. (2022), Closed-form continuous-time neural networks, Nature Machine
       Intelligence 4, equations 10 and 3 (pure).
    """

    mask: Tensor | None

    def __init__(
        self,
        inputs: int,
        units: int,
        *,
        mode: Mode,
        activation: Activation,
        backbone: tuple[int, ...],
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.units = units
        self.mode = mode
        self.activation = ACTIVATIONS[activation]
        sizes = (inputs + units, *backbone)
        self.backbone = nn.ModuleList(linear_without_numbers(a, b) for a, b in pairwise(sizes))
        # W1, W2, A and B are stacked: one product instead of four. (pure: only W1.)
        parts = 1 if mode == "pure" else 4
        self.head = linear_without_numbers(sizes[-1], parts * units)
        if mask is not None and parts == 4:
            mask = torch.cat([mask, mask, torch.ones_like(mask), torch.ones_like(mask)])
        self.register_buffer("mask", mask)
        for linear in (*self.backbone, self.head):
            assert isinstance(linear, nn.Linear)
            draw_linear(linear, generator)
        with torch.no_grad():  # each part has the initial weights of a separate layer
            for part in self.head.weight.view(parts, units, -1):
                nn.init.xavier_uniform_(part, generator=generator)
        if mode == "pure":
            # Not zero: there |w| has no gradient, so w would never change.
            w_tau = torch.empty(1, units, dtype=torch.float32).uniform_(
                0.0, 1.0, generator=generator
            )
            self.w_tau, self.a = (
                nn.Parameter(w_tau),
                nn.Parameter(torch.ones(1, units, dtype=torch.float32)),
            )

    def forward(self, x: Tensor, h: Tensor, dt: Tensor) -> Tensor:
        """Return all states, (steps, batch, units), from (steps, batch, inputs), (batch, units),
        (steps, batch, 1)."""
        linears = self._linears()
        # The product with the inputs is computed for all steps at once; only the product with the
        # state needs the previous step.
        (first, bias), rest = linears[0], linears[1:]
        from_inputs = F.linear(x, first[:, : self.inputs], bias).unbind(0)
        recurrent = first[:, self.inputs :].T
        states = []
        for now, lapse in zip(from_inputs, dt.unbind(0), strict=True):
            z = torch.addmm(now, h, recurrent)
            for w, b in rest:
                z = F.linear(self.activation(z), w, b)
            h = self._next(z, lapse)
            states.append(h)
        return torch.stack(states)

    def _linears(self) -> list[tuple[Tensor, Tensor]]:
        """Return the weights and biases of the backbone and the head."""
        backbone = []
        for layer in self.backbone:
            assert isinstance(layer, nn.Linear)
            backbone.append((layer.weight, layer.bias))
        return [
            *backbone,
            (
                self.head.weight if self.mask is None else self.head.weight * self.mask,
                self.head.bias,
            ),
        ]

    def _next(self, z: Tensor, dt: Tensor) -> Tensor:
        if self.mode == "pure":
            return self.a - self.a * torch.exp(-dt * (self.w_tau.abs() + z.abs())) * z
        n = self.units
        f1, f2 = torch.tanh(z[:, : 2 * n]).chunk(2, 1)
        s = torch.sigmoid(torch.addcmul(z[:, 3 * n :], z[:, 2 * n : 3 * n], dt))
        return torch.addcmul(f1, s, f2) if self.mode == "no_gate" else torch.lerp(f1, f2, s)


class CfC(Recurrent):
    """A closed-form continuous-time network: one cell, or one per layer of a wiring.

    With a wiring, the state is the states of the layers in order, from the inputs to the outputs;
    the output is the state of the last layer; and there is no backbone.

    Parameters
    ----------
    inputs : int
    units : int or Wiring
    projection : int, optional
        The number of outputs of a linear readout of the state; by default there is no readout.
    mode : {"default", "pure", "no_gate"}
        See `CfCLayer`.
    activation : {"lecun_tanh", "silu", "relu", "tanh", "gelu"}
        The activation function of the backbone.
    backbone : sequence of int
        The number of units of each layer of the backbone; () for no backbone.
    generator : torch.Generator, optional
        Draws the initial weights; default: the global generator of torch.

    Raises
    ------
    ConfigError
        If a setting is invalid, or `inputs` differs from the wiring's.
    """

    def __init__(
        self,
        inputs: int,
        units: int | Wiring,
        *,
        projection: int | None = None,
        mode: Mode = "default",
        activation: Activation = "lecun_tanh",
        backbone: tuple[int, ...] = (128,),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if mode not in get_args(Mode):
            raise ConfigError("mode", mode, "one of " + ", ".join(get_args(Mode)))
        if activation not in ACTIVATIONS:
            raise ConfigError("activation", activation, "one of " + ", ".join(ACTIVATIONS))
        masks: list[Tensor | None]
        if isinstance(units, Wiring):
            if units.inputs != inputs:
                raise ConfigError(
                    "inputs", inputs, f"{units.inputs}, the number of inputs of the wiring"
                )
            sizes, masks, backbone = [len(layer) for layer in units.layers], [*_masks(units)], ()
        else:
            sizes, masks = [units], [None]
        if min(inputs, *sizes, *backbone) < 1:
            raise ConfigError(
                "units",
                (inputs, *sizes, *backbone),
                "at least one input and one unit in each layer",
            )
        self.inputs, self.state_size, self.output_size = inputs, sum(sizes), sizes[-1]
        self.sizes = sizes
        self.layers = nn.ModuleList(
            CfCLayer(
                before,
                size,
                mode=mode,
                activation=activation,
                backbone=tuple(backbone),
                mask=mask,
                generator=generator,
            )
            for before, size, mask in zip([inputs, *sizes], sizes, masks, strict=False)
        )
        self.readout = None
        if projection is not None:
            self.readout = linear_without_numbers(self.output_size, projection)
            draw_linear(self.readout, generator)

    def run(self, x: Tensor, state: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Run the layers one after the other: in each step, a layer gets the new state of the
        previous layer."""
        last = []
        for layer, h in zip(self.layers, torch.split(state, self.sizes, 1), strict=True):
            x = layer(x, h, dt)
            last.append(x[-1])
        return x, last[0] if len(last) == 1 else torch.cat(last, 1)


def _masks(wiring: Wiring) -> list[Tensor]:
    """Return the mask of each layer: 1 for each synapse from the previous layer, and for all
    synapses from the layer's own state."""
    masks, before = [], wiring.sensory
    for layer in wiring.layers:
        seen = before[:, layer] != 0
        own = np.ones((len(layer), len(layer)), np.bool_)
        mask = np.concatenate([seen, own]).T.astype(np.float32)
        masks.append(torch.from_numpy(np.ascontiguousarray(mask)))  # safetensors needs this
        before = wiring.synapses[list(layer)]
    return masks
