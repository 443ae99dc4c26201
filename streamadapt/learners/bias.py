"""The plainest correction: an exponentially weighted mean of what the base got wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from streamadapt.learners.base import Learner, Maturity, one_or_more, require_shape
from streamadapt.learners.simplex import log_odds
from streamadapt.models.contract import BaseOutput, Spec

__all__ = ["Bias"]


class Bias(Learner):
    """``prediction = base + b``, with ``b <- b + rate (target - base - b)`` in every cell.

    A row of a forecast is learned the moment its target is known. Costs O(rows x columns) time and
    floats per rate.

    Classification: ``prediction = softmax(ln base + b)``, with
    ``b <- b + rate (target - prediction)``, the online gradient of the log loss (target one-hot,
    base floored at 1e-6): it follows how often each class comes, the correction for a shift of the
    labels [1]_.

    Parameters
    ----------
    rate : float or sequence of floats, in (0, 1]
        Per matured example: .02 remembers about 50 of them. Several rates: one expert each.

    References
    ----------
    .. [1] Wu et al. (2021), Online adaptation to label distribution shift, NeurIPS 34.

    Examples
    --------
    >>> Bias((0.1, 0.02)).names
    ('bias-0.1', 'bias-0.02')
    """

    kind: ClassVar[str] = "bias"
    matures: ClassVar[Maturity] = "rows"
    bias: Tensor

    def __init__(self, rate: float | Sequence[float] = 0.02) -> None:
        super().__init__()
        self.rates = one_or_more("rate", rate, 0.0, 1.0)

    @property
    def names(self) -> tuple[str, ...]:
        """``bias-0.02`` and its siblings."""
        return tuple(f"{self.kind}-{rate:g}" for rate in self.rates)

    def allocate(self, spec: Spec) -> None:
        """Start without a correction."""
        self._classify = spec.kind == "classification"
        self.register_buffer(
            "bias",
            torch.zeros(
                len(self.rates), spec.rows, spec.columns, dtype=torch.float32, device=spec.device
            ),
        )
        self._rate = torch.tensor(self.rates, dtype=torch.float32, device=spec.device).view(
            -1, 1, 1
        )

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return ``base + b``, or the softmax of it."""
        del inputs
        if self._classify:
            return torch.softmax(log_odds(base.output) + self.bias, dim=-1)
        return base.output + self.bias

    def forget(self, keep: float) -> None:
        """Shrink b."""
        self.bias.mul_(keep)

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Move b towards the newest errors."""
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        pace = self.boost * self.weight
        rate = self._rate if pace == 1.0 else (self._rate * pace).clamp_max(1.0)
        if self._classify:
            moved = torch.addcmul(self.bias, target - self.predict(inputs, base), rate)
        else:
            moved = torch.lerp(self.bias, target - base.output, rate)
        self.bias.copy_(torch.where(mask, moved, self.bias))
