"""A learner or a base that breaks is taken out and comes back; what is served stays finite and
near the base."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import entries, entry, walk, with_scaling
from torch import Tensor

from streamadapt import (
    ADCSD,
    RLS,
    Bias,
    DriftMonitor,
    Forecast,
    Persistence,
    Pipeline,
    Prediction,
    River,
    Supervised,
)
from streamadapt.learners import BaseOutput
from streamadapt.pipeline.rollback import PROBATION, SNAPSHOT_EVERY, WINDOW


class Breaks(Bias):
    """Puts a value into its own state, at one learn step only."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__(0.1)
        self.at, self.value, self.learned = at, value, 0

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        super().learn(inputs, base, target, mask)
        self.learned += 1
        if self.learned == self.at:
            self.state.bias[:] += self.value


def run(learner: Bias, n: int = 900, horizon: int = 1) -> tuple[Pipeline, list[Prediction]]:
    pipeline = Pipeline(Forecast(3, horizon), with_scaling(Persistence(horizon), 2, 2), [learner])
    return pipeline, pipeline.observe(entries(walk(n, 2)))


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("at", [1, SNAPSHOT_EVERY])
@pytest.mark.parametrize("value", [float("nan"), 1e6], ids=["nan", "explodes"])
def test_a_broken_learner_comes_back(value: float, at: int, horizon: int) -> None:
    """Also when it breaks at the very step whose state becomes a snapshot: a broken state is no
    good one."""
    learner = Breaks(at, value)
    pipeline, predictions = run(learner, at + 3 * WINDOW + 10, horizon)
    assert all(np.isfinite(p.served).all() for p in predictions)
    assert pipeline.stats.updates["bias-0.1"]["restored"] == 1, (
        "taken out once, and well again from then on"
    )
    assert np.abs(learner.state.bias).max() < 5.0, "its state is a healthy one"
    errors = [np.abs(p.served - p.base).max() for p in predictions]
    assert max(errors[-WINDOW:]) < 5.0
    out = sum(np.array_equal(p.experts["bias-0.1"], p.base) for p in predictions)
    assert out >= WINDOW - 1, "the base stood in for it"


class BreaksTwice(Breaks):
    """Once at the very step of a snapshot, once after that snapshot would have become a good
    one."""

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        super().learn(inputs, base, target, mask)
        if self.learned == self.at + PROBATION + 2 * WINDOW:
            self.state.bias[:] += self.value


def test_a_snapshot_of_a_state_that_turned_out_broken_never_becomes_a_good_one() -> None:
    learner = BreaksTwice(SNAPSHOT_EVERY, 1e6)
    pipeline, _ = run(learner, SNAPSHOT_EVERY + PROBATION + 5 * WINDOW)
    assert pipeline.stats.updates["bias-0.1"]["restored"] == 2
    assert np.abs(learner.state.bias).max() < 5.0


def test_what_is_restored_is_what_was_learned_and_not_the_start() -> None:
    """A learner that breaks late comes back with the bias it had learned by its last good
    snapshot."""

    def wrong(inputs: Tensor) -> Tensor:
        return inputs[-1:] - 5.0

    learner = Breaks(SNAPSHOT_EVERY + PROBATION + 20, float("nan"))
    pipeline = Pipeline(Forecast(3, 1), with_scaling(wrong, 2, 2), [learner])
    restored: list[float] = []
    original = learner.restore

    def restore(snapshot: Any) -> None:
        original(snapshot)
        restored.append(float(learner.state.bias.mean()))

    learner.restore = restore  # type: ignore[method-assign]
    pipeline.observe(entries(walk(SNAPSHOT_EVERY + PROBATION + 40, 2)))
    assert len(restored) == 1
    assert restored[0] == pytest.approx(5.0, abs=1.0)


def test_nan_is_never_served_and_costs_nothing_beyond_the_base() -> None:
    pipeline, _ = run(Breaks(200, float("nan")), 450)
    served, based = pipeline.stats.mean_loss("served"), pipeline.stats.mean_loss("base")
    assert served is not None
    assert based is not None
    assert served <= 1.02 * based


