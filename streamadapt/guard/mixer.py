"""Weights over experts: what the rules of the guard's two layers have in common.

Weights and regrets have the shape (variants, experts, groups_h, groups_c): a variant is one
setting of the rule, several of which run side by side; a group is what shares weights (everything,
a row of the forecast, or a cell), so the trailing sizes are 1 or the output's own. Groups without
news are left as they were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, Final

import numpy as np

from streamadapt.compiled import Kernel, compiled
from streamadapt.errors import ConfigError
from streamadapt.guard.arrivals import Signal
from streamadapt.numbers import dot
from streamadapt.records import Array, Mask

__all__ = ["Aggregator", "CompiledAggregator", "Mixer", "by_group", "discounts_of", "mixture"]


@compiled
def mixture(weights: Any, predictions: Any, out: Any) -> None:
    """``sum_k w_k p_k`` in every cell.

    Parameters
    ----------
    weights : ndarray, (experts, groups_h, groups_c)
    predictions : ndarray, (experts, rows, columns)
    out : ndarray, (rows, columns)
    """
    experts, groups_h, groups_c = weights.shape
    rows, columns = out.shape
    for h in range(rows):
        i = h if groups_h > 1 else 0
        if columns == 1:
            out[h, 0] = dot(weights[:, i, 0], predictions[:, h, 0])
            continue
        for j in range(columns):
            out[h, j] = 0.0
        for k in range(experts):
            if groups_c == 1:
                weight = weights[k, i, 0]
                for j in range(columns):
                    out[h, j] += weight * predictions[k, h, j]
            else:
                for j in range(columns):
                    out[h, j] += weights[k, i, j] * predictions[k, h, j]


def _mixtures(weights: Any, predictions: Any, out: Any) -> None:
    for v in range(weights.shape[0]):
        mixture(weights[v], predictions, out[v])


_MIXTURES: Final = Kernel(_mixtures)


class Mixer(ABC):
    """Weights over experts that sum to one.

    Parameters
    ----------
    variants : int
        How many settings of the rule run side by side.

    Attributes
    ----------
    weights : ndarray, (variants, experts, groups_h, groups_c), float64
    prior : ndarray, (experts,), float64
        The weights before anything was learned.
    fallback : ndarray, like `weights`
        The same for every variant and group.
    """

    weights: Array

    def __init__(self, variants: int) -> None:
        self.variants = variants

    def build(self, groups: tuple[int, int], fallback: Array) -> None:
        """Allocate for numbers of groups of rows and of columns.

        Parameters
        ----------
        fallback : ndarray, (experts,), on the simplex
            The weights before anything was learned, and where nothing learned speaks for any
            expert.
        """
        shape = (self.variants, len(fallback), *groups)
        self.prior = np.array(fallback, np.float64)
        self.fallback = np.broadcast_to(fallback[:, None, None], shape).copy()
        self.weights = self.fallback.copy()
        self._allocate(shape)

    def mix(self, predictions: Array) -> Array:
        """Mix predictions (experts, rows, columns) into (variants, rows, columns)."""
        out = np.empty((self.variants, *predictions.shape[1:]))
        _MIXTURES(self.weights, np.array(predictions, np.float64), out)
        return out

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


class CompiledAggregator(Aggregator):
    """A rule whose arithmetic is a kernel: `learn`."""

    learn: ClassVar[Callable[..., None]]

    @property
    @abstractmethod
    def settings(self) -> Any:
        """Its hyper-parameters, a NamedTuple of numbers and arrays."""

    @property
    @abstractmethod
    def state(self) -> Any:
        """Views of its arrays, a NamedTuple; the first axis of each is the key: here one row."""

    def _state(self) -> dict[str, Array]:
        arrays: dict[str, Array] = {k: a[0] for k, a in self.state._asdict().items()}
        del arrays["weights"]
        return arrays

    def update(self, signal: Array, known: Mask) -> None:
        """Learn from one arrival."""
        kernel = _kernel(type(self).learn)
        kernel(self.settings, self.state, np.array(signal, np.float64), known.astype(np.float64))


def by_group(learn: Callable[..., None]) -> Callable[..., None]:
    """Return the kernel that lets one variant of a rule learn from a `Signal`, given the function
    that does it in one group: ``learn(p, s, key, v, i, j, signal)``, signal (experts,)."""

    @compiled
    def run(p: Any, s: Any, key: int, v: int, signal: Any) -> None:
        values, cells = signal.values, signal.cells
        groups_h, groups_c = cells.shape
        for i in range(groups_h):
            for j in range(groups_c):
                if cells[i, j] > 0.0:
                    learn(p, s, key, v, i, j, values[:, i, j])

    return run


@cache
def _kernel(learn: Callable[..., None]) -> Kernel:
    """Return the kernel that takes all variants of a rule of one key through one arrival."""

    def run(p: Any, s: Any, signals: Any, cells: Any) -> None:
        for v in range(s.weights.shape[1]):
            learn(p, s, 0, v, Signal(signals[v if signals.shape[0] > 1 else 0], cells))

    return Kernel(run)


def discounts_of(values: tuple[float, ...]) -> Array:
    """Return the discounts of a rule's variants; `ConfigError` if one is not in (0, 1]."""
    for value in values:
        if not 0.0 < value <= 1.0:
            raise ConfigError("guard.discount", value, "a number in (0, 1]")
    return np.array(values, np.float64)
