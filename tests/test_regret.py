"""Measured regret against the bounds of docs/regret.md, on streams designed to break them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_helpers import entries, walk, with_scaling
from torch import Tensor

from benchmarks.plain_guards import AdaHedge, Median, PlainBOA, PlainMLPoly, RidgeOnly, Simplex
from benchmarks.plain_rules import AdaHedgeRule, OnlineGradient, OperaBOA, OperaMLPoly
from streamadapt import Bias, Forecast, Hedge, NoGuard, Persistence, Pipeline, TwoLayer
from streamadapt.guard.arrivals import LOSS_CAP, REGRET_CAP
from streamadapt.guard.base import Guard
from streamadapt.guard.boa import BOA
from streamadapt.guard.fixed_share import FixedShare
from streamadapt.guard.mixer import Aggregator
from streamadapt.guard.ml_poly import MLPoly
from streamadapt.guard.two_layer import Mean
from streamadapt.tasks.losses import Absolute, Log, Loss, Pinball, Squared

ROUNDS = 500
Stream = list[tuple[Any, Any]]
"""Predictions (experts, 1, columns) and target (1, columns)."""

# -- streams: each expert's error, in units of the base's error


def swapping(t: int, rng: Any) -> list[float]:
    """Two experts alternate every 50 entries between nearly right and useless."""
    pair = [0.1 * rng.normal(), 2.0 * rng.normal()]
    return [rng.normal(), *(pair if (t // 50) % 2 == 0 else pair[::-1])]


def exploding(t: int, rng: Any) -> list[float]:
    """A perfect expert with errors of thirty base errors from the middle on."""
    return [rng.normal(), 0.0 if t < ROUNDS // 2 else 30.0, 0.7 * rng.normal()]


def ties(t: int, rng: Any) -> list[float]:
    return [(error := rng.normal()), error, error]


def alternating(t: int, rng: Any) -> list[float]:
    """A rule that follows the leader is wrong every time."""
    if t == 0:
        return [
            0.5,
            0.8,
            0.3,
        ]  # no expert at their mean: a regret of zero depends on the last bit
    first = float(t % 2 == 0)
    return [0.5, first, 1.0 - first]


def against_the_base(t: int, rng: Any) -> list[float]:
    """The other experts lead by a little for a long time, and lose it all at once."""
    return [1.0, 0.9 if t % 20 else 2.9, -0.9 if t % 20 else 3.0]


def steady(t: int, rng: Any) -> list[float]:
    """One expert is better throughout."""
    return [1.0 + 0.1 * rng.normal(), 0.1, -2.0]


ERRORS = [swapping, exploding, ties, alternating, against_the_base]
LOSSES: list[Loss] = [Absolute(), Squared(), Pinball(0.9), Log()]


def stream_of(errors: Callable[[int, Any], list[float]], loss: Loss, seed: int = 0) -> Stream:
    rng = np.random.default_rng(seed)
    rounds: Stream = []
    for t in range(ROUNDS):
        wrong = np.array(errors(t, rng))
        if loss.row_wise:  # distant predictions give the truth a low probability
            truth = np.eye(2)[rng.integers(2)][None]
            p = np.exp(-0.1 - 0.2 * np.minimum(np.abs(wrong), 30.0))[:, None, None]
            rounds.append((p * truth + (1.0 - p) * (1.0 - truth), truth))
        else:
            y = float(rng.normal())
            rounds.append((y + wrong[:, None, None], np.full((1, 1), y)))
    return rounds


# -- the bounds of docs/regret.md


class Watched:
    """Data of a run for the bounds: regrets (T, experts), weights before each, and the state after
    it."""

    def __init__(self, rule: Aggregator) -> None:
        self.rule, self.r, self.w = rule, np.zeros((0, 0)), np.zeros((0, 0))
        self.ranges: list[Any] = []
        self.rates: list[Any] = []


def run(rule: Aggregator, rounds: Stream, loss: Loss) -> tuple[float, Watched]:
    """Run a rule alone, without delay and cap; return its real regret against the best expert."""
    experts = len(rounds[0][0])
    rule.build((1, 1), np.full(experts, 1.0 / experts))
    seen = Watched(rule)
    mine, theirs, regrets, weights = 0.0, np.zeros(experts), [], []
    one = np.ones((1, 1))
    for predictions, target in rounds:
        own = rule.mix(predictions)
        mine += float(loss.loss(own[0], target).sum())
        theirs += loss.loss(predictions, target).reshape(experts, -1).sum(axis=1)
        r = loss.regret(predictions, own[:, None], target, one)
        weights.append(rule.weights[0, :, 0, 0].copy())
        regrets.append(r[0].reshape(experts, -1).sum(axis=1))
        rule.update(r, np.ones((1, 1), bool))
        if isinstance(rule, BOA | OperaBOA):
            seen.ranges.append(rule.bound[0, :, 0, 0].copy())
        if isinstance(rule, BOA):
            eta = np.minimum(0.5 / rule.bound, np.sqrt(math.log(experts) / rule.variance))
            seen.rates.append(eta[0, :, 0, 0])
        if isinstance(rule, OperaBOA):
            seen.rates.append(rule.rate()[0, :, 0, 0])
        if isinstance(rule, OperaMLPoly):
            seen.ranges.append(rule.bound[0, 0, 0, 0])
    seen.r, seen.w = np.array(regrets), np.array(weights)
    np.testing.assert_allclose((seen.r * seen.w).sum(axis=1), 0.0, atol=1e-9)
    return mine - float(theirs.min()), seen


def adahedge_bound(seen: Watched) -> float:
    ln_k = math.log(seen.r.shape[1])
    mean = (seen.w * -seen.r).sum(axis=1, keepdims=True)
    variance = float((seen.w * (-seen.r - mean) ** 2).sum())
    largest = float(np.ptp(seen.r, axis=1).max())
    return 2.0 * math.sqrt(variance * ln_k) + largest * (4.0 / 3.0 * ln_k + 2.0)


def growth(ranges: list[Any]) -> float:
    """Return X of the BOA bounds."""
    e = np.array(ranges)
    rho = np.divide(e[1:], e[:-1], out=np.ones_like(e[1:]), where=e[:-1] > 0.0)
    assert not ((e[:-1] == 0.0) & (e[1:] > 0.0)).any(), (
        "every expert must have a regret at first, or none"
    )
    rho = np.where(e[1:] > e[:-1], rho, 0.0)
    return float(np.log1p(rho.max(axis=1) / 2.0).sum())


def boa_bound(seen: Watched, *, opera: bool) -> Any:
    ln_k = math.log(seen.r.shape[1])
    v, e = np.square(seen.r).sum(axis=0), np.array(seen.ranges)[-1]
    first, last = seen.rates[0], seen.rates[-1]
    inside = (
        (last[:, None] / last[None]).mean(axis=1) if opera else 1.0 + np.log(first / last).mean()
    )
    logs = ln_k + np.log(1.5 * inside) + growth(seen.ranges)
    return 2.0 * np.sqrt(v * ln_k) + np.maximum(2.0 * e, np.sqrt(v / ln_k)) * logs


def opera_mlpoly_bound(seen: Watched) -> Any:
    b = np.array(seen.ranges)
    if b[-1] == 0.0:
        return np.zeros(seen.r.shape[1])
    b = b[b > 0.0]
    grown = float(sum(1.0 + after / before for before, after in pairwise(b) if after > before))
    v = np.square(seen.r).sum(axis=0)
    return np.sqrt((b[-1] + v) * (1.5 + np.log((b[-1] + v) / b[0]) + grown).sum())


def mlpoly_bound(variance: Any, d: float, largest: float, cost: float = 0.0) -> Any:
    """Bound the discounted regret against each expert; `variance` (experts,) as in the rule,
    `cost` is C."""
    fade = math.log(1.0 / d) / (1.0 - d) if d < 1.0 else 0.0
    return np.sqrt(1.0 + variance) * (
        math.sqrt((largest**2 + np.log1p(variance) + fade).sum() / d) + cost
    )


# -- the plain rules


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("errors", ERRORS, ids=lambda f: f.__name__)
def test_every_rules_real_regret_is_within_its_bound(errors: Any, loss: Loss) -> None:
    rounds = stream_of(errors, loss)
    bounds: dict[type[Any], Callable[[Watched], Any]] = {
        AdaHedgeRule: adahedge_bound,
        OperaMLPoly: opera_mlpoly_bound,
        OnlineGradient: lambda seen: 2.0 * math.sqrt(np.square(seen.r).sum()),
        OperaBOA: lambda seen: boa_bound(seen, opera=True),
    }
    for make, bound in bounds.items():
        regret, seen = run(make(), rounds, loss)
        if errors is ties:
            assert regret == pytest.approx(0.0, abs=1e-9)
            continue
        linear = seen.r.sum(axis=0)
        assert regret <= linear.max() + 1e-6, "the linearised regret is the larger one"
        assert (linear <= bound(seen) + 1e-6).all(), make.__name__
    regret, seen = run(BOA(1.0), rounds, loss)
    assert errors is ties or (seen.r.sum(axis=0) <= boa_bound(seen, opera=False) + 1e-6).all()


@pytest.mark.parametrize("d", [1.0, 0.99])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("errors", ERRORS, ids=lambda f: f.__name__)
def test_ml_poly_keeps_its_bound_at_every_time_with_any_discount(
    errors: Any, loss: Loss, d: float
) -> None:
    rounds = stream_of(errors, loss)
    _, seen = run(MLPoly(d), rounds, loss)
    regret, variance = np.zeros(3), np.ones(3)
    for t, r in enumerate(seen.r):
        regret, variance = d * regret + r, d * variance + r**2
        assert (
            regret <= mlpoly_bound(variance, d, float(np.abs(seen.r[: t + 1]).max())) + 1e-9
        ).all()
    rule: Any = seen.rule
    np.testing.assert_allclose(rule.variance[0, :, 0, 0], variance, rtol=1e-9)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize(
    ("errors", "switches"), [(swapping, 9), (exploding, 1), (alternating, 0), (ties, 0)]
)
def test_fixed_share_follows_the_best_sequence_of_experts(
    errors: Any, switches: int, loss: Loss
) -> None:
    """Losses over their largest, so that L = 1; the sequence with one expert for each stretch."""
    rounds = stream_of(errors, loss)
    losses = np.array([loss.loss(p, y).reshape(len(p), -1).sum(axis=1) for p, y in rounds])
    losses /= losses.max()
    share, eta = 0.01, 1.0
    rule = FixedShare(share, eta=eta)
    rule.build((1, 1), np.full(3, 1.0 / 3.0))
    mine = 0.0
    for row in losses:
        mine += float(rule.weights[0, :, 0, 0] @ row)
        rule.update(row.reshape(1, -1, 1, 1), np.ones((1, 1), bool))
    stretches = np.array_split(losses, switches + 1)
    best = sum(float(stretch.sum(axis=0).min()) for stretch in stretches)
    m = switches
    code = (
        (m + 1) * math.log(3)
        + m * math.log(1 / share)
        + (ROUNDS - m - 1) * math.log(1 / (1 - share))
    )
    assert mine - best <= code / eta + eta * ROUNDS / 8.0


class FollowTheLeader(AdaHedgeRule):
    """No bound may hold for this rule: all weight on the expert with the smallest loss so far."""

    def update(self, signal: Any, known: Any) -> None:
        super().update(signal, known)
        self.gaps[...] = 0.0
        self.weights[...] = self._soft_least(self.losses)[0]


class Backwards(AdaHedgeRule):
    """Treats losses as gains."""

    def update(self, signal: Any, known: Any) -> None:
        super().update(-signal, known)


@pytest.mark.parametrize("broken", [FollowTheLeader, Backwards])
def test_broken_rules_violate_the_bounds(broken: Any) -> None:
    rounds = stream_of(alternating if broken is FollowTheLeader else steady, Absolute())
    regret, seen = run(broken(), rounds, Absolute())
    squares = np.square(seen.r).sum(axis=0)
    assert regret > adahedge_bound(seen)
    assert regret > 2.0 * math.sqrt(squares.sum()), "nor online gradient's"
    assert (regret > mlpoly_bound(1.0 + squares, 1.0, float(np.abs(seen.r).max()))).any(), (
        "nor ML-Poly's"
    )


# -- the default guard


def two_layer_bound(
    rounds: Stream, loss: Loss, make: Callable[[], TwoLayer] = TwoLayer
) -> tuple[float, float, float]:
    """Return served loss, base loss and bound, all in units of the running scale at the time."""
    guard = make()
    guard.build(
        [f"e{k}" for k in range(len(rounds[0][0]))],
        *rounds[0][1].shape,
        loss,
        np.ones(rounds[0][1].shape[1]),
    )
    served = based = beyond = bound = so_far = cost = 0.0
    d = 0.999
    mask = np.ones(rounds[0][1].shape, bool)
    for predictions, target in rounds:
        mixture = guard.mix(predictions)
        weights = guard.second.rule.weights[0, :, 0, 0].copy()
        guard.update(predictions, mixture.aggregator_outputs, target, mask)
        scale = guard.scale()
        served += float((loss.loss(mixture.served, target) / scale).sum())
        based += float((loss.loss(predictions[0], target) / scale).sum())
        offered = np.concatenate([predictions[:1], mixture.aggregator_outputs[:-1]])
        raw = (
            loss.regret(offered, mixture.served, target, scale)
            .reshape(len(offered), -1)
            .sum(axis=1)
        )
        beyond += max(0.0, float(raw[0]) - REGRET_CAP)
        c = max(0.0, float(weights @ np.clip(raw, -REGRET_CAP, REGRET_CAP)))
        cost = math.sqrt(d) * cost + math.sqrt(len(offered) / d) * c
        so_far += bound
        variance = guard.second.rule.variance[0, :, 0, 0]  # type: ignore[attr-defined]
        bound = float(mlpoly_bound(variance, d, REGRET_CAP, cost)[0])
    return served, based, bound + (1.0 - d) * so_far + beyond


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("errors", ERRORS, ids=lambda f: f.__name__)
def test_the_served_loss_is_within_the_documented_bound_of_the_base(
    errors: Any, loss: Loss
) -> None:
    served, based, bound = two_layer_bound(stream_of(errors, loss), loss)
    assert served <= based + bound
    # Here the excess is much smaller: within a twentieth of the base, plus the cost of thirty base
    # errors at once.
    assert served <= 1.05 * based + (LOSS_CAP * 40.0 if errors is exploding else 10.0)


@pytest.mark.parametrize("errors", [steady, alternating, ties], ids=lambda f: f.__name__)
def test_serving_a_bad_expert_violates_the_bound_of_the_default_guard(errors: Any) -> None:
    """An expert with twice the base's error throughout is beyond the bound."""
    _, based, bound = two_layer_bound(stream_of(errors, Absolute()), Absolute())
    assert bound < based


