"""Online aggregation of experts: the rules of the guard's two layers.

Weights and regrets have the shape (variants, experts, groups_h, groups_c): a variant is one
setting of the rule, several of which run side by side; a group is what shares weights (everything,
a row of the forecast, or a cell), so the trailing sizes are 1 or the output's own. Groups without
news are left as they were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from streamadapt.errors import ConfigError
from streamadapt.records import Array, Mask

__all__ = ["BOA", "Aggregator", "FixedShare", "MLPoly", "Mixer"]

TINY = 1e-300
"""Smallest weight that is multiplied."""
LEAST_VARIANCE = 1e-24
"""Where BOA's sums of squares start, and below which months of zero regrets do not take them."""


class Mixer(ABC):
    """Weights over experts that sum to one.

    Parameters
    ----------
    variants : int
        How many settings of the rule run side by side.

    Attributes
    ----------
    weights : ndarray, (variants, experts, groups_h, groups_c), float64
    """

    weights: Array

    def __init__(self, variants: int) -> None:
        self.variants = variants

    def build(self, groups: tuple[int, int], fallback: Array) -> None:
        """Allocate for so many groups.

        Parameters
        ----------
        fallback : ndarray, (experts,), on the simplex
            The weights before anything was learned, and where nothing learned speaks for any
            expert.
        """
        shape = (self.variants, len(fallback), *groups)
        self.fallback = np.broadcast_to(fallback[:, None, None], shape).copy()
        self.weights = self.fallback.copy()
        self._allocate(shape)

    def mix(self, predictions: Array) -> Array:
        """Mix predictions (experts, rows, columns) into (variants, rows, columns)."""
        if self.weights.shape[2:] == (1, 1):
            flat = self.weights[..., 0, 0] @ predictions.reshape(len(predictions), -1)
            return flat.reshape(-1, *predictions.shape[1:])
        mixed: Array = (self.weights * predictions).sum(axis=1)
        return mixed

    @abstractmethod
    def _allocate(self, shape: tuple[int, ...]) -> None: ...

    @abstractmethod
    def _state(self) -> dict[str, Array]: ...

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all arrays."""
        return {"weights": self.weights.copy(), **{k: v.copy() for k, v in self._state().items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, into the allocated arrays."""
        for name, array in {"weights": self.weights, **self._state()}.items():
            array[...] = state[name]


class Aggregator(Mixer):
    """Weights on the simplex, updated from losses that have matured.

    Attributes
    ----------
    linearised : bool
        What `update` takes: the linearised regrets of each variant's own matured prediction
        against each expert (True), or every expert's scaled, capped loss (False).
    """

    linearised: ClassVar[bool] = True

    @abstractmethod
    def update(self, signal: Array, known: Mask) -> None:
        """Learn from one arrival.

        Parameters
        ----------
        signal : ndarray, (variants or 1, experts, groups_h, groups_c), float64, finite where known
            Regrets or losses, see `linearised`.
        known : ndarray, (groups_h, groups_c), bool
            Which groups have news.
        """


class FixedShare(Aggregator):
    """Hedge that can change its mind: fixed share [1]_.

    ``w_k <- w_k exp(-eta l_k)``, normalised, then ``w <- (1 - share) w + share w_0``, w_0 the
    initial weights: what nothing speaks for any more returns to them, and an expert whose initial
    weight is zero keeps none. From equal ones among K, against any sequence of experts with m
    switches in T rounds of losses in [0, L], its regret (that of ``w . l``, which for a convex
    loss is at least the mixture's own) is at most ``((m + 1) ln K + m ln(1/share) + (T - m - 1)
    ln(1/(1 - share))) / eta + eta T L^2 / 8``.

    Parameters
    ----------
    eta : float, > 0, per unit of the scaled loss
    shares : floats, each in [0, 1)
        One variant each.

    References
    ----------
    .. [1] Herbster & Warmuth (1998), Tracking the best expert, Machine Learning 32.
    """

    linearised: ClassVar[bool] = False

    def __init__(self, *shares: float, eta: float = 1.0) -> None:
        super().__init__(len(shares))
        if not 0.0 < eta < np.inf:
            raise ConfigError("guard.eta", eta, "a finite number > 0")
        for share in shares:
            if not 0.0 <= share < 1.0:
                raise ConfigError("guard.share", share, "a number in [0, 1)")
        self.eta = eta
        self.shares = np.array(shares).reshape(-1, 1, 1, 1)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        del shape

    def update(self, signal: Array, known: Mask) -> None:
        """Multiply by ``exp(-eta loss)``, normalise, share."""
        # The expert with the least loss may have underflowed to zero: without a floor nothing may
        # be left to normalise.
        w = np.maximum(self.weights, TINY) * np.exp(
            -self.eta * (signal - signal.min(axis=1, keepdims=True))
        )
        w *= (1.0 - self.shares) / w.sum(axis=1, keepdims=True)
        w += self.shares * self.fallback
        np.copyto(self.weights, w, where=known)

    def _state(self) -> dict[str, Array]:
        return {}


class BOA(Aggregator):
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
        d, one variant each: 1 remembers for ever, .999 about a thousand arrivals.

    References
    ----------
    .. [1] Wintenberger (2017), Optimal learning with Bernstein online aggregation, Machine
       Learning 106.
    """

    def __init__(self, *discounts: float) -> None:
        super().__init__(len(discounts))
        self.discount = _discounts(discounts)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        self.bound = np.full(shape, 1e-12)
        self.variance = np.full(shape, LEAST_VARIANCE)
        self.regret = np.zeros(shape)

    def update(self, signal: Array, known: Mask) -> None:
        """Take one arrival's regrets."""
        squared = np.square(signal)
        bound = np.maximum(self.bound, np.abs(signal))
        variance = np.maximum(self.discount * self.variance + squared, LEAST_VARIANCE)
        eta = np.minimum(0.5 / bound, np.sqrt(np.log(max(signal.shape[1], 2)) / variance))
        regret = self.discount * self.regret + signal - eta * squared
        log_w = np.log(eta) + eta * regret
        w = np.exp(log_w - log_w.max(axis=1, keepdims=True)) * self.fallback
        np.copyto(self.bound, bound, where=known)
        np.copyto(self.variance, variance, where=known)
        np.copyto(self.regret, regret, where=known)
        np.copyto(self.weights, w / w.sum(axis=1, keepdims=True), where=known)

    def _state(self) -> dict[str, Array]:
        return {"bound": self.bound, "variance": self.variance, "regret": self.regret}


class MLPoly(Aggregator):
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

    def __init__(self, *discounts: float) -> None:
        super().__init__(len(discounts))
        self.discount = _discounts(discounts)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        self.regret = np.zeros(shape)
        self.variance = np.ones(shape)

    def update(self, signal: Array, known: Mask) -> None:
        """Take one arrival's regrets."""
        np.copyto(self.regret, self.discount * self.regret + signal, where=known)
        np.copyto(self.variance, self.discount * self.variance + np.square(signal), where=known)
        w = np.maximum(self.regret, 0.0) / (1.0 + self.variance)
        total = w.sum(axis=1, keepdims=True)
        w = np.where(total > 0.0, w / np.where(total > 0.0, total, 1.0), self.fallback)
        np.copyto(self.weights, w, where=known)

    def _state(self) -> dict[str, Array]:
        return {"regret": self.regret, "variance": self.variance}


def _discounts(values: tuple[float, ...]) -> Array:
    for value in values:
        if not 0.0 < value <= 1.0:
            raise ConfigError("guard.discount", value, "a number in (0, 1]")
    return np.array(values).reshape(-1, 1, 1, 1)
