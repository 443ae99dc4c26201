"""A valid number of any size does not end a run or break a component, and all learners return soon
after it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import logging_as_before
from core_helpers import entries, entry, walk
from variants import variants

from benchmarks.plain_guards import AdaHedge, Median, PlainBOA, PlainMLPoly, RidgeOnly, Simplex
from streamadapt import (
    ADCSD,
    RLS,
    Bias,
    Calibration,
    Dictionary,
    DriftMonitor,
    ErrorMemory,
    Forecast,
    Gain,
    Hedge,
    Holt,
    LastValue,
    Liquid,
    NoGuard,
    Pipeline,
    Refit,
    River,
    Seasonal,
    SlotBias,
    Supervised,
    TwoLayer,
)
from streamadapt.app.commands import run_command
from streamadapt.guard.base import Guard
from streamadapt.guard.two_layer import Mean
from streamadapt.learners import Learner
from streamadapt.models.fit import fit_forecast
from streamadapt.pipeline.intervals import Intervals
from streamadapt.records import Batch
from streamadapt.tasks.label_budget import LabelBudget

VALUES = [1e3, 1e9, 1e12, 1e15, 1e20, 9.96921e36, -3.4e38]
N, AT, AFTER = 190, 60, 100


def all_learners() -> list[Learner]:
    return [
        ADCSD(1e-3),
        ADCSD(1e-3, share_norm=True),
        Bias((0.1, 0.02)),
        Calibration(0.9),
        Dictionary(),
        Dictionary(RLS(0.98)),
        ErrorMemory(capacity=60, k=5),
        ErrorMemory(store="sketch", tables=8, bits=4),
        Gain(0.05),
        Holt(),
        Liquid(unroll=2),
        Refit(30, memory=60, hidden=8),
        River("linear_model.LinearRegression"),
        RLS(0.99),
        RLS(0.99, loss="l1"),
        RLS(0.99, shared=True),
        RLS(0.99, features=["level", "cross", "season"], period="20s"),
        Seasonal(5),
        SlotBias(0.1, period=2e-8, slots=4),
        LastValue(),
    ]


GUARDS: dict[str, Callable[[], Guard]] = {
    "two-layer": TwoLayer,
    "two-layer-cell": lambda: TwoLayer("cell"),
    "hedge": Hedge,
    "adahedge": AdaHedge,
    "boa": PlainBOA,
    "ml-poly": PlainMLPoly,
    "simplex": Simplex,
    "ridge": RidgeOnly,
    "mean": Mean,
    "median": Median,
    "none": NoGuard,
}


def monitors() -> list[DriftMonitor]:
    return [
        DriftMonitor("adwin", "loss", "boost"),
        DriftMonitor("adwin", "residual", "forget", channels="each"),
        DriftMonitor("kswin", "input", "reset", cool_down=500),
        DriftMonitor("page-hinkley", "loss", "refit", refit_trial=20, cool_down=50),
        DriftMonitor("eddm", "error"),
    ]


def mean_base(inputs: Any) -> Any:
    """A frozen mean of the window: its errors differ from those of the last value."""
    return inputs.mean(0, keepdim=True).repeat(3, 1)


def check(pipeline: Pipeline, message: list[Any]) -> None:
    assert all(np.isfinite(p.served).all() for p in message)
    assert all(np.isfinite(expert).all() for p in message for expert in p.experts.values())
    assert not +pipeline.stats.faults, "no component raised"
    assert np.isfinite(list(pipeline.stats.loss_sum.values())).all()


def with_outlier(value: float, at: int, n: int = N) -> np.ndarray[Any, Any]:
    values = walk(n, 2)
    values[at, 0] = value
    return values


@pytest.mark.parametrize("value", variants(VALUES, quick=2))
def test_no_learner_raises_and_all_are_back_after_100_entries(value: float) -> None:
    pipeline = Pipeline(Forecast(4, 3), mean_base, all_learners(), intervals=Intervals())
    predictions = pipeline.observe(entries(with_outlier(value, AT)))
    check(pipeline, predictions)
    first = AT - 3 + 1 + AFTER
    for name in pipeline.names[1:]:
        assert any(not np.array_equal(p.experts[name], p.base) for p in predictions[first:]), (
            f"{name} speaks again"
        )
    for learner in pipeline.learners:
        # A window of 4 first; then a complete forecast is known 3 entries late.
        wanted = N - 4 - (2 if learner.matures == "path" else 0) if learner.needs_labels else 0
        for name in learner.names:
            assert pipeline.stats.updates[name]["ok"] == wanted, (
                f"{name} has learned at every entry"
            )


@pytest.mark.parametrize("at", variants([0, 2, 4], quick=2))
@pytest.mark.parametrize("value", variants([1e6, 1e15, 3.4e38], quick=2))
def test_nor_in_the_first_window(value: float, at: int) -> None:
    pipeline = Pipeline(
        Forecast(4, 3), mean_base, all_learners(), drift=monitors(), intervals=Intervals()
    )
    check(pipeline, pipeline.observe(entries(with_outlier(value, at, 60))))


@pytest.mark.parametrize("loss", ["absolute", "squared", "pinball-0.9"])
@pytest.mark.parametrize("name", GUARDS)
def test_no_guard_raises(name: str, loss: str) -> None:
    if name == "ridge" and loss.startswith("pinball"):
        pytest.skip("a ridge stack aims at means and medians alone")
    for value in (1e12, 3.4e38):
        learners = [Bias((0.1, 0.02)), RLS(0.98)]
        pipeline = Pipeline(Forecast(4, 3, loss=loss), mean_base, learners, GUARDS[name]())
        check(pipeline, pipeline.observe(entries(with_outlier(value, AT, 120))))


@pytest.mark.parametrize("value", variants([1e6, 1e20, 3.4e38]))
def test_detectors_see_a_change_after_it_as_without_it(value: float) -> None:
    def alarms(spike: bool) -> dict[str, list[int]]:
        values = with_outlier(value, AT, 420) if spike else walk(420, 2)
        values[300:] += 6.0
        wanted = [
            DriftMonitor("adwin", "input"),
            DriftMonitor("adwin", "loss"),
            DriftMonitor("adwin", "residual"),
        ]
        pipeline = Pipeline(
            Forecast(4, 1), lambda x: x[-1:] * 0.0 + 10.0, [Bias(0.1)], drift=wanted
        )
        predictions = pipeline.observe(entries(values))
        assert not +pipeline.stats.faults
        return {
            m.name: [i for i, p in enumerate(predictions, 3) if m.name in p.drifts and i >= 300]
            for m in wanted
        }

    with_it, without = alarms(True), alarms(False)
    for name, found in without.items():
        assert found, name
        assert with_it[name], f"{name} misses it"
        assert with_it[name][0] <= found[0] + 64, name


@pytest.mark.parametrize("where", ["value", "label"])
@pytest.mark.parametrize("value", [1e12, 3.4e38])
def test_supervised_with_a_budget_and_estimates(value: float, where: str) -> None:
    learners = [
        Bias((0.1, 0.02)),
        RLS(0.98),
        Calibration(0.9),
        River("linear_model.LinearRegression"),
    ]
    pipeline = Pipeline(
        Supervised(1),
        lambda x: x[-1:, :1],
        learners,
        budget=LabelBudget(0.5),
        intervals=Intervals(),
        drift=monitors(),
    )
    x = walk(N, 2)
    y = x[:, :1] + 1.0
    (x if where == "value" else y)[AT, 0] = value
    predictions = pipeline.observe(
        [
            entry(v, t + 1, id=str(t), label=label)
            for t, (v, label) in enumerate(zip(x, y, strict=True))
        ]
    )
    check(pipeline, predictions)
    for sums in (
        pipeline.stats.estimated,
        pipeline.stats.seen,
        pipeline.stats.foreseen,
        pipeline.stats.asked_loss,
    ):
        assert np.isfinite(list(sums.values())).all()
    assert predictions[-1].estimated_loss is not None
    for name in pipeline.names[1:]:
        assert not np.array_equal(predictions[-1].experts[name], predictions[-1].base), (
            f"{name} speaks again"
        )


def test_forgetting_with_a_singular_covariance() -> None:
    learner = RLS(0.99)
    values = walk(200, 2)
    pipeline = Pipeline(Forecast(4, 3), mean_base, [learner])
    items = entries(values)
    pipeline.observe(items[:60])
    learner.state.covariance[:, :, 0] = 0.0
    learner.state.covariance[..., 0] = 0.0
    learner.forget(0.1)
    assert bool(np.isfinite(learner.state.covariance).all())
    predictions = pipeline.observe(items[60:])
    check(pipeline, predictions)
    assert pipeline.stats.updates["rls-0.99"]["restored"] == 0


def test_a_fit_on_numbers_of_very_different_sizes_is_finite() -> None:
    values = walk(100, 2)
    values[50, 0] = 3e37
    batch = Batch(values, np.arange(100))
    base = fit_forecast(batch, 4, 3)
    assert bool(np.isfinite(base.weights.numpy()).all())


def test_a_dictionary_passes_the_weight_on() -> None:
    """An example with weight zero teaches nothing, also through a dictionary."""
    plain, within = RLS(0.98), Dictionary(RLS(0.98), threshold=0.0)
    task = Supervised(1, classes=2, ttl=10**6, negative_after=5)
    pipeline = Pipeline(task, lambda x: x[-1:, :2].softmax(-1), [plain, within])
    rng = np.random.default_rng(0)
    for t in range(1, 200):
        x = rng.normal(size=2).astype(np.float32)
        label = np.array([1.0], np.float32) if x[0] > 0.5 and t % 2 else None
        predictions = pipeline.observe([entry(x, t, id=str(t), label=label)])
    np.testing.assert_allclose(
        predictions[0].experts["dictionary-rls-0.98"],
        predictions[0].experts["rls-0.98"],
        atol=1e-4,
    )
    assert not np.allclose(predictions[0].experts["rls-0.98"], predictions[0].base, atol=1e-3)


CONFIG = """
[source]
kind = "files"
path = "in.jsonl"
[fields]
values = ["temp"]
time = "at"
time_format = "unix_s"
[task]
kind = "forecast"
window = 6
horizon = 2
[base]
kind = "persistence"
{learners}
[sink]
kind = "files"
path = "out.jsonl"
[checkpoint]
path = "state"
every_entries = 10
"""
LEARNERS = (
    '[[learners]]\nkind = "bias"\nrate = 0.1\n[[learners]]\nkind = "rls"\nforgetting = 0.99\n'
)


@pytest.fixture
def _logging() -> Any:
    yield from logging_as_before()


@pytest.mark.usefixtures("_logging")
@pytest.mark.parametrize("learners", [LEARNERS, ""], ids=["two", "default"])
@pytest.mark.parametrize("value", variants([1e12, 1e15, 9.96921e36]))
def test_run_goes_on(
    value: float, learners: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(CONFIG.format(learners=learners))
    values = with_outlier(value, 50, 160)[:, 0].tolist()
    Path("in.jsonl").write_text(
        "".join(json.dumps({"at": t, "temp": v}) + "\n" for t, v in enumerate(values))
    )
    assert run_command(["run", "c.toml"]).code == 0
    logging.captureWarnings(False)
    out = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(out) == 160 - 5
    assert all(np.isfinite(np.array(p["served"], float)).all() for p in out)
