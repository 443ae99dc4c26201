"""Bernstein online aggregation."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.guard.mixer import CompiledAggregator, by_group, discounts_of
from streamadapt.numbers import at_least, at_most
from streamadapt.records import Array

__all__ = ["BOA", "BoaSettings", "BoaState", "learn"]

LEAST_BOUND: Final = 1e-12
"""Where the ranges start."""
LEAST_VARIANCE: Final = 1e-24
"""Where the sums of squares start, and below which months of zero regrets do not take them."""


class BoaSettings(NamedTuple):
    """`discounts` is (variants,), `prior` (experts,)."""

    discounts: Array
    prior: Array


class BoaState(NamedTuple):
    """E, V, R and w of the formulas, each (variants, experts, groups_h, groups_c) per key."""

    weights: Array
    bound: Array
    variance: Array
    regret: Array


@compiled
def learn_group(p: Any, s: Any, key: int, v: int, i: int, j: int, r: Any) -> None:
    """``E = max(E, |r|)``, ``V = d V + r^2``, ``eta = min(1 / (2E), sqrt(ln K / V))``,
    ``R = d R + r - eta r^2``, ``w_k ~ eta_k exp(eta_k R_k)``."""
    w, bound = s.weights[key, v, :, i, j], s.bound[key, v, :, i, j]
    variance, regret = s.variance[key, v, :, i, j], s.regret[key, v, :, i, j]
    d, log_k = p.discounts[v], math.log(max(w.shape[0], 2))
    top, total = -math.inf, 0.0
    for k in range(w.shape[0]):
        bound[k] = at_least(bound[k], abs(r[k]))
        variance[k] = at_least(d * variance[k] + r[k] * r[k], LEAST_VARIANCE)
        eta = at_most(0.5 / bound[k], math.sqrt(log_k / variance[k]))
        regret[k] = d * regret[k] + r[k] - eta * (r[k] * r[k])
        top = at_least(top, eta * regret[k])
        w[k] = eta
    for k in range(w.shape[0]):
        w[k] = w[k] * math.exp(w[k] * regret[k] - top) * p.prior[k]
        total += w[k]
    for k in range(w.shape[0]):
        w[k] /= total


learn = by_group(learn_group)


class BOA(CompiledAggregator):
    """Bernstein online aggregation [1]_ with adaptive rates and, optionally, discounting.

    With regrets r_k: ``E = max(E, |r|)``, ``V = d V + r^2``,
    ``eta = min(1 / (2E), sqrt(ln K / V))``, ``R = d R + r - eta r^2``,
    ``w_k ~ eta_k exp(eta_k R_k)`` (times the initial weight). Undiscounted (d = 1), from equal
    weights, its regret against expert k is at most::

        2 sqrt(V_k ln K)
        + max(2 E_k, sqrt(V_k / ln K)) (ln K + ln(1.5 (1 + mean_j ln(eta_j1 / eta_jT))) + X)

    eta_j1 after the first arrival, eta_jT now; X, 0 where the first arrival shows every expert's
    range, is the sum over the later ones of ``ln(1 + rho / 2)``, rho the largest E / (E before) of
    those whose E has grown (after [1]_, theorem 3.3; docs/regret.md). Discounted it has none: the
    layer above holds it.

    Parameters
    ----------
    discounts : floats, each in (0, 1]
        d, one variant each: 1 forgets nothing, .999 remembers about a thousand arrivals.

    References
    ----------
    .. [1] Wintenberger (2017), Optimal learning with Bernstein online aggregation, Machine
       Learning 106.
    """

    learn = staticmethod(learn)

    def __init__(self, *discounts: float) -> None:
        super().__init__(len(discounts))
        self.discounts = discounts_of(discounts)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        self.bound = np.full(shape, LEAST_BOUND)
        self.variance = np.full(shape, LEAST_VARIANCE)
        self.regret = np.zeros(shape)

    @property
    def settings(self) -> BoaSettings:
        """The discounts and the initial weights."""
        return BoaSettings(self.discounts, self.prior)

    @property
    def state(self) -> BoaState:
        """Weights, ranges, sums of squares and regrets."""
        arrays = self.weights, self.bound, self.variance, self.regret
        return BoaState(*(array[None] for array in arrays))
