"""Drift monitors: river's detectors by name, their signals, and the cool-down after an alarm."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import entries, entry
from river import drift
from torch import Tensor

from streamadapt import DriftMonitor, Forecast, Pipeline, Supervised
from streamadapt.drift.detectors import BINARY, DETECTORS
from streamadapt.errors import ConfigError
from streamadapt.testing.checks.cases import through_a_checkpoint


def signal_for(detector: str) -> str:
    return "error" if DETECTORS[detector].startswith(BINARY) else "loss"


@pytest.mark.parametrize("detector", DETECTORS)
def test_alarms_are_where_rivers_own_class_has_them(detector: str) -> None:
    rng = np.random.default_rng(1)
    wrong = rng.random(3000) < np.repeat([0.1, 0.5, 0.2, 0.7, 0.1], 600)
    values = (
        wrong + 0.0 if signal_for(detector) == "error" else wrong + 0.1 * rng.normal(size=3000)
    )
    mine = DriftMonitor(detector, signal_for(detector))  # type: ignore[arg-type]
    theirs: Any = operator.attrgetter(DETECTORS[detector])(drift)(
        **({"seed": 0} if detector == "kswin" else {})
    )
    fired = []
    for i, value in enumerate(values.tolist()):
        right = detector == "fhddm" and value == 0.0
        theirs.update(
            value
            if signal_for(detector) == "loss"
            else right
            if detector == "fhddm"
            else value == 1.0
        )
        assert mine.update(value) == theirs.drift_detected, i
        if theirs.drift_detected:
            fired.append(i)
    assert fired, "a stream without alarms would compare nothing"


@pytest.mark.parametrize(
    "detector", [name for name, path in DETECTORS.items() if path.startswith(BINARY)]
)
def test_detectors_of_errors_accept_no_numeric_signals(detector: Any) -> None:
    with pytest.raises(ConfigError, match=rf"drift.signal: expected error: {detector} watches"):
        DriftMonitor(detector, "loss")


def test_one_change_is_one_alarm() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=4000) + np.repeat([0.0, 3.0], 2000)

    def alarms(cool_down: int) -> list[int]:
        monitor = DriftMonitor(
            "kswin", "loss", "boost", params={"window_size": 200}, cool_down=cool_down
        )
        fired = []
        for i, value in enumerate(values.tolist()):
            if monitor.update(value):
                fired.append(i)
                assert monitor.boost is not None
                assert monitor.boost.level == monitor.boost.factor
        return fired

    eager, calm = alarms(0), alarms(500)
    assert min(np.diff(calm), default=501) > 500
    assert calm[0] == eager[0]
    assert 1 <= len(calm) <= len(eager)


def test_the_cool_down_is_part_of_the_checkpoint() -> None:
    values = np.repeat([0.0, 5.0, 0.0, 5.0], 60).tolist()

    def alarms(monitor: DriftMonitor, part: Sequence[float]) -> list[int]:
        return [i for i, value in enumerate(part) if monitor.update(value)]

    def make() -> DriftMonitor:
        return DriftMonitor(
            "page-hinkley", params={"threshold": 5.0, "min_instances": 5}, cool_down=100
        )

    whole, saved, loaded = make(), make(), make()
    expected = alarms(whole, values)
    assert len(expected) > 1
    stop = expected[0] + 10
    alarms(saved, values[:stop])
    loaded.load_state_dict(saved.state_dict())
    assert [expected[0]] + [stop + i for i in alarms(loaded, values[stop:])] == expected


@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_a_bad_cool_down_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"drift\.cool_down"):
        DriftMonitor(cool_down=value)


class Watching(DriftMonitor):
    """A monitor that keeps the values it receives."""

    def __init__(self, signal: str) -> None:
        super().__init__("adwin", signal)
        self.received: list[float] = []

    def update(self, value: Any) -> bool:
        self.received.append(value)
        return super().update(value)


def test_the_error_of_a_classifier_is_a_wrong_class() -> None:
    def base(inputs: Tensor) -> Tensor:
        return torch.tensor([[0.2, 0.8]])

    monitor = Watching("error")
    pipeline = Pipeline(Supervised(classes=2), base, [], drift=[monitor])
    labels = [1, 0, 0, 1, 1, 0]
    pipeline.observe(
        [entry(0.0, t + 1, id=str(t), label=np.float32([y])) for t, y in enumerate(labels)]
    )
    assert monitor.received == [float(y == 0) for y in labels[:-1]], (
        "the last label is learned at the next entry"
    )


def test_the_error_of_a_forecast_is_a_loss_above_the_mean() -> None:
    monitors = [Watching("error"), Watching("loss")]
    values = np.cumsum(np.random.default_rng(0).normal(size=(100, 1)), axis=0)
    Pipeline(Forecast(2, 1), lambda x: x[-1:], [], drift=monitors).observe(
        entries(values.astype(np.float32))
    )
    error, loss = (np.array(monitor.received) for monitor in monitors)
    known = ~np.isnan(loss)
    assert np.array_equal(error[known], loss[known] > 1.0)
    assert 0.1 < error[known].mean() < 0.9
    assert np.isnan(error[~known]).all()


@pytest.mark.parametrize("detector", ["adwin", "kswin"])
def test_a_detector_per_channel_equals_rivers_own_at_a_share_of_the_level(detector: Any) -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=(1500, 3))
    values[700:, 1] += 3.0
    mine = DriftMonitor(detector, "input", channels="each")
    level = {"adwin": {"delta": 0.002 / 3}, "kswin": {"alpha": 0.005 / 3, "seed": 0}}[detector]
    theirs: list[Any] = [
        operator.attrgetter(DETECTORS[detector])(drift)(**level) for _ in range(3)
    ]
    fired = []
    for i, row in enumerate(values):
        for one, value in zip(theirs, row.tolist(), strict=True):
            one.update(value)
        expected = tuple(c for c, one in enumerate(theirs) if one.drift_detected)
        assert mine.update(row) == bool(expected), i
        if expected:
            assert mine.fired_channels == expected
            fired.append((i, expected))
    assert any(channels == (1,) and 700 <= i < 900 for i, channels in fired)


def test_detectors_of_known_channels_are_updated_if_one_is_missing() -> None:
    rng = np.random.default_rng(6)
    monitor, alone = (
        DriftMonitor("adwin", "input", channels="each"),
        DriftMonitor("adwin", params={"delta": 0.001}),
    )
    for i in range(800):
        value = rng.normal() + 4.0 * (i >= 500)
        assert monitor.update(np.array([value, np.nan])) == alone.update(value)
    assert monitor.refused == 800


def test_channels_survive_a_checkpoint() -> None:
    rng = np.random.default_rng(7)
    values = rng.normal(size=(600, 4)) + 5.0 * (np.arange(600) >= 300)[:, None]
    whole, first, second = (DriftMonitor("adwin", "loss", channels="each") for _ in range(3))
    expected = [whole.update(row) for row in values]
    results = [first.update(row) for row in values[:290]]
    second.load_state_dict(through_a_checkpoint(first.state_dict()))
    assert results + [second.update(row) for row in values[290:]] == expected
    assert any(expected)


@pytest.mark.parametrize(
    ("detector", "signal", "path"),
    [
        ("page-hinkley", "loss", "drift.detector"),
        ("ddm", "error", "drift.signal"),
        ("adwin", "error", "drift.signal"),
    ],
)
def test_a_level_that_cannot_be_divided_is_refused(detector: Any, signal: str, path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        DriftMonitor(detector, signal, channels="each")