def test_all_learners_may_be_nan_from_the_start() -> None:
    class Nan(Bias):
        def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
            return torch.full_like(super().predict(inputs, base), torch.nan)

    pipeline = Pipeline(Forecast(3, 2), Persistence(2), [Nan((0.1, 0.2))])
    for p in pipeline.observe(entries(walk(150, 2))):
        np.testing.assert_allclose(p.served, p.base, rtol=1e-12)
        assert np.array_equal(p.experts["bias-0.1"], p.base)


def test_of_a_family_only_the_broken_expert_is_replaced() -> None:
    class OneNan(Bias):
        def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
            said = super().predict(inputs, base)
            said[1] = torch.nan
            return said

    pipeline = Pipeline(Forecast(3, 1), Persistence(1), [OneNan((0.5, 0.2))])
    predictions = pipeline.observe(entries(walk(100, 2)))
    assert all(np.array_equal(p.experts["bias-0.2"], p.base) for p in predictions)
    assert pipeline.stats.updates["bias-0.5"]["restored"] == 0


def test_a_healthy_learner_is_never_taken_out() -> None:
    pipeline, _ = run(Bias(0.1), 600)
    assert pipeline.stats.updates["bias-0.1"]["restored"] == 0


def test_a_perfect_base_takes_nobody_out() -> None:
    """Ten times nothing is nothing: while the base happens to be exact, no ratio to it says
    anything."""
    values = np.full((400, 1), 5.0, np.float32)
    values[:100] = walk(100, 1)
    pipeline = Pipeline(Forecast(3, 1), Persistence(1), [Bias(0.01)])
    pipeline.observe(entries(values))
    assert pipeline.stats.updates["bias-0.01"]["restored"] == 0


class BadAt:
    """A base that says something that is no number at some calls: a division by zero in the user's
    model."""

    def __init__(self, *calls: int, value: float = float("nan"), rows: int = 2) -> None:
        self.calls, self.value, self.rows, self.count = calls, value, rows, 0

    def __call__(self, inputs: Tensor) -> Tensor:
        self.count += 1
        said = inputs[-1:].repeat(self.rows, 1)
        if self.count in self.calls:
            said[0, 0] = self.value
        return said


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_base_that_breaks_once_harms_that_prediction_only(value: float) -> None:
    def make(base: Any) -> Pipeline:
        learners = [Bias(0.1), RLS(0.99), ADCSD(1e-3), River("linear_model.LinearRegression")]
        monitors = [DriftMonitor("adwin", "loss", "boost")]
        return Pipeline(Forecast(3, 2), with_scaling(base, 2, 2), learners, drift=monitors)

    values = walk(130, 2)
    broken, whole = make(BadAt(60, 61, value=value)), make(BadAt())
    bad, good = broken.observe(entries(values)), whole.observe(entries(values))
    finite = [
        bool(np.isfinite(p.served).all() and all(np.isfinite(e).all() for e in p.experts.values()))
        for p in bad
    ]
    assert [i for i, ok in enumerate(finite) if not ok] == [59, 60]
    for name, total in broken.stats.loss_sum.items():
        assert total == pytest.approx(whole.stats.loss_sum[name], rel=0.05), name
    cells = whole.stats.loss_cells["base"] - broken.stats.loss_cells["base"]
    assert 0 < cells <= 2 * 2 * 2, "only what cannot be judged is left out"
    for name in ("bias-0.1", "rls-0.99", "adcsd-1e-3", "river-LinearRegression"):
        late = [
            np.abs(a.experts[name] - b.experts[name]).max()
            for a, b in zip(bad[-30:], good[-30:], strict=True)
        ]
        assert max(late) < 1.0, name


