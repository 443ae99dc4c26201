"""Learners whose arithmetic is a few small functions, compiled into a loop over a lot."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamadapt.compiled import ENABLED, Kernel, compiled
from streamadapt.learners.base import Learner, require_shape
from streamadapt.learners.lots import (
    ADAPT,
    FORGET,
    LEARN,
    PREDICT,
    Lot,
    Parts,
    Shared,
    empty_lot,
    loop,
)
from streamadapt.models.contract import BaseOutput, Spec
from streamadapt.records import Array

__all__ = [
    "CompiledLearner",
    "NoRoom",
    "Steps",
    "boxed",
    "is_as_made",
    "keep_everything",
    "learn_nothing",
    "take_nothing_in",
    "with_a_key",
]


class NoRoom(NamedTuple):
    """The room to work in of a learner that needs none."""

    nothing: Array


@compiled
def learn_nothing(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """`Steps.learn` of a learner that learns from entries only."""


@compiled
def take_nothing_in(c: Any, p: Any, s: Any, key: int, w: Any, x: Any) -> None:
    """`Steps.adapt` of a learner that learns from labels only."""


@compiled
def keep_everything(c: Any, p: Any, s: Any, key: int, w: Any, keep: float) -> None:
    """`Steps.forget` of a learner that has nothing to forget."""


class Steps(NamedTuple):
    """The functions of a compiled learner, each marked by `streamadapt.compiled.compiled`.

    The first arguments of each are ``c`` (`Shared`), ``p`` (the settings), ``s`` (the state),
    ``key`` (the row of the state to use) and ``w`` (the room to work in); ``x`` is an `Input`, and
    ``y`` a `Target`.

    Attributes
    ----------
    predict : callable (c, p, s, key, w, x, out) -> None
        Writes the predictions of all experts to `out`, (experts, rows, columns). Changes nothing
        else but `w`.
    learn : callable (c, p, s, key, w, x, y) -> None
        Learns one matured example.
    adapt : callable (c, p, s, key, w, x) -> None
        Takes an entry in, right after its prediction.
    forget : callable (c, p, s, key, w, keep) -> None
        Reduces what was learned to the part `keep`, in [0, 1).
    """

    predict: Callable[..., None]
    learn: Callable[..., None] = learn_nothing
    adapt: Callable[..., None] = take_nothing_in
    forget: Callable[..., None] = keep_everything


class _Event:
    """A lot of one event, and its arrays as tensors.

    Parameters
    ----------
    lot : Lot
    """

    def __init__(self, lot: Lot) -> None:
        self.lot, self.box = lot, boxed(lot)
        fields = (lot.windows, lot.bases, lot.times, lot.embeddings, lot.targets, lot.known)
        views = (torch.from_numpy(array)[0] for array in fields)
        self.window, self.base, self.times, self.embedding, self.target, self.known = views
        self.outputs = torch.from_numpy(lot.outputs)[0]


def is_as_made(part: object, made: type, methods: Sequence[str]) -> bool:
    """Return whether a part is a `made` whose methods nobody has replaced."""
    return isinstance(part, made) and all(
        getattr(type(part), name) is getattr(made, name) and name not in vars(part)
        for name in methods
    )


@cache
def kernel_of(steps: Steps) -> Kernel:
    return loop(*steps)


class CompiledLearner(Learner):
    """A learner in the form of `Steps` on named arrays.

    A subclass has its `steps`, and says what its settings and its state are. It runs on the CPU;
    tensors of another device are copied.

    Attributes
    ----------
    steps : Steps
        A learner with other steps for another kind of task has `steps_for` instead.
    makes_gradient_steps : bool
        Whether `take_gradient_norm` has to be asked after each example.
    state : NamedTuple of ndarrays, or of such tuples
        The first axis is the key: here one row.
    """

    steps: ClassVar[Steps]
    makes_gradient_steps: ClassVar[bool] = False
    state: Any

    @classmethod
    def variants(cls) -> Sequence[CompiledLearner]:
        """Return learners whose kernels differ, to be compiled beforehand for all tasks."""
        return (cls(),)

    def steps_for(self, spec: Spec) -> Steps:
        """Return the functions for a task."""
        del spec
        return self.steps

    @abstractmethod
    def settings(self, spec: Spec) -> Any:
        """Return the hyper-parameters, a NamedTuple of numbers and arrays."""

    @abstractmethod
    def start(self, spec: Spec) -> Any:
        """Return the state of one key before anything is learned, a NamedTuple of arrays."""

    def room(self, spec: Spec) -> Any:
        """Return arrays to work in, a NamedTuple."""
        del spec
        return NoRoom(np.zeros(1))

    def writes(self, spec: Spec) -> tuple[int, int, int]:
        """Return the shape of what `Steps.predict` writes: a prediction of each expert."""
        return len(self.names), spec.rows, spec.columns

    def allocate(self, spec: Spec) -> None:
        """Allocate the state, and room for one event."""
        self.state = with_a_key(self.start(spec))
        self._bind()

    def _bind(self) -> None:
        """Hand the state to the kernel."""
        spec = self.spec
        self._steps = self.steps_for(spec)
        self._plain_parts = Parts(
            shared_of(spec),
            self.settings(spec),
            self.state,
            self.room(spec),
            0,
            self.writes(spec)[0],
        )
        self._parts_at: dict[int, Any] = {}
        self._events: dict[tuple[int, int], _Event] = {}
        self._parts = boxed(self._plain_parts)
        self._kernel = kernel_of(self._steps)
        self._kernel.prepare(self._event(None).box, 0, 0, self._parts)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from: numba's holders cannot be copied."""
        held = ("_steps", "_events", "_parts", "_plain_parts", "_parts_at", "_kernel")
        return {name: value for name, value in self.__dict__.items() if name not in held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "state" in state:
            self._bind()

    def _run(self, kind: int, inputs: Tensor | None, base: BaseOutput | None) -> _Event:
        """Take the learner through one event, whose other arguments are already there."""
        event = self._event(base)
        event.lot.kinds[0] = kind
        if base is not None and inputs is not None:
            event.window.copy_(inputs.detach())
            event.base.copy_(base.output.detach())
            if base.times is not None:
                event.times.copy_(base.times)
            if base.embedding is not None:
                event.embedding.copy_(base.embedding.detach().view(-1))
        self._kernel.call(event.box, 0, 1, self._parts)
        return event

    def _event(self, base: BaseOutput | None) -> _Event:
        """Return room for an event with such an input: times and embedding may be missing."""
        times = 0 if base is None or base.times is None else len(base.times)
        features = 0 if base is None or base.embedding is None else base.embedding.numel()
        found = self._events.get((times, features))
        if found is None:
            spec = self.spec
            shape = (len(self.names), spec.rows, spec.columns)
            lot = empty_lot(1, spec.window, spec.channels, shape, features, times)
            lot = lot._replace(outputs=np.zeros((1, *self.writes(spec))))
            found = self._events[times, features] = _Event(lot)
        return found

    @property
    def takes_lots(self) -> bool:
        """Whether its kernel computes what its methods do: no subclass has replaced them."""
        return is_as_made(self, CompiledLearner, ("predict", "learn", "adapt")) and not (
            self.signal_names
        )

    def run(self, lot: Any, start: int, stop: int, first: int) -> None:
        """Take the learner through the events [start, stop) of a lot.

        Parameters
        ----------
        lot : Lot, or numba's holder of one
        start, stop : int
        first : int
            The place of its first expert in the lot's outputs.
        """
        parts = self._parts_at.get(first)
        if parts is None:
            own = self._plain_parts._replace(first=first, last=first + len(self.names))
            parts = self._parts_at[first] = boxed(own)
        self._kernel.call(lot, start, stop, parts)

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the predictions of all experts, (experts, rows, columns)."""
        require_shape("inputs", inputs, (self.spec.window, self.spec.channels))
        return self._run(PREDICT, inputs, base).outputs.to(self.spec.device, torch.float32)

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Learn one matured example."""
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        event = self._event(base)
        event.target.copy_(target.detach())
        event.known.copy_(mask)
        event.lot.weights[0], event.lot.boosts[0] = self.weight, self.boost
        self._run(LEARN, inputs, base)

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        """Take an entry in, right after its prediction."""
        if self._steps.adapt is not take_nothing_in:
            self._run(ADAPT, inputs, base)

    def forget(self, keep: float) -> None:
        """Reduce what was learned so far to the part `keep`."""
        self._event(None).lot.weights[0] = keep
        self._run(FORGET, None, None)

    def named_arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield the arrays of the state that checkpoints have, with their names there."""
        yield from _named(self.state)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Add copies of the state's arrays, as tensors by name: torch's hook of `state_dict`."""
        super()._save_to_state_dict(destination, prefix, keep_vars)  # a subclass's own tensors
        for name, array in self.named_arrays():
            destination[prefix + name] = torch.from_numpy(array.copy())[0]

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Take over tensors by name, all or none: torch's hook of `load_state_dict`."""
        mine = {prefix + name: array for name, array in self.named_arrays()}
        others = {k: v for k, v in state_dict.items() if k not in mine}
        missing_keys += [name for name in mine if name not in state_dict]
        error_msgs += [
            f"{self.kind}: the state's {name} must be {mine[name].shape[1:]}, and is {shape}"
            for name in mine.keys() & state_dict.keys()
            if (shape := tuple(state_dict[name].shape)) != mine[name].shape[1:]
        ]
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if not (missing_keys or unexpected_keys or error_msgs):
            for name, array in mine.items():
                array[0] = state_dict[name].cpu().numpy()


def with_a_key(state: Any) -> Any:
    """Return a state of one key with the axis of keys before each array."""
    if isinstance(state, tuple):
        return type(state)(*map(with_a_key, state))
    return np.array(state, order="C")[None]


def _named(state: Any, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """Yield the arrays of a state with their names; ``past.values`` is in the tuple ``past``."""
    for name, value in zip(state._fields, state, strict=True):
        if isinstance(value, tuple):
            yield from _named(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def shared_of(spec: Spec) -> Shared:
    """Return what a spec tells all learners."""

    def numbers(tensor: Tensor, dtype: Any = np.float64) -> Array:
        return np.ascontiguousarray(tensor.cpu().numpy(), dtype)

    origin = spec.output_origin
    return Shared(
        spec.kind == "forecast",
        spec.kind == "classification",
        numbers(spec.input_loc, np.float32),
        numbers(spec.input_scale, np.float32),
        numbers(spec.output_loc),
        numbers(spec.output_scale),
        np.zeros(spec.columns) if origin is None else numbers(origin),
    )


def boxed(fields: Lot | Parts) -> Any:
    """Return numba's holder of a lot or of parts, or the tuple itself if nothing is compiled."""
    if not ENABLED:
        return fields
    from streamadapt.learners.boxes import lot_box, parts_box

    return lot_box(fields) if isinstance(fields, Lot) else parts_box(fields)
