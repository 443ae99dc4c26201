"""Losses: their slopes, and a guard's results with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamadapt.errors import ConfigError
from streamadapt.guard.two_layer import TwoLayer
from streamadapt.tasks.losses import Absolute, Loss, Pinball, Squared, loss_named

LOSSES: list[Loss] = [Absolute(), Squared(), Pinball(0.1), Pinball(0.5), Pinball(0.9)]


@given(st.sampled_from(LOSSES), st.integers(0, 2**32 - 1))
def test_regrets_are_the_slope_times_the_distance_to_the_expert(loss: Loss, seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, own, target = (
        rng.normal(size=(3, 2, 4)),
        rng.normal(size=(2, 4)),
        rng.normal(size=(2, 4)),
    )
    scale = np.exp(rng.normal(size=(2, 4)))
    step = 1e-7
    slope = (loss.loss(own + step, target) - loss.loss(own - step, target)) / (2.0 * step)
    mine = loss.regret(experts, own, target, scale)
    np.testing.assert_allclose(mine, -slope * (experts - own) / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [Absolute(), Pinball(0.9)], ids=lambda loss: loss.name)
def test_regrets_are_zero_where_the_mixture_is_right(loss: Loss) -> None:
    own = np.ones((1, 1))
    assert not loss.regret(np.zeros((2, 1, 1)), own, own, own).any()


def test_the_pinball_loss_is_smallest_at_the_quantile() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(20_001, 1))
    for q in (0.1, 0.5, 0.9):
        guesses = np.quantile(y, q) + np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
        means = [float(Pinball(q).loss(np.full_like(y, g), y).mean()) for g in guesses]
        assert int(np.argmin(means)) == 2
    np.testing.assert_allclose(
        Pinball(0.5).loss(np.zeros_like(y), y), 0.5 * Absolute().loss(np.zeros_like(y), y)
    )


@pytest.mark.parametrize("q", [0.1, 0.9])
def test_the_guard_finds_the_quantile_between_its_experts(q: float) -> None:
    """The base predicts the median; the served prediction covers the requested share."""
    rng = np.random.default_rng(1)
    guard = TwoLayer()
    guard.build(["base", "low", "high"], 1, 1, Pinball(q), np.ones(1))
    experts = np.array([0.0, -2.0, 2.0]).reshape(3, 1, 1)
    below = []
    for _ in range(6000):
        mixed = guard.mix(experts)
        y = rng.normal(size=(1, 1))
        below.append(bool(y < mixed.served))
        guard.update(experts, mixed.aggregator_outputs, y, np.ones((1, 1), bool))
    assert np.mean(below[3000:]) == pytest.approx(q, abs=0.05)


@pytest.mark.parametrize(
    "name", ["pinball", "pinball-", "pinball-x", "pinball-0", "pinball-1.5", "hinge", 3, None]
)
def test_unknown_losses_are_refused(name: object) -> None:
    with pytest.raises(ConfigError, match=r"task\.loss.*pinball-0\.9"):
        loss_named(name)


def test_the_quantile_is_in_the_name() -> None:
    loss = loss_named("pinball-0.95")
    assert isinstance(loss, Pinball)
    assert loss.quantile == 0.95