def test_a_base_that_breaks_once_on_a_supervised_task() -> None:
    pipeline = Pipeline(
        Supervised(), with_scaling(BadAt(60, rows=1), 1, 1), [Bias(0.1), RLS(0.99)]
    )
    values = walk(120, 1)
    rows = [entry(v, t + 1, id=str(t), label=v + 1.0) for t, v in enumerate(values)]
    finite = [bool(np.isfinite(p.served).all()) for p in pipeline.observe(rows)]
    assert [i for i, ok in enumerate(finite) if not ok] == [59]
    assert np.isfinite(list(pipeline.stats.loss_sum.values())).all()
    assert pipeline.stats.loss_cells["base"] == 118


def test_an_entry_without_any_value_is_no_news_for_a_detector_on_the_input() -> None:
    values = walk(100, 2)
    values[50] = np.nan
    monitor = DriftMonitor("adwin", "input", "boost")
    pipeline = Pipeline(Forecast(3, 1), Persistence(1), [Bias(0.1)], drift=[monitor])
    assert len(pipeline.observe(entries(values))) == 98
    assert monitor.refused == 1


def test_a_drift_is_told_once_and_boosts_the_learners() -> None:
    window = 40  # long enough for the scale to be taken from it
    noise = np.random.default_rng(0).normal(size=(400, 1))
    values = (noise + np.where(np.arange(400) >= 250, 40.0, 0.0)[:, None]).astype(np.float32)
    seen: list[float] = []

    class Watching(Bias):
        def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
            seen.append(self.boost)
            super().learn(inputs, base, target, mask)

    monitor = DriftMonitor(
        "page-hinkley", "input", "boost", params={"threshold": 200.0}, factor=4.0, half_life=5.0
    )
    pipeline = Pipeline(Forecast(window, 1), Persistence(1), [Watching(0.1)], drift=[monitor])
    predictions = pipeline.observe(entries(values))
    told = [i for i, p in enumerate(predictions, window - 1) if p.drifts]
    assert told
    assert 250 <= told[0] < 300
    assert predictions[told[0] - window + 1].drifts == ("page-hinkley:input",)
    assert pipeline.stats.drifts["page-hinkley:input"] == len(told)
    assert pipeline.stats.drift_log[0] == ("page-hinkley:input", told[0] + 1)
    assert max(seen) > 2.0
    assert set(seen[: told[0] - window]) == {1.0}


class Exploding(ADCSD):
    """Its gradient is `norm` times what it should be from the 80th step on; its predictions stay
    what they were."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.told = 0

    @property
    def gradient_norm(self) -> float | None:
        norm = super().gradient_norm
        self.told += 1
        return None if norm is None else norm * (self.factor if self.told == 80 else 1.0)


@pytest.mark.parametrize(
    ("factor", "taken_out"), [(1.0, 0), (100.0, 0), (1e5, 1), (float("nan"), 1), (math.inf, 1)]
)
def test_a_gradient_out_of_range_takes_a_learner_out(factor: float, taken_out: int) -> None:
    rng = np.random.default_rng(0)
    learner = Exploding(factor)
    pipeline = Pipeline(Forecast(6, 5), lambda x: x[-1:].expand(5, -1), [learner])
    pipeline.observe(entries(rng.normal(size=(150, 2)).astype(np.float32)))
    assert pipeline.stats.updates["adcsd"]["restored"] == taken_out


def test_gradients_of_those_who_make_steps_are_seen() -> None:
    learner = ADCSD()
    pipeline = Pipeline(Forecast(6, 5), lambda x: x[-1:].expand(5, -1), [learner, Bias(0.1)])
    rng = np.random.default_rng(0)
    items = entries(rng.normal(size=(40, 2)).astype(np.float32))
    pipeline.observe(items)
    assert learner.gradient_norm is not None
    assert pipeline.learners[1].gradient_norm is None
    assert pipeline.health is not None
    assert pipeline.health.steps.tolist()[1] == 0
    assert 0 < pipeline.health.steps.tolist()[0] <= 40
    assert pipeline.health.usual_norm[0] > 0.0