# -- through the pipeline


class Silent(Bias):
    """A learner that predicts only NaN."""

    def predict(self, inputs: Tensor, base: Any) -> Tensor:
        return super().predict(inputs, base) * float("nan")


EVERY: list[Callable[[], Guard]] = [
    TwoLayer, Hedge, AdaHedge, PlainBOA, PlainMLPoly, Simplex, RidgeOnly, Mean, Median, NoGuard,
]  # fmt: skip


@pytest.mark.parametrize("make", EVERY)
def test_if_all_other_experts_predict_nan_the_base_is_served(make: Any) -> None:
    pipeline = Pipeline(Forecast(3, 2), Persistence(2), [Silent((0.1, 0.5))], make(), device="cpu")
    predictions = pipeline.observe(entries(walk(120)))
    assert len(predictions) == 118
    for prediction in predictions:
        np.testing.assert_allclose(prediction.served, prediction.base, rtol=1e-6)


class Recording(PlainBOA):
    """A guard that keeps its predictions, and the losses it is charged for."""

    def __init__(self) -> None:
        super().__init__()
        self.predictions: list[Any] = []
        self.charged: list[Any] = []

    def mix(self, predictions: Any) -> Any:
        mixture = super().mix(predictions)
        self.predictions.append((predictions.copy(), self.rule.weights[0, :, 0, 0].copy()))
        return mixture

    def update(
        self, predictions: Any, own: Any, target: Any, mask: Any, weight: float = 1.0
    ) -> None:
        before = self.rule.regret.copy()  # type: ignore[union-attr]
        super().update(predictions, own, target, mask, weight)
        self.charged.append((own.copy(), before))


