"""The default guard, two layers deep, and the plainer ones.

One setting for every task. Layer 1 runs several aggregators side by side over all experts; layer 2
runs ML-Poly over {base} and the layer-1 mixtures, and falls back to the base where nothing speaks
for anything else, so the first served prediction is the base's to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from streamadapt.errors import ConfigError
from streamadapt.guard.arrivals import empty_arrival, empty_signal
from streamadapt.guard.base import Guard, Mixture
from streamadapt.guard.boa import BOA
from streamadapt.guard.compiled import CompiledGuard, Steps
from streamadapt.guard.fixed_share import FixedShare, FixedShareSettings
from streamadapt.guard.kernels import (
    HedgeRoom,
    HedgeState,
    TwoLayerRoom,
    TwoLayerSettings,
    TwoLayerState,
    hedge_learn,
    hedge_mix,
    two_layer_learn,
    two_layer_mix,
)
from streamadapt.guard.mixer import Mixer
from streamadapt.guard.ml_poly import MLPoly
from streamadapt.guard.scopes import SCOPES, Scope, Scoped, groups_of
from streamadapt.guard.stacking import RidgeStack, empty_stack_room
from streamadapt.records import Array, Mask
from streamadapt.tasks.losses import Loss

__all__ = [
    "Hedge",
    "Mean",
    "NoGuard",
    "TwoLayer",
    "checked_scope",
    "effective_scope",
]


class TwoLayer(CompiledGuard):
    """The default guard: several aggregators, and ML-Poly over their mixtures and the base.

    Layer 1: fixed share (.01 and .05), BOA (discounts .999 and .99) and ML-Poly (.99) with weights
    per `scope`; BOA (.999) with weights per cell, where an output has several columns that are
    judged apart; and a ridge stack (.999), except for distributions, which its negative weights
    would break, and quantiles, which it does not aim at. Layer 2: ML-Poly (.999) per row. Costs, a
    step: some 40 passes over (experts, rows, columns) numbers.

    What it promises: with losses in units of the base's running error, regrets within the cap of 5
    and b_t layer 2's bound at arrival t (`MLPoly`, against the base, N = `n_aggregators`
    predictions of which it is the first), the served loss summed over T arrivals is at most the
    base's plus
    ``b_T + .001 sum_{t<T} b_t``; each regret against the base beyond the cap adds what is beyond
    it. In single blocks it can be worse (docs/regret.md, docs/guards.md).

    Parameters
    ----------
    scope : {"horizon", "global", "cell"}
        What shares weights in layer 1: each row of a forecast, everything, or nothing.
    prior : mapping of str to float, optional
        Shares of experts to serve while no loss speaks for anything; the base has what they leave
        of 1. Default: the base alone. Without labels, what is served for good.
    stack : bool
        Whether layer 1 has also a ridge regression on the experts.

    Examples
    --------
    >>> TwoLayer("global", stack=False)
    TwoLayer(scope='global', stack=False)
    """

    kind: ClassVar[str] = "two-layer"
    steps: ClassVar[Steps] = Steps(two_layer_mix, two_layer_learn)

    def __init__(
        self,
        scope: Scope = "horizon",
        prior: Mapping[str, float] | None = None,
        *,
        stack: bool = True,
    ) -> None:
        self.scope = checked_scope(scope)
        self.stack = stack
        self.prior = _checked_prior(prior)

    def _allocate(self) -> None:
        scope = effective_scope(self.scope, self.loss)
        by_cell = self.columns > 1 and not self.loss.row_wise and scope != "cell"
        stacked = self.stack and not self.loss.row_wise and self.loss.central
        self.share, self.boa, self.poly = FixedShare(0.01, 0.05), BOA(0.999, 0.99), MLPoly(0.99)
        self.cell, self.ridge = BOA(0.999), RidgeStack(robust=self.loss.name == "absolute")
        first: list[Scoped] = [Scoped(rule, scope) for rule in (self.share, self.boa, self.poly)]
        first += [Scoped(self.cell, "cell")] if by_cell else []
        first += [Scoped(self.ridge, scope)] if stacked else []
        self.cell.build((0, 0), self._initial())  # without groups it is not there
        self.ridge.build((0, 0), self._initial())
        for scoped in first:
            scoped.build(self.rows, self.columns, self._initial())
        self.first, top = first, MLPoly(0.999)
        self.second = Scoped(top, "global" if scope == "global" else "horizon")
        self.second.build(self.rows, self.columns, self._initial_of_second())
        self.top = top

    def _initial_of_second(self) -> Array:
        weights = np.zeros(self.n_aggregators)
        if self.prior is None:
            weights[0] = 1.0  # the base
        else:
            # The layer below, whose mixtures begin at the prior.
            weights[1:] = 1.0 / (len(weights) - 1)
        return weights

    @property
    def n_aggregators(self) -> int:
        """One prediction per layer-1 variant, and the served one."""
        return sum(scoped.rule.variants for scoped in self.first) + 1

    @property
    def settings(self) -> TwoLayerSettings:
        """The settings of all rules."""
        return TwoLayerSettings(
            self.share.settings,
            self.boa.settings,
            self.poly.settings,
            self.cell.settings,
            self.ridge.settings,
            self.top.settings,
        )

    @property
    def state(self) -> TwoLayerState:
        """The base's running error, and the arrays of all rules."""
        return TwoLayerState(
            self.error[None],
            self.share.state,
            self.boa.state,
            self.poly.state,
            self.cell.state,
            self.ridge.state,
            self.top.state,
        )

    def room(self) -> TwoLayerRoom:
        """Return room for one arrival."""
        truths = (self.rows, 1) if self.loss.row_wise else (0, 0)
        return TwoLayerRoom(
            empty_arrival(self.rows, self.columns, self.judged),
            empty_signal(*self.boa.weights.shape[1:]),
            empty_signal(*self.cell.weights.shape[1:]),
            empty_signal(*self.top.weights.shape[1:]),
            empty_stack_room(self.experts),
            np.zeros((self.rows, self.columns)),
            np.zeros((self.n_aggregators, self.rows, self.columns)),
            np.zeros((self.n_aggregators, self.rows, self.judged)),
            np.zeros((self.experts, *truths)),
            np.zeros((self.n_aggregators, *truths)),
        )

    def _aggregators(self) -> list[Mixer]:
        return [scoped.rule for scoped in (*self.first, self.second)]


