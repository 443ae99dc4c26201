"""Bias and gain against their formulas, one cell at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import CPU, base, built, spec_of

from streamadapt.errors import ConfigError
from streamadapt.learners import Bias, Gain
from streamadapt.testing.checks.cases import Case, drive

RATES = (0.5, 0.1, 0.02)
FORECAST, REGRESSION = Case("forecast", 5, 3, 4, 3), Case("regression", 2, 3, 1, 4)


def examples(rows: int, columns: int, n: int = 60, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    for _ in range(n):
        said = rng.normal(0.0, 2.0, size=(rows, columns)).astype(np.float32)
        target = (1.5 * said + rng.normal(size=said.shape)).astype(np.float32)
        yield said, target, rng.random(said.shape) < 0.7


@pytest.mark.parametrize(("rows", "columns"), [(4, 3), (3, 3), (1, 1)])
def test_bias_is_an_exponential_mean_of_known_errors(rows: int, columns: int) -> None:
    learner = built(Bias(RATES), spec_of("forecast", 2, columns, rows, columns))
    b = np.zeros((len(RATES), rows, columns))
    for said, target, mask in examples(rows, columns):
        given = torch.from_numpy(np.where(mask, target, np.nan))
        learner.learn(torch.zeros(2, columns), base(said), given, torch.from_numpy(mask))
        for v, rate in enumerate(RATES):
            for h in range(rows):
                for c in range(columns):
                    if mask[h, c]:
                        b[v, h, c] += rate * (float(target[h, c]) - float(said[h, c]) - b[v, h, c])
        mine = learner.predict(torch.zeros(2, columns), base(said)).numpy()
        np.testing.assert_allclose(mine, said + b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(4, 3), (3, 3), (1, 1)])
def test_gain_is_an_exponential_mean_of_clipped_ratios(rows: int, columns: int) -> None:
    scale = torch.full((columns,), 10.0)  # a base below 0.1 says nothing
    learner = built(
        Gain(RATES, limit=2.0), spec_of("regression", 2, columns, rows, columns, scale=scale)
    )
    g = np.ones((len(RATES), rows, columns))
    skipped = 0
    for said, target, mask in examples(rows, columns, seed=2):
        given = torch.from_numpy(np.where(mask, target, np.nan))
        learner.learn(torch.zeros(2, columns), base(said), given, torch.from_numpy(mask))
        for v, rate in enumerate(RATES):
            for h in range(rows):
                for c in range(columns):
                    if mask[h, c] and abs(said[h, c]) > 0.1:
                        ratio = min(max(float(target[h, c]) / float(said[h, c]), 0.5), 2.0)
                        g[v, h, c] += rate * (ratio - g[v, h, c])
                    skipped += abs(said[h, c]) <= 0.1
        mine = learner.predict(torch.zeros(2, columns), base(said)).numpy()
        np.testing.assert_allclose(mine, said * g, rtol=1e-5, atol=1e-5)
    assert skipped, "some bases were too small to divide by"
    assert np.ptp(g) > 0.1


def test_a_zero_base_leaves_the_gain_alone() -> None:
    learner = built(Gain(0.5), spec_of("regression", 1, 1, 1, 1))
    learner.learn(
        torch.zeros(1, 1), base([[0.0]]), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    )
    assert learner.state.gain.item() == 1.0
    assert learner.predict(torch.zeros(1, 1), base([[0.0]])).item() == 0.0


@pytest.mark.parametrize("case", [FORECAST, REGRESSION], ids=lambda c: c.kind)
@pytest.mark.parametrize("cls", [Bias, Gain])
def test_families_equal_their_members_bit_for_bit(cls: Any, case: Case) -> None:
    steps = case.steps(120, "rows", CPU)
    together = drive(built(cls(RATES), case.spec(CPU)), steps)
    for k, rate in enumerate(RATES):
        alone = drive(built(cls(rate), case.spec(CPU)), steps)
        for both, one in zip(together, alone, strict=True):
            assert torch.equal(both[k], one.view(both[k].shape)), rate


@pytest.mark.parametrize("cls", [Bias, Gain])
def test_boost_multiplies_the_rate_up_to_one(cls: Any) -> None:
    spec = spec_of("regression", 1, 1, 1, 1)
    said, target = base([[2.0]]), torch.tensor([[3.0]])
    for boost, rate in ((4.0, 0.4), (1e6, 1.0)):
        boosted, plain = built(cls(0.1), spec), built(cls(rate), spec)
        boosted.boost = boost
        for learner in (boosted, plain):
            learner.learn(torch.zeros(1, 1), said, target, target > 0)
        assert torch.allclose(
            boosted.predict(torch.zeros(1, 1), said), plain.predict(torch.zeros(1, 1), said)
        )


def test_a_rate_of_one_repeats_the_last_error() -> None:
    learner = built(Bias(1.0), spec_of("regression", 1, 1, 1, 1))
    learner.learn(
        torch.zeros(1, 1), base([[1.0]]), torch.tensor([[4.0]]), torch.ones(1, 1, dtype=torch.bool)
    )
    assert learner.predict(torch.zeros(1, 1), base([[10.0]])).item() == 13.0


def test_names() -> None:
    assert Bias((0.02, 0.005)).names == ("bias-0.02", "bias-0.005")
    assert Gain(0.3).names == ("gain-0.3",)


@pytest.mark.parametrize("cls", [Bias, Gain])
@pytest.mark.parametrize("rate", [0.0, 1.5, float("nan"), (), (0.1, 0.1), -0.1])
def test_bad_rates(cls: Any, rate: Any) -> None:
    with pytest.raises(ConfigError, match="rate"):
        cls(rate)


@pytest.mark.parametrize("limit", [1.0, 0.5, float("nan"), float("inf")])
def test_bad_limits(limit: float) -> None:
    with pytest.raises(ConfigError, match="limit"):
        Gain(limit=limit)
