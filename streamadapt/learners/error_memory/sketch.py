"""A sketch of keyed sums by signed random projections, in kernels: constant memory and constant
time, however much was put in.

Decayed means of values by key, in K tables of 2^L buckets [1]_ [2]_. Table i maps a key x to the
bucket whose number has the bits ``[<r_il, x> > 0]``, l = 0..L-1 (bit l weighs 2^l), the r_il
standard normal. Two keys at the angle a share it with probability ``(1 - a / pi)^L``. Each bucket
of each group keeps, per cell, how many values were put in and their sums; both fade by `decay`
with every entry that the group takes in. A read adds counts and sums over the K matched buckets
and then divides::

    mean = sum_i S_i[b_i(x)] / sum_i N_i[b_i(x)]    known where sum_i N_i[b_i(x)] >= floor K

which is the mean over all entries ever put in, weighted by how many tables they share with x and
by their age.

Fading is lazy: a bucket has the time it was last written at, and is multiplied by
``decay^(now - then)`` when it is written or read, so a write touches K buckets per group and no
others. Time is the group's entries, counted in float64. Sums are float64: without decay, the count
of a bucket is exact and its sum good to 9 digits after 1e7 entries.

Costs O(K (L features + cells)) time per group for a read as for a write, and groups K 2^L (16 to
24 cells + 8) bytes, all allocated at once.

References
----------
.. [1] Charikar (2002), Similarity estimation techniques from rounding algorithms, STOC.
.. [2] Zhu et al. (2023), ReLoop2: building self-adaptive recommendation models via responsive
   error compensation loop, KDD: keeps such sums of labels and outputs; it resets them, where these
   fade.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from streamadapt.compiled import compiled
from streamadapt.learners.base import MOST_BOOSTED
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
from streamadapt.records import Array

__all__ = [
    "Buckets",
    "SketchMemory",
    "SketchRoom",
    "SketchSettings",
    "SketchState",
    "find_buckets",
    "forget",
    "learn",
    "new_buckets",
    "new_sketch",
    "predict",
    "read",
    "write",
]


class SketchSettings(NamedTuple):
    """`floor`: the entries that a table must hold for the key on average, after fading, to say
    anything; `log_decay`: the logarithm of the decay, 0 if nothing fades."""

    key: KeySettings
    strength: float
    gamma: float
    floor: float
    log_decay: float


class SketchState(NamedTuple):
    """The tables, per key.

    Attributes
    ----------
    projections : (features, K L)
        The same for all groups.
    sums : (groups K 2^L, (1 + planes) cells)
        A row per bucket: counts, then the sums of each plane. Group, then table, then bucket
        number.
    written : (groups K 2^L,)
        When a bucket was last written.
    clock : (groups, 1)
    """

    projections: Array
    sums: Array
    written: Array
    clock: Array


class SketchMemory(NamedTuple):
    """The state of a sketch's memory."""

    key: KeyState
    memory: SketchState


class Buckets(NamedTuple):
    """Room for a key's buckets: `side` (K L,), its inner products with the projections, and `rows`
    (K,)."""

    side: Array
    rows: Array


class SketchRoom(NamedTuple):
    """Room for the key, the values and the buckets of an entry."""

    key: KeyRoom
    value: ValueRoom
    buckets: Buckets


def new_sketch(
    shape: StoreShape, tables: int, bits: int, generator: torch.Generator
) -> SketchState:
    """Return empty tables, and the projections that `generator` draws."""
    groups, features, planes, cells = shape
    drawn = torch.randn(features, tables * bits, generator=generator, dtype=torch.float64)
    buckets = groups * tables << bits
    return SketchState(
        drawn.numpy(),
        np.zeros((buckets, (1 + planes) * cells)),
        np.zeros(buckets),
        np.zeros((groups, 1)),
    )


def new_buckets(tables: int, bits: int) -> Buckets:
    """Return room for a key's buckets."""
    return Buckets(np.zeros(tables * bits), np.zeros(tables, np.int64))


