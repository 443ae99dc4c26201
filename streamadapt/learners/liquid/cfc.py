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
    """``1.7159 tanh(0.666 x)``, with the rounded constants that ncps' weights were trained
    with."""
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

    Costs O(backbone (inputs + units) + units backbone) time a step.

    Parameters
    ----------
    backbone : tuple of int
        Units of the hidden layers of the backbone; none: no backbone.
    mask : Tensor, (units, inputs + units), optional
        1 where W1 and W2 have a synapse; A and B see everything, as in ncps. Only without a
        backbone.
    generator : torch.Generator
        Of the initial weights.

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
        # W1, W2, A and B one below the other: one product instead of four. (pure: W1 alone.)
        parts = 1 if mode == "pure" else 4
        self.head = linear_without_numbers(sizes[-1], parts * units)
        if mask is not None and parts == 4:
            mask = torch.cat([mask, mask, torch.ones_like(mask), torch.ones_like(mask)])
        self.register_buffer("mask", mask)
        for linear in (*self.backbone, self.head):
            assert isinstance(linear, nn.Linear)
            draw_linear(linear, generator)
        with torch.no_grad():  # each part is a layer of its own
            for part in self.head.weight.view(parts, units, -1):
                nn.init.xavier_uniform_(part, generator=generator)
        if mode == "pure":
            # Not zero: |w| has no slope there, and w would never learn.
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
        # What the inputs put in is known for all steps at once; only the state's share waits for
        # the step before.
        (first, bias), rest = linears[0], linears[1:]
        given = F.linear(x, first[:, : self.inputs], bias).unbind(0)
        recurrent = first[:, self.inputs :].T
        states = []
        for now, lapse in zip(given, dt.unbind(0), strict=True):
            z = torch.addmm(now, h, recurrent)
            for w, b in rest:
                z = F.linear(self.activation(z), w, b)
            h = self._next(z, lapse)
            states.append(h)
        return torch.stack(states)

    def _linears(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of the backbone and the head."""
        found = []
        for layer in self.backbone:
            assert isinstance(layer, nn.Linear)
            found.append((layer.weight, layer.bias))
        return [
            *found,
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

    The state of a wired one is its layers' states in order, from the inputs to the outputs; the
    output is the state of the last layer. Wired cells have no backbone.

    Parameters
    ----------
    inputs : int
    units : int or Wiring
    projection : int, optional
        Outputs of a linear readout behind it; none by default.
    mode : {"default", "pure", "no_gate"}
        See `CfCLayer`.
    activation : {"lecun_tanh", "silu", "relu", "tanh", "gelu"}
        Of the backbone.
    backbone : sequence of int
        Units of the backbone's layers; () for none.
    generator : torch.Generator, optional
        Of the initial weights; default: torch's global one.

    Raises
    ------
    ConfigError
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
                    "inputs", inputs, f"{units.inputs}, which the wiring is made for"
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
        """Run layer after layer: within a step a layer sees the new state of the one before."""
        last = []
        for layer, h in zip(self.layers, torch.split(state, self.sizes, 1), strict=True):
            x = layer(x, h, dt)
            last.append(x[-1])
        return x, last[0] if len(last) == 1 else torch.cat(last, 1)


def _masks(wiring: Wiring) -> list[Tensor]:
    """For each layer 1 where a synapse comes from the layer before; the layer's own state is
    always seen whole."""
    masks, before = [], wiring.sensory
    for layer in wiring.layers:
        seen = before[:, layer] != 0
        own = np.ones((len(layer), len(layer)), np.bool_)
        mask = np.concatenate([seen, own]).T.astype(np.float32)
        masks.append(torch.from_numpy(np.ascontiguousarray(mask)))  # safetensors saves no other
        before = wiring.synapses[list(layer)]
    return masks
