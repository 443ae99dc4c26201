"""Recursive least squares against closed forms, a slow transcription of the formulas, and its own
bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import CPU, base, built, entries, spec_of, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from streamadapt import Forecast, Persistence, Pipeline
from streamadapt.errors import ConfigError
from streamadapt.learners import RLS
from streamadapt.learners.rls.matrices import absorb, covariance_bound, forget
from streamadapt.models.fit import fit_forecast
from streamadapt.records import Batch
from streamadapt.testing.checks.cases import Case, drive

PLAIN = {"forgetting": 1.0, "clip": 1e9}
"""No forgetting (and so no leak), no clipping: ridge regression, done one row at a time."""


def ridge(x: Any, y: Any, penalty: float) -> Any:
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def test_regression_is_ridge_in_closed_form() -> None:
    window, channels, outputs, ridge_weight = 2, 3, 4, 0.25
    scale = torch.tensor([1.0, 2.0, 4.0, 0.5])
    learner = built(
        RLS(**PLAIN, ridge=ridge_weight),
        spec_of("regression", window, channels, 1, outputs, scale=scale),
    )
    rng = np.random.default_rng(0)
    rows, left = [], []
    for _ in range(80):
        inputs = torch.from_numpy(rng.normal(size=(window, channels)).astype(np.float32))
        said = base(rng.normal(size=(1, outputs)))
        target = base(rng.normal(size=(1, outputs))).output
        learner.learn(inputs, said, target, torch.ones(1, outputs, dtype=torch.bool))
        rows.append(np.append((inputs / scale[:channels]).double().numpy().ravel(), 1.0))
        left.append(((target.double() - said.output) / scale).numpy()[0])
    x, y = np.array(rows), np.array(left)
    np.testing.assert_allclose(
        learner.state.weights[0, 0], ridge(x, y, ridge_weight), rtol=0, atol=1e-8
    )
    inverse = np.linalg.inv(x.T @ x + ridge_weight * np.eye(x.shape[1]))
    np.testing.assert_allclose(learner.state.covariance[0, 0], inverse, rtol=0, atol=1e-8)


def test_one_step_forecasts_are_ridge_in_closed_form() -> None:
    """With a horizon of one every gain is used at once, so the recursion is exact; one regression
    per channel."""
    window, n = 4, 3
    z = walk(120, n).astype(np.float64)
    learner = RLS(**PLAIN, ridge=0.5)
    pipeline = Pipeline(Forecast(window, 1), Persistence(1), [learner])
    pipeline.observe(entries(z))
    spec = pipeline.spec
    assert spec is not None
    scaled = (
        ((torch.from_numpy(z.astype(np.float32)) - spec.input_loc) / spec.input_scale)
        .double()
        .numpy()
    )
    for c in range(n):
        rows = [
            np.append(scaled[t - window : t - 1, c] - scaled[t - 1, c], 1.0)
            for t in range(window, len(z))
        ]
        step = [
            (z[t, c] - z[t - 1, c]) / float(spec.output_scale[c]) for t in range(window, len(z))
        ]
        wanted = ridge(np.array(rows), np.array(step), 0.5)
        # The stream is float32, which is what 1e-5 is for; the recursion itself is compared to
        # 1e-9 below.
        np.testing.assert_allclose(learner.state.weights[0, c, :, 0], wanted, rtol=0, atol=2e-5)


def test_matured_forecasts_equal_gain_weighted_least_squares() -> None:
    """Row h of a forecast is learned h entries late with the gain of its own time; unclipped, that
    is closed form.

    v <- v + k_s (y_s - x_s v) with k_s = P_s x_s and P_s of all inputs up to s: for h = 1 ridge
    regression, and for every h the fixed point of noiseless targets, whatever the order of
    arrival.
    """
    t, n, d = 3, 2, 4
    learner = built(RLS(**PLAIN, ridge=1e-9), spec_of("forecast", d, n, t, n))
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(n, d, t))
    xs: list[Any] = []
    for i in range(200):
        window = rng.normal(size=(d, n)).astype(np.float32)
        xs.append(window)
        target = np.zeros((t, n))
        mask = np.zeros((t, n), bool)
        for h in range(min(t, i + 1)):
            w = xs[i - h].astype(np.float64)
            f = np.concatenate([(w[:-1] - w[-1]).T, np.ones((n, 1))], 1)  # (n, d)
            target[h] = np.einsum("nd,nd->n", f, truth[:, :, h])
            mask[h] = True
        learner.learn(
            torch.from_numpy(window),
            base(np.zeros((t, n))),
            torch.from_numpy(target),
            torch.from_numpy(mask),
        )
    np.testing.assert_allclose(learner.state.weights[0], truth, rtol=0, atol=1e-6)


class Slow:
    """The docstring's formulas, a channel and a row at a time, in numpy float64, with P's inverse
    kept and inverted."""

    def __init__(self, spec: Any, forgetting: float, clip: float, ridge_weight: float) -> None:
        self.spec, self.lam, self.clip, self.ridge = spec, forgetting, clip, ridge_weight
        t, n, d = spec.rows, spec.columns, spec.window
        self.inverse = [np.eye(d) * ridge_weight for _ in range(n)]
        self.p = [np.eye(d) / ridge_weight for _ in range(n)]
        self.turn = 0
        self.w = np.zeros((n, d, t))
        self.m = np.full((n, t), 0.3)
        self.ring: list[list[tuple[Any, Any]]] = [[] for _ in range(n)]  # newest first

    def features(self, inputs: Any, c: int) -> Any:
        z = inputs[:, c] / np.float32(self.spec.input_scale[c])
        return np.append((z[:-1] - z[-1]).astype(np.float64), 1.0)

    def learn(self, inputs: Any, said: Any, target: Any, mask: Any) -> None:
        scale = self.spec.output_scale.numpy()
        for c in range(self.spec.columns):
            x = self.features(inputs, c)
            inverse = self.lam * self.inverse[c] + np.outer(x, x)
            inverse[self.turn, self.turn] += (1.0 - self.lam) * self.ridge * len(x)
            self.inverse[c], self.p[c] = inverse, np.linalg.inv(inverse)
            k = self.p[c] @ x
            self.ring[c] = [(x, k), *self.ring[c]][: self.spec.rows]
            for h, (old_x, old_k) in enumerate(self.ring[c]):
                if mask[h, c]:
                    e = (float(target[h, c]) - float(said[h, c])) / float(
                        scale[c]
                    ) - old_x @ self.w[c, :, h]
                    self.m[c, h] += 0.01 * (abs(e) - self.m[c, h])
                    bound = self.clip * self.m[c, h]
                    self.w[c, :, h] += old_k * min(max(e, -bound), bound)
        self.turn = (self.turn + 1) % self.spec.window

    def residual(self, inputs: Any) -> Any:
        x = [self.features(inputs, c) for c in range(self.spec.columns)]
        return np.stack([x[c] @ self.w[c] for c in range(self.spec.columns)], 1)  # (t, n)


@pytest.mark.parametrize("forgetting", [0.95, 0.9995, 1.0])
@pytest.mark.parametrize(("window", "n", "t"), [(5, 3, 4), (3, 3, 3), (2, 1, 1)])
def test_equals_the_slow_transcription(forgetting: float, window: int, n: int, t: int) -> None:
    scale = 1.0 + torch.arange(n, dtype=torch.float32)
    spec = spec_of("forecast", window, n, t, n, scale=scale)
    fast, slow = built(RLS(forgetting, clip=1.5), spec), Slow(spec, forgetting, 1.5, 0.1)
    rng = np.random.default_rng(0)
    for i in range(300):
        # Heavy tails, so that clipping matters; values that stand still for a while, so that the
        # leak does.
        inputs = rng.standard_t(5, size=(window, n)).astype(np.float32) * (
            0.0 if 100 < i < 200 else 1.0
        )
        said, target = (rng.standard_t(2, size=(t, n)).astype(np.float32) for _ in range(2))
        mask = rng.random((t, n)) < 0.8
        mask[i + 1 :] = False
        fast.learn(
            torch.from_numpy(inputs), base(said), torch.from_numpy(target), torch.from_numpy(mask)
        )
        slow.learn(inputs, said, target, mask)
        np.testing.assert_allclose(fast.state.weights[0], slow.w, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(fast.state.innovation[0], slow.m, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(
            fast.state.covariance[0], np.stack(slow.p), rtol=1e-7, atol=1e-8
        )
    predicted = fast.predict(torch.from_numpy(inputs), base(said))[0].numpy()
    np.testing.assert_allclose(predicted, said + slow.residual(inputs) * scale.numpy(), rtol=1e-5)


def learn_inputs(learner: RLS, inputs: Any, n: int, t: int) -> None:
    zeros = base(np.zeros((t, n)))
    learner.learn(torch.as_tensor(inputs), zeros, zeros.output, zeros.output == 0)


def assert_bounded(learner: RLS) -> None:
    p = learner.state.covariance[0]
    d = p.shape[-1]
    assert np.isfinite(p).all()
    assert np.array_equal(p, p.transpose(0, 2, 1)), "symmetric to the last bit"
    eigenvalues = np.linalg.eigvalsh(p).reshape(len(learner.forgetting), -1)
    for values, forgetting in zip(eigenvalues, learner.forgetting, strict=True):
        assert values.max() <= covariance_bound(forgetting, d, learner.ridge) * (1 + 1e-9), (
            values.max()
        )
        assert values.min() >= 0.0, "positive definite"


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1e-6, 1.0, 1e3, 1e6, 1e12, 1e30]),
    st.sampled_from([2, 3, 8, 19]),
    st.floats(0.0, 1.0),
)
def test_covariance_is_bounded_whatever_comes(
    seed: int, size: float, window: int, often: float
) -> None:
    """Also with outliers of a size that leaves no other digit of a float64, as often as not."""
    n, t = 2, 2
    learner = built(RLS((0.95, 0.999)), spec_of("forecast", window, n, t, n))
    rng = np.random.default_rng(seed)
    for _ in range(120):
        wild = rng.random((window, n)) < often
        inputs = np.where(wild, size, 1.0) * rng.normal(size=(window, n))
        learn_inputs(learner, inputs.astype(np.float32), n, t)
        assert_bounded(learner)


@pytest.mark.parametrize("level", [0.0, 1.0, -1000.0])
def test_covariance_is_bounded_over_thousands_of_constant_inputs(level: float) -> None:
    learner = built(RLS(0.95), spec_of("forecast", 6, 2, 2, 2))
    constant = torch.full((6, 2), level)
    for i in range(4_000):
        learn_inputs(learner, constant, 2, 2)
        if i % 500 == 0:
            assert_bounded(learner)
    assert_bounded(learner)
    for _ in range(50):  # and it still learns from what comes after
        learn_inputs(learner, torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), 2, 2)
    assert_bounded(learner)


def test_the_naive_form_is_not_bounded() -> None:
    """What the leak is there for: without it the same constant inputs take the covariance through
    any bound."""
    x, p = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]), np.eye(6) / 0.1
    for _ in range(600):
        forget(p, 0.95, 0.0, 0, np.zeros(6))
        absorb(p, x, np.zeros(6))
    assert p.diagonal().max() > 1e9
    assert p.diagonal().max() > covariance_bound(0.95, 6, 0.1)


@pytest.mark.parametrize(
    "case", [Case("forecast", 5, 3, 4, 3), Case("regression", 2, 3, 1, 4)], ids=lambda c: c.kind
)
def test_a_family_equals_its_members_bit_for_bit(case: Case) -> None:
    rates = (0.95, 0.99, 0.9995)
    steps = case.steps(150, "rows", CPU)
    family = built(RLS(rates), case.spec(CPU))
    together = drive(family, steps)
    for k, rate in enumerate(rates):
        alone = drive(built(RLS(rate), case.spec(CPU)), steps)
        for both, one in zip(together, alone, strict=True):
            assert torch.equal(both[k], one.view(both[k].shape)), rate
    assert family.names == tuple(built(RLS(rate), case.spec(CPU)).names[0] for rate in rates)


def test_prior_is_the_history_learned_before() -> None:
    """Starting from the fit's statistics equals having learned that history (its own and the
    channels' mean)."""
    history = walk(400, 3, seed=5)
    fitted = fit_forecast(Batch(history, np.arange(400)), 6, 2)
    prior = fitted.prior()
    assert prior is not None
    learner = RLS(1.0, clip=float("inf"), ridge=0.1)
    pipeline = Pipeline(Forecast(6, 2), fitted, [learner])
    pipeline.observe(entries(walk(6, 3, seed=6)))
    p = np.linalg.inv((prior.gram + prior.gram.mean(0)).numpy() + 0.1 * np.eye(6))
    np.testing.assert_allclose(learner.state.covariance[0], p, rtol=1e-6)
    moment = (prior.moment + prior.moment.mean(0)).numpy()
    np.testing.assert_allclose(learner.state.weights[0], p @ moment, rtol=1e-5, atol=1e-9)


