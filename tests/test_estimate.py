"""Losses estimated before labels arrive: right if their assumptions hold, and shown beside the
truth otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import KINDS, bits, entry, pipeline_of, stream_of
from sklearn.linear_model import LinearRegression

from streamadapt import Bias, Hedge, Label, Pipeline, Supervised, Unlabelled
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.summary import summarise
from streamadapt.learners import Tent
from streamadapt.tasks.loss_estimate import ConfidenceEstimate, DirectEstimate
from streamadapt.tasks.losses import Log

ONE = np.ones((1, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_change_no_prediction(kind: str) -> None:
    items = stream_of(kind)
    assert bits(pipeline_of(kind).observe(items)) == bits(
        pipeline_of(kind, estimate=False).observe(items)
    )


def confident(n: int, seed: int, too_sure: float) -> tuple[Any, Any]:
    """Return distributions over three classes, (n, 3), sharpened by a factor, and the actual
    classes."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(size=(n, 3))
    probabilities = np.exp(too_sure * odds)
    true = np.exp(odds)
    true /= true.sum(1, keepdims=True)
    came = np.array([rng.choice(3, p=p) for p in true])
    return probabilities / probabilities.sum(1, keepdims=True), np.eye(3)[came]


@pytest.mark.parametrize("too_sure", [1.0, 2.0])
def test_confidence_becomes_calibrated(too_sure: float) -> None:
    """For a model with twice too large log odds the raw confidence is far off, the recalibrated
    one is not."""
    probabilities, came = confident(6000, 0, too_sure)
    estimate = ConfidenceEstimate()
    raw, found, true = [], [], []
    for p, y in zip(probabilities, came, strict=True):
        expected = estimate.estimate(p[None, None], p[None], ONE, ONE)
        losses = Log().loss(np.stack([p, p])[:, None], y[None])[:, 0, 0]
        true.append(estimate.learn(np.stack([p, p]), y, losses, (), 1.0))
        found.append(expected)
        raw.append(ConfidenceEstimate().estimate(p[None, None], p[None], ONE, ONE))
    late = slice(3000, None)
    found_mean, true_mean, raw_mean = (np.mean(x[late], axis=0) for x in (found, true, raw))
    np.testing.assert_allclose(found_mean, true_mean, rtol=0.06)
    if too_sure == 2.0:
        assert (np.abs(raw_mean - true_mean) > 0.15 * true_mean).all()
    # Also under covariate shift: among the most confident entries alone.
    sure = np.argsort(-probabilities[late].max(axis=1))[:1000]
    np.testing.assert_allclose(
        np.array(found[late])[sure].mean(0), np.array(true[late])[sure].mean(0), rtol=0.25
    )


def test_before_any_label_the_raw_confidence_is_used() -> None:
    p = np.array([[0.7, 0.2, 0.1]])
    found = ConfidenceEstimate().estimate(p[None], p, ONE, ONE)
    assert found == pytest.approx([-(p * np.log(p)).sum()] * 2 + [0.7] * 2)


def test_losses_are_regressed_on_disagreement() -> None:
    """Against scikit-learn's least squares on the same numbers."""
    rng = np.random.default_rng(0)
    estimate = DirectEstimate()
    features, targets, found = [], [], []
    for _ in range(3000):
        spread = rng.exponential(1.0)
        experts = np.array([[[0.0]], [[2.0 * spread]]])
        expected = estimate.estimate(experts, np.zeros((1, 1)), ONE, ONE)
        loss = abs(rng.normal()) * (0.5 + spread)
        estimate.learn(np.zeros((2, 1)), np.zeros(1), np.array([loss, loss]), expected[2:], 1.0)
        found.append(expected[0])
        features.append([expected[3], expected[4]])
        targets.append(min(loss, 20.0))
    assert np.isnan(found[0])
    x, y = np.array(features[1:]), np.array(targets[1:])
    decayed = 0.999 ** np.arange(len(y))[::-1]
    oracle = LinearRegression().fit(x, y, sample_weight=decayed)
    weights = estimate.state_dict()["weights"][0]
    np.testing.assert_allclose(weights, [oracle.intercept_, *oracle.coef_], atol=0.03)
    assert weights[1] == pytest.approx(np.sqrt(2.0 / np.pi), abs=0.15)
    late = np.array(found[500:])
    assert np.mean(late) == pytest.approx(np.mean(targets[500:]), rel=0.06)
    assert np.corrcoef(late, targets[500:])[0, 1] > 0.35


