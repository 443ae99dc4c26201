"""The plain rules against slow loops of the published formulas, and the guards made from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize

from benchmarks.plain_guards import AdaHedge, Median, PlainBOA, PlainMLPoly, RidgeOnly, Simplex
from benchmarks.plain_rules import AdaHedgeRule, OnlineGradient, OperaBOA, OperaMLPoly
from streamadapt.errors import ConfigError
from streamadapt.guard.base import Guard
from streamadapt.guard.mixer import Aggregator
from streamadapt.guard.two_layer import Mean
from streamadapt.tasks.losses import Absolute, Log, Pinball, Squared

EXPERTS = 4
Vector = list[float]


class SlowBOA:
    """opera's BOA, one expert at a time."""

    def __init__(self) -> None:
        self.b, self.v, self.r = ([0.0] * EXPERTS for _ in range(3))
        self.w = [1.0 / EXPERTS] * EXPERTS

    def update(self, regrets: Vector) -> None:
        logs = []
        for k, r in enumerate(regrets):
            self.b[k] = max(self.b[k], abs(r))
            self.v[k] += r**2
            limits = [math.exp(350)]
            if self.b[k] > 0.0:
                limits += [1.0 / (2.0 * self.b[k]), math.sqrt(math.log(EXPERTS) / self.v[k])]
            eta = min(limits)
            self.r[k] += r - eta * r**2
            logs.append(eta * self.r[k])
        w = [math.exp(x - max(logs)) for x in logs]
        self.w = [x / sum(w) for x in w]


class SlowMLPoly:
    """opera's MLpol: ``eta <- 1 / (1 / eta + r^2 + newB - B)``."""

    def __init__(self) -> None:
        self.b = 0.0
        self.r, self.eta = [0.0] * EXPERTS, [math.exp(700)] * EXPERTS
        self.w = [1.0 / EXPERTS] * EXPERTS

    def update(self, regrets: Vector) -> None:
        new = max(self.b, max(r**2 for r in regrets))
        for k, r in enumerate(regrets):
            self.r[k] += r
            self.eta[k] = 1.0 / (1.0 / self.eta[k] + r**2 + new - self.b)
        self.b = new
        w = [self.eta[k] * max(self.r[k], 0.0) for k in range(EXPERTS)]
        self.w = [x / sum(w) for x in w] if max(self.r) > 0.0 else [1.0 / EXPERTS] * EXPERTS


class SlowAdaHedge:
    """The paper's algorithm, with losses of any sign."""

    def __init__(self) -> None:
        self.total, self.gap = [0.0] * EXPERTS, 0.0
        self.w = [1.0 / EXPERTS] * EXPERTS

    def update(self, regrets: Vector) -> None:
        losses = [-r for r in regrets]
        h = sum(w * x for w, x in zip(self.w, losses, strict=True))
        if self.gap > 0.0:
            eta = math.log(EXPERTS) / self.gap
            least = min(losses)
            inside = sum(
                w * math.exp(-eta * (x - least)) for w, x in zip(self.w, losses, strict=True)
            )
            mixed = least - math.log(inside) / eta
        else:
            mixed = min(t + x for t, x in zip(self.total, losses, strict=True)) - min(self.total)
        self.gap += max(0.0, h - mixed)
        self.total = [t + x for t, x in zip(self.total, losses, strict=True)]
        best = min(self.total)
        if self.gap > 0.0:
            w = [math.exp(-math.log(EXPERTS) / self.gap * (t - best)) for t in self.total]
        else:
            w = [float(t == best) for t in self.total]
        self.w = [x / sum(w) for x in w]


class SlowGradient:
    """Zinkevich's algorithm, with the projection by a general minimiser."""

    def __init__(self) -> None:
        self.squares = 0.0
        self.w = [1.0 / EXPERTS] * EXPERTS

    def update(self, regrets: Vector) -> None:
        r = np.array(regrets)
        self.squares += float(r @ r)
        if not self.squares:
            return
        wanted = np.array(self.w) + r / math.sqrt(self.squares)
        found = minimize(
            lambda w: float(((w - wanted) ** 2).sum()), np.full(EXPERTS, 1.0 / EXPERTS),
            jac=lambda w: 2 * (w - wanted), bounds=[(0.0, None)] * EXPERTS,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0}, method="SLSQP",
            options={"ftol": 1e-14},
        )  # fmt: skip
        self.w = found.x.tolist()