def test_a_loss_is_charged_to_the_weights_that_made_the_prediction() -> None:
    """Row h, which matured h + 1 entries after its prediction, is charged with the weights of that
    time."""
    guard, horizon, window = Recording(), 4, 3
    values = walk(80, 1)
    base = with_scaling(Persistence(horizon), 1, 1)
    Pipeline(Forecast(window, horizon), base, [Bias((0.5, 0.1))], guard, device="cpu").observe(
        entries(values)
    )
    moved = 0
    for i, (own, _) in enumerate(guard.charged):
        for h in range(min(horizon, i + 1)):
            predictions, weights = guard.predictions[i - h]
            then = float(weights @ predictions[:, h, 0]) if h == 0 else None
            if h == 0:
                assert own[0, 0, 0] == pytest.approx(then, rel=1e-9)
        late = guard.predictions[i - horizon + 1] if i >= horizon - 1 else None
        if late is not None:
            now = guard.rule.mix(late[0])[0, horizon - 1, 0]
            moved += abs(own[0, horizon - 1, 0] - now) > 1e-9
    assert moved > 40, "the current weights would have given another charge"


def _delayed(delay: int, honest: bool) -> tuple[float, float]:
    """Return the total loss of an AdaHedge with late labels, charged correctly, or for its current
    mixture."""
    guard = AdaHedge()
    guard.build(["base", "one", "other"], 1, 1, Absolute(), np.ones(1))
    waiting: list[Any] = []
    total = best = 0.0
    for predictions, target in stream_of(swapping, Absolute()):
        mixture = guard.mix(predictions)
        total += abs(float(mixture.served[0, 0] - target[0, 0]))
        best += abs(float(predictions[0, 0, 0] - target[0, 0]))
        waiting.append((predictions, mixture.aggregator_outputs, target))
        if len(waiting) > delay:
            issued, own, y = waiting.pop(0)
            guard.update(
                issued,
                own if honest else guard.mix(issued).aggregator_outputs,
                y,
                np.ones((1, 1), bool),
            )
    return total, best


def test_delay_costs_no_more_than_the_change_of_the_weights_meanwhile() -> None:
    (undelayed, based), (delayed, _) = _delayed(0, honest=True), _delayed(25, honest=True)
    assert undelayed < based
    assert delayed < 1.1 * based
    assert _delayed(25, honest=False)[0] != delayed


def test_the_page_states_every_rule() -> None:
    page = (Path(__file__).parent.parent / "docs" / "regret.md").read_text()
    for name in (
        "fixed share",
        "AdaHedge",
        "BOA, d = 1",
        "BOA of opera",
        "ML-Poly, discount d",
        "ML-Poly of opera",
        "online gradient",
        "mean",
        "ridge stack",
    ):
        assert f"| {name} |" in page
