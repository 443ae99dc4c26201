"""The orthogonal dictionary against slow numpy implementations, and the recovery of atoms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamadapt.compiled import Kernel
from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners.dictionary import OrthogonalDictionary
from streamadapt.learners.dictionary.atoms import ANCHOR
from streamadapt.learners.dictionary.polar import polar, polar_room

torch.set_num_threads(1)

Array = np.ndarray[Any, np.dtype[np.float64]]
POLAR = Kernel(polar)


def nearest_orthogonal(matrix: Array) -> Array:
    found = np.empty_like(matrix)
    POLAR(np.ascontiguousarray(matrix), polar_room(len(matrix)), found)
    return found


def orthogonal(n: int, rng: np.random.Generator) -> Array:
    q: Array = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return q


def with_singular_values(values: Array, seed: int) -> tuple[Array, Array]:
    """Return a matrix with these singular values, and its polar factor."""
    rng = np.random.default_rng(seed)
    u, v = orthogonal(len(values), rng), orthogonal(len(values), rng)
    return u @ np.diag(values) @ v.T, u @ v.T


def svd_polar(matrix: Array) -> Array:
    u, _, vt = np.linalg.svd(matrix)
    factor: Array = u @ vt
    return factor


def sparse_entries(
    n: int, count: int, seed: int, noise: float = 0.0, truth: Array | None = None
) -> tuple[Tensor, Array]:
    """Return Bernoulli-Gaussian combinations (a fifth of them active) of orthogonal atoms, and the
    atoms."""
    rng = np.random.default_rng(seed)
    truth = orthogonal(n, rng)
    x = rng.normal(size=(count, n)) * (rng.random((count, n)) < 0.2)
    return torch.from_numpy(x @ truth.T + noise * rng.normal(size=(count, n))), truth


def recovery(truth: Array, dictionary: Tensor) -> float:
    """Return the mean over the true atoms of the best |cos| to a learned one."""
    learned = torch.nn.functional.normalize(dictionary, dim=0).numpy()
    return float(np.abs(truth.T @ learned).max(axis=1).mean())


def feed(
    dictionary: OrthogonalDictionary, entries: Tensor, batch: int = 1
) -> OrthogonalDictionary:
    for i in range(0, len(entries), batch):
        dictionary.update(entries[i] if batch == 1 else entries[i : i + batch])
    return dictionary


# -- the polar factor


@given(
    st.sampled_from([1, 2, 7, 20, 40]),
    st.floats(0.0, 9.0),
    st.floats(-8.0, 8.0),
    st.integers(0, 2**32 - 1),
)
def test_the_polar_factor_equals_that_of_the_svd(
    n: int, spread: float, size: float, seed: int
) -> None:
    """For any singular values (`spread` decades of them), and any unit."""
    rng = np.random.default_rng(seed)
    values = 10.0 ** (size - spread * rng.random(n))
    matrix, _ = with_singular_values(values, seed)
    found = nearest_orthogonal(matrix)
    np.testing.assert_allclose(found, svd_polar(matrix), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.T @ found, np.eye(n), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize("spread", [0.0, 0.25, 1.0])
def test_the_polar_factor_of_a_well_conditioned_matrix_has_all_digits(
    n: int, spread: float
) -> None:
    rng = np.random.default_rng(0)
    values = 10.0 ** (-spread * rng.random(n))
    matrix, factor = with_singular_values(values, 2)
    np.testing.assert_allclose(nearest_orthogonal(matrix), factor, rtol=0, atol=1e-11)
    scipys = scipy.linalg.polar(matrix)[0]
    np.testing.assert_allclose(nearest_orthogonal(matrix), scipys, rtol=0, atol=1e-11)


def test_one_direction_may_be_almost_missing() -> None:
    """The other singular values do not show it."""
    for least in (1e-4, 1e-7, 1e-10):
        values = np.full(24, 1.0)
        values[0] = least
        matrix, _ = with_singular_values(values, 2)
        np.testing.assert_allclose(
            nearest_orthogonal(matrix), svd_polar(matrix), rtol=0, atol=1e-15 / least + 1e-10
        )


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_a_singular_matrix_has_an_orthogonal_factor(rank: int) -> None:
    matrix, _ = with_singular_values(np.where(np.arange(8) < rank, 2.0, 0.0), 3)
    exact = np.zeros((8, 8))  # singular without a rounding error, and a nilpotent matrix too
    exact[: rank + 1, : rank + 1] = 2.0 * np.eye(rank + 1, k=1)
    for each in (matrix, exact):
        found = nearest_orthogonal(each)
        np.testing.assert_allclose(found.T @ found, np.eye(8), rtol=0, atol=1e-9)
        np.testing.assert_allclose(np.trace(found.T @ each), 2.0 * rank, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1e-310, 1e-150, 1e150, 1e300])
def test_any_unit(size: float) -> None:
    matrix, factor = with_singular_values(np.array([1.0, 2.0, 3.0]), 4)
    close = 1e-2 if size < 1e-300 else 1e-12  # numbers this small have few digits
    np.testing.assert_allclose(nearest_orthogonal(size * matrix), factor, rtol=0, atol=close)


@pytest.mark.parametrize("n", [1, 5, 18, 27])
def test_compiled_and_plain_polar_factors_have_the_same_bits(n: int) -> None:
    matrix, _ = with_singular_values(10.0 ** (-5.0 * np.random.default_rng(n).random(n)), n)
    plain = np.empty_like(matrix)
    polar(matrix, polar_room(n), plain)
    assert plain.tobytes() == nearest_orthogonal(matrix).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_has_no_factor(bad: float) -> None:
    matrix = np.eye(3)
    matrix[1, 2] = bad
    assert np.isnan(nearest_orthogonal(matrix)).all()


# -- the updates


class Slow:
    """The formulas of METHODS with an SVD, one entry and one coefficient at a time."""

    def __init__(self, start: Array, floors: tuple[float, float], *, normalise: bool) -> None:
        self.d, self.g, self.t = start.copy(), np.zeros_like(start), 0
        self.floors, self.normalise = floors, normalise

    def update(self, batch: Array) -> None:
        n = len(self.d)
        rho = min(1.0, max(self.floors[0], 4.0 / (self.t + 1) ** 0.5))
        gamma = min(1.0, max(self.floors[1], 2.0 / (self.t + 2) ** 0.75))
        mean = np.zeros((n, n))
        for entry in batch:
            y = entry / np.sqrt((entry**2).sum()) if self.normalise else entry
            for j in range(n):
                c = sum(self.d[i, j] * y[i] for i in range(n))
                mean[:, j] += y * c * abs(c) / len(batch)
        self.g = (1.0 - rho) * self.g + rho * mean
        anchor = ANCHOR * np.sqrt((self.g**2).sum() / n)
        self.d = self.d + gamma * (svd_polar(self.g + anchor * self.d) - self.d)
        self.t += 1


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("floors", [(0.0, 0.0), (0.6, 0.3)])
def test_updates_equal_the_slow_form(
    batch: int, normalise: bool, floors: tuple[float, float]
) -> None:
    entries, _ = sparse_entries(6, 40 * batch, 0, noise=0.1)
    ours = OrthogonalDictionary(6, floors=floors, normalise=normalise)
    slow = Slow(ours.dictionary.numpy(), floors, normalise=normalise)
    for i in range(0, len(entries), batch):
        ours.update(entries[i] if batch == 1 else entries[i : i + batch])
        slow.update(entries[i : i + batch].numpy())
        np.testing.assert_allclose(ours.gradient.numpy(), slow.g, rtol=0, atol=1e-7)
        np.testing.assert_allclose(ours.dictionary.numpy(), slow.d, rtol=0, atol=1e-7)


def test_the_gradient_is_that_of_the_objective() -> None:
    """``y (c |c|)^T`` is the derivative of ``|D^T y|_3^3 / 3``, by torch's own differentiation."""
    entries, _ = sparse_entries(5, 6, 1, noise=0.1)
    ours = OrthogonalDictionary(5, normalise=False)
    d = ours.dictionary.clone().requires_grad_()
    ((entries @ d).abs() ** 3).sum(1).mean().div(3.0).backward()
    ours.update(entries)  # the first rho is 1
    torch.testing.assert_close(ours.gradient, d.grad)


