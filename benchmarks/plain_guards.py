"""Guards of a single rule: the plain methods to compare the default guard with (docs/guards.md).

They are part of the benchmark, not of the package; pass one to a pipeline in Python to try it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from benchmarks.plain_rules import AdaHedgeRule, OnlineGradient, OperaBOA, OperaMLPoly
from streamadapt.errors import ConfigError
from streamadapt.guard.base import Guard, Mixture
from streamadapt.guard.mixer import Aggregator, Mixer
from streamadapt.guard.scopes import Scope, Scoped
from streamadapt.guard.stacking import RidgeStack
from streamadapt.guard.two_layer import Mean, checked_scope, effective_scope
from streamadapt.records import Array, Mask

__all__ = ["AdaHedge", "Median", "PlainBOA", "PlainMLPoly", "RidgeOnly", "Simplex"]


class _OneRule(Guard):
    """One aggregator over all experts, with equal weights before the first loss is known.

    Parameters
    ----------
    scope : {"horizon", "global", "cell"}
        The cells that share weights: those of a forecast row, all, or none.
    """

    make: ClassVar[Callable[[], Aggregator]]

    def __init__(self, scope: Scope = "horizon") -> None:
        self.scope = checked_scope(scope)

    def _rule(self) -> Aggregator | RidgeStack:
        return type(self).make()

    def _allocate(self) -> None:
        self.rule = self._rule()
        self.scoped = Scoped(self.rule, effective_scope(self.scope, self.loss))
        self.scoped.build(self.rows, self.columns, self._initial())

    @property
    def n_aggregators(self) -> int:
        """The served prediction."""
        return 1

    def mix(self, predictions: Array) -> Mixture:
        """Mix the experts with the current weights."""
        served = self.rule.mix(predictions)
        return Mixture(served[0], served, self.rule.weights[0].mean(axis=(1, 2)))

    def _learn(self, predictions: Array, own: Array, target: Array, known: Mask) -> None:
        self.scoped.learn(self.loss, predictions, own, target, self.scale(), known)

    def _aggregators(self) -> list[Mixer]:
        return [self.rule]


class AdaHedge(_OneRule):
    """`plain_rules.AdaHedgeRule` alone.

    Parameters
    ----------
    scope : {"horizon", "global", "cell"}
    """

    kind: ClassVar[str] = "adahedge"
    make = AdaHedgeRule


class PlainBOA(_OneRule):
    """`plain_rules.OperaBOA` alone: BOA as in R's opera, without discount.

    Parameters
    ----------
    scope : {"horizon", "global", "cell"}
    """

    kind: ClassVar[str] = "boa"
    make = OperaBOA


class PlainMLPoly(_OneRule):
    """`plain_rules.OperaMLPoly` alone: ML-Poly as in R's opera, without discount.

    Parameters
    ----------
    scope : {"horizon", "global", "cell"}
    """

    kind: ClassVar[str] = "ml-poly"
    make = OperaMLPoly


class Simplex(_OneRule):
    """`plain_rules.OnlineGradient` alone: online stacking with weights that stay on the simplex.

    Parameters
    ----------
    scope : {"horizon", "global", "cell"}
    """

    kind: ClassVar[str] = "simplex"
    make = OnlineGradient


class RidgeOnly(_OneRule):
    """The ridge stack of `TwoLayer` alone: it is not bound to the base, and it has no regret
    bound.

    Parameters
    ----------
    scope : {"horizon", "global", "cell"}
    """

    kind: ClassVar[str] = "ridge"

    def _rule(self) -> RidgeStack:
        if self.loss.row_wise or not self.loss.central:
            raise ConfigError(
                "guard.kind",
                self.kind,
                "another guard: a ridge stack aims at means and medians alone",
            )
        return RidgeStack(robust=self.loss.name == "absolute")


class Median(Mean):
    """The median of all experts in each cell; learns nothing.

    Its absolute error is at most twice the experts' median error: half of the experts are on the
    other side of the median than the target, so they are no nearer to the target than the median
    is. A distribution's medians are divided by their sum.
    """

    kind: ClassVar[str] = "median"

    def mix(self, predictions: Array) -> Mixture:
        """Return the middle expert of each cell, or the mean of the two in the middle."""
        order = predictions.argsort(axis=0, kind="stable")
        # One or two experts, (1 or 2, rows, columns).
        middle = order[(self.experts - 1) // 2 : self.experts // 2 + 1]
        served = np.take_along_axis(predictions, middle, axis=0).mean(axis=0)
        if self.loss.row_wise:
            served /= served.sum(axis=-1, keepdims=True)
        weights = np.bincount(middle.ravel(), minlength=self.experts) / middle.size
        return Mixture(served, predictions[:0], weights)
