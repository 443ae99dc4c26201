"""Recalibration of the base's output: a line, refitted with forgetting in every cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.base import BaseOutput, Learner, Maturity, Spec, TaskKind, one_or_more, require_shape

__all__ = ["Calibration"]

INNOVATION_RATE = 0.01


class Calibration(Learner):
    """``prediction = base + scale (v_1 u + v_2)`` with u the scaled base output: gain and offset at once.

    Each cell runs recursive least squares with forgetting [1]_ on x = (u, 1), as `RLS` does on the window: the trace of
    its 2 x 2 covariance is capped, and innovations are clipped at `clip` times their running mean size. Two
    numbers are learned from few labels where a whole window's weights cannot be.

    Costs O(rows x columns) time, and 6 float64 numbers a cell, per forgetting.

    Parameters
    ----------
    forgetting : float or sequence of floats, in (0, 1]
        Per matured example: .9 remembers about 10. Several: one expert each.
    clip : float, > 0
    ridge : float, > 0
        Weight of the prior, "no correction", in squared scaled units.
    variance_limit : float, > 0
        Bound on the mean of the covariance's diagonal, in the units of 1 / `ridge`.

    References
    ----------
    .. [1] Ljung & Soderstrom (1983), Theory and practice of recursive identification, chapter 2.
    """

    kind: ClassVar[str] = "calibration"
    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"forecast", "regression"})
    matures: ClassVar[Maturity] = "rows"
    covariance: Tensor
    weights: Tensor
    innovation: Tensor

    def __init__(
        self,
        forgetting: float | Sequence[float] = 0.98,
        *,
        clip: float = 2.0,
        ridge: float = 0.1,
        variance_limit: float = 10.0,
    ) -> None:
        super().__init__()
        self.forgetting = one_or_more("forgetting", forgetting, 0.0, 1.0)
        for name, value in (("clip", clip), ("ridge", ridge), ("variance_limit", variance_limit)):
            if not value > 0.0:
                raise ConfigError(name, value, "a number > 0")
        self.clip = clip
        self.ridge = ridge
        self.variance_limit = variance_limit

    @property
    def names(self) -> tuple[str, ...]:
        """``calibration-0.98`` and its siblings."""
        return tuple(f"{self.kind}-{forgetting:g}" for forgetting in self.forgetting)

    def allocate(self, spec: Spec) -> None:
        """Start without a correction."""
        cells = (len(self.forgetting), spec.rows, spec.columns)

        def filled(value: float, *shape: int) -> Tensor:
            return torch.full((*shape, *cells), value, dtype=torch.float64, device=spec.device)

        # P = [[p0, p1], [p1, p2]] as its three numbers.
        self.register_buffer("covariance", filled(1.0 / self.ridge, 3))
        self.covariance[1] = 0.0
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
        forgetting = self._forgetting
        if self.boost != 1.0:
            forgetting = (1.0 - (1.0 - forgetting) * self.boost).clamp_min(0.5)
        p = self.covariance / forgetting
        limit = 2.0 * self.variance_limit
        p = p * (limit / (p[0] + p[2]).clamp_min(limit))
        px = torch.addcmul(p[1:], p[:2], u)  # (p0 u + p1, p1 u + p2)
        size = 1.0 + torch.addcmul(px[1], px[0], u)
        p = p - torch.stack([px[0] * px[0], px[0] * px[1], px[1] * px[1]]) / size
        said = torch.addcmul(self.weights[1], self.weights[0], u)
        error = ((target - base.output) / self.spec.output_scale).double() - said
        innovation = torch.lerp(self.innovation, error.abs(), INNOVATION_RATE)
        bound = self.clip * innovation
        weights = self.weights + px / size * error.clamp(-bound, bound)
        self.covariance.copy_(torch.where(mask, p, self.covariance))
        self.weights.copy_(torch.where(mask, weights, self.weights))
        self.innovation.copy_(torch.where(mask, innovation, self.innovation))
