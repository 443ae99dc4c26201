"""Recalibration of the base's output: a line, refitted with forgetting in every cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.base import (
    INNOVATION_RATE,
    Learner,
    Maturity,
    boosted_forgetting,
    one_or_more,
    require_shape,
)
from streamadapt.learners.simplex import log_odds
from streamadapt.models.contract import BaseOutput, Spec

__all__ = ["Calibration"]

RELATIVE_RIDGE = 1e-13
"""The least determinant of M, in units of the product of its diagonal."""


class Calibration(Learner):
    """``prediction = base + scale (v_1 u + v_2)`` with u the scaled base output: gain and offset
    at once.

    Each cell runs recursive least squares with forgetting [1]_ on x = (u, 1)::

        M <- forgetting M + x x^T + (1 - forgetting) ridge I
        v <- v + M^-1 x clip(e)        e = target - base - scale x^T v, in scaled units

    which is `RLS` with two features, its leak included. Two numbers are learned from few labels
    where a whole window's weights cannot be. Innovations are clipped at `clip` times their running
    mean size.

    Classification: ``prediction = softmax(u + v_1 u + v_2)`` with u the base's log-odds (floored
    at 1e-6, less their mean) and v_1, v_2 per class: vector scaling [2]_. The same recursion on
    the log loss, whose gradient is target minus prediction and whose curvature in the scores is at
    most 1/2 [3]_: an online Newton step with e = 2 (target - prediction), which is bounded as it
    is and not clipped.

    Costs O(rows x columns) time, and 6 float64 numbers a cell, per forgetting.

    Parameters
    ----------
    forgetting : float or sequence of floats, in (0, 1]
        Per matured example: .9 remembers about 10. Several: one expert each.
    clip : float, > 0
        Errors are clipped at this many times their running mean size; ``inf`` clips nothing. Not
        used for classes.
    ridge : float, > 0
        Weight of the prior, "no correction", in squared scaled units. Default: .1; 10 for classes,
        where u is not scaled.

    References
    ----------
    .. [1] Ljung & Soderstrom (1983), Theory and practice of recursive identification, chapter 2.
    .. [2] Guo et al. (2017), On calibration of modern neural networks, ICML 34.
    .. [3] Böhning (1992), Multinomial logistic regression algorithm, Annals of the Institute of
       Statistical Mathematics 44.

    Examples
    --------
    >>> Calibration(0.98).names
    ('calibration-0.98',)
    """

    kind: ClassVar[str] = "calibration"
    matures: ClassVar[Maturity] = "rows"
    moments: Tensor
    weights: Tensor
    innovation: Tensor

    def __init__(
        self,
        forgetting: float | Sequence[float] = 0.98,
        *,
        clip: float = 2.0,
        ridge: float | None = None,
    ) -> None:
        super().__init__()
        self.forgetting = one_or_more("forgetting", forgetting, 0.0, 1.0)
        for name, value in (("clip", clip), ("ridge", ridge)):
            if value is not None and not value > 0.0:
                raise ConfigError(name, value, "a number > 0")
        self.clip = clip
        self._given_ridge = ridge

    @property
    def names(self) -> tuple[str, ...]:
        """``calibration-0.98`` and its siblings."""
        return tuple(f"{self.kind}-{forgetting:g}" for forgetting in self.forgetting)

    def allocate(self, spec: Spec) -> None:
        """Start without a correction."""
        self._classify = spec.kind == "classification"
        self.ridge = (
            (10.0 if self._classify else 0.1) if self._given_ridge is None else self._given_ridge
        )
        cells = (len(self.forgetting), spec.rows, spec.columns)
        where: dict[str, Any] = {"dtype": torch.float64, "device": spec.device}
        # M = [[m0, m1], [m1, m2]] as its three numbers.
        self.register_buffer("moments", torch.full((3, *cells), self.ridge, **where))
        self.moments[1] = 0.0
        self.register_buffer("weights", torch.zeros((2, *cells), **where))
        if not self._classify:
            self.register_buffer("innovation", torch.full(cells, 0.3, **where))
        self._forgetting = torch.tensor(self.forgetting, **where).view(-1, 1, 1)
        self._powers = torch.tensor([2.0, 1.0, 0.0], **where).view(3, 1, 1, 1)  # of u, in M
        self._leaks = torch.tensor([1.0, 0.0, 1.0], **where).view(3, 1, 1, 1) * self.ridge
        self._pace = (1.0, self._forgetting, (1.0 - self._forgetting) * self._leaks)

    def _paced(self) -> tuple[Tensor, Tensor]:
        """Return the forgetting and what leaks into M for it."""
        if self._pace[0] != self.boost:
            forgetting = boosted_forgetting(self._forgetting, self.boost)
            self._pace = (self.boost, forgetting, (1.0 - forgetting) * self._leaks)
        return self._pace[1:]

    def _scaled(self, output: Tensor) -> Tensor:
        """Return u, (rows, columns)."""
        if self._classify:
            return log_odds(output.double())
        return torch.sub(output, self.spec.output_loc).div_(self.spec.output_scale).double()

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the recalibrated base."""
        del inputs
        u = self._scaled(base.output)
        slope, offset = self.weights.unbind()
        correction = torch.addcmul(offset, slope, u)
        if self._classify:
            return torch.softmax(u + correction, dim=-1).float()
        return torch.addcmul(base.output, correction.float(), self.spec.output_scale)

    def forget(self, keep: float) -> None:
        """Inflate the covariance: ``M <- keep M + (1 - keep) ridge I``; the line itself stays."""
        self.moments.mul_(keep).add_((1.0 - keep) * self._leaks)

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Make one least-squares step in every known cell."""
        del inputs
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        whole = bool(mask.all())
        if not whole and (self._classify or not bool(mask.any())):
            return
        u = self._scaled(base.output)
        slope, offset = self.weights.unbind()
        said = torch.addcmul(offset, slope, u)
        if self._classify:
            step = (target - torch.softmax(u + said, dim=-1)).mul_(2.0)
        else:
            step = self._clipped(
                (target - base.output).div_(self.spec.output_scale).double() - said, mask, whole
            )
        forgetting, leak = self._paced()
        if self.weight != 1.0:
            step.mul_(self.weight)
        moments = torch.addcmul(leak, self.moments, forgetting).add_(
            u.pow(self._powers), alpha=self.weight
        )
        m0, m1, m2 = moments.unbind()
        products = m0 * m2
        determinant = torch.addcmul(products, m1, m1, value=-1.0)
        # Where less is left than rounding makes, it would be anything: zero, or of the wrong sign.
        step.div_(torch.maximum(determinant, RELATIVE_RIDGE * products))
        # Of determinant times M^-1.
        gain = torch.stack([m2 * u - m1, torch.addcmul(m0, m1, u, value=-1.0)])
        weights = torch.addcmul(self.weights, gain, step)
        if not bool(torch.isfinite(weights).all()):  # numbers beyond all others teach nothing
            mask, whole = mask & torch.isfinite(weights).all(0), False
        if whole:
            self.moments.copy_(moments)
            self.weights.copy_(weights)
        else:
            self.moments.copy_(torch.where(mask, moments, self.moments))
            self.weights.copy_(torch.where(mask, weights, self.weights))

    def _clipped(self, error: Tensor, mask: Tensor, whole: bool) -> Tensor:
        """Return the errors clipped, having followed their size."""
        if whole:
            self.innovation.lerp_(error.abs(), INNOVATION_RATE)
        else:
            moved = torch.lerp(self.innovation, error.abs(), INNOVATION_RATE)
            self.innovation.copy_(torch.where(mask, moved, self.innovation))
        bound = self.innovation * self.clip
        return error.clamp_(-bound, bound)
