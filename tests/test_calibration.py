"""A line in every cell, against its formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import base, built, spec_of

from streamadapt.learners import Calibration

FORGETTING = (0.98, 0.6)


def slow(said: Any, target: Any, known: Any, forgetting: float, clip: float) -> list[float]:
    """The corrections of one cell at every step, before its label."""
    m, v, size = 0.1 * np.eye(2), np.zeros(2), 0.3
    found = []
    for u, y, yes in zip(said, target, known, strict=True):
        x = np.array([u, 1.0])
        found.append(float(x @ v))
        if yes:
            error = y - u - x @ v
            size += 0.01 * (abs(error) - size)
            m = forgetting * m + np.outer(x, x) + (1.0 - forgetting) * 0.1 * np.eye(2)
            v = v + np.linalg.solve(m, x) * np.clip(error, -clip * size, clip * size)
    return found


@pytest.mark.parametrize("clip", [2.0, float("inf")])
def test_is_least_squares_of_a_line_with_forgetting(clip: float) -> None:
    rng = np.random.default_rng(1)
    n, rows, columns = 120, 3, 2
    said = rng.normal(size=(n, rows, columns)).astype(np.float32)
    target = (0.7 * said + 2.0 + 0.1 * rng.normal(size=said.shape)).astype(np.float32)
    target[50] += 40.0
    known = rng.random(said.shape) < 0.7
    learner = built(Calibration(FORGETTING, clip=clip), spec_of("forecast", 1, 2, rows, columns))
    mine = []
    for i in range(n):
        mine.append(learner.predict(torch.zeros(1, 2), base(said[i])).numpy())
        given = torch.from_numpy(np.where(known[i], target[i], np.nan))
        learner.learn(torch.zeros(1, 2), base(said[i]), given, torch.from_numpy(known[i]))
    for k, forgetting in enumerate(FORGETTING):
        for h in range(rows):
            for j in range(columns):
                cell = (slice(None), h, j)
                wanted = slow(said[cell], target[cell], known[cell], forgetting, clip)
                found = np.array(mine)[:, k, h, j] - said[cell]
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def correction_after(forgetting: float, boost: float) -> float:
    learner = built(Calibration(forgetting), spec_of("regression", 1, 1, 1, 1))
    one = torch.ones(1, 1)
    for i in range(20):
        learner.boost = boost if i == 19 else 1.0
        learner.learn(one, base([[0.0]]), one * (i == 19), one > 0)
    return float(learner.predict(one, base([[0.0]])).item())


@pytest.mark.parametrize("forgetting", [0.98, 0.9, 0.6, 0.3])
def test_a_boost_never_slows_learning(forgetting: float) -> None:
    """It takes the factor down to a half: one that is below stays."""
    plain, boosted = correction_after(forgetting, 1.0), correction_after(forgetting, 5.0)
    assert boosted > plain if forgetting > 0.5 else boosted == plain
