"""Error memory on forecasts: a slow transcription of the formulas, and what keys and rings do to a
panel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import built, entry, spec_of
from memory_stores import keys_of
from torch import Tensor

from streamadapt import ErrorMemory, Forecast, NoGuard, Persistence, Pipeline
from streamadapt.learners import BaseOutput
from streamadapt.learners.error_memory.keys import MOST_DIRECTIONS, WORTH

HOUR_NS = 3_600_000_000_000


def said(
    output: Tensor, embedding: Tensor | None = None, times: Tensor | None = None
) -> BaseOutput:
    return BaseOutput(output, embedding, times)


def test_forecasts_can_be_keyed_on_an_embedding() -> None:
    """One memory for the panel, by cosine: here the mean path of the two most similar of three."""
    learner = built(
        ErrorMemory(embedding="base", k=2, capacity=5),
        spec_of("forecast", 3, 2, 2, 2, embedding=2),
    )
    query = np.array([0.9, 0.2])
    paths = torch.arange(12.0).view(3, 2, 2)
    for h, path in zip(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 2.0]]), paths, strict=True):
        learner.learn(
            torch.zeros(3, 2), said(torch.zeros(2, 2), h), path, torch.ones(2, 2, dtype=torch.bool)
        )
    s = np.array([query @ [1.0, 0.0], query @ [0.8, 0.6]]) / np.linalg.norm(query)
    w = np.exp(s / 0.1) / np.exp(s / 0.1).sum()
    wanted = 7.0 + w[0] * paths[0].numpy() + w[1] * paths[1].numpy()
    (mine,) = learner.predict(
        torch.zeros(3, 2), said(torch.full((2, 2), 7.0), torch.tensor(query).float())
    )
    np.testing.assert_allclose(mine.numpy(), wanted, rtol=1e-6)


class SlowForecasts:
    """Section 2 of the formulas, one channel and one entry at a time, in float64."""

    def __init__(self, spec: Any, *, panel: bool, k: int, capacity: int, period: float) -> None:
        self.spec, self.panel, self.k, self.capacity, self.period = (
            spec,
            panel,
            k,
            capacity,
            period,
        )
        self.kept: list[
            tuple[Any, Any, Any]
        ] = []  # keys (columns, d), residuals (rows, columns), mask

    def keys(self, inputs: Any, times: Any) -> Any:
        z = ((inputs - self.spec.input_loc) / self.spec.input_scale).double().numpy()
        angle = 2 * np.pi * (int(times[-1]) % int(self.period * 1e9)) / (self.period * 1e9)
        phase = [np.sin(angle), np.cos(angle)]
        if self.panel:
            scale = (min(8, z.shape[1]) / z.shape[1]) ** 0.5
            parts = [scale * z[-1]] + [
                1.5 * scale * (z[-1] - z[-1 - lag]) for lag in (1, 3, 6) if lag < len(z)
            ]
            return np.concatenate([*parts, 1.5 * np.array(phase)])[None]
        m = min(len(z), 24)
        shape = np.linspace(0.3, 1.0, m)[:, None] * (z[-m:] - z[-1])
        return np.array(
            [np.concatenate([shape[:, c], [0.7 * z[-1, c]], phase]) for c in range(z.shape[1])]
        )

    def learn(self, inputs: Any, base: Any, target: Any, mask: Any) -> None:
        left = ((target - base.output) / self.spec.output_scale).double().numpy()
        self.kept.append((self.keys(inputs, base.times), left, mask.numpy()))

    def correction(self, inputs: Any, times: Any) -> Any:
        rows, columns = self.spec.rows, self.spec.columns
        now, out = self.keys(inputs, times), np.zeros((rows, columns))
        for c in range(columns):
            g = 0 if self.panel else c
            kept = [e for e in self.kept if (e[2] if self.panel else e[2][:, c]).any()][
                -self.capacity :
            ]
            if len(kept) < self.k:
                continue
            d = np.array([np.linalg.norm(now[g] - e[0][g]) for e in kept])
            top = sorted(range(len(kept)), key=lambda i: d[i])[: self.k]
            w = np.exp(-2 * d[top] / d[top].max())
            for h in range(rows):
                known = np.array([kept[i][2][h, c] for i in top])
                left = np.array([np.nan_to_num(kept[i][1][h, c]) for i in top])
                out[h, c] = (w * known * left).sum() / (w * known).sum() if known.any() else 0.0
        return out * self.spec.output_scale.numpy()


@pytest.mark.parametrize("window", [30, 7, 1])
@pytest.mark.parametrize("scope", ["channel", "panel"])
def test_forecasts_equal_the_slow_transcription(scope: Any, window: int) -> None:
    t, n, k, capacity, period = 3, 3, 5, 40, 24 * 3600.0
    spec = spec_of("forecast", window, n, t, n, scale=torch.tensor([1.0, 2.0, 0.5]))
    fast = built(ErrorMemory(scope=scope, k=k, capacity=capacity), spec)
    slow = SlowForecasts(spec, panel=scope == "panel", k=k, capacity=capacity, period=period)
    rng = np.random.default_rng(window)
    corrected = 0
    for i in range(90):
        inputs = torch.from_numpy(rng.normal(size=(window, n)).astype(np.float32))
        times = torch.arange(i, i + window) * HOUR_NS + HOUR_NS // 3
        now = BaseOutput(torch.from_numpy(rng.normal(size=(t, n)).astype(np.float32)), None, times)
        wanted = now.output.numpy() + slow.correction(inputs, times)
        np.testing.assert_allclose(fast.predict(inputs, now)[0].numpy(), wanted, rtol=0, atol=2e-6)
        corrected += not np.array_equal(wanted, now.output.numpy())
        target = torch.from_numpy(rng.normal(size=(t, n)).astype(np.float32))
        mask = torch.from_numpy((rng.random((t, n)) < 0.8) & (rng.random(n) < 0.9))
        for each in (fast, slow):
            each.learn(inputs, now, target, mask)
    assert corrected > 80


def test_a_path_is_remembered_under_the_key_of_its_own_time() -> None:
    """What repeats is put right: the base misses every jump, which always comes at the same
    hour."""
    day = np.zeros((24, 1))
    day[10:14] = 5.0
    values = np.tile(day, (20, 1)).astype(np.float32)
    stream = [entry(v, (i + 1) * HOUR_NS, id=str(i)) for i, v in enumerate(values)]
    learner = ErrorMemory(k=3, capacity=200)
    pipeline = Pipeline(Forecast(4, 3), Persistence(3), [learner], NoGuard())
    predictions = {int(p.id): p for p in pipeline.observe(stream)}
    worst = {"base": 0.0, "error-memory-capacity200-k3": 0.0}
    for i in range(240, len(values) - 3):
        for name in worst:
            worst[name] = max(
                worst[name],
                float(np.abs(predictions[i].experts[name] - values[i + 1 : i + 4]).max()),
            )
    assert worst["base"] == 5.0
    assert worst["error-memory-capacity200-k3"] < 1e-3


def test_the_period_is_what_time_of_day_is_taken_within() -> None:
    spec = spec_of("forecast", 2, 1, 1, 1)
    inputs = torch.zeros(2, 1)
    learner = built(ErrorMemory(period=3600.0, key_window=1), spec)
    for minutes, phase in ((0, (0.0, 1.0)), (15, (1.0, 0.0)), (90, (0.0, -1.0))):
        times = torch.tensor([0, minutes * 60 * 10**9])
        got = keys_of(learner, inputs, said(torch.zeros(1, 1), times=times))
        np.testing.assert_allclose(got, [[0.0, *phase]], atol=1e-12)
    untimed = keys_of(learner, inputs, said(torch.zeros(1, 1)))
    np.testing.assert_array_equal(untimed, [[0.0, 0.0, 0.0]])


def test_a_wide_panel_is_looked_at_in_random_orthogonal_directions() -> None:
    """Distances between panels are kept about as they are, and the key is no wider."""
    n = 150
    spec = spec_of("forecast", 8, n, 2, n)
    learner = built(ErrorMemory(scope="panel", capacity=32), spec)
    directions = learner.state_dict()["key.directions"]
    torch.testing.assert_close(
        directions.T @ directions, torch.eye(MOST_DIRECTIONS, dtype=torch.float64)
    )
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(50):
        a, b = (torch.from_numpy(rng.normal(size=(8, n)).astype(np.float32)) for _ in range(2))
        keys = [keys_of(learner, each, said(torch.zeros(2, n)))[0].copy() for each in (a, b)]
        away = np.linalg.norm((keys[0] - keys[1])[:MOST_DIRECTIONS])
        ratios.append(float(away / ((a - b)[-1].norm() * (WORTH / n) ** 0.5)))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)
    assert 0.7 < min(ratios) < max(ratios) < 1.3


def test_a_channel_without_targets_keeps_what_it_has() -> None:
    """Another channel's entries neither overwrite its ring nor fade its sketch."""
    for more in (
        {"capacity": 6, "k": 2},
        {"store": "sketch", "tables": 4, "bits": 2, "decay": 0.5},
    ):
        learner = built(ErrorMemory(**more), spec_of("forecast", 3, 2, 2, 2))
        rng = np.random.default_rng(0)

        def draw(rng: Any = rng) -> Tensor:
            return torch.from_numpy(rng.normal(size=(3, 2)).astype(np.float32))

        both = torch.ones(2, 2, dtype=torch.bool)
        for _ in range(6):
            learner.learn(draw(), said(torch.zeros(2, 2)), draw()[:2], both)
        query = draw()
        (before,) = learner.predict(query, said(torch.zeros(2, 2)))
        for _ in range(20):
            learner.learn(
                draw(), said(torch.zeros(2, 2)), draw()[:2], torch.tensor([[True, False]] * 2)
            )
        (after,) = learner.predict(query, said(torch.zeros(2, 2)))
        assert torch.equal(before[:, 1], after[:, 1])
        assert not torch.equal(before[:, 0], after[:, 0])
