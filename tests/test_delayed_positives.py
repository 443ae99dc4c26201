"""Late positives: weights, the learners that use them, and a stream whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import base, built, spec_of
from hypothesis import given
from hypothesis import strategies as st
from memory_stores import Ring
from river import linear_model, preprocessing
from test_tasks import label, reason_of

from benchmarks.labels.conversions import Conversions, figures, run
from streamadapt import (
    RLS,
    Bias,
    Calibration,
    Entry,
    ErrorMemory,
    Gain,
    Logistic,
    Refit,
    River,
    SlotBias,
    Supervised,
)
from streamadapt.errors import Reason
from streamadapt.learners import Learner
from streamadapt.learners.error_memory.values import StoreShape
from streamadapt.tasks import Arrival, Issued
from streamadapt.tasks.delayed_positives import DelayedPositives
from streamadapt.testing.checks.cases import CASES, drive

S = 10**9


# -- the task


def clicks(n: int, **more: Any) -> Supervised:
    task = Supervised(classes=2, negative_after=5 * S, ttl=20 * S, **more)
    for t in range(n):
        show(task, t)
    return task


def show(task: Supervised, t: int) -> Arrival:
    item = Entry(np.zeros(1, np.float32), t * S, str(t))
    arrival = task.observe(item)
    columns = np.array([[[0.8, 0.2]]])
    assert arrival.inputs is not None
    task.remember(
        Issued(item, torch.from_numpy(arrival.inputs.copy()), base([[0.8, 0.2]]), columns, columns)
    )
    return arrival


def test_an_entry_without_a_label_is_a_negative_until_its_positive_arrives() -> None:
    task = clicks(1)
    assert show(task, 4).matured == []
    negative = show(task, 5).matured
    assert [m.target.tolist() for m in negative] == [[[1.0, 0.0]]]
    assert negative[0].weight == pytest.approx((1 - 0.2) * (1 + 0.2)), (
        "Ktena et al.: all positives are late at first"
    )
    assert task.pending == 3
    positive = task.observe(label("0", 1.0, 6 * S)).matured
    assert [m.target.tolist() for m in positive] == [[[0.0, 1.0]]]
    assert positive[0].weight == pytest.approx(1 + 0.2)
    assert reason_of(task, label("0", 1.0, 7 * S)) is Reason.DUPLICATE_LABEL
    assert task.outcomes == {"negative": 1, "turned": 1}


def test_a_positive_in_time_is_learned_once() -> None:
    task = clicks(1)
    assert len(task.observe(label("0", 1.0, 3 * S)).matured) == 1
    assert show(task, 10).matured == []
    assert task.positives.late_share == pytest.approx(0.999 / 1.999)


def test_a_reported_negative_confirms_and_teaches_nothing_more() -> None:
    task = clicks(1)
    show(task, 5)
    assert task.observe(label("0", 0.0, 6 * S)).matured == []
    assert reason_of(task, label("0", 1.0, 7 * S)) is Reason.DUPLICATE_LABEL
    assert task.outcomes == {"negative": 1, "confirmed": 1}


def test_after_its_ttl_a_negative_stays_negative() -> None:
    task = clicks(1)
    show(task, 5)
    show(task, 21)
    assert task.outcomes == {"negative": 2}, "no entry expired: each was learned"
    assert reason_of(task, label("0", 1.0, 21 * S)) is Reason.LATE_LABEL
    assert [id_ for id_, one in task.waiting.items() if one.assumed_negative] == ["5"]


def test_without_the_correction_nothing_has_a_weight() -> None:
    task = clicks(1, correct_negatives=False)
    assert show(task, 5).matured[0].weight == 1.0
    assert task.observe(label("0", 1.0, 6 * S)).matured[0].weight == 1.0


# -- the weights


@given(st.floats(0.0, 1.0), st.floats(0.001, 1.0))
def test_weighted_the_biased_stream_is_the_true_one(p: float, r: float) -> None:
    """``b(y) w(y) = p(y)`` for both classes, for any share r of late positives."""
    delayed = DelayedPositives()
    delayed.late, delayed.all = r, 1.0
    probabilities = np.array([[[1.0 - p, p]]])
    positive, negative = p / (1.0 + r * p), (1.0 - p + r * p) / (1.0 + r * p)
    assert positive * delayed.weight(
        probabilities, probabilities[0], certain=True
    ) == pytest.approx(p)
    assert negative * delayed.weight(
        probabilities, probabilities[0], certain=False
    ) == pytest.approx(1.0 - p)


def test_the_share_of_late_positives_is_estimated() -> None:
    rng, delayed = np.random.default_rng(0), DelayedPositives()
    for late in rng.random(5000) < 0.3:
        delayed.saw_positive(bool(late))
    assert delayed.late_share == pytest.approx(0.3, abs=0.05)


# -- the learners

CASE = next(case for case in CASES if case.kind == "classification")
WEIGHTED: dict[str, Callable[[], Learner]] = {
    "bias": lambda: Bias((0.1, 0.5)),
    "gain": lambda: Gain(0.1),
    "slot_bias": lambda: SlotBias(0.1, period=1e-6, slots=2),
    "calibration": lambda: Calibration(0.9),
    "rls": lambda: RLS(0.9),
    "rls-l1": lambda: RLS(0.9, loss="l1"),
    "sketch": lambda: ErrorMemory(store="sketch"),
    "logistic": lambda: Logistic((1.0, 0.3)),
    "river": lambda: River("linear_model.LogisticRegression", scale=False),
}


def taught(make: Callable[[], Learner], weight: float, times: int = 1) -> Any:
    """Return a learner's output after some examples and another of a given weight."""
    torch.manual_seed(0)
    learner = make()
    learner.build(CASE.spec(torch.device("cpu")))
    *steps, step = CASE.steps(6, learner.matures, torch.device("cpu"))
    drive(learner, steps)
    target = torch.zeros(CASE.rows, CASE.columns)
    target[0, 1] = 1.0
    learner.weight = weight
    for _ in range(times):
        learner.learn(step.inputs, step.base, target, torch.ones_like(target, dtype=torch.bool))
    return learner.predict(step.inputs, step.base)[..., 1]


