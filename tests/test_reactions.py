"""Reactions to drift: what each does to the learners, and that it is reported and saved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import entries
from torch import Tensor
from variants import variants

from streamadapt import RLS, Bias, DriftMonitor, Forecast, Pipeline
from streamadapt.errors import ConfigError
from streamadapt.learners import Calibration, ErrorMemory, Gain, Learner, SlotBias
from streamadapt.models.contract import BaseOutput
from streamadapt.testing.checks.cases import state_bytes, through_a_checkpoint

JUMP = 300


def stream(n: int = 900, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return entries(
        (rng.uniform(1.0, 2.0, (n, 1)) + 20.0 * (np.arange(n) >= JUMP)[:, None]).astype(np.float32)
    )


def zero(inputs: Tensor) -> Tensor:
    return torch.zeros_like(inputs[-1:])


def monitor(reaction: Any, **more: Any) -> DriftMonitor:
    params = {"threshold": 60.0, "min_instances": 50}  # no false alarm before the jump
    return DriftMonitor("page-hinkley", "loss", reaction, params=params, cool_down=1000, **more)


def run(
    reaction: Any, experts: list[Learner], items: Any = None, **more: Any
) -> tuple[Pipeline, list[Any]]:
    pipeline = Pipeline(Forecast(3, 1), zero, experts, drift=[monitor(reaction, **more)])
    return pipeline, pipeline.observe(stream() if items is None else items)


def test_a_reset_resets_the_chosen_learners_and_is_reported() -> None:
    pipeline, predictions = run("reset", [Bias(0.5), RLS(0.99)], learners=["bias"])
    done = [(p.drifts, p.reactions) for p in predictions if p.reactions]
    assert done == [(("page-hinkley:loss",), ("page-hinkley:loss>reset bias-0.5",))]
    assert pipeline.stats.reactions == {"reset": 1}


@pytest.mark.parametrize("reaction", ["boost", "forget", "reset", "refit"])
def test_each_reaction_is_counted(reaction: str) -> None:
    pipeline, predictions = run(reaction, [Bias(0.05), RLS(0.99)], refit_trial=50)
    assert pipeline.stats.reactions[reaction] == (1 if reaction == "boost" else 2)
    assert any(p.reactions for p in predictions)


def test_an_alert_changes_only_the_reported_reactions() -> None:
    _, alerted = run("alert", [Bias(0.05)])
    plain = Pipeline(Forecast(3, 1), zero, [Bias(0.05)]).observe(stream())
    assert all(np.array_equal(a.served, b.served) for a, b in zip(alerted, plain, strict=True))
    assert sum(len(a.drifts) for a in alerted) == 1
    assert not any(a.reactions for a in alerted)


class Stuck(Bias):
    """A learner that learns from its first examples only: a fresh copy must replace it."""

    kind = "stuck"

    def allocate(self, spec: Any) -> None:
        super().allocate(spec)
        self.register_buffer("left", torch.tensor(100))

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        if int(self.left) > 0:
            super().learn(inputs, base, target, mask)
            self.left.sub_(1)


def test_a_refit_replaces_a_learner_that_a_fresh_one_beats() -> None:
    pipeline, predictions = run("refit", [Stuck(0.1)], refit_trial=60)
    reactions = [r for p in predictions for r in p.reactions]
    assert reactions == ["page-hinkley:loss>refit stuck-0.1", "refit-kept stuck-0.1"]
    late = np.array([p.experts["stuck-0.1"][0, 0] for p in predictions[-200:]])
    assert np.abs(late - 21.5).mean() < 2.0
    assert pipeline.monitors.reactor.trials == {}


def test_a_refit_keeps_a_learner_that_is_not_worse() -> None:
    items = stream()
    _, tried = run("refit", [Bias(0.5)], items, refit_trial=6)
    _, plain = run("alert", [Bias(0.5)], items)
    reactions = [r for p in tried for r in p.reactions]
    if reactions[-1].startswith("refit-dropped"):
        assert all(np.array_equal(a.served, b.served) for a, b in zip(tried, plain, strict=True))
    else:
        pytest.fail(f"a fresh start replaced one that follows: {reactions}")


def test_the_base_is_not_copied_with_a_learner_on_trial() -> None:
    pipeline, _ = run("refit", [Bias(0.05)], stream(JUMP + 30), refit_trial=500)
    (trial,) = pipeline.monitors.reactor.trials.values()
    assert trial.fresh.spec.model is trial.learner.spec.model
    assert trial.fresh is not trial.learner


@pytest.mark.parametrize("reaction", ["boost", "forget", "reset", "refit"])
@pytest.mark.parametrize("stop", variants([JUMP + 40, JUMP - 1, JUMP + 200]))
def test_a_restart_in_the_middle_of_a_reaction_changes_nothing(reaction: str, stop: int) -> None:
    def make() -> Pipeline:
        learners = [Stuck(0.1), RLS(0.99), ErrorMemory(capacity=50, k=5)]
        return Pipeline(Forecast(3, 1), zero, learners, drift=[monitor(reaction, refit_trial=100)])

    items = stream(JUMP + 300)
    whole, first, second = make(), make(), make()
    expected = whole.observe(items)
    predictions = first.observe(items[:stop])
    second.load_state_dict(through_a_checkpoint(first.state_dict()))
    predictions += second.observe(items[stop:])
    assert all(
        np.array_equal(a.served, b.served) for a, b in zip(expected, predictions, strict=True)
    )
    assert [p.reactions for p in expected] == [p.reactions for p in predictions]
    learners = [{"l": p.state_dict()["learners"]} for p in (whole, second)]
    assert state_bytes(learners[0]) == state_bytes(learners[1])


FORGETTERS: dict[str, Any] = {
    "bias": lambda: Bias(0.05),
    "gain": lambda: Gain(0.05),
    "calibration": lambda: Calibration(0.99),
    "rls": lambda: RLS(0.999),
    "rls-l1": lambda: RLS(0.999, loss="l1"),
    "rls-shared": lambda: RLS(0.999, shared=True),
    "slot_bias": lambda: SlotBias(0.1),
    "memory": lambda: ErrorMemory(capacity=200, k=30),
    "sketch": lambda: ErrorMemory(store="sketch"),
}


@pytest.mark.parametrize("name", FORGETTERS)
def test_forgetting_learns_the_new_concept_faster(name: str) -> None:
    """After a change of the base's error, forgetting brings a learner closer to the current
    truth."""

    def errors(*, forgets: bool) -> float:
        learner = FORGETTERS[name]()
        items = entries(np.repeat([[10.0], [5.0]], [500, 15], axis=0).astype(np.float32))
        base = lambda x: torch.full((1, 1), 8.0)  # noqa: E731
        pipeline = Pipeline(Forecast(2, 1), base, [learner])
        pipeline.observe(items[:500])
        if forgets:
            learner.forget(0.02)
        after = pipeline.observe(items[500:])
        return float(np.mean([abs(p.experts[learner.names[0]][0, 0] - 5.0) for p in after]))

    assert errors(forgets=True) < 0.995 * errors(forgets=False)


def test_forgetting_nothing_keeps_the_predictions_of_least_squares() -> None:
    learner = RLS(0.999)
    pipeline = Pipeline(Forecast(2, 1), zero, [learner])
    pipeline.observe(stream(100))
    weights = learner.state.weights.copy()
    learner.forget(0.1)
    assert np.array_equal(learner.state.weights, weights)
    eigenvalues = np.linalg.eigvalsh(learner.state.covariance[0])
    assert (eigenvalues > 0.0).all()
    assert float(eigenvalues.max()) <= 1.0 / learner.ridge + 1e-9


def test_the_ring_keeps_its_newest_entries() -> None:
    learner = ErrorMemory(capacity=40, k=1)
    pipeline = Pipeline(Forecast(1, 1), zero, [learner])
    pipeline.observe(entries(np.arange(60, dtype=np.float32)[:, None]))
    ring = learner.state.memory
    rank = ring.rank[0, 0, 0]
    assert int(np.isfinite(rank).sum()) == 40
    newest = (ring.count[0, 0] - 1 - np.arange(10)) % 40
    learner.forget(0.25)
    assert set(np.isfinite(rank).nonzero()[0].tolist()) == set(newest.tolist())
    learner.forget(0.0)
    assert not np.isfinite(rank).any()


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"keep_fraction": 1.0}, "drift.keep_fraction"),
        ({"refit_trial": 1}, "drift.refit_trial"),
        ({"channels": "all"}, "drift.channels"),
        ({"reaction": "panic"}, "drift.reaction"),
    ],
)
def test_bad_settings_are_refused(more: Any, path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        DriftMonitor(**more)


def test_unknown_learners_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"drift\[0\]\.learners.*rsl"):
        Pipeline(
            Forecast(1, 1),
            zero,
            [RLS(0.9)],
            drift=[DriftMonitor(reaction="reset", learners=["rsl"])],
        )
