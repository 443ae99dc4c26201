"""Every learner for classes: on the simplex, mixed in log loss; the plain ones against their
formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import CPU, base, built, entry, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamadapt import Hedge, Pipeline, Supervised
from streamadapt.learners import (
    RLS,
    Bias,
    Calibration,
    Gain,
    LastValue,
    Learner,
    Logistic,
    Refit,
    River,
    SlotBias,
)
from streamadapt.learners.probabilities import FLOOR, SHARE, clip_to_simplex
from streamadapt.learners.simplex import log_odds
from streamadapt.testing.checks.cases import Case, drive

MAKERS: dict[str, Callable[[], Learner]] = {
    "bias": lambda: Bias((1.0, 0.5, 0.05)),
    "gain": lambda: Gain((1.0, 0.1)),
    "calibration": lambda: Calibration((0.5, 0.9, 0.995)),
    "rls": lambda: RLS((0.5, 0.9, 0.995)),
    "rls-l1": lambda: RLS((0.5, 0.9, 0.995), loss="l1"),
    "rls-calendar": lambda: RLS(0.95, features=["calendar"]),
    "logistic": lambda: Logistic((5.0, 0.3)),
    "persistence": LastValue,
    "refit": lambda: Refit(5, memory=20, hidden=4, lr=0.1),
    "refit-direct": lambda: Refit(5, memory=20, hidden=4, lr=0.1, direct=True),
    "slot_bias": lambda: SlotBias((1.0, 0.5), period=4e-9, slots=2),
    "river": lambda: River("naive_bayes.GaussianNB"),
}


def softmax(z: Any) -> Any:
    powers = np.exp(z - z.max())
    return powers / powers.sum()


def on_simplex(p: Any) -> bool:
    p = np.asarray(p, np.float64)
    return bool(np.isfinite(p).all() and (p >= 0.0).all() and np.abs(p.sum(-1) - 1.0).max() < 1e-5)


# -- every learner, in a pipeline


@settings(max_examples=6, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 4),
    st.sampled_from([1e-3, 1.0, 30.0]),
    st.sampled_from([1.0, 1e6]),
)
def test_all_predictions_stay_on_the_simplex(
    seed: int, classes: int, sharp: float, size: float
) -> None:
    """For any inputs, any certainty of the base (to exact zeros and ones), and any missing
    labels."""
    rng = np.random.default_rng(seed)
    rule = torch.from_numpy(rng.normal(size=(2, classes)).astype(np.float32)) * sharp
    pipeline = Pipeline(
        Supervised(2, classes=classes),
        lambda x: torch.softmax((x[-1:] / size) @ rule, -1),
        [make() for name, make in MAKERS.items() if name != "refit-direct"],
        device="cpu",
    )
    labels = rng.integers(0, classes, size=40).astype(np.float32)
    labels[rng.random(40) < 0.2] = np.nan
    for t, label in enumerate(labels):
        values = rng.standard_t(2, size=2).astype(np.float32) * np.float32(size)
        for p in pipeline.observe([entry(values, t + 1, id=str(t), label=np.array([label]))]):
            assert on_simplex(p.served)
            for name, base_output in p.experts.items():
                assert on_simplex(base_output), name
            assert sum(p.weights.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", [n for n in MAKERS if n not in ("gain", "river")])
def test_the_guard_follows_the_better_learner_in_log_loss(name: str) -> None:
    """A base that is sure of the wrong class: the served prediction gets most of the gain, and its
    loss is counted in nats."""
    rng = np.random.default_rng(0)
    shares = np.array([0.7, 0.2, 0.1])
    wrong = torch.tensor([[0.05, 0.05, 0.9]])
    pipeline = Pipeline(
        Supervised(1, classes=3), lambda x: wrong.clone(), [MAKERS[name]()], Hedge(), device="cpu"
    )
    state, total, n = 0, 0.0, 300
    for t in range(n):
        if rng.random() < 0.2:  # classes arrive in runs
            state = int(rng.choice(3, p=shares))
        served = pipeline.observe([entry(0.0, t + 1, id=str(t), label=np.float32([state]))])[
            0
        ].served[0]
        # The last label is not learned.
        total -= np.log(max(float(served[state]), 1e-6)) if t < n - 1 else 0.0
    sums = pipeline.stats.loss_sum
    assert sums["served"] == pytest.approx(total, rel=1e-4)
    best = min(sums[k] for k in pipeline.names)
    assert best < 0.7 * sums["base"]
    assert sums["served"] < best + 0.25 * (sums["base"] - best)


# -- the plain ones, by their formulas


def examples(n: int, classes: int, seed: int = 0) -> Any:
    """Yield base, one-hot target, known or not, inputs (2, 1)."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        base_output = softmax(rng.normal(0.0, 2.0, size=classes)).astype(np.float32)
        if i % 7 == 0:
            base_output = np.eye(classes, dtype=np.float32)[
                rng.integers(classes)
            ]  # certain, with exact zeros
        target = np.eye(classes, dtype=np.float32)[
            rng.choice(classes, p=softmax(np.arange(classes) * 0.5))
        ]
        yield (
            base_output,
            target,
            bool(rng.random() < 0.8),
            rng.normal(size=(2, 1)).astype(np.float32),
        )