RULES: dict[str, tuple[Callable[[], Aggregator], Callable[[], Any], float]] = {
    "boa": (OperaBOA, SlowBOA, 1e-10),
    "ml-poly": (OperaMLPoly, SlowMLPoly, 1e-10),
    "adahedge": (AdaHedgeRule, SlowAdaHedge, 1e-7),
    "simplex": (OnlineGradient, SlowGradient, 1e-5),
}


def built(name: str, groups: tuple[int, int] = (1, 1), experts: int = EXPERTS) -> Aggregator:
    rule = RULES[name][0]()
    rule.build(groups, np.full(experts, 1.0 / experts))
    return rule


def regrets(groups: tuple[int, int], n: int = 60, seed: int = 0) -> Any:
    """Return drifting regrets, in units that differ by thousands, the first zero; a fifth of the
    groups without values."""
    rng = np.random.default_rng(seed)
    for t in range(n):
        drifting = np.sin(t / 20.0 + np.arange(EXPERTS))[None, :, None, None]
        signal = (
            (drifting + rng.normal(size=(1, EXPERTS, *groups))) * (1e-3 if seed else 1.0) * (t > 0)
        )
        yield signal, rng.random(groups) < 0.8


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("groups", [(1, 1), (2, 3)])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_equals_the_slow_one_in_every_group(
    name: str, groups: tuple[int, int], seed: int
) -> None:
    rule, tolerance = built(name, groups), RULES[name][2]
    slow = {cell: RULES[name][1]() for cell in np.ndindex(groups)}
    for signal, known in regrets(groups, seed=seed):
        rule.update(signal, known)
        for cell, one in slow.items():
            if known[cell]:
                one.update(signal[(0, slice(None), *cell)].tolist())
            np.testing.assert_allclose(
                rule.weights[(0, slice(None), *cell)], one.w, rtol=tolerance, atol=tolerance
            )


REGRETS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 12), st.integers(1, 5)), elements=st.floats(-5.0, 5.0)
)


@settings(max_examples=200, deadline=None)
@given(REGRETS, st.sampled_from(sorted(RULES)), st.sampled_from([1.0, 1e-9, 1e9]))
def test_weights_stay_on_the_simplex_for_any_input(signal: Any, name: str, unit: float) -> None:
    rule = built(name, experts=signal.shape[1])
    for row in signal:
        rule.update((unit * row).reshape(1, -1, 1, 1), np.ones((1, 1), bool))
        assert (rule.weights >= 0.0).all()
        np.testing.assert_allclose(rule.weights.sum(axis=1), 1.0, rtol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_state_round_trip_is_a_copy(name: str) -> None:
    first, second = built(name, (2, 1)), built(name, (2, 1))
    stream = list(regrets((2, 1)))
    for signal, known in stream[:30]:
        first.update(signal, known)
    state = first.state_dict()
    kept = {k: v.copy() for k, v in state.items()}
    second.load_state_dict(state)
    for signal, known in stream[30:]:
        first.update(signal, known)
        second.update(signal, known)
        assert np.array_equal(first.weights, second.weights)
    assert all(np.array_equal(state[k], kept[k]) for k in state), "the state is not a view"


@pytest.mark.parametrize("name", ["boa", "ml-poly", "adahedge"])
def test_the_unit_of_the_losses_does_not_matter(name: str) -> None:
    """These rules need no tuning: losses a thousand times as large give the same weights."""
    one, other = built(name), built(name)
    for signal, known in regrets((1, 1), 40, seed=3):
        one.update(signal, known)
        other.update(1024.0 * signal, known)
        np.testing.assert_allclose(one.weights, other.weights, rtol=1e-9)


# -- the guards

GUARDS = [AdaHedge, PlainBOA, PlainMLPoly, Simplex, RidgeOnly, Mean, Median]


def build(guard: Guard, experts: int, rows: int = 1, columns: int = 1, loss: Any = None) -> Guard:
    guard.build(
        [f"e{k}" for k in range(experts)], rows, columns, loss or Absolute(), np.ones(columns)
    )
    return guard


def play(
    guard: Guard, n: int = 150, experts: int = 3, rows: int = 2, columns: int = 3, seed: int = 0
) -> list[Any]:
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.3, 2.0, size=(experts, rows, columns))
    served = []
    for _ in range(n):
        target = rng.normal(size=(rows, columns))
        predictions = target + size * rng.normal(size=size.shape)
        mixture = guard.mix(predictions)
        served.append(mixture.served)
        assert len(mixture.aggregator_outputs) == guard.n_aggregators
        assert mixture.weights.sum() == pytest.approx(1.0, abs=1e-9)
        low, high = predictions.min(axis=0), predictions.max(axis=0)
        assert ((mixture.served >= low - 1e-9) & (mixture.served <= high + 1e-9)).all()
        guard.update(
            predictions, mixture.aggregator_outputs, target, rng.random((rows, columns)) < 0.85
        )
    return served


