"""Error memory: its formulas by hand, where its keys come from, what it remembers, and that
nothing is no change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import CPU, bits, built, entries, entry, items_in_order, spec_of, state, walk
from memory_stores import keys_of
from torch import Tensor, nn

from streamadapt import (
    ErrorMemory,
    Forecast,
    FrozenModel,
    NoGuard,
    Persistence,
    Pipeline,
    Supervised,
)
from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners import BaseOutput
from streamadapt.learners.error_memory.keys import EMBEDDING, INPUTS
from streamadapt.testing.checks.cases import Case, drive

EMBEDDINGS = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 2.0], [-3.0, 0.0]])
TARGETS = torch.eye(3)[[0, 1, 1, 2]]
OUTPUTS = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6]])


def said(
    output: Tensor, embedding: Tensor | None = None, times: Tensor | None = None
) -> BaseOutput:
    return BaseOutput(output.reshape(1, -1) if output.ndim == 1 else output, embedding, times)


def remembering(kind: str = "classification", **more: Any) -> ErrorMemory:
    """Three classes, or three outputs, with four examples remembered."""
    scale = torch.ones(3) if kind == "classification" else torch.tensor([1.0, 2.0, 5.0])
    learner = built(ErrorMemory(**more), spec_of(kind, 1, 2, 1, 3, scale=scale, embedding=2))
    for h, y, p in zip(EMBEDDINGS, TARGETS, OUTPUTS, strict=True):
        learner.learn(
            torch.zeros(1, 2), said(p, h), y.reshape(1, -1), torch.ones(1, 3, dtype=torch.bool)
        )
    return learner


def nearest(query: Any, k: int, tau: float) -> tuple[Any, Any]:
    """The k most similar of the four by cosine, and their softmax weights."""
    h = EMBEDDINGS.double().numpy()
    s = h @ query / np.linalg.norm(h, axis=1) / np.linalg.norm(query)
    top = np.argsort(-s)[:k]
    w = np.exp(s[top] / tau)
    return top, w / w.sum()


QUERY, P = np.array([0.9, 0.2]), np.array([0.25, 0.25, 0.5])


def asked(learner: ErrorMemory, output: Any = P) -> Any:
    now = said(torch.tensor(output, dtype=torch.float32), torch.tensor(QUERY, dtype=torch.float32))
    return learner.predict(torch.zeros(1, 2), now)[0, 0].numpy()


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.9), (0.5, 0.4), (0.0, 0.9)])
def test_the_label_form_is_the_papers(gamma: float, lam: float) -> None:
    learner = remembering(k=3, capacity=4, tau=0.2, gamma=gamma, strength=lam)
    top, w = nearest(QUERY, 3, 0.2)
    y_bar, p_bar = w @ TARGETS.numpy()[top], w @ OUTPUTS.numpy()[top]
    e = gamma * (y_bar - P) + (1 - gamma) * (y_bar - p_bar)
    clipped = np.maximum(P + lam * e, 0.0)
    np.testing.assert_allclose(asked(learner), clipped / clipped.sum(), rtol=1e-6)
    if gamma == 1.0:
        np.testing.assert_allclose(asked(learner), (1 - lam) * P + lam * y_bar, rtol=1e-6)


def test_a_distribution_is_clipped_and_made_to_sum_to_one() -> None:
    learner = remembering(k=4, capacity=4, gamma=0.0, strength=5.0)
    top, w = nearest(QUERY, 4, 0.1)
    raw = P + 5.0 * (w @ (TARGETS - OUTPUTS).numpy()[top])
    assert raw.min() < 0.0, "or this would test nothing"
    np.testing.assert_allclose(
        asked(learner), np.maximum(raw, 0.0) / np.maximum(raw, 0.0).sum(), rtol=1e-6
    )


def test_values_are_not_clipped_and_residuals_are_the_label_form_with_gamma_zero() -> None:
    top, w = nearest(QUERY, 4, 0.1)
    wanted = P - 10.0 + 2.0 * (w @ (TARGETS - OUTPUTS).numpy()[top])
    for more in ({}, {"value": "label", "gamma": 0.0}):
        learner = remembering("regression", k=4, capacity=4, strength=2.0, **more)
        np.testing.assert_allclose(asked(learner, P - 10.0), wanted, rtol=1e-5)
    assert wanted.min() < -5.0


@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0])
def test_the_sketch_has_the_same_forms(gamma: float) -> None:
    """With one table of one bucket side the means are plain ones, faded by age: all by hand."""
    learner = remembering(store="sketch", tables=1, bits=1, decay=0.5, gamma=gamma, strength=0.5)
    side = learner.state.memory.projections[0, :, 0]
    w = np.array([0.125, 0.25, 0.5, 1.0]) * (
        (EMBEDDINGS.double().numpy() @ side > 0) == (QUERY @ side > 0)
    )
    assert w.sum() > 0.1
    y_bar, p_bar = w @ TARGETS.numpy() / w.sum(), w @ OUTPUTS.numpy() / w.sum()
    e = gamma * (y_bar - P) + (1 - gamma) * (y_bar - p_bar)
    np.testing.assert_allclose(asked(learner), P + 0.5 * e, rtol=1e-6)


CASES = [
    Case("forecast", 5, 3, 4, 3),
    Case("regression", 2, 3, 1, 4),
    Case("classification", 2, 4, 1, 3),
]


@pytest.mark.parametrize(
    "more", [{"min_entries": 5.0}, {"store": "sketch", "bits": 2, "min_entries": 5.0}]
)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.kind)
def test_an_empty_memory_says_what_the_base_says(case: Case, more: Any) -> None:
    """To the bit, a negative zero too; and so does one that is not empty but below its floor."""
    learner = built(ErrorMemory(**more), case.spec(CPU))
    steps = case.steps(40, "path", CPU)
    for count in range(5):
        for step in steps:
            step.base.output[0, 0] = -0.0
            mine = learner.predict(step.inputs, step.base)
            assert mine.numpy().tobytes() == step.base.output.numpy().tobytes(), (
                f"with {count} examples"
            )
        e = next(e for step in steps[10 + count :] for e in step.learn if e.mask.all())
        learner.learn(e.inputs, e.base, e.target, e.mask)
    drive(learner, steps * 10)
    assert not torch.equal(learner.predict(step.inputs, step.base), step.base.output), (
        "in the end it does speak"
    )


# -- where keys come from


class Classifier(nn.Module):
    """Two inputs, a hidden layer, three classes; returns the hidden layer too where `shows`."""

    def __init__(self, *, shows: bool = False) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(2, 5), nn.Tanh())
        self.last = nn.Linear(5, 3)
        self.shows = shows
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x[:, -1])
        return (self.last(h), h) if self.shows else self.last(h)


def classes(n: int) -> list[Any]:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(n, 2)).astype(np.float32)
    return [
        entry(v, t + 1, id=str(t), label=np.float32([v[0] * v[1] > 0]))
        for t, v in enumerate(values)
    ]


def served_by(base: FrozenModel, learner: ErrorMemory) -> list[Any]:
    pipeline = Pipeline(Supervised(1, classes=3), base, [learner], NoGuard())
    return [p.experts[learner.names[0]] for p in pipeline.observe(classes(80))]


def test_the_embedding_is_taken_by_name_or_as_returned() -> None:
    named = FrozenModel(Classifier(), softmax=True, embedding="hidden")
    returned = FrozenModel(Classifier(shows=True), softmax=True)
    learner = ErrorMemory(k=3, capacity=20)
    by_name = served_by(named, learner)
    assert learner.settings(learner.spec).key.source == EMBEDDING
    assert learner.state.memory.keys.shape == (1, 1, 5, 20)
    np.testing.assert_array_equal(by_name, served_by(returned, ErrorMemory(k=3, capacity=20)))
    np.testing.assert_array_equal(
        by_name, served_by(named, ErrorMemory(k=3, capacity=20, embedding="base"))
    )


def test_the_inputs_are_taken_where_a_base_shows_nothing_or_when_asked_for() -> None:
    plain, named = (
        FrozenModel(Classifier(), softmax=True, embedding=name) for name in (None, "hidden")
    )
    learner = ErrorMemory(k=3, capacity=20)
    by_inputs = served_by(plain, learner)
    assert learner.settings(learner.spec).key.source == INPUTS
    np.testing.assert_array_equal(
        by_inputs, served_by(named, ErrorMemory(k=3, capacity=20, embedding="inputs"))
    )
    assert not np.array_equal(by_inputs, served_by(named, ErrorMemory(k=3, capacity=20)))


def test_a_base_without_an_embedding_is_told_what_to_do() -> None:
    learner = ErrorMemory(embedding="base")
    with pytest.raises(ConfigError, match=r"embedding=\"layers.2\""):
        served_by(FrozenModel(Classifier(), softmax=True), learner)


def test_the_inputs_are_scaled_and_have_a_one() -> None:
    spec = spec_of("regression", 2, 2, 1, 1, scale=torch.tensor([2.0, 10.0]))
    learner = built(ErrorMemory(), spec)
    key = keys_of(learner, torch.tensor([[2.0, 10.0], [4.0, 0.0]]), said(torch.zeros(1)))
    np.testing.assert_allclose(key, np.array([[1.0, 1.0, 2.0, 0.0, 1.0]]) / 7**0.5)


def test_an_embedding_of_zeros_is_as_far_from_all() -> None:
    """A layer that is wholly off: the four remembered weigh the same, and remembering it breaks
    nothing."""
    learner = remembering(k=4, capacity=5, strength=1.0)
    off = said(torch.tensor([0.2, 0.3, 0.5]), torch.zeros(2))
    (mine,) = learner.predict(torch.zeros(1, 2), off)
    torch.testing.assert_close(mine, TARGETS.mean(0, keepdim=True))
    learner.learn(torch.zeros(1, 2), off, TARGETS[:1], torch.ones(1, 3, dtype=torch.bool))
    assert torch.isfinite(torch.from_numpy(asked(learner))).all()


def test_an_embedding_of_another_size_is_refused() -> None:
    learner = remembering()
    with pytest.raises(ShapeError, match="embedding"):
        learner.predict(torch.zeros(1, 2), said(torch.tensor([0.2, 0.3, 0.5]), torch.zeros(3)))


# -- in a pipeline


@pytest.mark.parametrize(
    "more", [{"capacity": 30, "k": 4}, {"store": "sketch", "tables": 6, "bits": 3}]
)
def test_a_restart_changes_no_bit(more: Any) -> None:
    def fresh() -> Pipeline:
        learners = [ErrorMemory(**more), ErrorMemory(scope="panel", **more)]
        return Pipeline(Forecast(5, 3), Persistence(3), learners, seed=7)

    stream = items_in_order(entries(walk(120, 3, missing=0.05)))
    whole = fresh()
    first = whole.observe(stream[:70])
    again = fresh()
    again.load_state_dict(whole.state_dict())
    assert bits(again.observe(stream[70:])) == bits(whole.observe(stream[70:]))
    assert state(again) == state(whole)
    assert first


def test_names_tell_siblings_apart() -> None:
    siblings = [
        ErrorMemory(), ErrorMemory(scope="panel"), ErrorMemory(store="sketch"),
        ErrorMemory(store="sketch", decay=0.9), ErrorMemory(k=16),
        ErrorMemory(value="label", gamma=0.5, strength=0.4), ErrorMemory(embedding="inputs"),
    ]  # fmt: skip
    assert [n for learner in siblings for n in learner.names] == [
        "error-memory", "error-memory-panel", "error-memory-sketch",
        "error-memory-sketch-decay0.9", "error-memory-k16", "error-memory-label-lam0.4-gamma0.5",
        "error-memory-inputs",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("panel", "columns", "capacity", "k"),
    [(False, 7, 4000, 64), (True, 7, 4000, 32), (False, 50, 1300, 64)],
)
def test_sizes_by_default(panel: bool, columns: int, capacity: int, k: int) -> None:
    learner = built(
        ErrorMemory(scope="panel" if panel else None), spec_of("forecast", 30, columns, 2, columns)
    )
    features = 4 * columns + 2 if panel else 26
    assert learner.state.memory.keys.shape[2:] == (features, capacity)
    assert learner.settings(learner.spec).floor == k
    assert len(learner.room(learner.spec).near.at) == k
    small = built(ErrorMemory(capacity=10), spec_of("forecast", 30, 2, 2, 2))
    assert len(small.room(small.spec).near.at) == 10


@pytest.mark.parametrize(
    "bad",
    [
        {"store": "ring"}, {"scope": "global"}, {"embedding": "none"}, {"value": "error"},
        {"strength": 0.0}, {"strength": float("nan")}, {"gamma": 1.5}, {"gamma": -0.1},
        {"capacity": 0}, {"capacity": 2.5}, {"k": True}, {"capacity": 5, "k": 6}, {"tau": 0.0},
        {"store": "sketch", "tables": 0}, {"store": "sketch", "bits": 21},
        {"store": "sketch", "decay": 1.5}, {"store": "sketch", "decay": 0.0}, {"min_entries": 0.0},
        {"key_window": 0}, {"period": float("inf")}, {"tables": 4},
        {"store": "sketch", "capacity": 9}, {"store": "sketch", "tau": 0.1},
        {"scope": "channel", "embedding": "base"},
    ],
)  # fmt: skip
def test_bad_settings(bad: Any) -> None:
    with pytest.raises(ConfigError):
        ErrorMemory(**bad)


@pytest.mark.parametrize(
    ("kind", "useless", "path"),
    [
        ("classification", {"scope": "panel"}, "scope"),
        ("regression", {"period": 60.0}, "period"),
        ("regression", {"key_window": 3}, "key_window"), ("regression", {"gamma": 0.5}, "gamma"),
        ("classification", {"value": "residual", "gamma": 0.5}, "gamma"),
        ("forecast", {"tau": 0.1}, "tau"), ("forecast", {"value": "label"}, "value"),
        ("forecast", {"gamma": 0.0}, "gamma"),
        ("forecast", {"scope": "panel", "key_window": 3}, "key_window"),
        ("forecast", {"embedding": "base", "period": 60.0}, "period"),
        ("forecast", {"k": 1301}, "k"),
    ],
)  # fmt: skip
def test_settings_without_a_use_are_refused(kind: Any, useless: Any, path: str) -> None:
    columns = 60
    with pytest.raises(ConfigError) as caught:
        built(
            ErrorMemory(**useless),
            spec_of(kind, 4, columns, 2 if kind == "forecast" else 1, columns, embedding=3),
        )
    assert caught.value.path == path


@pytest.mark.parametrize(
    "more", [{"capacity": 40, "k": 3}, {"store": "sketch", "tables": 8, "bits": 4}]
)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.kind)
def test_another_seed_moves_the_sketch_only(case: Case, more: Any) -> None:
    """The exact store of a narrow stream draws no random numbers at all."""
    one, other = (
        drive(built(ErrorMemory(**more), case.spec(CPU, seed=s)), case.steps(60, "path", CPU))
        for s in (0, 1)
    )
    assert all(map(torch.equal, one, other)) == ("store" not in more)
