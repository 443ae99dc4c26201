"""Recalibration of the base's output: a line, refitted with forgetting in every cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.base import (
    INNOVATION_RATE,
    BaseOutput,
    Learner,
    Maturity,
    Spec,
    TaskKind,
    boosted_forgetting,
    one_or_more,
    require_shape,
)

__all__ = ["Calibration"]


class Calibration(Learner):
    """``prediction = base + scale (v_1 u + v_2)`` with u the scaled base output: gain and offset at once.

    Each cell runs recursive least squares with forgetting [1]_ on x = (u, 1)::

        M <- forgetting M + x x^T + (1 - forgetting) ridge I
        v <- v + M^-1 x clip(e)        e = target - base - scale x^T v, in scaled units

    which is `RLS` with two features, its leak included. Two numbers are learned from few labels where a whole window's
    weights cannot be. Innovations are clipped at `clip` times their running mean size.

    Costs O(rows x columns) time, and 6 float64 numbers a cell, per forgetting.

    Parameters
    ----------
    forgetting : float or sequence of floats, in (0, 1]
        Per matured example: .9 remembers about 10. Several: one expert each.
    clip : float, > 0
    ridge : float, > 0
        Weight of the prior, "no correction", in squared scaled units.

    References
    ----------
    .. [1] Ljung & Soderstrom (1983), Theory and practice of recursive identification, chapter 2.
    """

    kind: ClassVar[str] = "calibration"
    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"forecast", "regression"})
    matures: ClassVar[Maturity] = "rows"
    moments: Tensor
    weights: Tensor
    innovation: Tensor

    def __init__(
        self,
        forgetting: float | Sequence[float] = 0.98,
        *,
        clip: float = 2.0,
        ridge: float = 0.1,
    ) -> None:
        super().__init__()
        self.forgetting = one_or_more("forgetting", forgetting, 0.0, 1.0)
        for name, value in (("clip", clip), ("ridge", ridge)):
            if not value > 0.0:
                raise ConfigError(name, value, "a number > 0")
        self.clip = clip
        self.ridge = ridge

    @property
    def names(self) -> tuple[str, ...]:
        """``calibration-0.98`` and its siblings."""
        return tuple(f"{self.kind}-{forgetting:g}" for forgetting in self.forgetting)

    def allocate(self, spec: Spec) -> None:
        """Start without a correction."""
        cells = (len(self.forgetting), spec.rows, spec.columns)

        def filled(value: float, *shape: int) -> Tensor:
            return torch.full((*shape, *cells), value, dtype=torch.float64, device=spec.device)

        # M = [[m0, m1], [m1, m2]] as its three numbers.
        self.register_buffer("moments", filled(self.ridge, 3))
        self.moments[1] = 0.0
        self.register_buffer("weights", filled(0.0, 2))
        self.register_buffer("innovation", filled(0.3))
        self._forgetting = torch.tensor(self.forgetting, dtype=torch.float64, device=spec.device).view(-1, 1, 1)

    def _scaled(self, output: Tensor) -> Tensor:
        return ((output - self.spec.output_loc) / self.spec.output_scale).double()

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the recalibrated base."""
        del inputs
        correction = torch.addcmul(self.weights[1], self.weights[0], self._scaled(base.output))
        return torch.addcmul(base.output, correction.float(), self.spec.output_scale)

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Make one least-squares step in every known cell."""
        del inputs
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        u = self._scaled(base.output)
        forgetting = boosted_forgetting(self._forgetting, self.boost)
        leak = (1.0 - forgetting) * self.ridge
        moments = self.moments * forgetting
        m0 = torch.addcmul(moments[0] + leak, u, u)
        m1 = moments[1] + u
        m2 = moments[2] + (leak + 1.0)
        gain = torch.stack([m2 * u - m1, m0 - m1 * u]) / (m0 * m2 - m1 * m1)
        said = torch.addcmul(self.weights[1], self.weights[0], u)
        error = ((target - base.output) / self.spec.output_scale).double() - said
        innovation = torch.lerp(self.innovation, error.abs(), INNOVATION_RATE)
        bound = self.clip * innovation
        weights = torch.addcmul(self.weights, gain, error.clamp(-bound, bound))
        self.moments.copy_(torch.where(mask, torch.stack([m0, m1, m2]), self.moments))
        self.weights.copy_(torch.where(mask, weights, self.weights))
        self.innovation.copy_(torch.where(mask, innovation, self.innovation))
