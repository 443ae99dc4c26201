"""The plain aggregation rules of the literature, each alone, to compare the default guard with.

They use the linearised regrets that every `Aggregator` uses, so that they compete with mixtures
and not only with single experts. docs/regret.md derives their bounds.
"""

from __future__ import annotations

import math

import numpy as np

from streamadapt.guard.mixer import Aggregator
from streamadapt.records import Array, Mask

__all__ = ["AdaHedgeRule", "OnlineGradient", "OperaBOA", "OperaMLPoly"]

NO_LOSS_YET = math.exp(350.0)
"""BOA's rate for an expert that has never differed from the mixture, as in opera."""
NO_REGRET_YET = math.exp(-700.0)
"""The initial inverse of ML-Poly's rate, as in opera."""

LEAST_GAP = 1e-200
"""Smaller sums of AdaHedge's gaps count as zero: their inverse may overflow."""


class AdaHedgeRule(Aggregator):
    """Hedge that tunes its own rate: AdaHedge [1]_.

    With losses ``l_k = -r_k`` summed to L: ``w_k ~ exp(-eta L_k)``, ``eta = ln K / D``; D sums the
    mixability gaps ``delta = w . l + ln(sum w_k exp(-eta l_k)) / eta`` (at eta infinite: ``w . l``
    less the growth of the least L). Nothing is tuned and no range need be known. Its regret
    against any expert, and so any fixed mixture, is at most ``2 sqrt(V ln K) + S (4/3 ln K + 2)``,
    V the sum of the variances of l under w, S the largest range of l [1]_ (theorem 8); as V <= sum
    S_t^2 / 4, also ``sqrt(ln K sum S_t^2) + S (4/3 ln K + 2)``.

    References
    ----------
    .. [1] de Rooij, van Erven, Grunwald & Koolen (2014), Follow the leader if you can, hedge if
       you must, JMLR 15.
    """

    def __init__(self) -> None:
        super().__init__(1)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        variants, _, *groups = shape
        self.losses = np.zeros(shape)  # less the least of them
        self.gaps = np.zeros((variants, 1, *groups))

    def update(self, signal: Array, known: Mask) -> None:
        """Add the losses and the mixability gap; compute the weights again."""
        before = self._soft_least(self.losses)[1]
        gap = -(self.weights * signal).sum(axis=1, keepdims=True)
        losses = self.losses - signal
        gap -= self._soft_least(losses)[1] - before
        np.copyto(self.gaps, self.gaps + np.maximum(gap, 0.0), where=known)
        np.copyto(self.losses, losses - losses.min(axis=1, keepdims=True), where=known)
        np.copyto(self.weights, self._soft_least(self.losses)[0], where=known)

    def _soft_least(self, losses: Array) -> tuple[Array, Array]:
        """Return the weights at the current rate, and ``-ln(mean exp(-eta L)) / eta``."""
        experts = losses.shape[1]
        least = losses.min(axis=1, keepdims=True)
        above = losses - least
        leads = self.gaps <= LEAST_GAP  # an infinite rate: all on the leaders
        rate = math.log(max(experts, 2)) / np.where(leads, 1.0, self.gaps)
        w = np.where(leads, above == 0.0, np.exp(-rate * above))
        total = w.sum(axis=1, keepdims=True)
        return w / total, np.where(leads, least, least - np.log(total / experts) / rate)

    def _state(self) -> dict[str, Array]:
        return {"losses": self.losses, "gaps": self.gaps}


class OperaBOA(Aggregator):
    """Bernstein online aggregation [1]_ by the formulas of R's opera [2]_, which forgets nothing.

    ``B = max(B, |r|)``, ``V = V + r^2``, ``eta = min(1 / (2B), sqrt(ln K / V))``,
    ``R = R + r - eta r^2``, ``w_k ~ exp(eta_k R_k)``. (opera regularises no regret before every
    expert has had one; here each from its own first one on.) Its regret against expert k is at
    most::

        2 sqrt(V_k ln K) + max(2 B_k, sqrt(V_k / ln K)) (ln K + ln(1.5 mean_j eta_k / eta_j) + X)

    X, which is 0 where the first arrival shows every expert's range, is the sum over the later
    arrivals of ``ln(1 + rho / 2)``, rho the largest B / (B before) of those whose B has grown
    (docs/regret.md).

    References
    ----------
    .. [1] Wintenberger (2017), Optimal learning with Bernstein online aggregation, Machine
       Learning 106.
    .. [2] Gaillard & Goude (2016), opera: Online prediction by expert aggregation, R package.
    """

    def __init__(self) -> None:
        super().__init__(1)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        self.bound = np.zeros(shape)
        self.variance = np.zeros(shape)
        self.regret = np.zeros(shape)

    def update(self, signal: Array, known: Mask) -> None:
        """Add the regrets of one arrival."""
        squared = np.square(signal)
        np.copyto(self.bound, np.maximum(self.bound, np.abs(signal)), where=known)
        np.copyto(self.variance, self.variance + squared, where=known)
        eta = self.rate()
        np.copyto(self.regret, self.regret + signal - eta * squared, where=known)
        log_w = eta * self.regret
        w = np.exp(log_w - log_w.max(axis=1, keepdims=True)) * self.fallback
        np.copyto(self.weights, w / w.sum(axis=1, keepdims=True), where=known)

    def rate(self) -> Array:
        """Return eta."""
        log = math.log(max(self.weights.shape[1], 2))
        least = 1.0 / NO_LOSS_YET
        by_range = 0.5 / np.maximum(self.bound, least)
        by_squares = np.sqrt(log / np.maximum(self.variance, least**1.5))
        rate: Array = np.minimum(np.minimum(by_range, by_squares), NO_LOSS_YET)
        return rate

    def _state(self) -> dict[str, Array]:
        return {"bound": self.bound, "variance": self.variance, "regret": self.regret}


