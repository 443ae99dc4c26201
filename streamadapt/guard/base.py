"""What a guard is: it mixes the experts into the served prediction, online, from matured losses.

Delay is handled by charging each loss to the predictions as they were issued: the caller keeps
every forecast's `Mixture.aggregator_outputs` and hands it back when the target is known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from streamadapt.arguments import ShowsArguments
from streamadapt.compiled import Kernel
from streamadapt.errors import ConfigError
from streamadapt.guard.arrivals import SCALE_FLOOR, follow_error
from streamadapt.guard.mixer import Mixer
from streamadapt.records import Array, Mask
from streamadapt.tasks.losses import Loss

__all__ = ["Guard", "Mixture"]


def _follow(error: Any, floor: Any, base: Any, target: Any, mask: Any) -> None:
    follow_error(error, floor, base, target, mask)


_FOLLOW: Final = Kernel(_follow)


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
        base = np.array(predictions[0], np.float64)
        _FOLLOW(self.error, self.floor, base, target, np.array(mask))
        self._weight = weight
        self._learn(predictions, own, target, known)
        self._weight = 1.0

    def _learn(self, predictions: Array, own: Array, target: Array, known: Mask) -> None:
        """Learn from an arrival of which something can be judged; a guard that does it another way
        has its own `update`."""
        raise NotImplementedError

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
