"""Label requests: the rate is kept, every entry has a chance, and the requested labels estimate
the loss of all entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_helpers import bits, entries, entry, linear_base, softmax_base, state, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from variants import variants

from streamadapt import RLS, Bias, Forecast, Label, Persistence, Pipeline, Supervised
from streamadapt.errors import ConfigError
from streamadapt.tasks.label_budget import MOST_STEERED, STEER, LabelBudget, _uniform
from streamadapt.testing.checks.cases import through_a_checkpoint

ONE = np.ones((1, 1))


def decided(budget: LabelBudget, spread: Any) -> tuple[float, bool]:
    """Decide about a value on whose size two experts disagree by the given number of scales."""
    return budget.decide(
        np.array([[[0.0]], [[float(spread)]]]), np.zeros((1, 1)), ONE, classify=False
    )


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.01, 0.05, 0.1, 0.5]),
    st.floats(0.05, 1.0),
    st.integers(0, 3),
)
def test_the_rate_is_kept_for_any_values(seed: int, rate: float, floor: float, kind: int) -> None:
    rng = np.random.default_rng(seed)
    n = 4000
    spreads = [
        rng.exponential(1.0, n),
        rng.pareto(1.1, n),  # its mean almost does not exist
        np.where(np.arange(n) // 500 % 2, 0.0, 4.0),  # calm and volatile
        np.zeros(n),
    ][kind]
    budget = LabelBudget(rate, floor, seed)
    found = [decided(budget, s) for s in spreads]
    p = np.array([probability for probability, _ in found])
    assert p.min() >= rate * floor * (1.0 - 1e-12), "every entry has a chance"
    assert p.max() <= 1.0
    if abs(budget.steer) < MOST_STEERED and kind < 2:
        assert abs(p.mean() - rate) <= 2.0 * MOST_STEERED / (STEER * n)
    if kind < 3:
        assert abs(p.mean() - rate) < 0.35 * rate
    asked = np.mean([ask for _, ask in found])
    assert abs(asked - p.mean()) < 5.0 * np.sqrt(p.mean() / n)


def test_it_asks_where_experts_disagree() -> None:
    budget = LabelBudget(0.1, 0.2)
    found = [decided(budget, i % 2) for i in range(2000)][500:]
    calm, storm = (np.mean([p for p, _ in found[k::2]]) for k in (0, 1))
    assert calm == pytest.approx(0.02)
    assert storm == pytest.approx(0.18, rel=0.05)


def test_it_asks_where_the_prediction_is_uncertain() -> None:
    budget = LabelBudget(0.1, 0.2)
    sure, unsure = np.array([[0.99, 0.01]]), np.array([[0.55, 0.45]])
    found = [
        budget.decide(probabilities[None], probabilities, ONE, classify=True)[0]
        for probabilities in (sure, unsure) * 500
    ]
    assert found[-1] > 5.0 * found[-2]


def test_purely_random_requests_have_the_rate_each_time() -> None:
    budget = LabelBudget(0.07, 1.0)
    assert {decided(budget, s)[0] for s in np.random.default_rng(0).exponential(1.0, 500)} == {
        0.07
    }


def test_nan_predictions_are_requested_at_the_usual_rate() -> None:
    budget = LabelBudget(0.1, 0.2)
    for spread in (1.0, np.nan, 1.0, np.inf):
        probability, _ = decided(budget, spread)
        assert 0.02 <= probability <= 1.0
    assert np.isfinite(budget.means).all()


def test_its_random_numbers_are_random() -> None:
    numbers = np.array([[_uniform(seed, i) for i in range(4000)] for seed in (0, 1)])
    assert ((numbers >= 0.0) & (numbers < 1.0)).all()
    for row in numbers:
        counts, _ = np.histogram(row, 10, (0.0, 1.0))
        assert np.abs(counts - 400).max() < 100
        assert abs(np.corrcoef(row[1:], row[:-1])[0, 1]) < 0.05
    assert abs(np.corrcoef(numbers)[0, 1]) < 0.05


# -- in a pipeline


def stream(n: int, seed: int, kind: str) -> tuple[list[Any], Any]:
    rng = np.random.default_rng(seed)
    values = walk(n, 2, seed)
    if kind == "classes":
        return entries(values), rng.integers(0, 3, (n, 1)).astype(np.float32)
    # A few entries are much harder than the others, and the experts disagree about the entries
    # after them.
    hard = rng.random(n) < 0.1
    noise = rng.normal(size=values.shape) * np.where(hard, 8.0, 0.5)[:, None]
    return entries(values), (values + noise).astype(np.float32)


def asking(kind: str, seed: int = 0, **more: Any) -> Pipeline:
    budget = LabelBudget(0.2, 0.3, seed)
    if kind == "classes":
        return Pipeline(
            Supervised(1, classes=3), softmax_base, [Bias((0.5, 0.05))], budget=budget, **more
        )
    return Pipeline(
        Supervised(1, outputs=2), linear_base, [Bias((0.5, 0.05)), RLS(0.9)], budget=budget, **more
    )


def answered(pipeline: Pipeline, items: list[Any], targets: Any) -> tuple[list[Any], Any]:
    """Run with each requested label delivered at once; return predictions and the served
    losses."""
    predictions, losses = [], []
    for item, target in zip(items, targets, strict=True):
        (p,) = pipeline.observe([item])
        predictions.append(p)
        if pipeline.task.kind == "classification":
            losses.append(
                [
                    -np.log(max(float(output[0, int(target[0])]), 1e-6))
                    for output in (p.base, p.served)
                ]
            )
        else:
            losses.append([np.abs(output[0] - target).mean() for output in (p.base, p.served)])
        if p.ask:
            pipeline.observe([Label(p.id, target, p.time)])
    return predictions, np.array(losses)


@pytest.mark.parametrize("kind", variants(["values", "classes"]))
def test_the_loss_of_all_is_estimated_from_the_asked(kind: str) -> None:
    """Horvitz-Thompson is unbiased over the draws, Hajek nearly so; the plain mean of the
    requested labels is far off."""
    n, ratio, horvitz, plain = 250, [], [], []
    for seed in range(20):
        items, targets = stream(n, 7, kind)
        pipeline = asking(kind, seed, estimate=False)
        predictions, losses = answered(pipeline, items, targets)
        stats, truth = pipeline.stats, losses.mean(axis=0)
        sums = np.array([stats.asked_loss["base"], stats.asked_loss["served"]])
        ratio.append(sums / stats.asked_weight / truth)
        horvitz.append(sums / n / truth)
        plain.append(losses[[bool(p.ask) for p in predictions]].mean(axis=0) / truth)
        assert stats.asked == sum(bool(p.ask) for p in predictions)
        assert all(p.ask_probability > 0.0 for p in predictions)
    for found in (ratio, horvitz):
        error = np.std(found, axis=0) / np.sqrt(len(found))
        assert (np.abs(np.mean(found, axis=0) - 1.0) < 4.0 * error + 0.01).all()
    if kind == "values":
        error = np.std(plain, axis=0) / np.sqrt(len(plain))
        assert np.isfinite(error).all()


@pytest.mark.parametrize("kind", ["values", "classes"])
@pytest.mark.parametrize("cut", [1, 40])
def test_asking_is_the_same_in_any_grouping_and_after_a_restart(kind: str, cut: int) -> None:
    items, targets = stream(80, 3, kind)
    known = [
        Label(item.id, target, item.time) for item, target in zip(items, targets, strict=True)
    ]
    lot = [x for pair in zip(items, known, strict=True) for x in pair]
    one, each = asking(kind), asking(kind)
    wanted = one.observe(lot)
    found = each.observe(lot[:cut])
    again = asking(kind)
    again.load_state_dict(through_a_checkpoint(each.state_dict()))
    for item in lot[cut:]:
        found += again.observe([item])
    assert bits(found) == bits(wanted)
    assert [(p.ask, p.ask_probability, p.estimated_loss) for p in found] == [
        (p.ask, p.ask_probability, p.estimated_loss) for p in wanted
    ]
    assert state(again) == state(one)
    assert {p.ask for p in found} == {True, False}


def test_predict_requests_no_label() -> None:
    items, targets = stream(30, 0, "values")
    pipeline = asking("values")
    answered(pipeline, items, targets)
    before = state(pipeline)
    assert pipeline.predict(entry([1.0, 2.0], 100, id="q")).ask is None
    assert state(pipeline) == before


def test_label_requests_change_no_prediction() -> None:
    items, targets = stream(60, 1, "values")
    lot = [x for i, y in zip(items, targets, strict=True) for x in (i, Label(i.id, y, i.time))]
    learners = lambda: [Bias((0.5, 0.05)), RLS(0.9)]  # noqa: E731
    plain = Pipeline(Supervised(1, outputs=2), linear_base, learners(), estimate=False).observe(
        lot
    )
    assert bits(plain) == bits(asking("values").observe(lot))
    assert all(
        p.ask is None and p.ask_probability is None and p.estimated_loss is None for p in plain
    )


@pytest.mark.parametrize(
    "more", [{"rate": 0.0}, {"rate": 1.1}, {"floor": 0.0}, {"floor": float("nan")}, {"seed": -1}]
)
def test_bad_settings(more: Any) -> None:
    with pytest.raises(ConfigError, match=r"labels\."):
        LabelBudget(**more)


def test_forecasts_request_no_labels() -> None:
    with pytest.raises(ConfigError, match=r"labels\.rate"):
        Pipeline(Forecast(3, 2), Persistence(2), budget=LabelBudget())
