"""A lot of events in arrays, and the loop that takes one learner through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import Kernel
from streamadapt.records import Array

__all__ = [
    "ADAPT",
    "ENTRY",
    "FORGET",
    "LEARN",
    "NEVER",
    "NOTHING",
    "PREDICT",
    "Input",
    "Lot",
    "Parts",
    "Shared",
    "Target",
    "loop",
]

PREDICT: Final = 0
LEARN: Final = 1
ADAPT: Final = 2
FORGET: Final = 3
ENTRY: Final = 4
"""`PREDICT`, then `ADAPT`."""
NOTHING: Final = 5
NEVER: Final = -(2**63)
"""An event time before all others, ns: nothing has been seen."""


class Shared(NamedTuple):
    """What all learners of a pipeline know of their task.

    Attributes
    ----------
    forecast, classify : bool
        Of a regression both are False.
    input_loc, input_scale : ndarray, (channels,), float32
    output_loc, output_scale : ndarray, (columns,), float64
    output_origin : ndarray, (columns,), float64
        What was subtracted from outputs; zeros where nothing was.
    """

    forecast: bool
    classify: bool
    input_loc: Array
    input_scale: Array
    output_loc: Array
    output_scale: Array
    output_origin: Array


class Input(NamedTuple):
    """What a learner predicts from.

    Attributes
    ----------
    window : ndarray, (window, channels), float32
        Original units less `Spec.input_origin`, the newest entry last.
    times : ndarray, (window,), int64, ns
        Event times of its entries; empty if they are not known.
    base : ndarray, (rows, columns), float64
        The base's output, original units less `Spec.output_origin`.
    embedding : ndarray, (features,), float32
        The base's hidden layer; empty if it returns none.
    """

    window: Array
    times: Array
    base: Array
    embedding: Array


class Target(NamedTuple):
    """What a learner learns from, beside an `Input`.

    Attributes
    ----------
    target : ndarray, (rows, columns), float64
        Original units less `Spec.output_origin`; anything, NaN too, where it is not known.
    known : ndarray, (rows, columns), bool
    weight : float, >= 0
        The weight of the example.
    boost : float, >= 1
        The factor of the learning speed.
    """

    target: Array
    known: Array
    weight: float
    boost: float


class Lot(NamedTuple):
    """Events in their order, one row each, and room for what the learners predict.

    Attributes
    ----------
    kinds : ndarray, (events,), int64
        `PREDICT`, `LEARN`, `ADAPT`, `FORGET`, `ENTRY` or `NOTHING`.
    keys : ndarray, (events,), int64
        The row of the state that the event belongs to.
    at : ndarray, (events,), int64
        The row of `windows`, `times` and `embeddings` that the event is about.
    windows, times, embeddings : ndarray
        The fields of `Input`, each with a leading axis: the places of predictions.
    bases : ndarray, (events, rows, columns), float64
    targets : ndarray, (events, rows, columns), float64
        `LEARN`: anything, NaN too, where `known` is False.
    known : ndarray, (events, rows, columns), bool
    weights : ndarray, (events,), float64, >= 0
        `LEARN`: the weight of the example. `FORGET`: what to keep, in [0, 1).
    boosts : ndarray, (events,), float64, >= 1
    outputs : ndarray, (events, experts, rows, columns), float64
        `PREDICT`: the predictions of all experts.
    """

    kinds: Any
    keys: Any
    at: Any
    windows: Any
    times: Any
    embeddings: Any
    bases: Array
    targets: Array
    known: Array
    weights: Array
    boosts: Array
    outputs: Array


class Parts(NamedTuple):
    """All that the functions of one learner work on.

    Attributes
    ----------
    shared : Shared
    settings : NamedTuple
        Its hyper-parameters.
    state : NamedTuple of ndarrays
        The first axis of each is the key.
    work : NamedTuple of ndarrays
        Room to work in; nothing in it lasts from one event to the next.
    first, last : int
        Its experts are ``outputs[:, first:last]``.
    """

    shared: Any
    settings: Any
    state: Any
    work: Any
    first: int
    last: int


def loop(
    predict: Callable[..., None],
    learn: Callable[..., None],
    adapt: Callable[..., None],
    forget: Callable[..., None],
) -> Kernel:
    """Return the kernel that takes a learner through the events [start, stop) of a lot.

    Its arguments are a `Lot`, `start`, `stop` and `Parts`.
    """

    def run(lot: Any, start: int, stop: int, parts: Any) -> None:
        c, p, s, w = parts.shared, parts.settings, parts.state, parts.work
        first, last = parts.first, parts.last
        for n in range(start, stop):
            kind, key, at = lot.kinds[n], lot.keys[n], lot.at[n]
            x = Input(lot.windows[at], lot.times[at], lot.bases[n], lot.embeddings[at])
            if kind == LEARN:
                y = Target(lot.targets[n], lot.known[n], lot.weights[n], lot.boosts[n])
                learn(c, p, s, key, w, x, y)
            elif kind == FORGET:
                forget(c, p, s, key, w, lot.weights[n])
            else:
                if kind in (PREDICT, ENTRY):
                    predict(c, p, s, key, w, x, lot.outputs[n, first:last])
                if kind in (ADAPT, ENTRY):
                    adapt(c, p, s, key, w, x)

    return Kernel(run, predict.__module__.removeprefix("streamadapt.learners."))


def empty_lot(size: int, window: int, channels: int, shape: tuple[int, int, int], features: int,
              times: int) -> Lot:  # fmt: skip
    """Return room for `size` events; `shape` is (experts, rows, columns)."""
    rows, columns = shape[1:]
    return Lot(
        np.zeros(size, np.int64),
        np.zeros(size, np.int64),
        np.arange(size),
        np.zeros((size, window, channels), np.float32),
        np.zeros((size, times), np.int64),
        np.zeros((size, features), np.float32),
        np.zeros((size, rows, columns)),
        np.zeros((size, rows, columns)),
        np.zeros((size, rows, columns), np.bool_),
        np.ones(size),
        np.ones(size),
        np.zeros((size, *shape)),
    )
