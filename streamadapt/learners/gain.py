"""A multiplicative correction, for outputs whose unit has drifted (an ageing sensor)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner, Maturity, one_or_more, require_shape
from streamadapt.learners.simplex import log_odds
from streamadapt.models.contract import BaseOutput, Spec

__all__ = ["Gain"]


class Gain(Learner):
    """``prediction = g base``, with ``g <- g + rate (clip(target / base) - g)`` in every cell.

    Cells whose base is closer to zero than a hundredth of the output's scale say nothing about g
    and are skipped. Costs O(rows x columns) time and floats per rate.

    Classification: g is an inverse temperature [1]_, ``prediction = softmax(g ln base)``, one for
    all classes, for a base whose confidence has drifted. With u the base's log-odds (floored at
    1e-6, less their mean), p the prediction and y the target, the online natural gradient of the
    log loss in ln g is::

        s    = g sum_c (y_c - p_c) u_c            F <- F + rate (g^2 var_p(u) - F), F = 1 at first
        ln g <- clip(ln g + rate clip(s / max(F, 1), +-1), +-ln limit)

    Parameters
    ----------
    rate : float or sequence of floats, in (0, 1]
        Per matured example. Several rates: one expert each.
    limit : float, > 1
        The ratio is clipped to [1 / limit, limit]; a negative ratio counts as 1 / limit. So is the
        inverse temperature.

    References
    ----------
    .. [1] Guo et al. (2017), On calibration of modern neural networks, ICML 34; for the steps,
       Amari (1998), Natural gradient works efficiently in learning, Neural Computation 10.

    Examples
    --------
    >>> Gain(0.05).names
    ('gain-0.05',)
    """

    kind: ClassVar[str] = "gain"
    matures: ClassVar[Maturity] = "rows"
    gain: Tensor
    curvature: Tensor

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
        self._classify = spec.kind == "classification"
        shape = (
            (len(self.rates), 1, 1)
            if self._classify
            else (len(self.rates), spec.rows, spec.columns)
        )
        self.register_buffer("gain", torch.ones(shape, dtype=torch.float32, device=spec.device))
        if self._classify:
            self.register_buffer(
                "curvature", torch.ones(shape, dtype=torch.float32, device=spec.device)
            )
        self._rate = torch.tensor(self.rates, dtype=torch.float32, device=spec.device).view(
            -1, 1, 1
        )
        self._smallest = 0.01 * spec.output_scale

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return ``g base``, or the softmax of ``g ln base``."""
        del inputs
        if self._classify:
            return torch.softmax(self.gain * log_odds(base.output), dim=-1)
        if self.spec.output_origin is None:
            return base.output * self.gain
        return (self._original(base.output) * self.gain - self.spec.output_origin).float()

    def _original(self, outputs: Tensor) -> Tensor:
        """Return outputs in original units: a gain is about zero, not about the origin."""
        origin = self.spec.output_origin
        return outputs if origin is None else outputs.double() + origin

    def forget(self, keep: float) -> None:
        """Bring g towards one, on a logarithmic scale."""
        self.gain.pow_(keep)

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Move g towards the newest ratios."""
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        pace = self.boost * self.weight
        rate = self._rate if pace == 1.0 else (self._rate * pace).clamp_max(1.0)
        if self._classify:
            if bool(mask.all()):
                self._learn_class(self.predict(inputs, base), log_odds(base.output), target, rate)
            return
        said = self._original(base.output)
        ratio = (
            (self._original(target) / said).to(self.gain.dtype).clamp(1.0 / self.limit, self.limit)
        )
        usable = mask & (said.abs() > self._smallest)
        self.gain.copy_(torch.where(usable, torch.lerp(self.gain, ratio, rate), self.gain))

    def _learn_class(self, p: Tensor, u: Tensor, target: Tensor, rate: Tensor) -> None:
        """Make one natural-gradient step; p is (rates, 1, classes), u and target are (1,
        classes)."""
        mean = (p * u).sum(-1, keepdim=True)
        slope = self.gain * ((target * u).sum(-1, keepdim=True) - mean)
        variance = (p * (u - mean).square()).sum(-1, keepdim=True)
        self.curvature.lerp_(self.gain.square() * variance, rate)
        step = (slope / self.curvature.clamp_min(1.0)).clamp_(-1.0, 1.0)
        self.gain.mul_((rate * step).exp()).clamp_(1.0 / self.limit, self.limit)
