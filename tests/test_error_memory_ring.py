"""The exact store against a brute force over everything it was ever given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_helpers import built, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_stores import Ring, run

from streamadapt import ErrorMemory
from streamadapt.compiled import ENABLED
from streamadapt.learners.error_memory import ring as rings
from streamadapt.learners.error_memory.values import StoreShape
from streamadapt.learners.lots import LEARN, PREDICT, empty_lot


class Brute:
    """All that was written, in lists; distances by subtraction, one entry at a time."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.kept: list[list[tuple[Any, Any]]] = [[] for _ in range(ring.shape.groups)]

    def write(self, keys: Any, values: Any, known: Any) -> None:
        for g, kept in enumerate(self.kept):
            if known[g]:
                kept.append((keys[g], values[g]))

    def read(self, keys: Any) -> tuple[Any, Any]:
        groups, _, planes, cells = self.ring.shape
        mean, found = np.full((groups, planes, cells), np.nan), np.zeros((groups, cells), bool)
        for g, key in enumerate(keys):
            kept = self.kept[g][-self.ring.capacity :]
            if len(kept) < max(self.ring.floor, 1):
                continue
            # The newest first, and a stable sort: ties go to the newer one.
            squares = [float(((key - other) ** 2).sum()) for other, _ in reversed(kept)]
            nearest = sorted(range(len(kept)), key=lambda i: round(squares[i], 9))[: self.ring.k]
            weights = self.weights([squares[i] for i in nearest])
            values = [kept[len(kept) - 1 - i][1] for i in nearest]
            for c in range(cells):
                known = [
                    (w, v[:, c])
                    for w, v in zip(weights, values, strict=True)
                    if not np.isnan(v[0, c])
                ]
                if known:
                    found[g, c] = True
                    mean[g, :, c] = sum(w * v.astype(np.float64) for w, v in known) / sum(
                        w for w, _ in known
                    )
        return mean, found

    def weights(self, squares: list[float]) -> list[float]:
        if self.ring.tau is not None:
            return [
                float(np.exp(((1 - s / 2) - (1 - squares[0] / 2)) / self.ring.tau))
                for s in squares
            ]
        farthest = max(squares) ** 0.5
        return [float(np.exp(-2 * s**0.5 / farthest)) if farthest > 0 else 1.0 for s in squares]


def compare(ring: Ring, brute: Brute, asked: Any) -> int:
    mean, found = ring.read(asked)
    wanted, there = brute.read(asked)
    np.testing.assert_array_equal(found, there)
    at = np.broadcast_to(there[:, None], wanted.shape)
    np.testing.assert_allclose(mean[at], wanted[at], rtol=1e-6, atol=1e-6)
    return int(there.sum())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([StoreShape(1, 4, 2, 3), StoreShape(3, 2, 1, 3), StoreShape(2, 2, 2, 2)]),
    st.sampled_from([(1, 1), (7, 7), (20, 3), (64, 16)]),
    st.booleans(),
    st.booleans(),
)
def test_reads_are_those_of_a_brute_force(
    seed: int, shape: StoreShape, sizes: tuple[int, int], cosine: bool, tied: bool
) -> None:
    """Also with keys of a coarse grid, of which most are at the same distance from a query as some
    others are."""
    capacity, k = sizes
    ring = Ring(
        shape, capacity=capacity, k=k, floor=2 if capacity > 1 else 1, tau=0.1 if cosine else None
    )
    brute = Brute(ring)
    rng = np.random.default_rng(seed)

    def keys() -> Any:
        drawn = rng.normal(size=(shape.groups, shape.features)) + 3.0
        if tied:
            drawn = rng.integers(1, 4, size=drawn.shape).astype(np.float64)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True) if cosine else drawn

    compared = 0
    for _ in range(40):
        values = rng.normal(size=(shape.groups, shape.planes, shape.cells)).astype(np.float32)
        values = np.where(
            rng.random((shape.groups, 1, shape.cells)) < 0.2, np.float32(np.nan), values
        )
        known = ~np.isnan(values[:, 0]).all(-1)
        written = keys()
        ring.write(written, values, known)
        brute.write(written, values, known)
        compared += compare(ring, brute, keys()) + compare(ring, brute, written)
    assert compared > 40


@pytest.mark.parametrize("level", [0.0, 1.0, 100.0, 1e7])
def test_equal_keys_are_at_distance_zero_and_the_newest_count(level: float) -> None:
    """A stream that stands still: no rounding error becomes a distance, and the k newest weigh the
    same."""
    ring = Ring(StoreShape(1, 3, 1, 1), capacity=37, k=5)
    key = np.array([[level, level / 3.0, level / 7.0]])
    for i in range(100):
        ring.write(key, np.full((1, 1, 1), float(i)), [True])
        newest = np.arange(i + 1)[-5:].mean()
        assert ring.read(key)[0].item() == pytest.approx(newest, rel=1e-6), i