def test_a_start_from_history_stays_symmetric() -> None:
    """The inverse of a statistic is not symmetric to the last bit; what is left over would grow
    with every example."""
    fitted = fit_forecast(Batch(walk(400, 3, seed=5), np.arange(400)), 12, 2)
    learner = RLS(0.8)
    Pipeline(Forecast(12, 2), fitted, [learner]).observe(entries(walk(600, 3, seed=6)))
    assert_bounded(learner)


def test_restored_gains_are_not_used_for_other_entries() -> None:
    spec = spec_of("forecast", 4, 1, 3, 1)
    learner = built(RLS(0.99), spec)
    g = torch.Generator().manual_seed(0)
    ones = torch.ones(3, 1)
    for _ in range(20):
        learner.learn(torch.randn(4, 1, generator=g), base(torch.zeros(3, 1)), ones, ones > 0)
    snapshot = learner.snapshot()
    learner.restore(snapshot)
    before = learner.state.weights[0].copy()
    learner.learn(torch.randn(4, 1, generator=g), base(torch.zeros(3, 1)), ones, ones > 0)
    moved = np.abs(learner.state.weights[0] - before).sum(1)[0]  # (rows,)
    assert moved[0] > 0, "the newest entry's own gain is there"
    assert (moved[1:] == 0).all(), (
        "older rows belong to entries that the restored learner never saw"
    )


