"""The last value and the last label again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import base, built, entries, entry, spec_of, walk
from hypothesis import given
from hypothesis import strategies as st

from streamadapt import Forecast, Label, LastValue, NoGuard, Persistence, Pipeline, Supervised
from streamadapt.errors import ShapeError
from streamadapt.learners import BaseOutput


def test_forecasts_repeat_the_last_value_as_the_base_of_that_kind_does() -> None:
    pipeline = Pipeline(Forecast(3, 4), lambda x: torch.zeros(4, 2), [LastValue()], NoGuard())
    plain = Pipeline(Forecast(3, 4), Persistence(4), [], NoGuard())
    items = entries(walk(30, 2, missing=0.1))
    for mine, theirs in zip(pipeline.observe(items), plain.observe(items), strict=True):
        assert np.array_equal(mine.experts["persistence"], theirs.base)


def test_regressions_repeat_the_newest_label_of_each_output() -> None:
    learner = built(LastValue(), spec_of("regression", 1, 1, 1, 3))
    said = base([[7.0, 8.0, 9.0]])
    assert learner.predict(torch.zeros(1, 1), said)[0].tolist() == [[7.0, 8.0, 9.0]], (
        "the base, before any label"
    )
    for label, known, wanted in (
        ([1.0, 2.0, np.nan], [1, 1, 0], [1.0, 2.0, 9.0]),
        ([np.nan, 4.0, np.nan], [0, 1, 0], [1.0, 4.0, 9.0]),
    ):
        learner.learn(
            torch.zeros(1, 1), said, torch.tensor([label]), torch.tensor([known], dtype=torch.bool)
        )
        assert learner.predict(torch.zeros(1, 1), said)[0].tolist() == [wanted]


def test_the_newest_label_is_that_of_the_latest_entry() -> None:
    """Labels overtake each other: that of an older entry changes nothing any more."""
    pipeline = Pipeline(Supervised(), lambda x: torch.zeros(1, 1), [LastValue()], NoGuard())
    items: Sequence[Any] = [
        entry(0.0, 1, id="a"), entry(0.0, 2, id="b"), Label("b", np.float32([2.0]), 3),
        Label("a", np.float32([1.0]), 4), entry(0.0, 5, id="c"),
    ]  # fmt: skip
    assert pipeline.observe(items)[-1].experts["persistence"].item() == 2.0


@given(st.integers(2, 6), st.lists(st.integers(0, 5), max_size=60))
def test_classes_repeat_with_the_rate_of_change(classes: int, labels: list[int]) -> None:
    learner = built(LastValue(), spec_of("classification", 1, 1, 1, classes))
    said = base(np.full((1, classes), 1.0 / classes))
    changes = count = 0.0
    last: int | None = None
    for label in (v % classes for v in labels):
        target = torch.zeros(1, classes)
        target[0, label] = 1.0
        learner.learn(torch.zeros(1, 1), said, target, target > -1)
        if last is not None:
            changes, count = 0.999 * changes + (label != last), 0.999 * count + 1.0
        last = label
        e = min((changes + 1.0) / (count + 2.0), 1.0 - 1.0 / classes)
        wanted = np.full(classes, e / (classes - 1))
        wanted[label] = 1.0 - e
        mine = learner.predict(torch.zeros(1, 1), said)[0, 0].numpy()
        np.testing.assert_allclose(mine, wanted, rtol=1e-6)
        assert mine.sum() == pytest.approx(1.0, abs=1e-6)
    if last is None:
        assert torch.equal(learner.predict(torch.zeros(1, 1), said)[0], said.output)


def test_an_unknown_class_is_no_change() -> None:
    learner = built(LastValue(), spec_of("classification", 1, 1, 1, 2))
    said = BaseOutput(torch.tensor([[0.5, 0.5]]), None, torch.tensor([5]))
    learner.learn(torch.zeros(1, 1), said, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2) > 0)
    before = learner.snapshot()
    learner.learn(torch.zeros(1, 1), said, torch.full((1, 2), torch.nan), torch.zeros(1, 2) > 0)
    assert all(torch.equal(before[k], v) for k, v in learner.snapshot().items())


@pytest.mark.parametrize("kind", ["forecast", "regression", "classification"])
def test_wrong_shapes_are_refused(kind: Any) -> None:
    rows = 3 if kind == "forecast" else 1
    learner = built(LastValue(), spec_of(kind, 2, 2, rows, 2))
    with pytest.raises(ShapeError):
        learner.learn(
            torch.zeros(2, 2),
            base(np.zeros((rows, 2))),
            torch.zeros(rows, 3),
            torch.zeros(rows, 3) == 0,
        )
