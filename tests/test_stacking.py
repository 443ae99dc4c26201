"""The ridge stack against a slow implementation of the formulas, and properties for any input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamadapt.errors import ConfigError
from streamadapt.guard.stacking import RidgeStack

EXPERTS, ROWS, COLUMNS = 3, 2, 4
GROUPS = [(1, 1), (ROWS, 1), (ROWS, COLUMNS)]


class Slow:
    """One group, cell by cell."""

    def __init__(self, discount: float, ridge: float, robust: bool) -> None:
        self.d, self.ridge, self.robust = discount, ridge, robust
        self.a, self.g = np.zeros((EXPERTS, EXPERTS)), np.zeros(EXPERTS)
        self.b = np.zeros(EXPERTS)

    def learn(self, cells: list[tuple[Any, float, float]]) -> None:
        if not cells:
            return
        self.a *= self.d
        self.g *= self.d
        b = self.b.copy()
        for p, y, s in cells:
            m = sum(p) / len(p)
            x, v = (p - m) / s, (y - m) / s
            q = min(1.0 / 0.3, 1.0 / max(abs(v - x @ b), 1e-300)) if self.robust else 1.0
            self.a += q * np.outer(x, x) / len(cells)
            self.g += q * x * v / len(cells)
        self.b = np.linalg.inv(self.a + self.ridge * np.eye(EXPERTS)) @ self.g

    def mix(self, p: Any) -> float:
        m = sum(p) / len(p)
        return float(np.clip(m + self.b @ (p - m), min(p), max(p)))


def rounds(n: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    bias = np.array([1.0, -0.5, 0.2])[:, None, None]
    for _ in range(n):
        target = rng.normal(size=(ROWS, COLUMNS))
        predictions = target + bias + 0.3 * rng.normal(size=(EXPERTS, ROWS, COLUMNS))
        yield (
            predictions,
            target,
            rng.uniform(0.5, 2.0, (ROWS, COLUMNS)),
            rng.random((ROWS, COLUMNS)) < 0.6,
        )


def built(groups: tuple[int, int], **more: Any) -> RidgeStack:
    stack = RidgeStack(**more)
    stack.build(groups, np.full(EXPERTS, 1.0 / EXPERTS))
    return stack


@pytest.mark.parametrize("robust", [True, False])
@pytest.mark.parametrize("groups", GROUPS)
def test_the_stack_equals_the_slow_one_in_every_group(
    groups: tuple[int, int], robust: bool
) -> None:
    stack = built(groups, discount=0.97, ridge=0.5, robust=robust)
    slow = {(i, j): Slow(0.97, 0.5, robust) for i in range(groups[0]) for j in range(groups[1])}
    high, wide = ROWS // groups[0], COLUMNS // groups[1]
    for predictions, target, scale, known in rounds(120):
        mixed = stack.mix(predictions)[0]
        for h in range(ROWS):
            for c in range(COLUMNS):
                assert mixed[h, c] == pytest.approx(
                    slow[h // high, c // wide].mix(predictions[:, h, c]), abs=1e-9
                )
        stack.learn(predictions, target, scale, known)
        for (i, j), one in slow.items():
            one.learn(
                [
                    (predictions[:, h, c], float(target[h, c]), float(scale[h, c]))
                    for h in range(i * high, (i + 1) * high)
                    for c in range(j * wide, (j + 1) * wide)
                    if known[h, c]
                ]
            )


def test_the_stack_finds_a_mixture_outside_the_convex_ones() -> None:
    """Both experts have errors of the same sign, one twice as large: the truth is twice one minus
    the other."""
    rng = np.random.default_rng(3)
    stack = RidgeStack(ridge=0.1)
    stack.build((1, 1), np.array([0.5, 0.5]))
    for _ in range(500):
        y, lean = rng.normal(size=2)
        predictions = np.array([y + lean, y + 2.0 * lean]).reshape(2, 1, 1)
        stack.learn(predictions, np.full((1, 1), y), np.ones((1, 1)), np.ones((1, 1), bool))
    np.testing.assert_allclose(stack.weights[0, :, 0, 0], [2.0, -1.0], atol=0.02)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
    groups=st.sampled_from(GROUPS),
)
def test_weights_sum_to_one_and_nothing_leaves_the_experts_range(
    seed: int, size: float, groups: tuple[int, int]
) -> None:
    stack = built(groups)
    for predictions, target, scale, known in rounds(30, seed):
        mixed = stack.mix(size * predictions)
        assert (mixed >= size * predictions.min(axis=0)).all()
        assert (mixed <= size * predictions.max(axis=0)).all()
        stack.learn(size * predictions, size * target, size * scale, known)
        np.testing.assert_allclose(stack.weights.sum(axis=1), 1.0, atol=1e-9)


@pytest.mark.parametrize("groups", GROUPS)
def test_unknown_cells_change_nothing(groups: tuple[int, int]) -> None:
    left, right = built(groups), built(groups)
    for predictions, target, scale, known in rounds(40):
        left.learn(predictions, np.where(known, target, np.nan), scale, known)
        right.learn(predictions, np.where(known, target, 1e6), scale, known)
    before = left.weights.copy()
    assert np.array_equal(before, right.weights)
    left.learn(predictions, target, scale, np.zeros_like(known))
    assert np.array_equal(before, left.weights)


@pytest.mark.parametrize(
    ("path", "more"), [("discount", {"discount": 0.0}), ("ridge", {"ridge": 0.0})]
)
def test_settings_are_checked(path: str, more: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=path):
        RidgeStack(**more)  # type: ignore[arg-type]