class OperaMLPoly(Aggregator):
    """ML-Poly [1]_ by the formulas of R's opera [2]_ (``MLpol``), which forgets nothing.

    ``R = R + r``, ``1 / eta_k = B + sum r_k^2`` with B the largest r^2 of any expert so far,
    ``w_k ~ eta_k max(R_k, 0)``, and the initial weights where no regret is positive. Its regret
    against expert k is at most::

        sqrt((B + V_k) sum_j (1.5 + ln((B + V_j) / B_1) + X)),    V_k = sum r_k^2

    B_1 the first B that is not 0; X, which is 0 where the first arrival shows the range, is the
    sum of 1 + B / (B before) over the later arrivals at which B grows (after [1]_, theorem 5;
    docs/regret.md).

    References
    ----------
    .. [1] Gaillard, Stoltz & van Erven (2014), A second-order bound with excess losses, COLT.
    .. [2] Gaillard & Goude (2016), opera: Online prediction by expert aggregation, R package.
    """

    def __init__(self) -> None:
        super().__init__(1)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        variants, _, *groups = shape
        self.regret = np.zeros(shape)
        self.inverse = np.full(shape, NO_REGRET_YET)
        self.bound = np.zeros((variants, 1, *groups))

    def update(self, signal: Array, known: Mask) -> None:
        """Add the regrets of one arrival."""
        squared = np.square(signal)
        bound = np.maximum(self.bound, squared.max(axis=1, keepdims=True))
        np.copyto(self.regret, self.regret + signal, where=known)
        np.copyto(self.inverse, self.inverse + squared + bound - self.bound, where=known)
        np.copyto(self.bound, bound, where=known)
        w = np.maximum(self.regret, 0.0) / self.inverse
        total = w.sum(axis=1, keepdims=True)
        w = np.where(total > 0.0, w / np.where(total > 0.0, total, 1.0), self.fallback)
        np.copyto(self.weights, w, where=known)

    def _state(self) -> dict[str, Array]:
        return {"regret": self.regret, "inverse": self.inverse, "bound": self.bound}


class OnlineGradient(Aggregator):
    """Stacking on the simplex: projected online gradient descent [1]_ with a rate that needs no
    tuning [2]_.

    ``w <- project(w + eta r)`` onto the simplex, ``eta = 1 / sqrt(G)``, G the sum of ``|r|^2`` so
    far, |.| Euclidean. Its regret against any fixed mixture of the experts is at most
    ``2 sqrt(G)``: [2]_, theorem 4.14, with the simplex's diameter sqrt(2).

    References
    ----------
    .. [1] Zinkevich (2003), Online convex programming and generalized infinitesimal gradient
       ascent, ICML.
    .. [2] Orabona (2019), A modern introduction to online learning, arXiv 1912.13213.
    """

    def __init__(self) -> None:
        super().__init__(1)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        variants, _, *groups = shape
        self.squares = np.zeros((variants, 1, *groups))

    def update(self, signal: Array, known: Mask) -> None:
        """Take one step towards the better experts."""
        squares = self.squares + np.square(signal).sum(axis=1, keepdims=True)
        moved = self.weights + signal / np.sqrt(np.where(squares > 0.0, squares, 1.0))
        np.copyto(self.weights, _onto_simplex(moved), where=known)
        np.copyto(self.squares, squares, where=known)

    def _state(self) -> dict[str, Array]:
        return {"squares": self.squares}


def _onto_simplex(points: Array) -> Array:
    """Return the nearest points of the simplex, along axis 1 (Duchi et al. 2008, figure 1)."""
    falling = -np.sort(-points, axis=1)
    rank = np.arange(1, points.shape[1] + 1).reshape(1, -1, *(1,) * (points.ndim - 2))
    excess = (np.cumsum(falling, axis=1) - 1.0) / rank
    kept = (falling > excess).sum(axis=1, keepdims=True)
    w = np.maximum(points - np.take_along_axis(excess, kept - 1, axis=1), 0.0)
    projected: Array = w / w.sum(axis=1, keepdims=True)  # rounding
    return projected
