"""The guard's kernels: compiled and plain Python give the same bits, keys do not touch each other,
and losses are those of the task."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from streamadapt import Hedge, TwoLayer
from streamadapt.guard.arrivals import Matured
from streamadapt.guard.compiled import CompiledGuard, Parts
from streamadapt.tasks.loss_kernels import (
    bounded,
    length_of,
    loss_of,
    loss_settings,
    scale_of,
    slope_of,
)
from streamadapt.tasks.losses import Absolute, Log, Loss, Pinball, Squared

LOSSES: list[Loss] = [Absolute(), Squared(), Pinball(0.8), Log()]
SCOPES: list[Any] = ["global", "horizon", "cell"]


def build(make: Any, loss: Loss, rows: int = 2, columns: int = 3) -> CompiledGuard:
    guard: CompiledGuard = make
    guard.build(["base", "a", "b", "c"], rows, columns, loss, np.full(columns, 0.5))
    return guard


def arrivals(loss: Loss, n: int, rows: int = 2, columns: int = 3) -> Any:
    """Predictions, target, mask, weight: cells without a target, outliers, ties."""
    rng = np.random.default_rng(3)
    for t in range(n):
        mask = rng.random((rows, columns)) < 0.8 if t % 9 else np.zeros((rows, columns), bool)
        if loss.row_wise:
            target = np.eye(columns)[rng.integers(columns, size=rows)]
            predictions = rng.dirichlet(np.ones(columns), size=(4, rows))
            mask[1:] = True
        else:
            target = rng.normal(size=(rows, columns))
            predictions = target + rng.normal(size=(4, rows, columns)) * (1e9 if t == 40 else 1.0)
            if 50 < t < 60:
                predictions[:] = target  # all are right
            target = np.where(mask, target, np.nan)
        yield predictions, target, mask, (1.0, 0.5, 3.0, 0.0)[t % 4]


def arrays_of(state: Any) -> list[Any]:
    if isinstance(state, np.ndarray):
        return [state]
    return [array for part in state for array in arrays_of(part)]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("make", [TwoLayer, Hedge])
def test_plain_python_gives_the_same_bits(make: Any, scope: Any, loss: Loss) -> None:
    compiled, plain = (build(make(scope=scope), loss) for _ in range(2))
    parts = Parts(plain.shared, plain.settings, plain.state, plain.room())
    own, shares = np.zeros((plain.n_aggregators, 2, 3)), np.zeros(4)
    with np.errstate(all="ignore"):
        for predictions, target, mask, weight in arrivals(loss, 80):
            mixture = compiled.mix(predictions)
            plain.steps.mix(*parts[:3], 0, parts.room, predictions, own, shares)
            assert np.array_equal(mixture.aggregator_outputs, own)
            assert np.array_equal(mixture.weights, shares)
            compiled.update(predictions, own, target, mask, weight)
            y = Matured(predictions, own, target, mask, weight)
            plain.steps.learn(*parts[:3], 0, parts.room, y)
    for one, two in zip(arrays_of(compiled.state), arrays_of(plain.state), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("make", [TwoLayer, Hedge])
def test_a_key_has_its_own_rows(make: Any) -> None:
    """The same function on three keys, of which two learn by turns."""
    guard = build(make(), Absolute())
    alone = [build(make(), Absolute()) for _ in range(3)]
    state = _many(guard.state, 3)
    room, own, shares = guard.room(), np.zeros((guard.n_aggregators, 2, 3)), np.zeros(4)
    for t, (predictions, target, mask, weight) in enumerate(arrivals(Absolute(), 30)):
        key = 2 * (t % 2)
        head = guard.shared, guard.settings, state, key, room
        guard.steps.mix(*head, predictions, own, shares)
        mixture = alone[key].mix(predictions)
        assert np.array_equal(mixture.aggregator_outputs, own)
        guard.steps.learn(*head, Matured(predictions, own, target, mask, weight))
        alone[key].update(predictions, own, target, mask, weight)
    for key, one in enumerate(alone):
        for mine, its in zip(arrays_of(state), arrays_of(one.state), strict=True):
            assert np.array_equal(mine[key], its[0])


def _many(state: Any, keys: int) -> Any:
    if isinstance(state, np.ndarray):
        return np.repeat(state, keys, axis=0)
    return type(state)(*(_many(part, keys) for part in state))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_losses_and_slopes_are_those_of_the_task(loss: Loss) -> None:
    rng = np.random.default_rng(0)
    c = loss_settings(loss)
    for _ in range(200):
        y, own, expert, error = rng.random(), rng.random(), rng.random(), rng.uniform(0.1, 3.0)
        if rng.random() < 0.2:
            own = y
        # A row of two classes, of which the first is the true one; or a cell.
        both = [
            np.array([[p, 1.0 - p]]) if loss.row_wise else np.array([[p]]) for p in (own, expert)
        ]
        target = np.array([[1.0, 0.0]]) if loss.row_wise else np.array([[y]])
        scale = loss.scale_of(np.array([[error]]))
        assert scale_of(c, error) == scale[0, 0]
        assert length_of(c, scale_of(c, error)) == pytest.approx(loss.length_of(scale)[0, 0])
        assert loss_of(c, own, y) == pytest.approx(loss.loss(both[0], target)[0, 0], rel=1e-12)
        regret = -slope_of(c, own, y) * (expert - bounded(c, own)) / scale_of(c, error)
        wanted = loss.regret(both[1][None], both[0], target, scale)[0, 0, 0]
        assert regret == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_a_copy_has_its_own_arrays() -> None:
    first = build(TwoLayer(), Absolute())
    rounds = list(arrivals(Absolute(), 40))
    for predictions, target, mask, weight in rounds[:20]:
        first.update(predictions, first.mix(predictions).aggregator_outputs, target, mask, weight)
    second, before = copy.deepcopy(first), first.mix(rounds[0][0]).served
    for predictions, target, mask, weight in rounds[20:]:
        second.update(
            predictions, second.mix(predictions).aggregator_outputs, target, mask, weight
        )
    assert np.array_equal(first.mix(rounds[0][0]).served, before)
    assert not np.array_equal(second.mix(rounds[0][0]).served, before)


def test_built_again_it_starts_from_nothing() -> None:
    guard, fresh = build(TwoLayer(), Absolute()), build(TwoLayer(), Absolute())
    for predictions, target, mask, weight in arrivals(Absolute(), 20):
        guard.update(predictions, guard.mix(predictions).aggregator_outputs, target, mask, weight)
    build(guard, Absolute())
    assert np.array_equal(guard.mix(predictions).served, fresh.mix(predictions).served)


def test_an_infinite_prediction_leaves_the_stack_as_it_was() -> None:
    guard = build(TwoLayer(), Absolute())
    assert isinstance(guard, TwoLayer)
    rounds = list(arrivals(Absolute(), 30))
    for predictions, target, mask, _ in rounds:
        guard.update(predictions, guard.mix(predictions).aggregator_outputs, target, mask)
    before = guard.ridge.state_dict()
    broken = rounds[1][0].copy()
    broken[1] = np.inf
    with np.errstate(all="ignore"):
        guard.update(broken, guard.mix(rounds[1][0]).aggregator_outputs, np.zeros((2, 3)),
                     np.ones((2, 3), bool))  # fmt: skip
    for name, array in guard.ridge.state_dict().items():
        assert np.array_equal(array, before[name]), name
    assert np.isfinite(guard.mix(rounds[1][0]).served).all()
