"""ML-Poly: polynomially weighted averages with a rate per expert."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.guard.mixer import CompiledAggregator, by_group, discounts_of
from streamadapt.numbers import at_least
from streamadapt.records import Array

__all__ = ["MLPoly", "PolySettings", "PolyState", "learn"]


class PolySettings(NamedTuple):
    """`discounts` is (variants,), `prior` (experts,)."""

    discounts: Array
    prior: Array


class PolyState(NamedTuple):
    """w, R and V of the formulas, each (variants, experts, groups_h, groups_c) per key."""

    weights: Array
    regret: Array
    variance: Array


@compiled
def learn_group(p: Any, s: Any, key: int, v: int, i: int, j: int, r: Any) -> None:
    """``R = d R + r``, ``V = d V + r^2``, ``w_k ~ max(R_k, 0) / (1 + V_k)``; the initial weights
    where no regret is positive."""
    w, d = s.weights[key, v, :, i, j], p.discounts[v]
    regret, variance = s.regret[key, v, :, i, j], s.variance[key, v, :, i, j]
    total = 0.0
    for k in range(w.shape[0]):
        regret[k] = d * regret[k] + r[k]
        variance[k] = d * variance[k] + r[k] * r[k]
        w[k] = at_least(regret[k], 0.0) / (1.0 + variance[k])
        total += w[k]
    for k in range(w.shape[0]):
        w[k] = w[k] / total if total > 0.0 else p.prior[k]


learn = by_group(learn_group)


class MLPoly(CompiledAggregator):
    """Polynomially weighted averages with a rate per expert (ML-Poly) [1]_, optionally discounted.

    With regrets r_k: ``R = d R + r``, ``V = d V + r^2`` (V starts at 1),
    ``w_k ~ max(R_k, 0) / (1 + V_k)``; where no regret is positive, the initial weights. Its
    discounted regret R_k against expert k, V discounted too, is at most::

        sqrt(1 + V_k) (sqrt(sum_j (B^2 + ln(1 + V_j) + D) / d) + C)

    B the largest ``|r|``; ``D = ln(1/d) / (1 - d)``, 0 for d = 1; C is 0 where ``w . r = 0``, and
    else counts what clipping and delay cost (after [1]_, theorem 5; docs/regret.md).

    Parameters
    ----------
    discounts : floats, each in (0, 1]
        d, one variant each.

    References
    ----------
    .. [1] Gaillard, Stoltz & van Erven (2014), A second-order bound with excess losses, COLT.
    """

    learn = staticmethod(learn)

    def __init__(self, *discounts: float) -> None:
        super().__init__(len(discounts))
        self.discounts = discounts_of(discounts)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        self.regret = np.zeros(shape)
        self.variance = np.ones(shape)

    @property
    def settings(self) -> PolySettings:
        """The discounts and the initial weights."""
        return PolySettings(self.discounts, self.prior)

    @property
    def state(self) -> PolyState:
        """Weights, regrets and sums of squares."""
        return PolyState(self.weights[None], self.regret[None], self.variance[None])
