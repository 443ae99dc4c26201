"""The aggregation rules against slow scalar implementations of the formulas, and properties for
any input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamadapt.errors import ConfigError
from streamadapt.guard.boa import BOA
from streamadapt.guard.fixed_share import FixedShare
from streamadapt.guard.mixer import Aggregator
from streamadapt.guard.ml_poly import MLPoly

Weights = dict[int, float]


def normalised(w: Weights) -> Weights:
    total = sum(w.values())
    return {k: v / total for k, v in w.items()}


class SlowFixedShare:
    def __init__(self, first: list[float], share: float, eta: float) -> None:
        self.share, self.eta, self.first = share, eta, first
        self.w = dict(enumerate(first))

    def update(self, losses: list[float]) -> None:
        w = normalised({k: v * math.exp(-self.eta * losses[k]) for k, v in self.w.items()})
        self.w = {k: (1.0 - self.share) * v + self.share * self.first[k] for k, v in w.items()}


class SlowBOA:
    def __init__(self, experts: int, discount: float) -> None:
        self.d = discount
        self.w = dict.fromkeys(range(experts), 1.0 / experts)
        self.e, self.v, self.r = (dict.fromkeys(range(experts), 0.0) for _ in range(3))

    def update(self, regrets: list[float]) -> None:
        w = {}
        for k, r in enumerate(regrets):
            self.e[k] = max(self.e[k], abs(r))
            self.v[k] = self.d * self.v[k] + r * r
            eta = min(1.0 / (2.0 * self.e[k]), math.sqrt(math.log(len(regrets)) / self.v[k]))
            self.r[k] = self.d * self.r[k] + r - eta * r * r
            w[k] = eta * math.exp(eta * self.r[k])
        self.w = normalised(w)


class SlowMLPoly:
    def __init__(self, experts: int, discount: float, fallback: list[float]) -> None:
        self.d, self.fallback = discount, fallback
        self.w = dict(enumerate(fallback))
        self.r = dict.fromkeys(range(experts), 0.0)
        self.v = dict.fromkeys(range(experts), 1.0)

    def update(self, regrets: list[float]) -> None:
        for k, r in enumerate(regrets):
            self.r[k] = self.d * self.r[k] + r
            self.v[k] = self.d * self.v[k] + r * r
        w = {k: max(self.r[k], 0.0) / (1.0 + self.v[k]) for k in self.r}
        self.w = normalised(w) if sum(w.values()) > 0.0 else dict(enumerate(self.fallback))


EXPERTS = 4
FALLBACK = [0.7, 0.1, 0.1, 0.1]
UNIFORM = [0.25] * 4
RULES: dict[str, tuple[Callable[[], Aggregator], list[float], Callable[[int], Any]]] = {
    "fixed-share": (
        lambda: FixedShare(0.01, 0.2, eta=0.7),
        FALLBACK,
        lambda v: SlowFixedShare(FALLBACK, (0.01, 0.2)[v], 0.7),
    ),
    "boa": (lambda: BOA(0.999, 0.9), UNIFORM, lambda v: SlowBOA(EXPERTS, (0.999, 0.9)[v])),
    "mlpoly": (
        lambda: MLPoly(1.0, 0.95),
        FALLBACK,
        lambda v: SlowMLPoly(EXPERTS, (1.0, 0.95)[v], FALLBACK),
    ),
}


def make(name: str, groups: tuple[int, int] = (1, 1)) -> Aggregator:
    rule, fallback, _ = RULES[name]
    aggregator = rule()
    aggregator.build(groups, np.array(fallback))
    return aggregator


def signals(name: str, groups: tuple[int, int], n: int = 250, seed: int = 0) -> Any:
    """Return losses from 0 for fixed share, regrets around 0 otherwise; a fifth of the groups
    without values."""
    rng = np.random.default_rng(seed)
    variants = 1 if name == "fixed-share" else 2
    for t in range(n):
        drifting = np.sin(t / 40.0 + np.arange(EXPERTS))[None, :, None, None]
        signal = drifting + rng.normal(size=(variants, EXPERTS, *groups))
        known = rng.random(groups) < 0.8
        signal = np.clip(np.abs(signal) if variants == 1 else signal, -5.0, 5.0)
        yield np.where(known, signal, 0.0), known


@pytest.mark.parametrize("groups", [(1, 1), (3, 1), (3, 2), (2, 2)])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_equals_the_slow_one_in_every_variant_and_group(
    name: str, groups: tuple[int, int]
) -> None:
    aggregator = make(name, groups)
    cells = [(v, h, c) for v in range(2) for h in range(groups[0]) for c in range(groups[1])]
    slow = {cell: RULES[name][2](cell[0]) for cell in cells}
    for signal, known in signals(name, groups):
        aggregator.update(signal, known)
        for (v, h, c), one in slow.items():
            if known[h, c]:
                one.update(signal[v % len(signal), :, h, c].tolist())
            mine = aggregator.weights[v, :, h, c]
            np.testing.assert_allclose(
                mine, [one.w[k] for k in range(EXPERTS)], rtol=1e-9, atol=1e-12
            )


@pytest.mark.parametrize("name", RULES)
def test_two_variants_are_two_rules(name: str) -> None:
    together = make(name, (2, 1))
    apart: list[Aggregator] = {
        "fixed-share": [FixedShare(0.01, eta=0.7), FixedShare(0.2, eta=0.7)],
        "boa": [BOA(0.999), BOA(0.9)],
        "mlpoly": [MLPoly(1.0), MLPoly(0.95)],
    }[name]
    for one in apart:
        one.build((2, 1), np.array(RULES[name][1]))
    for signal, known in signals(name, (2, 1), 60):
        together.update(signal, known)
        for v, one in enumerate(apart):
            one.update(signal[v % len(signal)][None], known)
            assert np.array_equal(one.weights[0], together.weights[v])


@pytest.mark.parametrize("name", RULES)
def test_before_the_first_update_the_weights_are_the_fallback(name: str) -> None:
    aggregator = make(name, (2, 3))
    assert np.array_equal(
        aggregator.weights, np.broadcast_to(np.array(RULES[name][1])[:, None, None], (2, 4, 2, 3))
    )


@pytest.mark.parametrize("groups", [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("name", RULES)
def test_mixing_is_the_weighted_sum_in_every_cell(name: str, groups: tuple[int, int]) -> None:
    aggregator = make(name, groups)
    for signal, known in signals(name, groups, 20):
        aggregator.update(signal, known)
    rows, columns = 3, 2
    predictions = np.random.default_rng(1).normal(size=(EXPERTS, rows, columns))
    mixed = aggregator.mix(predictions)
    for v in range(2):
        for h in range(rows):
            for c in range(columns):
                w = aggregator.weights[v, :, h % groups[0], c % groups[1]]
                assert mixed[v, h, c] == pytest.approx(float(w @ predictions[:, h, c]), rel=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_state_round_trip_is_a_copy(name: str) -> None:
    first, second = make(name, (2, 1)), make(name, (2, 1))
    stream = list(signals(name, (2, 1), 60))
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


REGRETS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 12), st.integers(1, 5)), elements=st.floats(-5.0, 5.0)
)


@given(
    REGRETS,
    st.sampled_from(["fixed-share", "eager", "boa", "mlpoly"]),
    st.sampled_from([1.0, 0.5, 1e-3]),
)
def test_weights_stay_on_the_simplex_for_any_input(
    signal: Any, name: str, discount: float
) -> None:
    rules: dict[str, Aggregator] = {
        "fixed-share": FixedShare(0.0, 0.3),
        "eager": FixedShare(0.0, 0.3, eta=1e4),
        "boa": BOA(discount, 1.0),
        "mlpoly": MLPoly(discount, 1.0),
    }
    rule = rules[name]
    experts = signal.shape[1]
    rule.build((1, 1), np.full(experts, 1.0 / experts))
    for row in signal:
        rule.update(
            (row if rule.linearised else np.abs(row)).reshape(1, -1, 1, 1), np.ones((1, 1), bool)
        )
        assert (rule.weights >= 0.0).all()
        np.testing.assert_allclose(rule.weights.sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_a_long_constant_period_causes_no_division_by_zero(name: str) -> None:
    """A constant sensor gives regrets of zero for months: the learned weights decay, at worst to
    nothing."""
    aggregator = make(name)
    for attribute in ("variance", "regret"):
        if hasattr(aggregator, attribute):
            getattr(aggregator, attribute)[...] = 5e-324
    for _ in range(3):
        aggregator.update(
            np.zeros((1 if name == "fixed-share" else 2, EXPERTS, 1, 1)), np.ones((1, 1), bool)
        )
    assert np.isfinite(aggregator.weights).all()


def best_sequence(losses: Any, switches: int) -> float:
    """Return the smallest total loss of any sequence of experts with at most the given number of
    switches."""
    rounds, experts = losses.shape
    best = np.full((switches + 1, experts), np.inf)
    best[0] = losses[0]
    best[1:] = losses[0]
    for t in range(1, rounds):
        moved = np.full_like(best, np.inf)
        moved[1:] = best[:-1].min(axis=1, keepdims=True)
        best = np.minimum(best, moved) + losses[t]
    return float(best[switches].min())


LOSSES = hnp.arrays(
    np.float64, st.tuples(st.integers(3, 40), st.integers(2, 4)), elements=st.floats(0.0, 2.0)
)


@given(
    LOSSES, st.integers(0, 3), st.sampled_from([0.01, 0.1, 0.5]), st.sampled_from([0.1, 1.0, 5.0])
)
def test_fixed_share_keeps_its_documented_bound(
    losses: Any, switches: int, share: float, eta: float
) -> None:
    rounds, experts = losses.shape
    m = min(switches, rounds - 1)
    rule = FixedShare(share, eta=eta)
    rule.build((1, 1), np.full(experts, 1.0 / experts))
    mine = 0.0
    for row in losses:
        mine += float(rule.weights[0, :, 0, 0] @ row)
        rule.update(row.reshape(1, -1, 1, 1), np.ones((1, 1), bool))
    code = (
        (m + 1) * math.log(experts)
        + m * math.log(1 / share)
        + (rounds - m - 1) * math.log(1 / (1 - share))
    )
    bound = code / eta + eta * rounds * 2.0**2 / 8.0
    assert mine - best_sequence(losses, m) <= bound + 1e-9


@pytest.mark.parametrize("rule", [BOA(1.0), MLPoly(1.0)], ids=["boa", "mlpoly"])
@pytest.mark.parametrize("seed", range(3))
def test_second_order_rules_have_sublinear_regret(rule: Any, seed: int) -> None:
    """On linear losses with one better expert the regret has the order of the root of the sum of
    squares."""
    rng = np.random.default_rng(seed)
    rule.build((1, 1), np.full(3, 1.0 / 3.0))
    total, squares, rounds = np.zeros(3), np.zeros(3), 2_000
    for _ in range(rounds):
        losses = rng.random(3) + np.array([0.0, 0.05, 0.3])
        regret = float(rule.weights[0, :, 0, 0] @ losses) - losses
        total += regret
        squares += regret**2
        rule.update(regret.reshape(1, -1, 1, 1), np.ones((1, 1), bool))
    constant = 4.0
    log = math.log(3) + math.log(1.0 + squares.max())
    assert (total <= constant * (np.sqrt(3.0 * (1.0 + squares) * log) + log)).all(), total
    assert total[0] < 0.05 * rounds, "against the best expert"


@pytest.mark.parametrize("bad", [0.0, 1.1, float("nan"), -0.1])
@pytest.mark.parametrize("rule", [BOA, MLPoly])
def test_bad_discounts(rule: Any, bad: float) -> None:
    with pytest.raises(ConfigError, match="discount"):
        rule(0.9, bad)


@pytest.mark.parametrize("bad", [{"eta": 0.0}, {"eta": float("inf")}, {"eta": float("nan")}])
def test_bad_etas(bad: Any) -> None:
    with pytest.raises(ConfigError, match="eta"):
        FixedShare(0.1, **bad)
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="share"):
            FixedShare(share)
