"""The guard: mixes the experts into the served prediction, online, from matured losses.

Two layers, one setting for every task. Layer 1 runs several aggregators side by side over all
experts; layer 2 runs ML-Poly over {base} and the layer-1 mixtures, and falls back to the base
where nothing speaks for anything else, so the first served prediction is the base's to the bit.
Delay is handled by charging each loss to the predictions as they were issued: the caller keeps
every forecast's `Mixture.aggregator_outputs` and hands it back when the target is known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from streamadapt.arguments import ShowsArguments
from streamadapt.errors import ConfigError
from streamadapt.guard.aggregators import BOA, FixedShare, Mixer, MLPoly
from streamadapt.guard.scopes import SCOPES, Scope, Scoped
from streamadapt.guard.stacking import RidgeStack
from streamadapt.records import Array, Mask
from streamadapt.tasks.losses import Loss

__all__ = [
    "Guard",
    "Hedge",
    "Mean",
    "Mixture",
    "NoGuard",
    "Scope",
    "TwoLayer",
    "checked_scope",
    "effective_scope",
]

SCALE_RATE = 0.01
"""How fast the running scale of the base's error follows it, per arrival."""
SCALE_FLOOR = 1e-3
"""Smallest scale, in units of the output's own scale."""
SCALE_CAP = 20.0
"""An error counts for at most so many running scales in the next one, or a single absurd target
would make all others look alike for hundreds of arrivals. One target in twenty, however absurd,
cannot make it grow for good: it does so by a factor of 1 + .01 x 19 and shrinks by .99 to the 20th
in between."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """What the guard made of one set of expert predictions.

    Attributes
    ----------
    served : ndarray, (rows, columns), float64
    aggregator_outputs : ndarray, (aggregators, rows, columns), float64
        The prediction of every aggregator, the last layer's included: keep it until the target is
        known.
    weights : ndarray, (experts,), float64
        Each expert's share of `served`, averaged over the rows; they sum to 1, one of a stack may
        be negative.
    """

    served: Array
    aggregator_outputs: Array
    weights: Array


class Guard(ShowsArguments, ABC):
    """Mixes experts; the first expert is always the base."""

    kind: ClassVar[str]
    prior: Mapping[str, float] | None = None
    _weight = 1.0  # of what is being learned just now

    def check(self, names: Sequence[str], *, labelled: bool) -> None:
        """Raise `ConfigError` if it cannot mix experts of these names, with or without labels to
        judge them by."""
        unknown = [name for name in self.prior or {} if name not in names]
        if unknown:
            raise ConfigError(
                "guard.prior", unknown[0], "an expert's name: one of " + ", ".join(names)
            )
        if not labelled and self.prior is None:
            raise ConfigError(
                "guard.prior",
                None,
                "shares of experts, such as {tent = 0.9}: no label will tell them",
            )

    def build(
        self, names: Sequence[str], rows: int, columns: int, loss: Loss, unit: Array
    ) -> None:
        """Allocate.

        Parameters
        ----------
        names : sequence of str
            Of the experts; the base is the first.
        unit : ndarray, (columns,), > 0
            The outputs' own scale, original units: the floor of the running scale is `SCALE_FLOOR`
            of it.
        """
        self.names, self.rows, self.columns, self.loss = tuple(names), rows, columns, loss
        self.experts = len(self.names)
        self.floor = np.broadcast_to(SCALE_FLOOR * unit, (rows, columns)).copy()
        self.error = np.zeros((rows, columns))
        self._allocate()

    @abstractmethod
    def _allocate(self) -> None: ...

    def _initial(self) -> Array:
        """Return the weights over the experts before any loss is known, (experts,): alike, or the
        prior's."""
        if self.prior is None:
            return np.full(self.experts, 1.0 / self.experts)
        weights = np.array([self.prior.get(name, 0.0) for name in self.names])
        weights[0] += 1.0 - weights.sum()  # the base has what is left
        return weights

    @property
    @abstractmethod
    def n_aggregators(self) -> int:
        """How many predictions `Mixture.aggregator_outputs` holds."""

    @abstractmethod
    def mix(self, predictions: Array) -> Mixture:
        """Mix (experts, rows, columns) predictions; changes nothing."""

    def update(
        self, predictions: Array, own: Array, target: Array, mask: Mask, weight: float = 1.0
    ) -> None:
        """Learn from what has matured.

        Parameters
        ----------
        predictions : ndarray, (experts, rows, columns)
            As the experts issued them.
        own : ndarray, (aggregators, rows, columns)
            `Mixture.aggregator_outputs` of the same forecasts.
        target : ndarray, (rows, columns)
        mask : ndarray, (rows, columns), bool
            Where the target is known.
        weight : float, >= 0
            What every loss of it counts.
        """
        known = self.loss.known(mask)
        if not known.any() or weight == 0.0:
            return
        target = np.where(mask, target, predictions[0])
        self._follow_scale(np.abs(predictions[0] - target), mask)
        self._weight = weight
        self._learn(predictions, own, target, known)
        self._weight = 1.0

    @abstractmethod
    def _learn(self, predictions: Array, own: Array, target: Array, known: Mask) -> None: ...

    def _follow_scale(self, errors: Array, mask: Mask) -> None:
        """Running mean of the base's absolute error in each cell; starts at the first error
        seen."""
        first = mask & (self.error == 0.0)
        capped = np.minimum(errors, SCALE_CAP * self.error)
        moved = np.where(first, errors, self.error + SCALE_RATE * (capped - self.error))
        np.copyto(self.error, np.maximum(moved, self.floor), where=mask)

    def scale(self) -> Array:
        """What losses are divided by now, (rows, columns), or (rows, 1) for row-wise losses."""
        scale = self.loss.scale_of(np.where(self.error > 0.0, self.error, self.floor))
        # Losses count as many scales as they have: one of weight two has twice as many.
        return scale if self._weight == 1.0 else scale / self._weight

    @abstractmethod
    def _aggregators(self) -> Sequence[Mixer]: ...

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all arrays."""
        return {
            "error": self.error.copy(),
            "aggregators": [a.state_dict() for a in self._aggregators()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, into a guard built alike."""
        self.error[...] = state["error"]
        for aggregator, saved in zip(self._aggregators(), state["aggregators"], strict=True):
            aggregator.load_state_dict(saved)