def test_outlier_labels_spoil_no_estimate_for_long() -> None:
    rng = np.random.default_rng(1)
    estimate = DirectEstimate()
    for i in range(1500):
        expected = estimate.estimate(np.array([[[0.0]], [[1.0]]]), np.zeros((1, 1)), ONE, ONE)
        loss = 1e9 if i == 700 else abs(rng.normal())
        estimate.learn(np.zeros((2, 1)), np.zeros(1), np.array([loss, loss]), expected[2:], 1.0)
        if i > 900:
            assert expected[0] < 2.0


def run(delay: int, n: int = 400) -> tuple[Pipeline, list[Any], Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 1)).astype(np.float32)
    y = (2.0 * x + rng.normal(size=(n, 1))).astype(np.float32)
    pipeline = Pipeline(Supervised(1), lambda inputs: inputs[-1:] * 1.0, [Bias(0.1)])
    predictions = []
    for t in range(n):
        if t >= delay:
            pipeline.observe([Label(str(t - delay), y[t - delay], t)])
        predictions += pipeline.observe([entry(x[t], t, id=str(t))])
    return pipeline, predictions, y


def test_estimate_and_truth_stand_side_by_side() -> None:
    pipeline, predictions, y = run(delay=30)
    stats = pipeline.stats
    estimates = [p.estimated_loss for p in predictions]
    assert estimates[:30] == [None] * 30, "there is no estimate before the first label"
    assert stats.estimated_count == sum(e is not None for e in estimates) == 370
    assert stats.seen_count == 340
    assert stats.estimated["served"] == pytest.approx(sum(e for e in estimates if e is not None))
    labelled = slice(30, 370)
    assert stats.foreseen["served"] == pytest.approx(sum(estimates[labelled]))
    true = [
        abs(float(p.served[0, 0]) - float(v))
        for p, v in zip(predictions[labelled], y[labelled, 0], strict=True)
    ]
    assert stats.seen["served"] == pytest.approx(sum(true), rel=1e-5)
    summary = summarise([stats])["estimated"]["served"]
    assert summary["unlabelled"] == pytest.approx(np.mean(estimates[370:]))
    assert summary["labelled"] == pytest.approx(summary["really"], rel=0.15)
    metrics = Metrics()
    metrics.pipeline(0, stats)
    samples = metrics.samples()
    assert dict(samples["streamadapt_estimated_predictions_total"]) == {
        ("0", "all"): 370,
        ("0", "known"): 340,
    }
    assert dict(samples["streamadapt_true_loss_total"])[("0", "served")] == stats.seen["served"]


def test_without_any_labels_the_estimate_is_the_confidence() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 3))
    from streamadapt import FrozenModel

    guard = Hedge(prior={"tent-b2": 0.5})
    pipeline = Pipeline(
        Unlabelled(1, classes=3), FrozenModel(net.eval(), softmax=True), [Tent(2)], guard
    )
    predictions = pipeline.observe(entry([float(t % 5), 1.0], t, id=str(t)) for t in range(20))
    assert all(p.estimated_loss is not None for p in predictions)
    p = predictions[-1].served.astype(np.float64)
    assert predictions[-1].estimated_loss == pytest.approx(float(-(p * np.log(p)).sum()), rel=1e-4)
    assert pipeline.stats.estimated_count == 20
    assert pipeline.stats.seen_count == 0