def learn(learner: Learner, inputs: Any, base_output: Any, target: Any, known: bool) -> None:
    given_target = torch.from_numpy(np.where(known, target, np.nan)[None].astype(np.float32))
    learner.learn(
        torch.from_numpy(inputs),
        base(base_output[None]),
        given_target,
        torch.full((1, len(base_output)), known),
    )


def logs(base_output: Any) -> Any:
    u = np.log(np.maximum(base_output.astype(np.float64), FLOOR))
    return u - u.mean()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_bias_is_online_gradient_descent_on_the_offsets(classes: int) -> None:
    rates = (1.0, 0.1)
    learner = built(Bias(rates), spec_of("classification", 2, 1, 1, classes))
    b = np.zeros((2, classes))
    for base_output, target, known, inputs in examples(60, classes):
        wanted = np.stack([softmax(logs(base_output) + row) for row in b])
        mine = learner.predict(torch.from_numpy(inputs), base(base_output[None]))[:, 0].numpy()
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-6)
        learn(learner, inputs, base_output, target, known)
        if known:
            b += np.array(rates)[:, None] * (target - wanted)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_gain_is_an_inverse_temperature(classes: int) -> None:
    rates, limit = (0.5, 0.05), 2.5
    learner = built(Gain(rates, limit=limit), spec_of("classification", 2, 1, 1, classes))
    g, curvature = np.ones(2), np.ones(2)
    for base_output, target, known, inputs in examples(60, classes):
        u = logs(base_output)
        wanted = np.stack([softmax(v * u) for v in g])
        mine = learner.predict(torch.from_numpy(inputs), base(base_output[None]))[:, 0].numpy()
        np.testing.assert_allclose(mine, wanted, rtol=1e-3, atol=1e-6)
        learn(learner, inputs, base_output, target, known)
        if known:
            for k, rate in enumerate(rates):
                slope = g[k] * ((target - wanted[k]) @ u)
                variance = wanted[k] @ u**2 - (wanted[k] @ u) ** 2
                curvature[k] += rate * (g[k] ** 2 * variance - curvature[k])
                step = min(max(slope / max(curvature[k], 1.0), -1.0), 1.0)
                g[k] = min(max(g[k] * np.exp(rate * step), 1.0 / limit), limit)
    assert np.ptp(g) > 0.0


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_calibration_is_online_newton_on_scale_and_offset(classes: int) -> None:
    forgetting = 0.9
    learner = built(Calibration(forgetting), spec_of("classification", 2, 1, 1, classes))
    m = [10.0 * np.eye(2) for _ in range(classes)]
    v = np.zeros((classes, 2))
    for base_output, target, known, inputs in examples(60, classes):
        u = logs(base_output)
        wanted = softmax(u + v[:, 0] * u + v[:, 1])
        mine = learner.predict(torch.from_numpy(inputs), base(base_output[None]))[0, 0].numpy()
        np.testing.assert_allclose(mine, wanted, rtol=1e-3, atol=1e-6)
        learn(learner, inputs, base_output, target, known)
        if known:
            for c in range(classes):
                x = np.array([u[c], 1.0])
                m[c] = forgetting * m[c] + np.outer(x, x) + (1.0 - forgetting) * 10.0 * np.eye(2)
                v[c] += np.linalg.solve(m[c], x) * 2.0 * (target[c] - wanted[c])


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_rls_regresses_the_residual_of_the_one_hot_target(classes: int) -> None:
    forgetting, ridge = 0.9, 0.1
    learner = built(RLS(forgetting), spec_of("classification", 2, 1, 1, classes))
    d = 2 + 1 + classes - 1
    m, v, turn = ridge * np.eye(d), np.zeros((d, classes)), 0
    for base_output, target, known, inputs in examples(60, classes):
        x = np.concatenate([inputs.ravel(), [1.0], base_output[:-1]]).astype(np.float64)
        scores = np.maximum(base_output + x @ v, SHARE / classes)
        mine = learner.predict(torch.from_numpy(inputs), base(base_output[None]))[0, 0].numpy()
        np.testing.assert_allclose(mine, scores / scores.sum(), rtol=1e-4, atol=1e-6)
        learn(learner, inputs, base_output, target, known)
        if known:
            m = forgetting * m + np.outer(x, x)
            m[turn, turn] += (1.0 - forgetting) * ridge * d
            turn = (turn + 1) % d
            v += np.outer(np.linalg.solve(m, x), target - base_output - x @ v)


