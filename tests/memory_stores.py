"""The stores of an error memory by themselves, uncompiled, and its keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from streamadapt import ErrorMemory
from streamadapt.compiled import ENABLED
from streamadapt.learners import BaseOutput
from streamadapt.learners.boxes import lot_box, parts_box
from streamadapt.learners.compiled import kernel_of, shared_of
from streamadapt.learners.error_memory import ring, sketch
from streamadapt.learners.error_memory.keys import fill_keys, length_one_key
from streamadapt.learners.error_memory.values import StoreShape, value_room
from streamadapt.learners.lots import Input, Lot, Parts

KEY = length_one_key(0)


def keyed(state: Any) -> Any:
    """The state of one key, with the axis of keys."""
    return type(state)(*(array[None] for array in state))


class Store:
    """Reads and writes all groups of a store at once."""

    def __init__(self, shape: StoreShape) -> None:
        self.shape, self.room = shape, value_room(shape)

    def read(self, keys: Any) -> tuple[Any, Any]:
        """Means (groups, planes, cells), and where they are known, (groups, cells)."""
        found = []
        for g, key in enumerate(np.asarray(keys, np.float64)):
            self.read_group(g, key)
            found.append((self.room.mean.copy(), self.room.known.copy()))
        means, known = zip(*found, strict=True)
        return np.array(means), np.array(known)

    def write(
        self, keys: Any, values: Any, known: Any, boost: float = 1.0, weight: float = 1.0
    ) -> None:
        for g, key in enumerate(np.asarray(keys, np.float64)):
            if known[g]:
                self.write_group(g, key, np.asarray(values[g], np.float32), boost, weight)

    def read_group(self, g: int, key: Any) -> None:
        raise NotImplementedError

    def write_group(self, g: int, key: Any, values: Any, boost: float, weight: float) -> None:
        raise NotImplementedError


class Ring(Store):
    def __init__(
        self, shape: StoreShape, *, capacity: int, k: int, floor: float = 1, tau: Any = None
    ) -> None:
        super().__init__(shape)
        self.capacity, self.k, self.floor, self.tau = capacity, k, floor, tau
        self.settings = ring.RingSettings(KEY, 1.0, 1.0, floor, tau is not None, tau or 0.1)
        self.state = keyed(ring.new_ring(shape, capacity))
        self.near = ring.new_near(shape, capacity, k)

    def read_group(self, g: int, key: Any) -> None:
        ring.read(self.settings, self.state, 0, g, key, self.near, self.room)

    def write_group(self, g: int, key: Any, values: Any, boost: float, weight: float) -> None:
        ring.write(self.settings, self.state, 0, g, key, values, weight)


class Sketch(Store):
    def __init__(
        self, shape: StoreShape, *, tables: int = 5, bits: int = 3, decay: float = 0.9,
        floor: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__(shape)
        self.tables, self.bits, self.decay, self.floor = tables, bits, decay, floor
        self.settings = sketch.SketchSettings(KEY, 1.0, 1.0, floor, np.log(decay))
        generator = torch.Generator().manual_seed(4)
        self.state = keyed(sketch.new_sketch(shape, tables, bits, generator))
        self.found = sketch.new_buckets(tables, bits)

    def buckets(self, keys: Any) -> Any:
        """The rows of keys (groups, features), (groups, tables)."""
        rows = []
        for g, key in enumerate(np.asarray(keys, np.float64)):
            sketch.find_buckets(self.state, 0, g, key, self.found)
            rows.append(self.found.rows.copy())
        return np.array(rows)

    def read_group(self, g: int, key: Any) -> None:
        sketch.find_buckets(self.state, 0, g, key, self.found)
        sketch.read(self.settings, self.state, 0, g, self.found.rows, self.room)

    def write_group(self, g: int, key: Any, values: Any, boost: float, weight: float) -> None:
        sketch.find_buckets(self.state, 0, g, key, self.found)
        self.state.clock[0, g, 0] += sketch.passing(self.settings.log_decay, boost)
        sketch.write(self.settings, self.state, 0, g, self.found.rows, values, weight)


def keys_of(learner: ErrorMemory, inputs: Any, base: BaseOutput) -> Any:
    """The keys (groups, features) of an entry."""
    spec = learner.spec
    x = Input(
        np.asarray(inputs, np.float32),
        np.zeros(0, np.int64) if base.times is None else base.times.numpy(),
        base.output.double().numpy(),
        np.zeros(0, np.float32) if base.embedding is None else base.embedding.numpy(),
    )
    room = learner.room(spec).key
    fill_keys(shared_of(spec), learner.settings(spec).key, learner.state.key, 0, room, x)
    return room.keys


def run(learner: ErrorMemory, lot: Lot, size: int, *, compiled: bool = True) -> None:
    """Take a learner through the first events of a lot."""
    spec = learner.spec
    parts = Parts(shared_of(spec), learner.settings(spec), learner.state, learner.room(spec), 0, 1)
    kernel = kernel_of(learner.steps_for(spec))
    if compiled and ENABLED:
        kernel(lot_box(lot), 0, size, parts_box(parts))
    else:
        kernel.function(lot, 0, size, parts)
