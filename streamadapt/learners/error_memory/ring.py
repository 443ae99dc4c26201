"""The exact store of an error memory, in kernels: rings of keys and values, read by their nearest
neighbours.

A ring of (key, value) per group; the newest overwrites the oldest. With d_j the Euclidean
distances of the k nearest keys (ties go to the newer entry), a read is the mean of their values
with weights

* ``exp(-2 d_j / d_k)``, d_k the largest of them; or
* ``softmax(s_j / tau)``, s_j the keys' inner product, where `cosine`: the cosine similarity of
  keys of length one.

A value may be NaN in part: such a cell joins no mean.

Costs O(groups capacity (features + log k)) time a read, O(groups (features + cells)) a write, and
groups capacity (8 features + 4 planes cells + 12) bytes, all allocated at once; 4 features where
there are more than `MANY` keys times features.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.learners.error_memory.keys import (
    KeyRoom,
    KeySettings,
    KeyState,
    fill_keys,
)
from streamadapt.learners.error_memory.values import (
    StoreShape,
    ValueRoom,
    fill_values,
    make_distribution,
    put_right,
)
from streamadapt.learners.float32 import LARGEST
from streamadapt.records import Array

__all__ = [
    "MANY",
    "Near",
    "RingMemory",
    "RingRoom",
    "RingSettings",
    "RingState",
    "forget",
    "learn",
    "new_near",
    "new_ring",
    "predict",
    "read",
    "write",
]

TIE: Final = 1e-10
"""Of two entries at the same squared distance the newer is the nearer, by this much per entry of
age. It is above the rounding errors of distances up to some hundred; of longer ones, ties go to
any of them."""
SAME: Final = 1e-12
"""Squared distances below this, relative to one plus the key's own square, count as zero: the
inputs were float32 numbers."""
BLOCK: Final = 256
"""Entries whose distances are found together: few enough that they stay near the processor."""
MANY: Final = 2**21
"""Rings of more numbers than this keep their keys as float32: half the memory to read. What two
keys differ by is then good to 1e-7 of their length."""


class RingSettings(NamedTuple):
    """`floor`: a group with fewer entries says nothing."""

    key: KeySettings
    strength: float
    gamma: float
    floor: float
    cosine: bool
    tau: float


class RingState(NamedTuple):
    """The rings, per key.

    Attributes
    ----------
    keys : (groups, features, capacity), float64 or float32
        A column per entry: distances are then found along the entries, four times as fast as
        along the features.
    rank : (groups, 1, capacity)
        inf: empty. Otherwise the key's square, less `TIE` for every entry written before.
    values : (groups, capacity, planes x cells), float32
        NaN where unknown.
    worth : (groups, capacity), float32
        What an entry counts in a mean.
    count : (groups, 1), int64
        Entries ever written.
    """

    keys: Array
    rank: Array
    values: Array
    worth: Array
    count: Array  # type: ignore[assignment]  # hides a method of tuples


class RingMemory(NamedTuple):
    """The state of an exact memory."""

    key: KeyState
    memory: RingState


class Near(NamedTuple):
    """Room for a search. `query` (features,); `far` (`BLOCK`,), squared distances of a block. Of
    the k nearest: `rank`, squared distances with their ties resolved, inf where there is none, and
    `at`, where they lie: a heap, the farthest first; and their `weight`."""

    query: Array
    far: Array
    rank: Array
    at: Array
    weight: Array


class RingRoom(NamedTuple):
    """Room for the key, the values and the neighbours of an entry."""

    key: KeyRoom
    value: ValueRoom
    near: Near


def new_ring(shape: StoreShape, capacity: int) -> RingState:
    """Return empty rings of `capacity` entries each."""
    groups, features, planes, cells = shape
    return RingState(
        np.zeros((groups, features, capacity), _dtype(shape, capacity)),
        np.full((groups, 1, capacity), math.inf),
        np.zeros((groups, capacity, planes * cells), np.float32),
        np.ones((groups, capacity), np.float32),
        np.zeros((groups, 1), np.int64),
    )


def new_near(shape: StoreShape, capacity: int, k: int) -> Near:
    """Return room for a search."""
    return Near(
        np.zeros(shape.features, _dtype(shape, capacity)),
        np.zeros(BLOCK),
        np.zeros(k),
        np.zeros(k, np.int64),
        np.zeros(k),
    )


def _dtype(shape: StoreShape, capacity: int) -> type[np.floating[Any]]:
    return np.float32 if shape.groups * shape.features * capacity > MANY else np.float64


@compiled
def predict(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = base + strength * scale * e``, e the error of the nearest entries."""
    fill_keys(c, p.key, s.key, key, w.key, x)
    for g in range(w.key.keys.shape[0]):
        read(p, s.memory, key, g, w.key.keys[g], w.near, w.value)
        put_right(c, p, w.value, x, g, out[0])
    if c.classify:
        make_distribution(w.value.known, out[0, 0])