@pytest.mark.parametrize("make", GUARDS)
@pytest.mark.parametrize("loss", [Absolute(), Squared(), Pinball(0.8)], ids=lambda x: x.name)
def test_a_guard_serves_within_the_experts_range_and_resumes_from_its_state(
    make: Any, loss: Any
) -> None:
    if make is RidgeOnly and not loss.central:
        return
    guard, again = build(make(), 3, 2, 3, loss), build(make(), 3, 2, 3, loss)
    play(guard)
    again.load_state_dict(guard.state_dict())
    for a, b in zip(play(guard, 40, seed=1), play(again, 40, seed=1), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("make", [g for g in GUARDS if g is not RidgeOnly])
def test_distributions_stay_distributions(make: Any) -> None:
    guard = build(make(), 3, 1, 4, Log())
    rng = np.random.default_rng(0)
    for _ in range(80):
        predictions = rng.dirichlet(np.ones(4), size=3)[:, None, :]
        truth = np.eye(4)[rng.integers(4)][None]
        mixture = guard.mix(predictions)
        assert (mixture.served >= 0.0).all()
        np.testing.assert_allclose(mixture.served.sum(axis=-1), 1.0, rtol=1e-9)
        guard.update(predictions, mixture.aggregator_outputs, truth, np.ones((1, 4), bool))


@pytest.mark.parametrize("loss", [Log(), Pinball(0.9)], ids=lambda x: x.name)
def test_a_ridge_stack_refuses_unsuitable_tasks(loss: Any) -> None:
    with pytest.raises(ConfigError, match=r"guard\.kind"):
        build(RidgeOnly(), 3, 1, 4, loss)


@pytest.mark.parametrize("experts", [1, 2, 3, 6, 7])
def test_mean_and_median_equal_those_of_numpy(experts: int) -> None:
    predictions = np.random.default_rng(0).normal(size=(experts, 3, 2))
    mean = build(Mean(), experts, 3, 2).mix(predictions)
    median = build(Median(), experts, 3, 2).mix(predictions)
    np.testing.assert_allclose(mean.served, predictions.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(median.served, np.median(predictions, axis=0), rtol=1e-12)
    assert (median.weights >= 0.0).all()


@pytest.mark.parametrize("make", [g for g in GUARDS if g not in (Mean, Median)])
def test_scopes(make: Any) -> None:
    with pytest.raises(ConfigError, match="global, horizon, cell"):
        make(scope="row")
    runs = {
        scope: play(build(make(scope), 3, 2, 3), 60) for scope in ("global", "horizon", "cell")
    }
    assert not np.array_equal(runs["global"][-1], runs["cell"][-1])
    assert not np.array_equal(runs["horizon"][-1], runs["cell"][-1])