def test_the_newest_overwrites_the_oldest() -> None:
    ring = Ring(StoreShape(2, 1, 1, 1), capacity=3, k=1)
    for i in range(5):  # group 1 is written every other time, and has a ring of its own
        keys = np.array([[float(i)], [float(i)]])
        ring.write(keys, np.full((2, 1, 1), float(i)), [True, i % 2 == 0])
    zeros = np.zeros((2, 1))
    assert ring.read(zeros)[0].flatten().tolist() == [2.0, 0.0], (
        "0 and 1 are gone from the first group"
    )
    assert ring.state.count.flatten().tolist() == [5, 3]


def test_a_key_of_zeros_is_like_no_other() -> None:
    """Its cosine to any key is 0: it is passed over, and a query of zeros finds all alike."""
    ring = Ring(StoreShape(1, 2, 1, 1), capacity=4, k=2, tau=0.1)
    for i, key in enumerate(([0.0, 0.0], [1.0, 0.0], [0.6, 0.8])):
        ring.write(np.array([key]), np.full((1, 1, 1), float(i)), [True])
    near = np.exp(np.array([1.0, 0.6]) / 0.1)
    mean = ring.read(np.array([[1.0, 0.0]]))[0].item()
    assert mean == pytest.approx(float(near @ [1.0, 2.0] / near.sum()), rel=1e-6)
    assert ring.read(np.zeros((1, 2)))[0].item() == pytest.approx(1.5), "the two newest"


def test_below_its_floor_it_knows_nothing() -> None:
    ring = Ring(StoreShape(2, 1, 1, 2), capacity=8, k=2, floor=3)
    key = np.zeros((2, 1))
    assert not ring.read(key)[1].any()
    for _ in range(3):
        assert not ring.read(key)[1].any()
        ring.write(key, np.ones((2, 1, 2)), [True, False])
    assert ring.read(key)[1].tolist() == [[True, True], [False, False]]


def many(n: int, level: float) -> Ring:
    """A ring with entries at `level` plus 1, 2, 4, ... thousandths."""
    ring = Ring(StoreShape(1, 2, 1, 1), capacity=n, k=3)
    for i in range(n):
        ring.write([[level, level + 2.0**i / 1000.0]], [[[float(i)]]], [True])
    return ring


def test_a_large_memory_keeps_float32_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the bytes, and the same neighbours; an equal key is at distance zero."""
    exact = many(8, 0.3)
    monkeypatch.setattr(rings, "MANY", 15)
    rounded = many(8, 0.3)
    assert (exact.state.keys.dtype, rounded.state.keys.dtype) == (np.float64, np.float32)
    for query in ([[0.3, 0.31]], [[0.1, 0.4]]):
        np.testing.assert_allclose(rounded.read(query)[0], exact.read(query)[0], rtol=1e-4)
    rounded.read([[0.3, 0.3 + 16 / 1000.0]])
    assert rounded.near.weight.max() == 1.0


@pytest.mark.parametrize("n", [255, 256, 257, 700])
def test_blocks_do_not_matter(n: int) -> None:
    """More entries than are measured together, full or not."""
    shape, rng = StoreShape(1, 3, 1, 1), np.random.default_rng(n)
    for capacity in (n, n + 100):
        ring = Ring(shape, capacity=capacity, k=4)
        brute = Brute(ring)
        for _ in range(n + 3):
            entry = rng.normal(size=(1, 3)), rng.normal(size=(1, 1, 1)).astype(np.float32), [True]
            ring.write(*entry)
            brute.write(*entry)
        assert compare(ring, brute, rng.normal(size=(1, 3))) == 1


@pytest.mark.skipif(not ENABLED, reason="nothing is compiled")
@pytest.mark.parametrize("many", [0, rings.MANY], ids=["float32", "float64"])
@pytest.mark.parametrize("embedding", ["auto", "base"], ids=["distance", "cosine"])
def test_compiled_blocks_give_the_same_bits(
    many: int, embedding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rings, "MANY", many)
    rng, found = np.random.default_rng(1), []
    lot = empty_lot(720, 4, 1, (1, 2, 1), 5, 4)
    lot.kinds[:] = [LEARN] * 700 + [PREDICT] * 20
    for array in (lot.windows, lot.bases, lot.embeddings, lot.targets):
        array[:] = rng.normal(size=array.shape)
    lot.known[:] = rng.random(lot.known.shape) < 0.8
    for compiled in (True, False):
        learner = built(
            ErrorMemory(capacity=690, embedding=embedding),
            spec_of("forecast", 4, 1, 2, 1, embedding=5),
        )
        lot.outputs[:] = 0.0
        run(learner, lot, 720, compiled=compiled)
        found.append((lot.outputs.tobytes(), *(a.tobytes() for a in learner.state.memory)))
        assert learner.state.memory.keys.dtype == (np.float64 if many else np.float32)
    assert found[0] == found[1]
