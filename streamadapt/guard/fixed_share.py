"""Fixed share: Hedge that can change its mind."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.errors import ConfigError
from streamadapt.guard.mixer import CompiledAggregator, by_group
from streamadapt.numbers import at_least
from streamadapt.records import Array

__all__ = ["FixedShare", "FixedShareSettings", "FixedShareState", "learn"]

TINY: Final = 1e-300
"""Smallest weight that is multiplied: the expert with the least loss may have underflowed to zero,
and nothing would be left to normalise."""


class FixedShareSettings(NamedTuple):
    """`shares` is (variants,), `prior` (experts,)."""

    eta: float
    shares: Array
    prior: Array


class FixedShareState(NamedTuple):
    """`weights` is (variants, experts, groups_h, groups_c) per key."""

    weights: Array


@compiled
def learn_group(p: Any, s: Any, key: int, v: int, i: int, j: int, loss: Any) -> None:
    """``w_k <- w_k exp(-eta l_k)``, normalised; ``w <- (1 - share) w + share w_0``."""
    w, share = s.weights[key, v, :, i, j], p.shares[v]
    least, total = loss[0], 0.0
    for k in range(w.shape[0]):
        least = min(least, loss[k])
    for k in range(w.shape[0]):
        w[k] = at_least(w[k], TINY) * math.exp(-p.eta * (loss[k] - least))
        total += w[k]
    for k in range(w.shape[0]):
        w[k] = (1.0 - share) / total * w[k] + share * p.prior[k]


learn = by_group(learn_group)


class FixedShare(CompiledAggregator):
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
    learn = staticmethod(learn)

    def __init__(self, *shares: float, eta: float = 1.0) -> None:
        super().__init__(len(shares))
        if not 0.0 < eta < np.inf:
            raise ConfigError("guard.eta", eta, "a finite number > 0")
        for share in shares:
            if not 0.0 <= share < 1.0:
                raise ConfigError("guard.share", share, "a number in [0, 1)")
        self.eta = eta
        self.shares = np.array(shares, np.float64)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        del shape

    @property
    def settings(self) -> FixedShareSettings:
        """The rate, the shares and the initial weights."""
        return FixedShareSettings(float(self.eta), self.shares, self.prior)

    @property
    def state(self) -> FixedShareState:
        """The weights."""
        return FixedShareState(self.weights[None])