class Hedge(CompiledGuard):
    """Plain fixed-share Hedge over all experts: simple, and able only to pick one expert at a
    time.

    What it promises is in `FixedShare`, for losses in units of the base's running error and capped
    at 5 of them.

    Parameters
    ----------
    eta : float, > 0
        Learning rate of the weights: higher moves them faster to the best expert.
    share : float, in [0, 1)
        The share of the weight that is spread again over all experts at each step.
    scope : {"horizon", "global", "cell"}
        What shares weights: each row of a forecast, everything, or nothing.
    prior : mapping of str to float, optional
        Shares of experts to begin with and to return to; the base has what they leave of 1, other
        experts have none. Default: all alike. With few labels, and a prior that is known to be
        good, a low `eta` and a high `share` (.3 and .1) keep near it: a label in twenty is too
        little to find weights by.

    Examples
    --------
    >>> Hedge(eta=0.3, share=0.1)
    Hedge(eta=0.3, share=0.1)
    """

    kind: ClassVar[str] = "hedge"
    steps: ClassVar[Steps] = Steps(hedge_mix, hedge_learn)

    def __init__(
        self,
        eta: float = 1.0,
        share: float = 0.01,
        scope: Scope = "horizon",
        prior: Mapping[str, float] | None = None,
    ) -> None:
        self.scope = checked_scope(scope)
        self.prior = _checked_prior(prior)
        self.rule = FixedShare(share, eta=eta)

    def _allocate(self) -> None:
        groups = groups_of(effective_scope(self.scope, self.loss), self.rows, self.columns)
        self.rule.build(groups, self._initial())

    @property
    def n_aggregators(self) -> int:
        """The served prediction."""
        return 1

    @property
    def settings(self) -> FixedShareSettings:
        """The settings of the rule."""
        return self.rule.settings

    @property
    def state(self) -> HedgeState:
        """The base's running error, and the rule's weights."""
        return HedgeState(self.error[None], self.rule.state)

    def room(self) -> HedgeRoom:
        """Return room for one arrival."""
        truths = (self.experts, self.rows, 1) if self.loss.row_wise else (0, 0, 0)
        return HedgeRoom(
            empty_arrival(self.rows, self.columns, self.judged),
            empty_signal(*self.rule.weights.shape[1:]),
            np.zeros(truths),
        )

    def _aggregators(self) -> list[Mixer]:
        return [self.rule]