@compiled
def predict(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = base + strength * scale * e``, e the error in the matched buckets."""
    fill_keys(c, p.key, s.key, key, w.key, x)
    for g in range(w.key.keys.shape[0]):
        find_buckets(s.memory, key, g, w.key.keys[g], w.buckets)
        read(p, s.memory, key, g, w.buckets.rows, w.value)
        put_right(c, p, w.value, x, g, out[0])
    if c.classify:
        make_distribution(w.value.known, out[0, 0])


@compiled
def learn(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """Remember an example; a group of which nothing is known remembers nothing, and no time passes
    for it."""
    fill_keys(c, p.key, s.key, key, w.key, x)
    for g in range(w.key.keys.shape[0]):
        if fill_values(c, w.value, x, y, g):
            find_buckets(s.memory, key, g, w.key.keys[g], w.buckets)
            s.memory.clock[key, g, 0] += passing(p.log_decay, y.boost)
            write(p, s.memory, key, g, w.buckets.rows, w.value.values, y.weight)


@compiled
def forget(c: Any, p: Any, s: Any, key: int, w: Any, keep: float) -> None:
    """Fade counts and sums of all buckets alike."""
    buckets, sums = s.memory.sums[key].shape
    for row in range(buckets):
        for i in range(sums):
            s.memory.sums[key, row, i] *= keep


@compiled
def passing(log_decay: float, boost: float) -> float:
    """Return the time that an entry takes: longer by the boost, within the limit that all learners
    have."""
    if boost == 1.0 or log_decay == 0.0:
        return 1.0
    return min(boost, max(1.0, math.log(MOST_BOOSTED) / log_decay))


@compiled
def find_buckets(m: Any, key: int, g: int, x: Any, w: Any) -> None:
    """Write the rows that the key x of a group belongs to, one per table."""
    for n in range(w.side.shape[0]):
        w.side[n] = 0.0
    for f in range(x.shape[0]):
        projections, value = m.projections[key, f], x[f]
        for n in range(w.side.shape[0]):
            w.side[n] += value * projections[n]
    tables = w.rows.shape[0]
    bits = w.side.shape[0] // tables
    for i in range(tables):
        number = 0
        for bit in range(bits):
            if w.side[i * bits + bit] > 0.0:
                number += 1 << bit
        w.rows[i] = ((g * tables + i) << bits) + number


@compiled
def faded(p: Any, m: Any, key: int, g: int, row: int) -> float:
    """``decay^(now - then)`` of a bucket."""
    return math.exp(p.log_decay * (m.clock[key, g, 0] - m.written[key, row]))


@compiled
def read(p: Any, m: Any, key: int, g: int, rows: Any, w: Any) -> None:
    """Average what was put in under like keys: ``w.mean``, ``w.known``."""
    planes, cells = w.mean.shape
    for i in range(cells):
        w.mass[i] = 0.0
        for plane in range(planes):
            w.mean[plane, i] = 0.0
    for n in range(rows.shape[0]):
        part, sums = faded(p, m, key, g, rows[n]), m.sums[key, rows[n]]
        for i in range(cells):
            w.mass[i] += part * sums[i]
            for plane in range(planes):
                w.mean[plane, i] += part * sums[(1 + plane) * cells + i]
    for i in range(cells):
        # Counts that are no numbers must be seen, not fall silent.
        w.known[i] = not w.mass[i] < p.floor * rows.shape[0]
        if w.known[i]:
            for plane in range(planes):
                w.mean[plane, i] /= w.mass[i]


@compiled
def write(p: Any, m: Any, key: int, g: int, rows: Any, values: Any, weight: float) -> None:
    """Put an entry in its buckets, at the group's present time."""
    planes, cells = values.shape
    for n in range(rows.shape[0]):
        part, sums = faded(p, m, key, g, rows[n]), m.sums[key, rows[n]]
        for i in range(sums.shape[0]):
            sums[i] *= part
        for i in range(cells):
            if not math.isnan(values[0, i]):
                sums[i] += weight
                for plane in range(planes):
                    sums[(1 + plane) * cells + i] += weight * np.float64(values[plane, i])
        m.written[key, rows[n]] = m.clock[key, g, 0]
