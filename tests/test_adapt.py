"""Learning without labels: `adapt` is called once per entry, never by `predict`; its signals;
tasks without labels."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from core_helpers import bits, entries, state, walk, with_scaling
from torch import Tensor, nn

from streamadapt import (
    Bias,
    DriftMonitor,
    Forecast,
    FrozenModel,
    Hedge,
    Label,
    NoGuard,
    Persistence,
    Pipeline,
    Supervised,
    TwoLayer,
    Unlabelled,
)
from streamadapt.errors import ConfigError, EntryError, Reason
from streamadapt.learners.base import Learner
from streamadapt.models.contract import BaseOutput, Spec, TaskKind
from streamadapt.testing.checks.cases import through_a_checkpoint


class Counting(Learner):
    """Predicts the base's output; counts the observed entries, and keeps their times."""

    kind: ClassVar[str] = "counting"
    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"forecast", "regression", "classification"})
    needs_labels: ClassVar[bool] = False
    count: Tensor
    newest: Tensor

    @property
    def signal_names(self) -> tuple[str, ...]:
        return ("counting-level",)

    def allocate(self, spec: Spec) -> None:
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("newest", torch.zeros(spec.window, dtype=torch.int64))
        self._level = float("nan")

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        del inputs
        return base.output.clone()

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        raise AssertionError("a learner that needs no labels received one")

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        assert base.times is not None
        self.count += 1
        self.newest.copy_(base.times)
        self._level = float(inputs[-1, 0])

    def signals(self) -> dict[str, float]:
        return {"counting-level": self._level}


def constant(inputs: Tensor) -> Tensor:
    return torch.tensor([[0.2, 0.8]]) + 0.0 * inputs[-1, 0]


def unlabelled(**more: Any) -> tuple[Pipeline, Counting]:
    learner = Counting()
    guard = more.pop("guard", TwoLayer(prior={"counting": 0.9}))
    return Pipeline(Unlabelled(3, classes=2), constant, [learner], guard, **more), learner


def test_adapt_is_called_once_for_every_predicted_entry_and_never_by_predict() -> None:
    pipeline, learner = unlabelled()
    stream = entries(walk(20, 2))
    for i, entry in enumerate(stream):
        pipeline.observe([entry])
        assert not hasattr(learner, "count") or int(learner.count) == max(0, i - 1), (
            "from the third entry on"
        )
        if i > 4:
            before = state(pipeline)
            pipeline.predict(entry)
            assert state(pipeline) == before
    assert learner.newest.tolist() == [e.time for e in stream[-3:]]


@pytest.mark.parametrize("task", [Forecast(3, 2), Supervised(3, outputs=2)])
def test_times_reach_the_examples(task: Any) -> None:
    """Examples carry the times of their own window, also after a restart."""
    seen: list[list[int]] = []

    class Noting(Bias):
        kind: ClassVar[str] = "noting"
        matures: ClassVar[Any] = "path"

        def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
            assert base.times is not None
            seen.append(base.times.tolist())
            super().learn(inputs, base, target, mask)

    def make(task: Any) -> Pipeline:
        return Pipeline(
            task,
            with_scaling(Persistence(2) if task.kind == "forecast" else two, 2, 2),
            [Noting()],
        )

    rows = walk(24, 2)
    stream = entries(rows, label=None if task.kind == "forecast" else np.zeros(2, np.float32))
    pipeline = make(task)
    pipeline.observe(stream[:12])
    again = make(type(task)(3, 2) if task.kind == "forecast" else Supervised(3, outputs=2))
    again.load_state_dict(through_a_checkpoint(pipeline.state_dict()))
    again.observe(stream[12:])
    assert seen == [[t, t + 1, t + 2] for t in range(1, len(seen) + 1)]
    assert len(seen) == (20 if task.kind == "forecast" else 21)


def two(inputs: Tensor) -> Tensor:
    return inputs[-1:].clone()


def test_signals_are_scores_and_can_be_watched() -> None:
    monitor = DriftMonitor(
        "page-hinkley", "counting-level", params={"threshold": 100.0, "min_instances": 5}
    )
    pipeline, _ = unlabelled(drift=[monitor])
    rows = np.concatenate([walk(60, 2), walk(60, 2) + 30.0])
    predictions = pipeline.observe(entries(rows))
    assert [p.scores["counting-level"] for p in predictions] == [float(row[0]) for row in rows[2:]]
    fired = [int(p.id) for p in predictions if p.drifts == ("page-hinkley:counting-level",)]
    assert fired
    assert 60 <= fired[0] < 75


def test_an_unknown_signal_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=r"drift\[0\].signal: expected one of loss, .*, embedding, counting-level, got "
        r"'typo'",
    ):
        unlabelled(drift=[DriftMonitor("adwin", "typo")])