class Mean(Guard):
    """The plain mean of all experts; learns nothing.

    For a convex loss its loss is at most the mean of the experts' own (Jensen).
    """

    kind: ClassVar[str] = "mean"

    def _allocate(self) -> None:
        pass

    @property
    def n_aggregators(self) -> int:
        """Nothing needs keeping."""
        return 0

    def mix(self, predictions: Array) -> Mixture:
        """Average."""
        return Mixture(
            predictions.mean(axis=0), predictions[:0], np.full(self.experts, 1.0 / self.experts)
        )

    def _learn(self, predictions: Array, own: Array, target: Array, known: Mask) -> None:
        pass

    def _aggregators(self) -> list[Mixer]:
        return []


class NoGuard(Guard):
    """Serve one expert as it is: for measuring, and for those who know better.

    Parameters
    ----------
    expert : int, >= 0
        Its place among the experts; the base is 0.

    Examples
    --------
    >>> NoGuard(expert=1)
    NoGuard(expert=1)
    """

    kind: ClassVar[str] = "none"

    def __init__(self, expert: int = 0) -> None:
        self.expert = expert

    def check(self, names: Sequence[str], *, labelled: bool) -> None:
        """Take anything: nothing has to be told."""
        del names, labelled

    def _allocate(self) -> None:
        if not 0 <= self.expert < self.experts:
            raise ConfigError("guard.expert", self.expert, f"0 to {self.experts - 1}")

    @property
    def n_aggregators(self) -> int:
        """Nothing needs keeping."""
        return 0

    def mix(self, predictions: Array) -> Mixture:
        """Pick the expert."""
        weights = np.zeros(self.experts)
        weights[self.expert] = 1.0
        return Mixture(predictions[self.expert], predictions[:0], weights)

    def _learn(self, predictions: Array, own: Array, target: Array, known: Mask) -> None:
        pass

    def _aggregators(self) -> list[Mixer]:
        return []


def _checked_prior(prior: Mapping[str, float] | None) -> dict[str, float] | None:
    if prior is None:
        return None
    for name, share in prior.items():
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"guard.prior.{name}", share, "a share, from 0 to 1")
    if not prior or sum(prior.values()) > 1.0 + 1e-9:
        raise ConfigError(
            "guard.prior", dict(prior), "shares of one or more experts that sum to at most 1"
        )
    return dict(prior)


def checked_scope(scope: Scope) -> Scope:
    """Return the scope; `ConfigError` if there is none of that name."""
    if scope not in SCOPES:
        raise ConfigError(
            "guard.scope", scope, "one of " + ", ".join(SCOPES) + "; per key: a [keys] table"
        )
    return scope


def effective_scope(scope: Scope, loss: Loss) -> Scope:
    """Return the scope that weights can have: the columns of a distribution stand or fall
    together.

    Weights per class would not leave it on the simplex.
    """
    return "horizon" if loss.row_wise and scope == "cell" else scope