@compiled
def learn(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """Remember an example; a group of which nothing is known remembers nothing."""
    fill_keys(c, p.key, s.key, key, w.key, x)
    for g in range(w.key.keys.shape[0]):
        if fill_values(c, w.value, x, y, g):
            write(p, s.memory, key, g, w.key.keys[g], w.value.values, y.weight)


@compiled
def forget(c: Any, p: Any, s: Any, key: int, w: Any, keep: float) -> None:
    """Empty all but the newest `keep` of the entries that each group holds."""
    groups, _, capacity = s.memory.rank[key].shape
    for g in range(groups):
        rank = s.memory.rank[key, g, 0]
        held = 0
        for at in range(capacity):
            held += rank[at] < math.inf
        kept = int(keep * held)
        for at in range(capacity):
            if age(s.memory.count[key, g, 0], at, capacity) >= kept:
                rank[at] = math.inf


@compiled
def age(count: int, at: int, capacity: int) -> int:
    """Return how many entries were written after the one at this place."""
    return (count - 1 - at) % capacity


@compiled
def square(cosine: bool, query: Any) -> float:
    """The key's square. A cosine takes every key to be of length one, the zero key too: its
    similarity to any other is then 0."""
    if cosine:
        return 1.0
    total = 0.0
    for f in range(query.shape[0]):
        total += query[f] * query[f]
    return total


@compiled
def write(p: Any, m: Any, key: int, g: int, query: Any, values: Any, weight: float) -> None:
    """Put an entry in a group's ring; `query` (features,) is its key."""
    capacity = m.keys.shape[3]
    count = m.count[key, g, 0]
    at = count % capacity
    for f in range(query.shape[0]):
        m.keys[key, g, f, at] = min(max(query[f], -LARGEST), LARGEST)
    m.rank[key, g, 0, at] = square(p.cosine, query) - TIE * count
    planes, cells = values.shape
    for plane in range(planes):
        for i in range(cells):
            m.values[key, g, at, plane * cells + i] = values[plane, i]
    m.worth[key, g, at] = weight
    m.count[key, g, 0] = count + 1


@compiled
def read(p: Any, m: Any, key: int, g: int, query: Any, near: Any, w: Any) -> None:
    """Average the values of the nearest entries: ``w.mean``, ``w.known``."""
    for f in range(query.shape[0]):
        near.query[f] = min(max(query[f], -LARGEST), LARGEST)
    count = m.count[key, g, 0]
    find_nearest(p.cosine, m.keys[key, g], m.rank[key, g, 0], count, near)
    fill_distances(square(p.cosine, query), count, m.keys.shape[3], near)
    if p.cosine:
        weigh_by_similarity(p.tau, near.weight)
    else:
        weigh_by_distance(near.weight)
    average(m.values[key, g], m.worth[key, g], near, w)
    for i in range(w.mass.shape[0]):
        w.known[i] = w.mass[i] > 0.0 and count >= p.floor


@compiled
def find_nearest(cosine: bool, keys: Any, rank: Any, count: int, near: Any) -> None:
    """Find the k entries with the least ``d^2 + TIE * age``."""
    for n in range(near.rank.shape[0]):
        near.rank[n] = math.inf
        near.at[n] = -1
    capacity = keys.shape[1]
    held = min(count, capacity)
    for first in range(0, held, BLOCK):
        size = min(BLOCK, held - first)
        measure(cosine, keys, first, size, near.query, near.far)
        for i in range(size):
            if near.far[i] < near.rank[0] and rank[first + i] < math.inf:
                away = near.far[i] + TIE * age(count, first + i, capacity)
                if away < near.rank[0]:
                    replace_farthest(near.rank, near.at, away, first + i)


@compiled
def measure(cosine: bool, keys: Any, first: int, size: int, query: Any, far: Any) -> None:
    """Write the squared distances of a block of keys (features, capacity) from `query`; of keys
    of length one ``2 - 2 s``, s their similarity."""
    for i in range(size):
        far[i] = 2.0 if cosine else 0.0
    for f in range(query.shape[0]):
        value, others = np.float64(query[f]), keys[f, first : first + size]
        if cosine:
            for i in range(size):
                far[i] -= 2.0 * value * np.float64(others[i])
        else:
            for i in range(size):
                gap = value - np.float64(others[i])
                far[i] += gap * gap


@compiled
def replace_farthest(rank: Any, places: Any, away: float, at: int) -> None:
    """Put an entry in the place of the farthest of a heap, and keep it a heap."""
    k, i = rank.shape[0], 0
    while True:
        below = 2 * i + 1
        if below + 1 < k and rank[below + 1] > rank[below]:
            below += 1
        if below >= k or rank[below] <= away:
            break
        rank[i], places[i] = rank[below], places[below]
        i = below
    rank[i], places[i] = away, at


@compiled
def fill_distances(square: float, count: int, capacity: int, near: Any) -> None:
    """Write squared distances to ``near.weight``, inf where there is no neighbour."""
    for n in range(near.at.shape[0]):
        near.weight[n] = math.inf
        if near.at[n] >= 0:
            squared = near.rank[n] - TIE * age(count, near.at[n], capacity)
            near.weight[n] = squared if squared >= SAME * (1.0 + square) else 0.0


@compiled
def weigh_by_similarity(tau: float, d: Any) -> None:
    """Squared distances -> ``softmax(s / tau)`` times a constant, with ``s = 1 - d^2 / 2``."""
    nearest = 4.0
    for n in range(d.shape[0]):
        nearest = min(nearest, d[n])
    for n in range(d.shape[0]):
        d[n] = math.exp((nearest - d[n]) / (2.0 * tau))


@compiled
def weigh_by_distance(d: Any) -> None:
    """Squared distances -> ``exp(-2 d_j / d_k)``; 1 where all are the same key."""
    farthest = 0.0
    for n in range(d.shape[0]):
        d[n] = math.sqrt(d[n])
        if d[n] < math.inf:
            farthest = max(farthest, d[n])
    if farthest == 0.0:
        farthest = 1.0
    for n in range(d.shape[0]):
        d[n] = math.exp(-2.0 * d[n] / farthest)


@compiled
def average(values: Any, worth: Any, near: Any, w: Any) -> None:
    """The weighted mean of the neighbours' values, cell by cell over those that are known."""
    planes, cells = w.mean.shape
    for i in range(cells):
        w.mass[i] = 0.0
        for plane in range(planes):
            w.mean[plane, i] = 0.0
    for n in range(near.at.shape[0]):
        at = near.at[n]
        weight = near.weight[n] * np.float64(worth[at]) if at >= 0 else 0.0
        if weight > 0.0:
            for i in range(cells):
                if not math.isnan(values[at, i]):
                    w.mass[i] += weight
                    for plane in range(planes):
                        w.mean[plane, i] += weight * np.float64(values[at, plane * cells + i])
    for i in range(cells):
        if w.mass[i] > 0.0:
            for plane in range(planes):
                w.mean[plane, i] /= w.mass[i]
