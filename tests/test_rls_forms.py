"""Recursive least squares: shared weights, the L1 form, further features and the robust start."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import CPU, base, built, entries, spec_of, walk, with_scaling

from streamadapt import Entry, Forecast, Linear, NoGuard, Persistence, Pipeline
from streamadapt.errors import ConfigError
from streamadapt.learners import RLS, BaseOutput
from streamadapt.learners.compiled import shared_of
from streamadapt.learners.lots import Input
from streamadapt.learners.rls.features import EXTRA_SCALE, Extra, fill_features
from streamadapt.models.fit import fit_forecast
from streamadapt.records import Batch
from streamadapt.testing.checks.cases import Case, drive

SIZES = [(5, 3, 4), (3, 3, 3), (2, 1, 1)]


class Slow:
    """The formulas, a channel and a row at a time, in numpy float64; matrices are inverted anew
    each time."""

    def __init__(
        self, spec: Any, forgetting: float, *, shared: bool, robust: bool, clip: float = 1.5
    ) -> None:
        self.spec, self.lam, self.shared, self.robust, self.clip = (
            spec,
            forgetting,
            shared,
            robust,
            clip,
        )
        self.sets = 1 if shared else spec.columns
        d = spec.window
        self.m = [np.eye(d) * 0.1 for _ in range(self.sets)]
        self.w = np.zeros((self.sets, d, spec.rows))
        self.size = np.full((spec.columns, spec.rows), 0.3)
        self.ring: list[list[tuple[Any, Any]]] = []  # newest first; x and gain of every channel
        self.turn = 0

    def features(self, inputs: Any, c: int) -> Any:
        z = inputs[:, c] / np.float32(self.spec.input_scale[c])
        return np.append((z[:-1] - z[-1]).astype(np.float64), 1.0)

    def error(self, x: Any, said: Any, target: Any, h: int, c: int) -> float:
        scale = self.spec.output_scale.numpy()[c]
        return (float(target[h, c]) - float(said[h, c])) / float(scale) - x @ self.w[
            0 if self.shared else c, :, h
        ]

    def forget(self, group: int) -> None:
        self.m[group] = self.m[group] * self.lam
        if self.shared:
            self.m[group] += (1.0 - self.lam) * 0.1 * np.eye(len(self.m[group]))
        else:
            self.m[group][self.turn, self.turn] += (1.0 - self.lam) * 0.1 * len(self.m[group])

    def learn(self, inputs: Any, said: Any, target: Any, mask: Any) -> None:
        channels = range(self.spec.columns)
        xs = [self.features(inputs, c) for c in channels]
        (self.learn_robustly if self.robust else self.learn_rows)(xs, said, target, mask, channels)
        self.turn = (self.turn + 1) % self.spec.window

    def learn_rows(self, xs: Any, said: Any, target: Any, mask: Any, channels: Any) -> None:
        for g in range(self.sets):
            self.forget(g)
        for c in channels:
            self.m[0 if self.shared else c] += np.outer(xs[c], xs[c])
        gains = [np.linalg.solve(self.m[0 if self.shared else c], xs[c]) for c in channels]
        self.ring = [list(zip(xs, gains, strict=True)), *self.ring][: self.spec.rows]
        moved = self.w.copy()
        for h, old in enumerate(self.ring):
            for c, (x, k) in enumerate(old):
                if mask[h, c]:
                    e = self.error(x, said, target, h, c)
                    self.size[c, h] += 0.01 * (abs(e) - self.size[c, h])
                    bound = self.clip * self.size[c, h]
                    moved[0 if self.shared else c, :, h] += k * min(max(e, -bound), bound)
        self.w = moved

    def learn_robustly(self, xs: Any, said: Any, target: Any, mask: Any, channels: Any) -> None:
        if not mask.any():
            self.turn -= 1  # nothing happens
            return
        weights, errors = [], []
        for c in channels:
            e = [
                self.error(xs[c], said, target, h, c) if mask[h, c] else 0.0
                for h in range(self.spec.rows)
            ]
            ratios = [abs(v) / self.size[c, h] for h, v in enumerate(e) if mask[h, c]]
            weights.append(min(1.0 / 0.3, 1.0 / np.mean(ratios)) if ratios else 0.0)
            errors.append(e)
            for h, v in enumerate(e):
                if mask[h, c]:
                    self.size[c, h] += 0.005 * (abs(v) - self.size[c, h])
        for g in range(self.sets):
            if self.shared or weights[g] > 0.0:
                self.forget(g)
        for c in channels:
            self.m[0 if self.shared else c] += weights[c] * np.outer(xs[c], xs[c])
        for c in channels:
            k = weights[c] * np.linalg.solve(self.m[0 if self.shared else c], xs[c])
            for h in range(self.spec.rows):
                self.w[0 if self.shared else c, :, h] += k * errors[c][h]


@pytest.mark.parametrize("forgetting", [0.95, 1.0])
@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("window", "n", "t"), SIZES)
def test_equals_the_slow_transcription(
    shared: bool, robust: bool, forgetting: float, window: int, n: int, t: int
) -> None:
    spec = spec_of("forecast", window, n, t, n, scale=1.0 + torch.arange(n, dtype=torch.float32))
    fast = built(
        RLS(forgetting, clip=1.5, shared=shared, loss="l1" if robust else "squared"), spec
    )
    slow = Slow(spec, forgetting, shared=shared, robust=robust)
    rng = np.random.default_rng(0)
    for i in range(80):
        inputs = rng.standard_t(5, size=(window, n)).astype(np.float32) * (
            0.0 if 30 < i < 50 else 1.0
        )
        said, target = (rng.standard_t(2, size=(t, n)).astype(np.float32) for _ in range(2))
        mask = rng.random((t, n)) < 0.6
        mask[i + 1 :] = False
        given = np.where(mask, target, np.nan)
        fast.learn(
            torch.from_numpy(inputs), base(said), torch.from_numpy(given), torch.from_numpy(mask)
        )
        slow.learn(inputs, said, target, mask)
        np.testing.assert_allclose(fast.state.weights[0], slow.w, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(fast.state.innovation[0], slow.size, rtol=1e-7, atol=1e-8)
        state = fast.state
        inverse = state.information[0] if shared else np.linalg.inv(state.covariance[0])
        np.testing.assert_allclose(inverse, np.stack(slow.m), rtol=1e-6, atol=1e-8)
    wanted = said + np.stack(
        [slow.features(inputs, c) @ slow.w[0 if shared else c] for c in range(n)], 1
    ) * (spec.output_scale.numpy())
    np.testing.assert_allclose(
        fast.predict(torch.from_numpy(inputs), base(said))[0].numpy(), wanted, rtol=1e-5
    )


@pytest.mark.parametrize(
    "case", [Case("forecast", 5, 3, 4, 3), Case("forecast", 3, 3, 3, 3)], ids=str
)
@pytest.mark.parametrize(
    "form",
    [
        {"shared": True},
        {"loss": "l1"},
        {"shared": True, "loss": "l1"},
        {"features": ["cross", "calendar"]},
    ],
)
def test_a_family_equals_its_members_bit_for_bit(form: Any, case: Case) -> None:
    rates = (0.95, 0.9995)
    family = built(RLS(rates, **form), case.spec(CPU))
    steps = case.steps(100, family.matures, CPU)
    together = drive(family, steps)
    for k, rate in enumerate(rates):
        alone = drive(built(RLS(rate, **form), case.spec(CPU)), steps)
        for both, one in zip(together, alone, strict=True):
            assert torch.equal(both[k], one.view(both[k].shape)), rate


def test_the_l1_form_finds_the_median() -> None:
    """Of skewed errors: least squares ends at their mean, the L1 form closer to their median."""
    spec = spec_of("regression", 1, 1, 1, 1)
    rng = np.random.default_rng(0)
    errors = rng.exponential(1.0, size=800)
    found = {}
    for loss in ("squared", "l1"):
        learner = built(RLS(0.998, clip=math.inf, loss=loss), spec)  # type: ignore[arg-type]
        for e in errors:
            target = torch.tensor([[float(e)]])
            learner.learn(torch.zeros(1, 1), base([[0.0]]), target, target > -1)
        found[loss] = learner.predict(torch.zeros(1, 1), base([[0.0]])).item()
    assert abs(found["squared"] - 1.0) < 0.1
    assert abs(found["l1"] - math.log(2.0)) < 0.1


def test_a_channel_without_a_target_forgets_nothing_in_the_l1_form() -> None:
    learner = built(RLS(0.9, loss="l1"), spec_of("forecast", 4, 2, 3, 2))
    before = learner.state.covariance[0].copy()
    mask = torch.zeros(3, 2, dtype=torch.bool)
    mask[:, 0] = True
    learner.learn(
        torch.randn(4, 2, generator=torch.Generator().manual_seed(0)),
        base(np.zeros((3, 2))),
        mask * 1.0,
        mask,
    )
    assert np.array_equal(learner.state.covariance[0, 1], before[1])
    assert not np.array_equal(learner.state.covariance[0, 0], before[0])


@pytest.mark.parametrize("shared", [False, True])
def test_wild_inputs_leave_the_learner_finite(shared: bool) -> None:
    learner = built(
        RLS((0.95, 1.0), shared=shared, features=["cross"]), spec_of("forecast", 6, 3, 2, 3)
    )
    rng = np.random.default_rng(0)
    ones = torch.ones(2, 3)
    for i in range(300):
        inputs = torch.from_numpy(
            (rng.normal(size=(6, 3)) * (1e30 if i % 7 == 0 else 1.0)).astype(np.float32)
        )
        learner.learn(inputs, base(np.zeros((2, 3))), ones, ones > 0)
        assert torch.isfinite(learner.predict(inputs, base(np.zeros((2, 3))))).all(), i
    assert all(torch.isfinite(v).all() for v in learner.state_dict().values())


# -- features


def features(spec: Any, extras: tuple[Extra, ...], inputs: Any, said: BaseOutput) -> Any:
    """The features x of an entry, (groups, features)."""
    learner = RLS(features=extras)
    room = learner.room(spec)
    times = np.zeros(0, np.int64) if said.times is None else said.times.numpy()
    x = Input(inputs, times, said.output.double().numpy(), np.zeros(0, np.float32))
    fill_features(shared_of(spec), learner.settings(spec), room, x)
    return room.x


def test_features_are_the_documented_ones() -> None:
    spec = spec_of("forecast", 5, 2, 3, 2, scale=torch.tensor([2.0, 4.0]))
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(5, 2)).astype(np.float32)
    six = 6 * 3600 * 10**9  # a quarter of a day past midnight
    said = BaseOutput(
        torch.zeros(3, 2), None, torch.tensor([0, 0, 0, 0, 3 * 86_400 * 10**9 + six])
    )
    made = features(spec, ("level", "calendar", "cross"), inputs, said)
    z = inputs / np.array([2.0, 4.0], np.float32)
    for c in range(2):
        plain = np.append(z[:-1, c] - z[-1, c], 1.0)
        calendar = [1.0, 0.0, 0.0, -1.0]  # sin and cos of a quarter of a turn, and of half a turn
        cross = np.concatenate([z[-1], z[-1] - z[-2], z[-1] - z[-4]])
        np.testing.assert_allclose(
            made[c],
            np.concatenate([plain, EXTRA_SCALE * np.concatenate([calendar, cross])]),
            rtol=1e-5,
            atol=1e-8,
        )
    level = features(spec, ("level",), inputs, said)
    np.testing.assert_allclose(level[:, -1], EXTRA_SCALE * z[-1], rtol=1e-5)
    assert level.shape == (2, 6)


def test_a_large_panel_is_seen_through_its_mean() -> None:
    n = 60
    inputs = walk(5, n, seed=1)
    spec = spec_of("forecast", 5, n, 1, n)
    made = features(spec, ("cross",), inputs, base(np.zeros((1, n))))
    mean = inputs.mean(1) * math.sqrt(n)
    assert made.shape[1] == 5 + 3  # nine entries ago is before the window
    np.testing.assert_allclose(made[:, 5], np.full(n, EXTRA_SCALE * mean[-1]), rtol=1e-5)
    np.testing.assert_allclose(
        made[:, 6], np.full(n, EXTRA_SCALE * (mean[-1] - mean[-4])), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(made[:, 7], EXTRA_SCALE * inputs[-1], rtol=1e-5)


def test_a_channel_learns_from_another() -> None:
    """Channel 1 is channel 0 of the entry before: only a learner that looks across can know."""
    rng = np.random.default_rng(0)
    lead = rng.normal(size=1301).astype(np.float32)
    values = np.stack([lead[1:], lead[:-1]], 1)
    history = Batch(values[:1000], np.arange(1000))
    fitted = fit_forecast(history, 3, 1)
    plain, cross = RLS(0.9995), RLS(0.9995, features=["cross"])
    pipeline = Pipeline(Forecast(3, 1), fitted, [plain, cross], NoGuard())
    pipeline.observe(entries(values[1000:]))
    loss = pipeline.stats.loss_sum
    assert loss["rls-cross-0.9995"] < 0.95 * loss["rls-0.9995"]


@pytest.mark.parametrize("loss", ["squared", "l1"])
def test_what_is_learned_is_what_was_seen_when_the_forecast_was_issued(loss: Any) -> None:
    """The season too, though it has gone on since: x at the learning is x at the prediction, entry
    by entry."""
    horizon, period, n = 3, 6, 40
    z = walk(n, 2)
    learner = RLS(0.99, loss=loss, features=["season"], period="6s")
    pipeline = Pipeline(
        Forecast(2, horizon), with_scaling(Persistence(horizon), 2, 2), [learner], NoGuard()
    )
    rooms: list[Any] = []
    _keep_results(learner, "room", rooms)
    issued: dict[int, Any] = {}
    learned: list[tuple[int, Any]] = []
    for t in range(n):
        if pipeline.spec is not None:
            see = rooms[-1].x.copy
            _after(learner, "predict", lambda t=t, see=see: issued.__setitem__(t, see()))
            _after(learner, "learn", lambda t=t, see=see: learned.append((t, see())))
        pipeline.observe([Entry(z[t], t * 10**9, id=str(t))])
        for name in ("predict", "learn"):
            vars(learner).pop(name, None)
    late = horizon if loss == "l1" else 1
    assert len(learned) > 25
    for t, x in learned:
        if t - late in issued:
            assert np.array_equal(x, issued[t - late]), t
    spec = pipeline.spec
    assert spec is not None
    t = n - 1
    scaled = (z / spec.input_scale.numpy()).astype(np.float64)
    ago = [scaled[t - period + h] - scaled[t - period] for h in range(1, horizon + 1)]
    wanted = EXTRA_SCALE * np.stack([*ago, scaled[t - period] - scaled[t]], 1)
    np.testing.assert_allclose(issued[t][:, -horizon - 1 :], wanted, rtol=1e-3, atol=1e-6)


def _after(learner: RLS, name: str, call: Any) -> None:
    """Call something after each call of a method of a learner."""
    method = getattr(type(learner), name)

    def extended(*args: Any) -> Any:
        result = method(learner, *args)
        call()
        return result

    vars(learner)[name] = extended


def _keep_results(learner: RLS, name: str, results: list[Any]) -> None:
    """Keep what a method of a learner returns."""
    method = getattr(type(learner), name)

    def extended(*args: Any) -> Any:
        results.append(method(learner, *args))
        return results[-1]

    vars(learner)[name] = extended


def test_a_wild_value_one_period_ago_is_clipped() -> None:
    learner = RLS(0.99, features=["season"], period="6s")
    z = walk(60, 2)
    z[20, 0] = 1e30
    pipeline = Pipeline(Forecast(2, 3), with_scaling(Persistence(3), 2, 2), [learner], NoGuard())
    pipeline.observe([Entry(v, t * 10**9, id=str(t)) for t, v in enumerate(z)])
    assert all(torch.isfinite(v).all() for v in learner.state_dict().values())
    assert pipeline.stats.updates[learner.names[0]]["restored"] == 0


def test_the_first_entry_of_all_has_no_season() -> None:
    """Also where the window is one entry, and there is no step to compare times with."""
    learner = built(RLS(0.99, features=["season"], period="6s"), spec_of("forecast", 1, 2, 3, 2))
    said = BaseOutput(torch.zeros(3, 2), None, torch.tensor([10**18]))
    learner.adapt(torch.ones(1, 2), said)
    assert not learner.state.past_seasons.any()
    assert learner.state.cycle.last[0] == 10**18


def test_a_season_longer_than_the_window_is_learned() -> None:
    rng = np.random.default_rng(0)
    t = np.arange(1200)
    values = (np.sign(np.sin(2 * np.pi * t / 24)) + 0.1 * rng.normal(size=1200)).astype(
        np.float32
    )[:, None]
    fitted = fit_forecast(Batch(values[:300], t[:300]), 3, 6)
    learners = [RLS(0.9995), RLS(0.9995, features=["season"])]
    pipeline = Pipeline(Forecast(3, 6), fitted, learners, NoGuard())
    hour = 3600 * 10**9
    pipeline.observe([Entry(v, i * hour, id=str(i)) for i, v in enumerate(values[300:])])
    loss = pipeline.stats.loss_sum
    assert loss["rls-season-0.9995"] < 0.8 * loss["rls-0.9995"]


# -- the start


def robust_history() -> tuple[Any, Linear]:
    history = walk(500, 3, seed=5) + (
        np.random.default_rng(1).random((500, 3)) < 0.1
    ) * np.float32(8.0)  # skewed
    return history, fit_forecast(Batch(history.astype(np.float32), np.arange(500)), 4, 2)


def test_robust_sums_are_those_of_least_absolute_deviations() -> None:
    """Their solution has a smaller mean absolute error than the base, and is a fixed point of the
    reweighting."""
    history, fitted = robust_history()
    prior = fitted.prior()
    assert prior is not None
    assert prior.robust is not None
    w = torch.linalg.solve(
        prior.robust.gram.sum(0) + 0.1 * torch.eye(4, dtype=torch.float64),
        prior.robust.moment.sum(0),
    ).numpy()
    z = (history - fitted.input_loc.numpy()) / fitted.input_scale.numpy()
    x, left = [], []
    for t in range(4, 499):
        x.append(np.concatenate([(z[t - 4 : t - 1] - z[t - 1]).T, np.ones((3, 1))], 1))
        left.append((z[t : t + 2] - z[t - 1]).T - x[-1] @ fitted.weights.double().numpy())
    f, e = np.concatenate(x), np.concatenate(left)
    robust = np.abs(e - f @ w)
    assert robust.mean() < 0.99 * np.abs(e).mean()
    q = np.minimum(1.0 / (robust / robust.mean(0)).mean(1), 1.0 / 0.3)[:, None]
    again = np.linalg.solve((f * q).T @ f + 0.1 * np.eye(4), (f * q).T @ e)
    assert np.abs(robust - np.abs(e - f @ again)).mean() < 0.01 * robust.mean()


@pytest.mark.parametrize("shared", [False, True])
def test_robust_forms_start_from_the_robust_sums(shared: bool) -> None:
    _, fitted = robust_history()
    prior = fitted.prior()
    assert prior is not None
    assert prior.robust is not None
    forms: list[tuple[dict[str, Any], Any]] = [
        ({"loss": "l1"}, prior.robust), ({"clip": 2.0}, prior.robust), ({"clip": math.inf}, prior),
    ]  # fmt: skip
    for form, sums in forms:
        learner = RLS(0.99, shared=shared, features=["level"], **form)
        Pipeline(Forecast(4, 2), fitted, [learner]).observe(entries(walk(4, 3, seed=6)))
        worth = 100.0 / sums.gram[:, -1, -1].mean()
        group = (lambda t: t.sum(0)[None]) if shared else (lambda t: t + t.mean(0))
        m = np.zeros((1 if shared else 3, 5, 5))
        m[:, :4, :4] = worth * group(sums.gram)
        m += 0.1 * np.eye(5)  # what the history does not know has the ridge alone
        right = np.zeros((len(m), 5, 2))
        right[:, :4] = worth * group(sums.moment)
        np.testing.assert_allclose(
            learner.state.weights[0], np.linalg.solve(m, right), rtol=1e-6, atol=1e-10
        )


def test_robust_sums_survive_the_file(tmp_path: Path) -> None:
    _, fitted = robust_history()
    fitted.save(tmp_path / "base.safetensors")
    first, second = fitted.prior(), Linear.load(tmp_path / "base.safetensors").prior()
    assert first is not None
    assert second is not None
    assert first.robust is not None
    assert second.robust is not None
    assert torch.equal(first.robust.gram, second.robust.gram)
    assert torch.equal(first.robust.moment, second.robust.moment)


# -- names and refusals


def test_names_tell_the_forms_apart() -> None:
    forms: list[dict[str, Any]] = [
        {}, {"shared": True}, {"loss": "l1"}, {"features": ["cross"]},
        {"features": ["cross", "level"]}, {"shared": True, "loss": "l1", "features": ["calendar"]},
    ]  # fmt: skip
    names = [name for form in forms for name in RLS(0.998, **form).names]
    assert names == [
        "rls-0.998", "rls-shared-0.998", "rls-l1-0.998", "rls-cross-0.998",
        "rls-level-cross-0.998", "rls-shared-l1-calendar-0.998",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "form", [{"shared": True}, {"features": ["level"]}, {"features": ["calendar", "cross"]}]
)
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_forms_of_forecasts_alone_are_refused_elsewhere(kind: Any, form: Any) -> None:
    with pytest.raises(ConfigError, match=kind):
        built(RLS(**form), spec_of(kind, 2, 2, 1, 2))
