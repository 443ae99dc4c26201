"""The exact store against a brute force over everything it was ever given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamadapt.learners.error_memory.ring import Ring
from streamadapt.learners.error_memory.sketch import StoreShape

torch.set_num_threads(1)


def ring_of(
    shape: StoreShape, *, capacity: int, k: int, floor: float = 1, tau: float | None = None
) -> Ring:
    return Ring(shape, capacity=capacity, k=k, floor=floor, tau=tau, device=torch.device("cpu"))


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
    mean, found = ring.read(torch.from_numpy(asked))
    wanted, there = brute.read(asked)
    np.testing.assert_array_equal(found.numpy(), there)
    at = np.broadcast_to(there[:, None], wanted.shape)
    np.testing.assert_allclose(mean.numpy()[at], wanted[at], rtol=1e-6, atol=1e-6)
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
    ring = ring_of(
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
        ring.write(torch.from_numpy(written), torch.from_numpy(values), torch.from_numpy(known))
        brute.write(written, values, known)
        compared += compare(ring, brute, keys()) + compare(ring, brute, written)
    assert compared > 40


@pytest.mark.parametrize("level", [0.0, 1.0, 100.0])
def test_equal_keys_are_at_distance_zero_and_the_newest_count(level: float) -> None:
    """A stream that stands still: no rounding error becomes a distance, and the k newest weigh the
    same."""
    ring = ring_of(StoreShape(1, 3, 1, 1), capacity=37, k=5)
    key = torch.tensor([[level, level / 3.0, level / 7.0]], dtype=torch.float64)
    for i in range(100):
        ring.write(key, torch.full((1, 1, 1), float(i)), torch.tensor([True]))
        newest = np.arange(i + 1)[-5:].mean()
        assert ring.read(key)[0].item() == pytest.approx(newest, rel=1e-6), i


def test_the_newest_overwrites_the_oldest() -> None:
    ring = ring_of(StoreShape(2, 1, 1, 1), capacity=3, k=1)
    for i in range(5):  # group 1 is written every other time, and has a ring of its own
        keys = torch.tensor([[float(i)], [float(i)]], dtype=torch.float64)
        ring.write(keys, torch.full((2, 1, 1), float(i)), torch.tensor([True, i % 2 == 0]))
    zeros = torch.zeros(2, 1, dtype=torch.float64)
    assert ring.read(zeros)[0].flatten().tolist() == [2.0, 0.0], (
        "0 and 1 are gone from the first group"
    )
    assert ring.count.flatten().tolist() == [5, 3]


def test_a_key_of_zeros_is_like_no_other() -> None:
    """Its cosine to any key is 0: it is passed over, and a query of zeros finds all alike."""
    ring = ring_of(StoreShape(1, 2, 1, 1), capacity=4, k=2, tau=0.1)
    for i, key in enumerate(([0.0, 0.0], [1.0, 0.0], [0.6, 0.8])):
        ring.write(
            torch.tensor([key], dtype=torch.float64),
            torch.full((1, 1, 1), float(i)),
            torch.tensor([True]),
        )
    near = np.exp(np.array([1.0, 0.6]) / 0.1)
    mean = ring.read(torch.tensor([[1.0, 0.0]], dtype=torch.float64))[0].item()
    assert mean == pytest.approx(float(near @ [1.0, 2.0] / near.sum()), rel=1e-6)
    assert ring.read(torch.zeros(1, 2, dtype=torch.float64))[0].item() == pytest.approx(1.5), (
        "the two newest"
    )


def test_below_its_floor_it_knows_nothing() -> None:
    ring = ring_of(StoreShape(2, 1, 1, 2), capacity=8, k=2, floor=3)
    key = torch.zeros(2, 1, dtype=torch.float64)
    assert not ring.read(key)[1].any()
    for _ in range(3):
        assert not ring.read(key)[1].any()
        ring.write(key, torch.ones(2, 1, 2), torch.tensor([True, False]))
    assert ring.read(key)[1].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("tau", [None, 0.1])
@pytest.mark.parametrize(("before", "many"), [(0, 3), (4, 5), (9, 40), (0, 0), (25, 1)])
def test_many_at_once_are_one_after_the_other(before: int, many: int, tau: float | None) -> None:
    shape = StoreShape(2, 3, 2, 2)
    one, bulk = (ring_of(shape, capacity=10, k=3, tau=tau) for _ in range(2))
    g = torch.Generator().manual_seed(before)
    keys = torch.randn(before + many, 2, 3, generator=g, dtype=torch.float64)
    values = torch.randn(before + many, 2, 2, 2, generator=g)
    values[torch.rand(before + many, 2, generator=g) < 0.3] = torch.nan
    for i in range(before + many):
        for ring in (one, bulk) if i < before else (one,):
            ring.write(keys[i], values[i], ~values[i, :, 0].isnan().all(-1))
    bulk.write_many(keys[before:], values[before:])
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(
            bulk.state_dict()[name], tensor, rtol=1e-14, atol=1e-14, equal_nan=True
        )