class TwoLayer(Guard):
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
        self.first = [
            Scoped(rule, scope)
            for rule in (FixedShare(0.01, 0.05), BOA(0.999, 0.99), MLPoly(0.99))
        ]
        if self.columns > 1 and not self.loss.row_wise and scope != "cell":
            self.first.append(Scoped(BOA(0.999), "cell"))
        if self.stack and not self.loss.row_wise and self.loss.central:
            self.first.append(Scoped(RidgeStack(robust=self.loss.name == "absolute"), scope))
        for scoped in self.first:
            scoped.build(self.rows, self.columns, self._initial())
        fallback = np.zeros(self.n_aggregators)
        if self.prior is None:
            fallback[0] = 1.0  # the base
        else:
            # The layer below, whose mixtures begin at the prior.
            fallback[1:] = 1.0 / (len(fallback) - 1)
        self.second = Scoped(MLPoly(0.999), "global" if scope == "global" else "horizon")
        self.second.build(self.rows, self.columns, fallback)

    @property
    def n_aggregators(self) -> int:
        """One prediction per layer-1 variant, and the served one."""
        return sum(scoped.rule.variants for scoped in self.first) + 1

    def mix(self, predictions: Array) -> Mixture:
        """Mix the experts in both layers."""
        mixed = np.concatenate([scoped.rule.mix(predictions) for scoped in self.first])
        served = self.second.rule.mix(np.concatenate([predictions[:1], mixed]))
        return Mixture(served[0], np.concatenate([mixed, served]), self._shares())

    def _shares(self) -> Array:
        upper = self.second.rule.weights[0, :, :, 0]  # (1 + variants, rows or 1)
        shares = np.zeros(self.experts)
        shares[0] = upper[0].mean()
        start = 1
        for scoped in self.first:
            stop = start + scoped.rule.variants
            weights = scoped.rule.weights  # (variants, experts, rows or 1, columns or 1)
            by_row = weights[..., 0] if weights.shape[3] == 1 else weights.mean(axis=3)
            share = (upper[start:stop, None] * by_row).sum(axis=0)  # (experts, rows or 1)
            shares += share[:, 0] if share.shape[1] == 1 else share.mean(axis=1)
            start = stop
        return shares

    def _learn(self, predictions: Array, own: Array, target: Array, known: Mask) -> None:
        scale = self.scale()
        start = 0
        for scoped in self.first:
            stop = start + scoped.rule.variants
            scoped.learn(self.loss, predictions, own[start:stop], target, scale, known)
            start = stop
        offered = np.concatenate([predictions[:1], own[:-1]])
        self.second.learn(self.loss, offered, own[-1:], target, scale, known)

    def _aggregators(self) -> list[Mixer]:
        return [scoped.rule for scoped in (*self.first, self.second)]


class Hedge(Guard):
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
        self.scoped = Scoped(self.rule, effective_scope(self.scope, self.loss))
        self.scoped.build(self.rows, self.columns, self._initial())

    @property
    def n_aggregators(self) -> int:
        """The served prediction."""
        return 1

    def mix(self, predictions: Array) -> Mixture:
        """Average the experts with the current weights."""
        served = self.rule.mix(predictions)
        return Mixture(served[0], served, self.rule.weights[0].mean(axis=(1, 2)))

    def _learn(self, predictions: Array, own: Array, target: Array, known: Mask) -> None:
        self.scoped.learn(self.loss, predictions, own, target, self.scale(), known)

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