def test_an_unlabelled_task_serves_the_prior_weights() -> None:
    pipeline, _ = unlabelled()
    predictions = pipeline.observe(entries(walk(40, 2)))
    for p in (predictions[0], predictions[-1]):
        assert p.weights == pytest.approx({"base": 0.1, "counting": 0.9})
        np.testing.assert_allclose(p.served, [[0.2, 0.8]], rtol=1e-6)
    assert pipeline.stats.pending == 0


def test_an_unlabelled_task_refuses_labels_and_learners_that_need_them() -> None:
    pipeline, _ = unlabelled()
    with pytest.raises(EntryError) as caught:
        pipeline.observe([Label("0", np.zeros(1, np.float32), 5)])
    assert caught.value.reason is Reason.UNKNOWN_LABEL
    with pytest.raises(
        ConfigError, match=r"learners\[0\].kind: expected a learner that adapts without labels"
    ):
        Pipeline(Unlabelled(3, outputs=2), two, [Bias()], TwoLayer(prior={"bias-0.02": 1.0}))
    with pytest.raises(ConfigError, match=r"guard.prior"):
        unlabelled(guard=TwoLayer())
    with pytest.raises(
        ConfigError,
        match=r"guard.prior: expected an expert's name: one of base, counting, got 'typo'",
    ):
        unlabelled(guard=TwoLayer(prior={"typo": 0.5}))
    unlabelled(guard=NoGuard(1))


@pytest.mark.parametrize("prior", [{}, {"a": 0.7, "b": 0.7}, {"a": -0.1}, {"a": 1.1}])
@pytest.mark.parametrize("guard", [TwoLayer, Hedge])
def test_an_invalid_prior_is_refused(guard: Any, prior: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"guard\.prior"):
        guard(prior=prior)


def test_labels_override_a_prior() -> None:
    """Labels that favour the base reduce the weight of the trusted expert."""

    class Wrong(Counting):
        def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
            return base.output.flip(-1)

    pipeline = Pipeline(
        Supervised(3, classes=2), constant, [Wrong()], TwoLayer(prior={"counting": 0.9})
    )
    predictions = pipeline.observe(entries(walk(300, 2), label=np.ones(1, np.float32)))
    assert predictions[0].weights["counting"] == pytest.approx(0.9)
    assert predictions[-1].weights["counting"] < 0.1


def test_a_suspended_learner_returns_without_labels_too() -> None:
    class Breaks(Counting):
        def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
            return base.output * (float("nan") if int(self.count) == 30 else 1.0)

    pipeline = Pipeline(
        Unlabelled(3, classes=2), constant, [Breaks()], TwoLayer(prior={"counting": 0.9})
    )
    predictions = pipeline.observe(entries(walk(200, 2)))
    assert all(np.isfinite(p.served).all() for p in predictions)
    assert pipeline.stats.updates["counting"]["restored"] >= 1
    assert pipeline.health is not None
    assert int(pipeline.health.benched[0]) < 50


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(torch.tanh(self.hidden(x.flatten(1))))
        return output


def test_an_embedding_is_named_by_its_submodule_and_logits_become_a_distribution() -> None:
    torch.manual_seed(0)
    net = Net()
    frozen = FrozenModel(net, softmax=True, embedding="hidden")
    x = torch.randn(3, 2)
    output = frozen(x)
    assert output.embedding is not None
    torch.testing.assert_close(output.embedding, net.hidden(x.flatten()[None])[0].detach())
    torch.testing.assert_close(output.output, torch.softmax(net(x[None]), -1).detach())
    learner = Counting()
    pipeline = Pipeline(Supervised(3, classes=2), frozen, [learner])
    pipeline.observe(entries(walk(5, 2)))
    assert learner.spec.embedding == 5
    assert learner.spec.model is frozen


@pytest.mark.parametrize("name", ["hiden", "", "head.weight"])
def test_an_unknown_submodule_is_an_error_that_names_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"base.embedding.*\(hidden, head\)"):
        FrozenModel(Net(), embedding=name)
    with pytest.raises(ConfigError, match="no torch module"):
        FrozenModel(constant, embedding="hidden")


def test_an_unlabelled_pipeline_resumes_from_its_state() -> None:
    stream = entries(walk(40, 2))
    whole, _ = unlabelled()
    expected = bits(whole.observe(stream))
    first, _ = unlabelled()
    predictions = bits(first.observe(stream[:21]))
    second, _ = unlabelled()
    second.load_state_dict(through_a_checkpoint(first.state_dict()))
    assert predictions + bits(second.observe(stream[21:])) == expected
    assert state(second) == state(whole)
