"""Prediction intervals: their coverage under drift and delay, and no effect on other results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from core_helpers import bits, entries, entry, pipeline_of, stream_of, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from streamadapt_connectors.codecs import encode_prediction
from variants import variants

from streamadapt import Bias, Forecast, Hedge, Label, NoGuard, Persistence, Pipeline, Supervised
from streamadapt.engine.metrics import Metrics
from streamadapt.errors import ConfigError
from streamadapt.guard.base import Guard
from streamadapt.pipeline.intervals import Intervals
from streamadapt.testing.checks.cases import state_bytes


def zero(inputs: Any) -> Any:
    """A base that always predicts 0."""
    return 0.0 * inputs[-1:, :1]


def errors_of(kind: str, n: int, seed: int = 0) -> Any:
    """The errors of the target: their size or their shape changes."""
    rng = np.random.default_rng(seed)
    t = np.arange(n)
    return {
        "steady": lambda: rng.normal(size=n),
        "four times as large": lambda: rng.normal(size=n) * np.where(t > n // 2, 4.0, 1.0),
        "back and forth": lambda: rng.normal(size=n) * np.where((t // 300) % 2, 5.0, 1.0),
        "growing": lambda: rng.normal(size=n) * np.exp(t / n * 5.0),
        "a jump": lambda: rng.normal(size=n) + np.where(t > n // 2, 8.0, 0.0),
        "heavy tails": lambda: rng.standard_t(1.5, size=n),
        "outliers": lambda: rng.normal(size=n) * np.where(rng.random(n) < 0.02, 1e4, 1.0),
        "correlated": lambda: np.convolve(rng.normal(size=n + 49), np.ones(50), "valid"),
    }[kind]()


KINDS = [
    "steady",
    "four times as large",
    "back and forth",
    "growing",
    "a jump",
    "heavy tails",
    "outliers",
    "correlated",
]


def drive(
    errors: Any, delay: int, intervals: Intervals, every: int = 1, guard: Guard | None = None
) -> Iterator[tuple[float, float, float]]:
    """Yield low, high and target of every entry with a label, `delay` entries late."""
    pipeline = Pipeline(
        Supervised(1, absurd=math.inf),
        zero,
        [],
        guard or NoGuard(),
        device="cpu",
        intervals=intervals,
    )
    for t, error in enumerate(errors):
        if t >= delay and (t - delay) % every == 0:
            pipeline.observe(
                [Label(str(t - delay), np.array([errors[t - delay]], np.float32), t + 1)]
            )
        (prediction,) = pipeline.observe([entry([1.0], t + 1, id=str(t))])
        assert prediction.low is not None
        assert prediction.high is not None
        if t % every == 0:
            yield float(prediction.low[0, 0]), float(prediction.high[0, 0]), float(error)


def unpickled(state: Any) -> Any:
    """Leave out river's pickles: their bytes depend on which equal strings are one object, which
    is random."""
    if isinstance(state, dict):
        return {
            name: unpickled(part) for name, part in state.items() if not isinstance(part, bytes)
        }
    return [unpickled(part) for part in state] if isinstance(state, list) else state


def coverage(rows: Any) -> float:
    known = [(low, high, y) for low, high, y in rows if not math.isnan(low)]
    return float(np.mean([low <= y <= high for low, high, y in known]))


@pytest.mark.parametrize("kind", variants(KINDS, quick=3))
@pytest.mark.parametrize("delay", variants([1, 30]))
def test_the_coverage_is_what_was_asked_for_through_drift_and_delay(kind: str, delay: int) -> None:
    rows = list(drive(errors_of(kind, 4000), delay, Intervals(0.9)))
    assert coverage(rows) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("asked", variants([0.5, 0.8, 0.95, 0.99]))
def test_any_coverage_may_be_asked_for(asked: float) -> None:
    rows = list(drive(errors_of("four times as large", 4000), 1, Intervals(asked)))
    assert coverage(rows) == pytest.approx(asked, abs=0.01)
    wide = [high - low for low, high, _ in rows]
    assert wide[3900] > 2.0 * wide[1900], "the intervals have followed the change"


@pytest.mark.slow
def test_few_labels_are_enough() -> None:
    rows = list(drive(errors_of("four times as large", 20_000), 30, Intervals(0.9), every=20))
    assert len(rows) == 1000
    assert coverage(rows) == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize("kind", variants(KINDS, quick=2))
def test_misses_differ_from_what_they_should_be_by_no_more_than_was_stated(kind: str) -> None:
    """Undelayed, the step is the same always: q's change is the step times the misses too many,
    exactly."""
    intervals, n = Intervals(0.9, rate=0.2), 1500
    rows = list(drive(errors_of(kind, n), 1, intervals))
    judged = [(low, high, y) for low, high, y in rows[:-1] if not math.isnan(low)]
    misses = sum(not low <= y <= high for low, high, y in judged)
    state = intervals.state_dict()
    step = 0.2 / (1.0 + float(state["delay"][0, 0]) / 30.0)
    change = float(state["quantile"][0, 0]) - intervals.first
    assert misses - 0.1 * len(judged) == pytest.approx(change / step, abs=0.5)


def test_a_label_is_charged_to_the_interval_as_it_was_issued() -> None:
    """A slow loop keeps every interval until its label arrives."""
    errors, delay, asked, rate = errors_of("back and forth", 400), 7, 0.8, 0.3
    q, s, n, d = Intervals(asked).first, 0.0, 0, 0.0
    kept: list[tuple[float, int]] = []
    for t, (low, high, y) in enumerate(drive(errors, delay, Intervals(asked, rate))):
        if t >= delay:
            half, then = kept[t - delay]
            error = abs(float(np.float32(errors[t - delay])))
            d += max(1.0 / (n + 1), 0.001) * (n - then - d)
            if not math.isnan(half):
                q += rate / (1.0 + d / 30.0) * ((error > half) - (1.0 - asked))
            capped = min(error, 10.0 * s) if s > 0.0 else error
            n += 1
            s += max(1.0 / n, 0.01) * (capped - s)
        kept.append((max(q, 0.0) * s if n else math.nan, n))
        assert np.isnan(low) == (n == 0)
        if n:
            np.testing.assert_allclose([low, high], [-kept[-1][0], kept[-1][0]], rtol=1e-5)
        assert y == errors[t]


@pytest.mark.parametrize("missing", variants([0.0, 0.2]))
def test_forecasts_have_intervals_in_every_cell(missing: float) -> None:
    values = walk(3000, 2, missing=missing)
    values[:, 1] *= 100.0
    values[1500:, 0] = 10.0 + 3.0 * (values[1500:, 0] - 10.0)
    intervals = Intervals(0.9)
    pipeline = Pipeline(
        Forecast(3, 4), Persistence(4), [Bias((0.1, 0.02))], device="cpu", intervals=intervals
    )
    predictions = pipeline.observe(entries(values))
    hits: Any = [[[] for _ in range(2)] for _ in range(4)]
    for i, p in enumerate(predictions[:-4]):
        assert p.low is not None
        assert p.high is not None
        for h in range(4):
            for c in range(2):
                y = values[i + 3 + h, c]
                if not np.isnan(y) and not np.isnan(p.low[h, c]):
                    hits[h][c].append(p.low[h, c] <= y <= p.high[h, c])
                    assert p.low[h, c] <= p.served[h, c] <= p.high[h, c]
    assert all(np.mean(cell) == pytest.approx(0.9, abs=0.01) for row in hits for cell in row)
    assert pipeline.stats.interval_coverage() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("kind", ["forecast", "own labels", "late labels"])
def test_served_predictions_do_not_depend_on_intervals(kind: str) -> None:
    for guard in (None, NoGuard(), Hedge()):
        plain, with_intervals = (
            pipeline_of(kind, guard=guard and type(guard)(), device="cpu", intervals=i)
            for i in (None, Intervals())
        )
        items = stream_of(kind)
        assert bits(plain.observe(items)) == bits(with_intervals.observe(items))
        assert plain.stats.interval_cells == 0
        assert plain.stats.loss_sum == with_intervals.stats.loss_sum


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["forecast", "own labels", "late labels"]),
    st.integers(0, 89),
    st.integers(0, 3),
)
def test_intervals_resume_from_their_state_bit_for_bit(kind: str, cut: int, seed: int) -> None:
    items = stream_of(kind, seed=seed)
    cut = min(cut, len(items))
    whole, second = (pipeline_of(kind, device="cpu", intervals=Intervals(0.8)) for _ in range(2))
    whole.observe(items[:cut])
    state = whole.state_dict()
    kept = state_bytes(state)
    second.load_state_dict(state)
    for a, b in zip(whole.observe(items[cut:]), second.observe(items[cut:]), strict=True):
        assert bits([a]) == bits([b])
        assert a.low is not None
        assert b.low is not None
        assert a.low.tobytes() == b.low.tobytes()
    assert state_bytes(state) == kept, "the state is not a view"
    assert state_bytes(unpickled(whole.state_dict())) == state_bytes(
        unpickled(second.state_dict())
    )


def test_predict_changes_nothing() -> None:
    pipeline = pipeline_of("forecast", device="cpu", intervals=Intervals())
    pipeline.observe(stream_of("forecast")[:60])
    before = state_bytes(pipeline.state_dict())
    prediction = pipeline.predict(entry([10.0, 10.0], 10**9))
    assert prediction.low is not None
    assert state_bytes(pipeline.state_dict()) == before


@pytest.mark.parametrize(
    "bad",
    [
        {"coverage": 0.0},
        {"coverage": 1.0},
        {"coverage": math.nan},
        {"rate": 0.0},
        {"rate": math.inf},
        {"rate": math.nan},
    ],
)
def test_bad_settings(bad: Any) -> None:
    with pytest.raises(ConfigError, match=f"intervals.{next(iter(bad))}"):
        Intervals(**bad)


def test_classes_have_no_intervals() -> None:
    with pytest.raises(ConfigError, match="intervals"):
        pipeline_of("classes", intervals=Intervals())


def test_intervals_are_written_and_counted() -> None:
    pipeline = Pipeline(Forecast(2, 1), Persistence(1), device="cpu", intervals=Intervals(0.9))
    predictions = pipeline.observe(entries(walk(100, 1)))
    assert json.loads(encode_prediction(predictions[0]))["low"] == [None], "no error is known yet"
    written = json.loads(encode_prediction(predictions[-1]))
    assert written["low"][0] < written["served"][0] < written["high"][0]
    plain = Pipeline(Forecast(2, 1), Persistence(1), device="cpu").observe(entries(walk(10, 1)))
    assert "low" not in json.loads(encode_prediction(plain[-1]))
    metrics = Metrics()
    metrics.pipeline(0, pipeline.stats)
    found = dict(metrics.samples()["streamadapt_interval_cells_total"])
    assert sum(found.values()) == 97, "the first of the 98 judged predictions had no interval"  # type: ignore[arg-type]
    assert found["0", "within"] == pipeline.stats.interval_hits
