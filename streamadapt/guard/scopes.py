"""An aggregation rule within its scope: which cells of an output share their weights."""

from __future__ import annotations

from typing import Literal

import numpy as np

from streamadapt.guard.aggregators import Aggregator
from streamadapt.guard.stacking import RidgeStack
from streamadapt.records import Array, Mask
from streamadapt.tasks.losses import Loss

__all__ = ["SCOPES", "Scope", "Scoped"]

Scope = Literal["global", "horizon", "cell"]
SCOPES: tuple[Scope, ...] = ("global", "horizon", "cell")

REGRET_CAP = 5.0
"""Linearised regrets beyond so many scales are clipped: one outlier must not decide the
weights."""
LOSS_CAP = 5.0
"""The same for the scaled losses of fixed share."""


class Scoped:
    """One rule, its variants, and the groups its weights belong to.

    Parameters
    ----------
    rule : Aggregator or RidgeStack
    scope : {"global", "horizon", "cell"}
    """

    def __init__(self, rule: Aggregator | RidgeStack, scope: Scope) -> None:
        self.rule = rule
        self.scope = scope

    def build(self, rows: int, columns: int, fallback: Array) -> None:
        """Allocate the rule's weights; `fallback` (experts,) are the first ones."""
        groups = {"global": (1, 1), "horizon": (rows, 1), "cell": (rows, columns)}[self.scope]
        self.rule.build(groups, fallback)

    def learn(
        self, loss: Loss, predictions: Array, own: Array, target: Array, scale: Array, known: Mask
    ) -> None:
        """Tell the rule what has matured.

        Parameters
        ----------
        predictions : ndarray, (experts, rows, columns)
        own : ndarray, (variants, rows, columns)
            What the variants said when the predictions were issued.
        target : ndarray, (rows, columns)
        scale, known : ndarray, (rows, columns), or (rows, 1) for row-wise losses
        """
        if isinstance(self.rule, RidgeStack):
            self.rule.learn(predictions, target, loss.length_of(scale), known)
            return
        if self.rule.linearised:
            signal = np.clip(
                loss.regret(predictions, own[:, None], target, scale), -REGRET_CAP, REGRET_CAP
            )
        else:
            signal = np.minimum(loss.loss(predictions, target) / scale, LOSS_CAP)[None]
        if not np.isfinite(
            signal
        ).all():  # a difference of numbers beyond all others: it speaks for nobody
            signal = np.nan_to_num(signal)
        self.rule.update(*_group(signal, known, self.scope))


def _group(signal: Array, known: Mask, scope: Scope) -> tuple[Array, Mask]:
    """Average a signal (variants, experts, rows, columns) over the known cells of each group."""
    if scope == "cell" or signal.shape[2:] == (1, 1):
        return np.where(known, signal, 0.0), known
    axes = (0, 1) if scope == "global" else (1,)
    count = known.sum(axis=axes, keepdims=True)
    total = np.where(known, signal, 0.0).sum(axis=tuple(a + 2 for a in axes), keepdims=True)
    return total / np.maximum(count, 1), count > 0