@pytest.mark.parametrize("name", WEIGHTED)
def test_more_weight_teaches_more_and_zero_weight_nothing(name: str) -> None:
    make = WEIGHTED[name]
    untaught, light, once, heavy = (
        taught(make, w, n) for w, n in ((1.0, 0), (0.5, 1), (1.0, 1), (1.8, 1))
    )
    torch.testing.assert_close(taught(make, 0.0), untaught)
    near, middle, far = ((output - untaught).abs() for output in (light, once, heavy))
    assert bool((near > 0.0).all())
    assert bool((near < middle).all())
    assert bool((middle < far).all())


def test_least_squares_with_weight_two_equals_two_examples() -> None:
    torch.testing.assert_close(
        taught(lambda: RLS(1.0), 2.0), taught(lambda: RLS(1.0), 1.0, times=2)
    )
    sketch = lambda: ErrorMemory(store="sketch", decay=1.0)  # noqa: E731
    torch.testing.assert_close(taught(sketch, 2.0), taught(sketch, 1.0, times=2))


def test_a_bias_moves_by_the_weighted_gradient() -> None:
    learner = built(Bias(0.1), spec_of("classification", 1, 1, 1, 2))
    learner.weight = 1.5
    base_output, target = base([[0.7, 0.3]]), torch.tensor([[0.0, 1.0]])
    learner.learn(torch.zeros(1, 1), base_output, target, torch.ones(1, 2, dtype=torch.bool))
    moved = learner.state_dict()["bias"][0].float()
    torch.testing.assert_close(moved, 0.15 * (target - base_output.output))


def test_river_models_receive_the_weight() -> None:
    learner = built(
        River("linear_model.LogisticRegression"), spec_of("classification", 1, 1, 1, 2)
    )
    oracle = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    for i in range(20):
        learner.weight = 1.0 + i % 3
        base_output = base([[0.6, 0.4]])
        inputs, target = torch.tensor([[float(i % 5)]]), torch.eye(2)[[i % 2]]
        learner.learn(inputs, base_output, target, torch.ones(1, 2, dtype=torch.bool))
        x = {
            "c0_0": float(i % 5),
            "base_0": float(base_output.output[0, 0]),
            "base_1": float(base_output.output[0, 1]),
        }
        oracle.learn_one(x, i % 2, w=learner.weight)
    wanted = oracle.predict_proba_one(x)[1]
    assert float(learner.predict(inputs, base_output)[0, 1]) == pytest.approx(wanted, rel=1e-5)


def test_an_exact_memory_averages_by_weight() -> None:
    ring = Ring(StoreShape(1, 1, 1, 1), capacity=4, k=4)
    for value, weight in ((1.0, 1.0), (4.0, 2.0), (100.0, 0.0)):
        ring.write([[0.0]], [[[value]]], [True], weight=weight)
    mean, known = ring.read([[0.0]])
    assert known.all()
    assert mean.item() == pytest.approx((1.0 + 2.0 * 4.0) / 3.0)


def test_a_refit_keeps_the_weight_with_its_example() -> None:
    learner = built(Refit(5, memory=4, hidden=4), spec_of("classification", 1, 1, 1, 2))
    learner.weight = 0.5
    target = torch.tensor([[0.0, 1.0]])
    learner.learn(
        torch.zeros(1, 1), base([[0.7, 0.3]]), target, torch.ones(1, 2, dtype=torch.bool)
    )
    assert learner.seen_targets[0].tolist() == [0.0, 0.5]


# -- a stream whose truth is known


@pytest.mark.slow
def test_the_correction_takes_most_of_the_bias_out() -> None:
    """More than half of the conversions come after their entry was learned as a negative."""
    stream = Conversions.draw(2_800, 0, mean_delay=100.0)
    settled = slice(600, 1_400)  # before the change, after the start
    found = {}
    for mode in ("oracle", "corrected", "naive"):
        losses = run(stream, mode, [Bias(0.02), RLS(0.998)], ttl=600.0)
        found[mode] = figures(stream, losses["served"], settled)
    gap = {mode: abs(found["oracle"][0] - ratio) for mode, (ratio, _) in found.items()}
    assert gap["naive"] > 0.14
    assert gap["corrected"] < 0.6 * gap["naive"]
    assert found["oracle"][1] <= found["corrected"][1] < found["naive"][1]
