"""A multiplicative correction, for outputs whose unit has drifted (an ageing sensor)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.base import BaseOutput, Learner, Maturity, Spec, TaskKind, one_or_more, require_shape

__all__ = ["Gain"]


class Gain(Learner):
    """``prediction = g base``, with ``g <- g + rate (clip(target / base) - g)`` in every cell.

    Cells whose base is closer to zero than a hundredth of the output's scale say nothing about g and are skipped.
    Costs O(rows x columns) time and floats per rate.

    Parameters
    ----------
    rate : float or sequence of floats, in (0, 1]
        Per matured example. Several rates: one expert each.
    limit : float, > 1
        The ratio is clipped to [1 / limit, limit]; a negative ratio counts as 1 / limit.
    """

    kind: ClassVar[str] = "gain"
    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"forecast", "regression"})
    matures: ClassVar[Maturity] = "rows"
    gain: Tensor

    def __init__(self, rate: float | Sequence[float] = 0.02, *, limit: float = 3.0) -> None:
        super().__init__()
        self.rates = one_or_more("rate", rate, 0.0, 1.0)
        if not 1.0 < limit < math.inf:
            raise ConfigError("limit", limit, "a finite number > 1")
        self.limit = limit

    @property
    def names(self) -> tuple[str, ...]:
        """``gain-0.02`` and its siblings."""
        return tuple(f"{self.kind}-{rate:g}" for rate in self.rates)

    def allocate(self, spec: Spec) -> None:
        """Start with a gain of one."""
        self.register_buffer("gain", torch.ones(len(self.rates), spec.rows, spec.columns, device=spec.device))
        self._rate = torch.tensor(self.rates, device=spec.device).view(-1, 1, 1)
        self._smallest = 0.01 * spec.output_scale

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return ``g base``."""
        del inputs
        return base.output * self.gain

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Move g towards the newest ratios."""
        del inputs
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        rate = self._rate if self.boost == 1.0 else (self._rate * self.boost).clamp_max(1.0)
        ratio = (target / base.output).clamp(1.0 / self.limit, self.limit)
        usable = mask & (base.output.abs() > self._smallest)
        self.gain.copy_(torch.where(usable, torch.lerp(self.gain, ratio, rate), self.gain))