@pytest.mark.parametrize("name", ["bias", "gain", "calibration", "rls", "rls-l1"])
@pytest.mark.parametrize("classes", [2, 3])
def test_families_equal_their_members_bit_for_bit(name: str, classes: int) -> None:
    case = Case("classification", 2, classes + 1, 1, classes)
    settings_of: dict[str, Any] = {
        "bias": Bias,
        "gain": Gain,
        "calibration": Calibration,
        "rls": RLS,
    }
    more: dict[str, Any] = {"loss": "l1"} if name == "rls-l1" else {}
    cls = settings_of[name.removesuffix("-l1")]
    rates = (0.9, 0.5)
    steps = case.steps(80, cls(0.5, **more).matures, CPU)
    together = drive(built(cls(rates, **more), case.spec(CPU)), steps)
    for k, rate in enumerate(rates):
        alone = drive(built(cls(rate, **more), case.spec(CPU)), steps)
        assert all(
            torch.equal(both[k], one.view(1, classes))
            for both, one in zip(together, alone, strict=True)
        )


# -- the simplex


def clipped(scores: Tensor) -> Tensor:
    rows = scores.double().numpy().copy()
    for row in rows:
        clip_to_simplex(row)
    return torch.from_numpy(rows).float()


@given(st.lists(st.floats(-5.0, 5.0, width=32), min_size=2, max_size=8))
def test_clipped_scores_are_a_distribution_without_zeros(scores: list[float]) -> None:
    p = clipped(torch.tensor([scores]))
    assert on_simplex(p)
    assert p.min() > 0.0
    assert (
        int(p.argmax()) in (torch.tensor(scores) == max(scores)).nonzero().flatten().tolist()
        or max(scores) < 0.1
    )


def test_a_distribution_is_unchanged() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25]])
    torch.testing.assert_close(clipped(p), p)
    torch.testing.assert_close(torch.softmax(log_odds(p), -1), p)
