"""The sketch against a slow dictionary of buckets: its bulk update, its decay and its constant
size."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from core_helpers import built, spec_of
from memory_stores import Sketch, run

from streamadapt import ErrorMemory
from streamadapt.learners.base import MOST_BOOSTED
from streamadapt.learners.error_memory.values import StoreShape
from streamadapt.learners.lots import LEARN, empty_lot


class Slow:
    """All entries are kept, by bucket; every read visits all of them and weights each by its
    age."""

    def __init__(self, fast: Sketch) -> None:
        self.planes = fast.state.projections[0]  # (features, tables * bits)
        self.tables, self.bits, self.decay, self.floor = (
            fast.tables,
            fast.bits,
            fast.decay,
            fast.floor,
        )
        self.buckets: dict[Any, list[tuple[float, Any]]] = defaultdict(list)
        self.time: dict[int, float] = defaultdict(float)

    def names(self, group: int, key: Any) -> list[Any]:
        names = []
        for table in range(self.tables):
            number = 0
            for bit in range(self.bits):
                number += 2**bit * int(key @ self.planes[:, table * self.bits + bit] > 0)
            names.append((group, table, number))
        return names

    def write(self, keys: Any, values: Any, known: Any, boost: float = 1.0) -> None:
        for g, key in enumerate(keys):
            if known[g]:
                self.time[g] += boost
                for name in self.names(g, key):
                    self.buckets[name].append((self.time[g], values[g]))

    def read(self, keys: Any, shape: StoreShape) -> tuple[Any, Any]:
        mean = np.full((shape.groups, shape.planes, shape.cells), np.nan)
        known = np.zeros((shape.groups, shape.cells), bool)
        for g, key in enumerate(keys):
            found = [entry for name in self.names(g, key) for entry in self.buckets[name]]
            for c in range(shape.cells):
                kept = [
                    (self.decay ** (self.time[g] - t), v[:, c])
                    for t, v in found
                    if not np.isnan(v[0, c])
                ]
                count = sum(w for w, _ in kept)
                known[g, c] = count >= self.floor * self.tables
                if known[g, c]:
                    mean[g, :, c] = sum(w * v.astype(np.float64) for w, v in kept) / count
        return mean, known


def stream(shape: StoreShape, n: int, seed: int = 0) -> tuple[Any, Any]:
    """Return keys, and values with some cells unknown (all planes of a cell together), some
    entries unknown in a whole group."""
    rng = np.random.default_rng(seed)
    keys = rng.normal(size=(n, shape.groups, shape.features))
    values = rng.normal(size=(n, shape.groups, shape.planes, shape.cells)).astype(np.float32)
    unknown = rng.random((n, shape.groups, 1, shape.cells)) < 0.2
    unknown |= rng.random((n, shape.groups, 1, 1)) < 0.1
    return keys, np.where(unknown, np.float32(np.nan), values)


def known_groups(values: Any) -> Any:
    return ~np.isnan(values[:, 0]).all(-1)


@pytest.mark.parametrize("decay", [1.0, 0.98, 0.5])
@pytest.mark.parametrize(
    "shape", [StoreShape(1, 4, 2, 3), StoreShape(3, 3, 1, 2), StoreShape(2, 2, 2, 2)]
)
def test_bucket_means_equal_those_of_the_slow_dictionary(shape: StoreShape, decay: float) -> None:
    fast = Sketch(shape, decay=decay)
    slow = Slow(fast)
    compared = 0
    for i, (key, value) in enumerate(zip(*stream(shape, 120), strict=True)):
        known = known_groups(value)
        boost = 3.0 if decay == 0.98 and i % 7 == 0 else 1.0
        fast.write(key, value, known, boost)
        slow.write(key, value, known, boost)
        asked = np.random.default_rng(i).normal(size=key.shape)
        mean, found = fast.read(asked)
        wanted, there = slow.read(asked, shape)
        np.testing.assert_array_equal(found, there)
        at = np.broadcast_to(there[:, None], wanted.shape)
        np.testing.assert_allclose(mean[at], wanted[at], rtol=1e-5, atol=1e-6)
        compared += int(there.sum())
    assert compared > 100


def test_the_state_equals_that_of_the_slow_dictionary() -> None:
    """Bucket by bucket, in float64: counts and sums decayed entry by entry."""
    shape = StoreShape(2, 3, 2, 2)
    fast = Sketch(shape, decay=0.97)
    slow = Slow(fast)
    for key, value in zip(*stream(shape, 200), strict=True):
        known = known_groups(value)
        fast.write(key, value, known)
        slow.write(key, value, known)
    assert slow.buckets
    for (g, table, number), entries in slow.buckets.items():
        row = (g * fast.tables + table) * 2**fast.bits + number
        now = float(fast.state.written[0, row])
        assert now == max(t for t, _ in entries)
        weights = [0.97 ** (now - t) for t, _ in entries]
        counts = sum(w * ~np.isnan(v[0]) for w, (_, v) in zip(weights, entries, strict=True))
        sums = sum(
            w * np.nan_to_num(v.astype(np.float64))
            for w, (_, v) in zip(weights, entries, strict=True)
        )
        wanted = np.concatenate([np.atleast_1d(counts), np.ravel(sums)])
        np.testing.assert_allclose(fast.state.sums[0, row], wanted, rtol=1e-12, atol=1e-14)


def test_a_write_touches_one_bucket_per_table() -> None:
    sketch = Sketch(StoreShape(3, 4, 1, 2), tables=7, bits=4)
    keys, values = stream(StoreShape(3, 4, 1, 2), 30)
    for i in range(30):
        before = sketch.state.sums[0].copy()
        known = np.array([True, i % 2 == 0, False])
        sketch.write(keys[i], np.ones_like(values[i]), known)
        (changed,) = (sketch.state.sums[0] != before).any(1).nonzero()
        wanted = sketch.buckets(keys[i])[known].flatten()
        assert changed.tolist() == sorted(wanted.tolist())


def test_similar_keys_share_buckets_with_the_probability_of_their_angle() -> None:
    """(1 - angle / pi)^bits: the similarity that the sketch uses."""
    sketch = Sketch(StoreShape(1, 2, 1, 1), tables=4000, bits=3)
    x = np.array([[1.0, 0.0]])
    for angle in (0.2, 1.0, 2.0, math.pi):
        y = np.array([[math.cos(angle), math.sin(angle)]])
        share = float((sketch.buckets(x) == sketch.buckets(y)).mean())
        assert share == pytest.approx((1.0 - angle / math.pi) ** 3, abs=0.03)


def test_an_empty_sketch_and_one_below_its_floor_give_nothing() -> None:
    sketch = Sketch(StoreShape(1, 2, 1, 1), decay=0.5, floor=0.4)
    key, other, known = np.array([[1.0, 0.5]]), np.array([[-1.0, -0.5]]), [True]
    assert not sketch.read(key)[1].any()
    sketch.write(key, np.full((1, 1, 1), 2.0), known)
    mean, found = sketch.read(key)
    assert found.all()
    assert mean.item() == 2.0
    assert not sketch.read(other)[1].any(), "the opposite key shares no bucket"
    for _ in range(2):  # 1, .5, .25: below the floor
        sketch.write(other, np.ones((1, 1, 1)), known)
    assert not sketch.read(key)[1].any()


def test_a_boost_decays_faster_but_is_limited() -> None:
    key, known = np.ones((1, 2)), [True]
    for boost, count in ((5.0, 1.0 + 0.98**5), (1e9, 1.0 + MOST_BOOSTED)):
        sketch = Sketch(StoreShape(1, 2, 1, 1), decay=0.98)
        sketch.write(key, np.ones((1, 1, 1)), known)
        sketch.write(key, np.ones((1, 1, 1)), known, boost=boost)
        assert sketch.state.sums[0, sketch.buckets(key)[0], 0].tolist() == pytest.approx(
            [count] * sketch.tables
        )


def test_ten_million_entries_keep_precision() -> None:
    """Counts stay exact and sums accurate, where float32 would stop counting at 16.8 million and
    lose precision long before."""
    learner = built(
        ErrorMemory(store="sketch", tables=1, bits=1, decay=1.0),
        spec_of("regression", 1, 1, 1, 1),
    )
    many, memory = 100_000, learner.state.memory
    size = sum(array.nbytes for array in memory)
    lot = empty_lot(many, 1, 1, (1, 1, 1), 0, 0)
    lot.kinds[:] = LEARN
    lot.targets[:] = 0.1
    lot.known[:] = True
    for _ in range(100):
        run(learner, lot, many)
    (row,) = memory.sums[0, :, 0].nonzero()[0]
    assert memory.sums[0, row, 0] == 1e7
    assert memory.sums[0, row, 1] / 1e7 == pytest.approx(0.1, rel=1e-7)
    run(learner, lot, 1)
    assert memory.sums[0, row, 0] == 1e7 + 1
    assert sum(array.nbytes for array in memory) == size
