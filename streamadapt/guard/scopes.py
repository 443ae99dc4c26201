"""An aggregation rule within its scope: which cells of an output share their weights."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np

from streamadapt.compiled import Kernel
from streamadapt.guard.arrivals import (
    Signal,
    empty_arrival,
    group_losses,
    group_regrets,
)
from streamadapt.guard.mixer import Aggregator
from streamadapt.guard.stacking import RidgeStack
from streamadapt.records import Array, Mask
from streamadapt.tasks.loss_kernels import loss_settings
from streamadapt.tasks.losses import Loss

__all__ = ["SCOPES", "Scope", "Scoped", "groups_of"]

Scope = Literal["global", "horizon", "cell"]
SCOPES: tuple[Scope, ...] = ("global", "horizon", "cell")


def groups_of(scope: Scope, rows: int, columns: int) -> tuple[int, int]:
    """Return how many groups of rows and of columns share weights."""
    return {"global": (1, 1), "horizon": (rows, 1), "cell": (rows, columns)}[scope]


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
        self.rule.build(groups_of(self.scope, rows, columns), fallback)

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
        arrival = empty_arrival(target.shape[0], target.shape[1], scale.shape[1])
        arrival.target[...], arrival.scale[...], arrival.known[...] = target, scale, known
        if loss.row_wise:
            predictions, own = (
                (values * target).sum(axis=-1, keepdims=True) for values in (predictions, own)
            )
        if not self.rule.linearised:
            own = own[:1]  # the experts' losses are the same for all variants
        experts, groups = len(predictions), self.rule.weights.shape[2:]
        values, cells = np.zeros((len(own), experts, *groups)), np.zeros(groups)
        given = (np.array(array, np.float64) for array in (predictions, own))
        kernel = _signals(self.rule.linearised)
        kernel(loss_settings(loss), arrival, *given, values, cells)
        self.rule.update(values, cells > 0.0)


@cache
def _signals(linearised: bool) -> Kernel:
    """Return the kernel that writes what a rule learns from, for all its variants."""

    def regrets(loss: Any, arrival: Any, experts: Any, own: Any, values: Any, cells: Any) -> None:
        for v in range(own.shape[0]):
            group_regrets(loss, arrival, experts, own[v], Signal(values[v], cells))

    def losses(loss: Any, arrival: Any, experts: Any, own: Any, values: Any, cells: Any) -> None:
        for v in range(own.shape[0]):
            group_losses(loss, arrival, experts, Signal(values[v], cells))

    return Kernel(regrets if linearised else losses)
