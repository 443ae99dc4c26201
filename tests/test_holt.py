"""Level and slope, begun anew at a jump."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import base, built, spec_of, walk
from hypothesis import given
from hypothesis import strategies as st

from streamadapt import Holt
from streamadapt.errors import ConfigError

SAID = base(np.zeros((3, 2)))


def run(learner: Holt, values: Any) -> np.ndarray[Any, Any]:
    """Every entry's forecast, (entries, rows, columns)."""
    said = []
    for row in torch.as_tensor(np.asarray(values), dtype=torch.float32):
        inputs = row.reshape(1, -1)
        said.append(learner.predict(inputs, SAID)[0].numpy())
        learner.adapt(inputs, SAID)
    return np.array(said)


def made(channels: int = 2, rows: int = 3, **settings: Any) -> Holt:
    learner: Holt = built(Holt(**settings), spec_of("forecast", 1, channels, rows, channels))
    return learner


def slow(
    values: list[float], rows: int, alpha: float, beta: float, phi: float, jump: float
) -> list[list[float]]:
    """One channel, from the formulas."""
    said: list[list[float]] = []
    level, slope, size, run = values[0], 0.0, 0.0, 0
    for t, z in enumerate(values):
        if t:
            error = z - level - phi * slope
            jumped = t > 10 and abs(error) > jump * size
            kept = min(abs(error), jump * size) if t > 10 else abs(error)
            size += max(0.02, 1 / t) * (kept - size)
            run = 0 if jumped else run + 1
            if jumped:
                level, slope = z, phi * slope
            else:
                level, slope = (
                    level + phi * slope + max(alpha, 1 / (run + 1)) * error,
                    phi * slope + beta * error,
                )
        said.append(
            [level + sum(phi**i for i in range(1, h + 1)) * slope for h in range(1, rows + 1)]
        )
    return said


@given(st.integers(0, 999), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.1]),
       st.sampled_from([1.0, 0.9]), st.sampled_from([3.0, 8.0]))  # fmt: skip
def test_equals_the_slow_form(
    seed: int, level: float, trend: float, damping: float, jump: float
) -> None:
    values = walk(80, 2, seed)
    values[30:50] += 20.0  # two jumps
    values = values.astype(np.float32)
    mine = run(made(level=level, trend=trend, damping=damping, jump=jump), values)
    for c in range(2):
        theirs = slow([float(v) for v in values[:, c]], 3, level, trend, damping, jump)
        np.testing.assert_allclose(mine[:, :, c], theirs, rtol=2e-6, atol=1e-5)


def test_continues_a_straight_line() -> None:
    line = np.arange(400.0)[:, None] * [[0.5, -2.0]] + 3.0
    said = run(made(damping=1.0), line)[-1]
    np.testing.assert_allclose(
        said, line[-1] + np.arange(1.0, 4.0)[:, None] * [[0.5, -2.0]], rtol=1e-5
    )


def test_is_the_last_value_right_after_a_jump_and_in_its_channel_only() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 2)) * 0.1
    values[50:, 0] += 30.0
    said = run(made(trend=0.0), values)[50]
    assert np.array_equal(said[:, 0], np.full(3, np.float32(values[50, 0])))
    assert abs(said[0, 1] - values[50, 1]) > 1e-3, "the other channel is smoothed as before"


def test_a_channel_that_becomes_noisy_for_good_is_smoothed_again() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(2000, 2)) * np.where(np.arange(2000)[:, None] < 200, 0.01, 1.0)
    said = run(made(level=0.1, trend=0.0), values)
    assert np.abs(said[-500:, 0]).mean() < 0.5 * np.abs(values[-500:]).mean()


def test_level_one_and_no_slope_is_the_last_value() -> None:
    values = walk(50).astype(np.float32)
    np.testing.assert_allclose(run(made(level=1.0, trend=0.0), values)[:, 2], values, rtol=1e-6)


def test_without_jumps_a_constant_stream_keeps_finite_numbers() -> None:
    learner = made(jump=float("inf"))
    assert np.array_equal(run(learner, np.full((30, 2), 4.0))[-1], np.full((3, 2), 4.0))
    assert torch.isfinite(learner.state_dict()["state"]).all()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("level", {"level": 0.0}),
        ("level", {"level": 1.5}),
        ("trend", {"trend": 0.6}),
        ("trend", {"trend": -0.1}),
        ("damping", {"damping": 0.0}),
        ("jump", {"jump": 1.0}),
        ("jump", {"jump": float("nan")}),
    ],
)
def test_bad_settings_are_refused(name: str, settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=name):
        Holt(**settings)  # type: ignore[arg-type]
