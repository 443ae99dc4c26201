"""Guards whose arithmetic is two compiled functions on arrays by key."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from streamadapt.compiled import ENABLED, Kernel
from streamadapt.guard.arrivals import Matured, Shared
from streamadapt.guard.base import Guard, Mixture
from streamadapt.guard.event import Event, Parts
from streamadapt.records import Array, Mask
from streamadapt.tasks.loss_kernels import loss_settings
from streamadapt.tasks.losses import Loss

__all__ = ["CompiledGuard", "Steps"]


class Steps(NamedTuple):
    """The functions of a compiled guard, each marked by `streamadapt.compiled.compiled`.

    The first arguments of both are ``c`` (`Shared`), ``p`` (the settings), ``s`` (the state),
    ``key`` (the row of the state to use) and ``w`` (the room to work in).

    Attributes
    ----------
    mix : callable (c, p, s, key, w, experts, own, shares) -> None
        Mixes the predictions of the experts, (experts, rows, columns). Writes the outputs of the
        aggregators, (aggregators, rows, columns), the served prediction last, and the experts'
        shares of it, (experts,). Changes nothing else but `w`.
    learn : callable (c, p, s, key, w, y) -> None
        Learns from one matured arrival (`Matured`).
    """

    mix: Callable[..., None]
    learn: Callable[..., None]


@cache
def _mix_kernel(mix: Callable[..., None]) -> Kernel:
    def run(event: Any, parts: Any) -> None:
        c, p, s, w = parts.shared, parts.settings, parts.state, parts.room
        mix(c, p, s, 0, w, event.experts, event.own, event.shares)

    return Kernel(run)


@cache
def _learn_kernel(learn: Callable[..., None]) -> Kernel:
    def run(event: Any, weight: float, parts: Any) -> None:
        c, p, s, w = parts.shared, parts.settings, parts.state, parts.room
        y = Matured(event.experts, event.own, event.target, event.mask, weight)
        learn(c, p, s, 0, w, y)

    return Kernel(run)


class _Ready:
    """A guard's parts, room for one event, and both as numba holds them."""

    def __init__(self, parts: Parts, event: Event) -> None:
        self.event = event
        self.parts: Any = parts
        self.box: Any = event
        if ENABLED:
            from streamadapt.guard.boxes import event_box, parts_box

            self.parts, self.box = parts_box(parts), event_box(event)


class CompiledGuard(Guard):
    """A guard in the form of `Steps` on named arrays.

    Attributes
    ----------
    steps : Steps
    """

    steps: ClassVar[Steps]
    _ready: _Ready | None = None

    @property
    @abstractmethod
    def settings(self) -> Any:
        """Its hyper-parameters, a NamedTuple."""

    @property
    @abstractmethod
    def state(self) -> Any:
        """Views of its arrays, a NamedTuple; the first axis of each is the key: here one row."""

    @abstractmethod
    def room(self) -> Any:
        """Return arrays to work in, a NamedTuple."""

    @property
    def shared(self) -> Shared:
        """What it knows of its task."""
        return Shared(loss_settings(self.loss), self.floor)

    @property
    def judged(self) -> int:
        """How many cells of a row are judged: all, or the row as one."""
        return 1 if self.loss.row_wise else self.columns

    @property
    def parts(self) -> Any:
        """`Parts` as kernels take them."""
        return self._make_ready().parts

    def build(
        self, names: Sequence[str], rows: int, columns: int, loss: Loss, unit: Array
    ) -> None:
        """Allocate."""
        self._ready = None
        super().build(names, rows, columns, loss, unit)

    def mix(self, predictions: Array) -> Mixture:
        """Mix (experts, rows, columns) predictions; changes nothing."""
        ready = self._make_ready()
        ready.event.experts[...] = predictions
        _mix_kernel(self.steps.mix).call(ready.box, ready.parts)
        own = ready.event.own.copy()
        return Mixture(own[-1], own, ready.event.shares.copy())

    def update(
        self, predictions: Array, own: Array, target: Array, mask: Mask, weight: float = 1.0
    ) -> None:
        """Learn from what has matured."""
        ready = self._make_ready()
        event = ready.event
        event.experts[...], event.own[...] = predictions, own
        event.target[...], event.mask[...] = target, mask
        _learn_kernel(self.steps.learn).call(ready.box, float(weight), ready.parts)

    def _make_ready(self) -> _Ready:
        if self._ready is None:
            cells = (self.rows, self.columns)
            event = Event(
                np.zeros((self.experts, *cells)),
                np.zeros((self.n_aggregators, *cells)),
                np.zeros(self.experts),
                np.zeros(cells),
                np.zeros(cells, np.bool_),
            )
            parts = Parts(self.shared, self.settings, self.state, self.room())
            self._ready = _Ready(parts, event)
        return self._ready

    def __getstate__(self) -> dict[str, Any]:
        """Leave out numba's holders: a copy makes its own, of its own arrays."""
        return {name: value for name, value in self.__dict__.items() if name != "_ready"}