def test_rates_decrease_as_documented_to_their_floors() -> None:
    free, held = OrthogonalDictionary(2), OrthogonalDictionary(2, floors=(0.05, 0.02))
    assert free.rates(0) == (1.0, 1.0)
    assert free.rates(99) == pytest.approx((0.4, 2.0 / 101**0.75))
    assert held.rates(99) == free.rates(99)
    assert held.rates(10**6) == (0.05, 0.02)
    assert held.rates(10**6, boost=5.0) == pytest.approx((0.25, 0.1))
    assert held.rates(10**6, boost=100.0) == (1.0, 1.0)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.sampled_from([1e-30, 1.0, 1e30]),
    st.booleans(),
)
def test_the_dictionary_stays_in_the_ball(seed: int, n: int, size: float, normalise: bool) -> None:
    entries, _ = sparse_entries(n, 60, seed)
    ours = feed(OrthogonalDictionary(n, normalise=normalise), entries * size)
    assert torch.linalg.matrix_norm(ours.dictionary, 2) <= 1.0 + 1e-9
    torch.testing.assert_close(ours.atoms @ ours.atoms.mT, torch.eye(n, dtype=torch.float64))


def test_zeros_have_no_effect_and_an_outlier_no_more_than_other_entries() -> None:
    entries, truth = sparse_entries(12, 2000, 0)
    ours = feed(OrthogonalDictionary(12), entries)
    before = ours.dictionary.clone()
    feed(fresh := OrthogonalDictionary(12), torch.zeros(5, 12))
    assert torch.equal(fresh.dictionary, OrthogonalDictionary(12).dictionary)
    gamma = ours.rates(int(ours.step))[1]
    ours.update(torch.full((12,), 1e9))
    assert torch.linalg.matrix_norm(ours.dictionary - before, 2) <= 2.0 * gamma
    assert recovery(truth, feed(ours, entries[:20]).dictionary) > 0.99