def test_boost_forgets_faster_and_never_too_fast() -> None:
    spec = spec_of("forecast", 4, 1, 1, 1)
    for boost, rate in ((5.0, 0.95), (1e9, 0.5)):
        boosted, plain = built(RLS(0.99), spec), built(RLS(rate), spec)
        boosted.boost = boost
        for learner in (boosted, plain):
            learn_inputs(learner, torch.ones(4, 1), 1, 1)
        np.testing.assert_allclose(boosted.state.covariance, plain.state.covariance, rtol=1e-7)


@pytest.mark.parametrize("keep", [0.0, 1e-6, 0.1, 0.9])
def test_forgetting_leaves_a_part_of_the_information(keep: float) -> None:
    learner = built(RLS((0.9, 0.999)), spec_of("forecast", 5, 2, 2, 2))
    rng = np.random.default_rng(0)
    for _ in range(60):
        learn_inputs(learner, rng.normal(size=(5, 2)).astype(np.float32), 2, 2)
    information = np.linalg.inv(learner.state.covariance[0])
    weights = learner.state.weights.copy()
    learner.forget(keep)
    wanted = np.linalg.inv(keep * information + (1.0 - keep) * 0.1 * np.eye(5))
    np.testing.assert_allclose(learner.state.covariance[0], wanted, rtol=1e-7, atol=1e-9)
    assert np.array_equal(learner.state.weights, weights)
    assert_bounded(learner)


def test_a_broken_covariance_starts_again() -> None:
    learner = built(RLS(0.9), spec_of("forecast", 5, 2, 2, 2))
    learner.state.covariance[0, 0] = np.nan
    learner.forget(0.5)
    assert np.array_equal(learner.state.covariance[0, 0], np.eye(5) / 0.1)


@pytest.mark.parametrize(
    "bad",
    [
        {"forgetting": 0.0}, {"forgetting": 1.1}, {"forgetting": (0.9, 0.9)}, {"forgetting": ()},
        {"forgetting": float("nan")}, {"clip": 0.0}, {"ridge": float("nan")}, {"ridge": 0.0},
        {"loss": "l2"}, {"features": ["colour"]}, {"features": "level"}, {"period": "1 day"},
    ],
)  # fmt: skip
def test_bad_settings(bad: Any) -> None:
    with pytest.raises(ConfigError):
        RLS(**bad)
