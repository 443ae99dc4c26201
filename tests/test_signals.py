"""Values that drift monitors receive: each signal against its plain definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import entries, entry
from torch import Tensor

from streamadapt import Bias, DriftMonitor, Forecast, Pipeline, Supervised
from streamadapt.drift.signals import REFERENCE, WARM, EmbeddingDistance
from streamadapt.errors import ConfigError


class Listening(DriftMonitor):
    """A monitor that keeps the values it receives."""

    def __init__(self, signal: str, *, each: bool = False) -> None:
        super().__init__("adwin", signal, channels="each" if each else "mean")
        self.received: list[Any] = []

    def update(self, value: Any) -> bool:
        self.received.append(np.array(value))
        return super().update(value)


def received(pipeline: Pipeline, items: Any, monitors: list[Listening]) -> list[np.ndarray]:
    pipeline.observe(items)
    return [np.array(monitor.received) for monitor in monitors]


def test_the_residual_is_signed_and_in_units_of_the_usual_error() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(REFERENCE + 100, 2)).astype(np.float32) + np.array([0.0, 3.0])
    monitors = [
        Listening("residual"),
        Listening("residual", each=True),
        Listening("loss", each=True),
    ]
    pipeline = Pipeline(Forecast(1, 1), lambda x: torch.zeros_like(x[-1:]), [], drift=monitors)
    mean, each, loss = received(pipeline, entries(values.astype(np.float32)), monitors)
    error = np.abs(values[1:].astype(np.float32)).astype(np.float64)
    assert np.isnan(each[:WARM]).all()
    for t in range(WARM, len(error)):
        usual = error[: min(t, REFERENCE)].mean(axis=0)
        assert np.allclose(each[t], values[1 + t].astype(np.float32) / usual, rtol=1e-6)
    assert np.allclose(mean[WARM:], each[WARM:].mean(axis=1))
    assert np.allclose(loss[WARM:], np.abs(each[WARM:]))
    assert mean[WARM:].mean() > 0.3, "the second channel is always above the prediction"


def test_a_constant_error_of_the_base_does_not_become_normal() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3000, 1)) + 5.0 * (np.arange(3000) >= 1500)[:, None]
    monitor = Listening("loss")
    pipeline = Pipeline(Forecast(1, 1), lambda x: torch.zeros_like(x[-1:]), [], drift=[monitor])
    loss = received(pipeline, entries(values.astype(np.float32)), [monitor])[0]
    assert np.nanmean(loss[:1400]) == pytest.approx(1.0, rel=0.1)
    assert loss[-500:].mean() > 5.0
    assert pipeline.stats.drifts["adwin:loss"] >= 1


def test_the_residual_of_classes_is_one_minus_the_true_probability() -> None:
    monitor = Listening("residual")
    pipeline = Pipeline(
        Supervised(classes=2), lambda x: torch.tensor([[0.3, 0.7]]), [], drift=[monitor]
    )
    items = [entry(0.0, t + 1, id=str(t), label=np.float32([y])) for t, y in enumerate([0, 1, 1])]
    assert np.allclose(received(pipeline, items, [monitor])[0], [0.7, 0.3])


def test_the_confidence_is_the_largest_probability() -> None:
    def base(inputs: Tensor) -> Tensor:
        p = torch.sigmoid(inputs[-1:])
        return torch.cat([p, 1.0 - p], dim=-1)

    monitor = Listening("confidence")
    pipeline = Pipeline(Supervised(classes=2), base, [], drift=[monitor])
    values = [0.0, 2.0, -3.0]
    values_seen = received(
        pipeline, [entry(v, t + 1, id=str(t)) for t, v in enumerate(values)], [monitor]
    )[0]
    assert np.allclose(values_seen, [1.0 / (1.0 + np.exp(-abs(v))) for v in values])


def test_inputs_are_received_by_channel_and_missing_ones_are_refused() -> None:
    values = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, np.nan], [4.0, 40.0]], np.float32)
    monitor = Listening("input", each=True)
    pipeline = Pipeline(Forecast(2, 1), lambda x: x[-1:], [], drift=[monitor])
    values_seen = received(pipeline, entries(values), [monitor])[0]
    loc, scale = values[:2].mean(axis=0), values[:2].std(axis=0)
    assert np.allclose(values_seen, ((values - loc) / scale)[1:], equal_nan=True)
    assert monitor.refused == 1


def test_the_embedding_distance_is_one_for_usual_inputs_and_grows_outside() -> None:
    rng = np.random.default_rng(3)
    distance = EmbeddingDistance()
    reference = torch.from_numpy(rng.normal(5.0, [1.0, 10.0, 0.0], (REFERENCE, 3)))
    assert all(np.isnan(distance(e)) for e in reference)
    loc, scale = reference.numpy().mean(axis=0), reference.numpy().std(axis=0, ddof=1)
    e = torch.tensor([9.0, -40.0, 5.0], dtype=torch.float64)
    expected = np.sqrt(np.mean(np.square((e.numpy() - loc)[:2] / scale[:2])))
    assert distance(e) == pytest.approx(expected, rel=1e-12)
    usual = [distance(torch.from_numpy(rng.normal(5.0, [1.0, 10.0, 0.0]))) for _ in range(500)]
    assert np.sqrt(np.mean(np.square(usual))) == pytest.approx(1.0, rel=0.1)
    assert np.isnan(distance(torch.tensor([np.nan, 0.0, 0.0], dtype=torch.float64)))


def test_a_monitor_watches_the_embedding_of_the_base() -> None:
    def base(inputs: Tensor) -> Any:
        return inputs[-1:], torch.cat([inputs[-1], inputs[-1] ** 2])

    rng = np.random.default_rng(1)
    values = rng.normal(size=(1500, 1)) + 4.0 * (np.arange(1500) >= 1000)[:, None]
    monitor = DriftMonitor("page-hinkley", "embedding", params={"threshold": 60.0})
    predictions = Pipeline(Forecast(1, 1), base, [], drift=[monitor]).observe(
        entries(values.astype(np.float32))
    )
    fired = [i for i, p in enumerate(predictions) if p.drifts]
    assert fired
    assert 1000 <= fired[0] < 1100


@pytest.mark.parametrize(
    ("signal", "task", "message"),
    [
        ("confidence", Forecast(1, 1), "classification"),
        ("nothing", Forecast(1, 1), "one of loss, error, residual, input, confidence, embedding"),
    ],
)
def test_unknown_signals_are_refused(signal: str, task: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"drift\[0\]\.signal.*{message}"):
        Pipeline(task, lambda x: x[-1:], [Bias()], drift=[DriftMonitor("adwin", signal)])


def test_a_missing_embedding_is_refused_at_the_first_window() -> None:
    pipeline = Pipeline(
        Forecast(1, 1), lambda x: x[-1:], [], drift=[DriftMonitor("adwin", "embedding")]
    )
    with pytest.raises(ConfigError, match="a base that shows an embedding"):
        pipeline.observe([entry(1.0, 1)])
