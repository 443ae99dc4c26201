"""LTC: a liquid time-constant network, whose differential equation is solved step by step."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from streamadapt.errors import ConfigError
from streamadapt.learners.liquid.recurrent import Recurrent, draw_linear, linear_without_numbers
from streamadapt.learners.liquid.wirings import Wiring, fully_connected

__all__ = ["LTC", "Mapping"]

Mapping: TypeAlias = Literal["affine", "linear", "none"]
RANGES = {
    "gleak": (0.001, 1.0), "vleak": (-0.2, 0.2), "cm": (0.4, 0.6), "w": (0.001, 1.0),
    "sigma": (3.0, 8.0), "mu": (0.3, 0.8), "sensory_w": (0.001, 1.0), "sensory_sigma": (3.0, 8.0),
    "sensory_mu": (0.3, 0.8),
}  # fmt: skip
"""The ranges from which the initial parameters are drawn uniformly."""
NOT_NEGATIVE = ("w", "sensory_w", "cm", "gleak")


class LTC(Recurrent):
    """Liquid time-constant network [1]_: neurons with a leak and synapses with reversal
    potentials.

    For neuron j with synapses from neurons (and, in the same form, from inputs) i::

        cm dv_j/dt = gleak (vleak - v_j)
                     + sum_i w_ij sigmoid(sigma_ij (v_i - mu_ij)) (erev_ij - v_j)

    A step of length dt consists of `unfolds` semi-implicit Euler steps of length
    ``d = dt / unfolds``, with v_j implicit and the sigmoids explicit; this is stable for every
    d >= 0::

        v_j <- (cm v_j + d (gleak vleak + sum_i g_ij erev_ij))
               / (cm + d (gleak + sum_i g_ij + epsilon)),    g = w sigmoid

    Each input and each output has its own scale and shift. The outputs are the states of the motor
    neurons.

    Costs O(unfolds (units + inputs / unfolds) units) time per step.

    Parameters
    ----------
    inputs : int
    units : int or Wiring
        A number stands for the wiring `fully_connected`.
    projection : int, optional
        The number of outputs of a linear readout of the state; by default there is no readout.
    unfolds : int, >= 1
        The number of Euler steps per step.
    epsilon : float, > 0
        Keeps the denominator above zero.
    constrained : bool
        Whether w, cm and gleak are softplus of their parameters; else `constrain_` clips them at
        zero.
    mappings : tuple of two of {"affine", "linear", "none"}
        For the inputs and for the outputs: scale and shift, only scale, or none.
    generator : torch.Generator, optional
        Draws the initial weights; default: the global generator of torch.

    References
    ----------
    .. [1] Hasani et al. (2021), Liquid time-constant networks, AAAI 35; the neuron and its solver:
       appendix and algorithm 1.
    """

    gleak: Tensor
    vleak: Tensor
    cm: Tensor
    sigma: Tensor
    mu: Tensor
    w: Tensor
    erev: Tensor
    sensory_sigma: Tensor
    sensory_mu: Tensor
    sensory_w: Tensor
    sensory_erev: Tensor
    sparsity_mask: Tensor
    sensory_sparsity_mask: Tensor
    input_w: Tensor | None
    input_b: Tensor | None
    output_w: Tensor | None
    output_b: Tensor | None

    def __init__(
        self,
        inputs: int,
        units: int | Wiring,
        *,
        projection: int | None = None,
        unfolds: int = 6,
        epsilon: float = 1e-8,
        constrained: bool = True,
        mappings: tuple[Mapping, Mapping] = ("affine", "affine"),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        wiring = units if isinstance(units, Wiring) else fully_connected(inputs, units)
        if wiring.inputs != inputs:
            expected = f"{wiring.inputs}, the number of inputs of the wiring"
            raise ConfigError("inputs", inputs, expected)
        if unfolds < 1:
            raise ConfigError("unfolds", unfolds, "a whole number >= 1")
        if not all(mapping in get_args(Mapping) for mapping in mappings):
            raise ConfigError("mappings", mappings, "two of " + ", ".join(get_args(Mapping)))
        self.inputs, self.state_size, self.output_size = inputs, wiring.units, wiring.outputs
        self.unfolds = unfolds
        self.epsilon = epsilon
        self.constrained = constrained
        self._draw(wiring, generator)
        for side, mapping, size in zip(
            ("input", "output"), mappings, (inputs, wiring.outputs), strict=True
        ):
            weight = (
                None if mapping == "none" else nn.Parameter(torch.ones(size, dtype=torch.float32))
            )
            self.register_parameter(f"{side}_w", weight)
            self.register_parameter(
                f"{side}_b",
                nn.Parameter(torch.zeros(size, dtype=torch.float32))
                if mapping == "affine"
                else None,
            )
        self.readout = None
        if projection is not None:
            self.readout = linear_without_numbers(self.output_size, projection)
            draw_linear(self.readout, generator)

    def _draw(self, wiring: Wiring, generator: torch.Generator | None) -> None:
        for name, (low, high) in RANGES.items():
            if name in ("gleak", "vleak", "cm"):
                shape: tuple[int, ...] = (wiring.units,)
            else:
                shape = (
                    wiring.inputs if name.startswith("sensory") else wiring.units,
                    wiring.units,
                )
            self.register_parameter(
                name,
                nn.Parameter(
                    torch.empty(shape, dtype=torch.float32).uniform_(
                        low, high, generator=generator
                    )
                ),
            )
        for prefix, signs in (("", wiring.synapses), ("sensory_", wiring.sensory)):
            polarity = torch.from_numpy(signs).float()
            self.register_parameter(f"{prefix}erev", nn.Parameter(polarity))
            self.register_buffer(f"{prefix}sparsity_mask", polarity.abs())

    def run(self, x: Tensor, state: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Solve the differential equation over all steps."""
        if self.input_w is not None:
            x = x * self.input_w
        if self.input_b is not None:
            x = x + self.input_b
        positive = F.softplus if self.constrained else torch.nn.Identity()
        sensory = _synapses(
            positive(self.sensory_w) * self.sensory_sparsity_mask,
            self.sensory_erev,
            self.sensory_mu,
            self.sensory_sigma,
        )
        inner = _synapses(positive(self.w) * self.sparsity_mask, self.erev, self.mu, self.sigma)
        cm, leak = positive(self.cm), positive(self.gleak)
        rest = torch.stack([leak * self.vleak, leak + self.epsilon]).unsqueeze(1)  # (2, 1, units)
        capacity = torch.stack([torch.zeros_like(cm), cm]).unsqueeze(1)
        v, states = state, []
        for now, step in zip(x.unbind(0), (dt / self.unfolds).unbind(0), strict=True):
            # (2, batch, units)
            constant = torch.addcmul(capacity, step, rest + _currents(now, *sensory))
            for _ in range(self.unfolds):
                drive, conductance = torch.addcmul(constant, step, _currents(v, *inner)).unbind(0)
                v = torch.addcmul(drive, cm, v) / conductance
            states.append(v)
        return self._outputs(torch.stack(states)), v

    def _outputs(self, v: Tensor) -> Tensor:
        output = v[..., : self.output_size]
        if self.output_w is not None:
            output = output * self.output_w
        return output if self.output_b is None else output + self.output_b

    @torch.no_grad()
    def constrain_(self) -> None:
        """Clip w, cm and gleak at zero, unless they are softplus of their parameters."""
        if not self.constrained:
            for name in NOT_NEGATIVE:
                getattr(self, name).clamp_min_(0.0)


def _synapses(w: Tensor, erev: Tensor, mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensors that are the same in all steps: ``(w erev, w)``, (2, 1, sources, units);
    ``-sigma mu``; sigma."""
    return torch.stack([w * erev, w]).unsqueeze(1), -sigma * mu, sigma


def _currents(v: Tensor, weights: Tensor, offset: Tensor, sigma: Tensor) -> Tensor:
    """Return the sum of ``w sigmoid(sigma (v - mu)) (erev, 1)`` over the sources: (batch, sources)
    -> (2, batch, units)."""
    # (batch, sources, units)
    active = torch.sigmoid(torch.addcmul(offset, v.unsqueeze(-1), sigma))
    return (weights * active).sum(2)