# -- recovery


def test_recovers_the_atoms_from_five_thousand_entries() -> None:
    entries, truth = sparse_entries(20, 5000, 0)
    assert recovery(truth, feed(OrthogonalDictionary(20), entries).dictionary) >= 0.999


def test_recovers_the_atoms_under_noise() -> None:
    entries, truth = sparse_entries(20, 5000, 1, noise=0.1)
    assert recovery(truth, feed(OrthogonalDictionary(20), entries).dictionary) >= 0.995


@pytest.mark.slow
def test_recovers_fifty_atoms() -> None:
    entries, truth = sparse_entries(50, 5000, 0)
    assert recovery(truth, feed(OrthogonalDictionary(50), entries).dictionary) >= 0.996


def test_rate_floors_follow_a_change_that_decreasing_rates_miss() -> None:
    """The atoms change after 8,000 entries; measured 1,600 entries later."""
    before, old = sparse_entries(12, 8000, 0)
    after, new = sparse_entries(12, 1600, 1)
    entries = torch.cat([before, after])
    stuck = feed(OrthogonalDictionary(12), entries, 8)
    tracking = feed(OrthogonalDictionary(12, floors=(0.05, 0.05)), entries, 8)
    assert recovery(new, tracking.dictionary) > 0.99
    assert recovery(new, stuck.dictionary) < 0.9
    assert recovery(old, feed(OrthogonalDictionary(12), before, 8).dictionary) > 0.99


# -- encoding


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.floats(0.01, 100.0), st.integers(0, 30))
def test_codes_and_errors(seed: int, n: int, size: float, learned: int) -> None:
    entries, _ = sparse_entries(n, learned + 5, seed, noise=0.3)
    ours = feed(OrthogonalDictionary(n), entries[:learned])
    y = entries[learned:]
    torch.testing.assert_close(ours.decode(ours.encode(y)), y)
    threshold = 0.4
    plain, kept = ours.encode(y), ours.encode(y, threshold)
    assert torch.equal(kept, torch.where(plain.abs() >= threshold, plain, 0.0))
    torch.testing.assert_close(ours.decode(kept[0]), ours.atoms @ kept[0])
    error = ours.error(y)
    assert error.shape == (5,)
    assert ((error >= 0.0) & (error < 1.0)).all()
    torch.testing.assert_close(ours.error(size * y), error)
    mean_square = plain.square().mean(1, keepdim=True).sqrt() * (1.0 - 1e-9)
    left = y - ours.decode(torch.where(plain.abs() >= mean_square, plain, 0.0))
    torch.testing.assert_close(error, left.norm(dim=1) / y.norm(dim=1), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(ours.error(y[0]), error[0])
    least = float(y.norm(dim=1).median())
    torch.testing.assert_close(
        ours.error(y, least), error * y.norm(dim=1) / y.norm(dim=1).clamp_min(least)
    )


def test_single_precision_is_kept() -> None:
    ours = OrthogonalDictionary(4)
    y = torch.ones(2, 4)
    assert {t.dtype for t in (ours.encode(y), ours.decode(y), ours.error(y))} == {torch.float32}
    assert ours.error(torch.zeros(4)) == 0.0


def test_a_restored_dictionary_has_its_own_atoms() -> None:
    entries, _ = sparse_entries(8, 400, 0)
    ours = feed(OrthogonalDictionary(8), entries[:200])
    saved, atoms = {k: v.clone() for k, v in ours.state_dict().items()}, ours.atoms.clone()
    feed(ours, entries[200:])
    assert not torch.equal(ours.atoms, atoms)
    ours.load_state_dict(saved)
    assert torch.equal(ours.atoms, atoms)
    other = OrthogonalDictionary(8)
    other.load_state_dict(saved)
    assert torch.equal(feed(other, entries[200:]).atoms, feed(ours, entries[200:]).atoms)


@pytest.mark.parametrize("shape", [(3,), (2, 5), (), (0, 4), (1, 1, 4)])
def test_wrong_shapes_are_refused_before_anything_changes(shape: tuple[int, ...]) -> None:
    ours = OrthogonalDictionary(4)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    for call in (ours.update, ours.encode, ours.decode, ours.error):
        with pytest.raises(ShapeError, match="entries must be"):
            call(torch.zeros(shape))
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())


@pytest.mark.parametrize(
    "bad", [{"size": 0}, {"floors": (0.1, 1.1)}, {"floors": (-0.1, 0.0)}, {"floors": (0.1,)}]
)
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        OrthogonalDictionary(**{"size": 4} | bad)
