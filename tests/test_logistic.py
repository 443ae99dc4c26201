"""The logistic regression against torch's gradients and optimiser, and its promises one by
one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import CPU, base, built, entry, spec_of
from torch import Tensor

from streamadapt import FrozenModel, Pipeline, Supervised
from streamadapt.errors import ConfigError
from streamadapt.learners import Logistic
from streamadapt.learners.defaults import default_learners
from streamadapt.testing.checks.cases import CASES, drive

WINDOW, CHANNELS, CLASSES = 2, 3, 4
D = WINDOW * CHANNELS + CLASSES + 1
SPEC = spec_of("classification", WINDOW, CHANNELS, 1, CLASSES)
KNOWN = torch.ones(1, CLASSES, dtype=torch.bool)
MULTI = next(case for case in CASES if case.kind == "classification")


def examples(n: int = 80, seed: int = 0) -> Any:
    """Windows far from standardised, probabilities of a base, labels."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        window = rng.normal(3.0, 2.0, (WINDOW, CHANNELS)).astype(np.float32)
        p = rng.dirichlet(np.ones(CLASSES)).astype(np.float32)
        yield torch.from_numpy(window), base(p[None]), torch.eye(CLASSES)[[rng.integers(CLASSES)]]


def inputs_of(window: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is standardised, without the constant, and the base's log odds."""
    log = p[0].double().clamp_min(1e-6).log()
    u = log - log.mean()
    return torch.cat([window.double().flatten(), u]), u


class Oracle:
    """The formulas of the docstring: all entries kept, autograd, and torch's Adam."""

    def __init__(self, rate: float, decay: float, forgetting: float) -> None:
        self.v = torch.zeros(CLASSES, D, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.v], lr=rate / D, betas=(0.0, decay), eps=1e-6)
        self.forgetting, self.seen = forgetting, [torch.zeros(D - 1, dtype=torch.float64)]

    def scores(self, window: Tensor, p: Tensor) -> Tensor:
        x, u = inputs_of(window, p)
        ages = np.arange(len(self.seen))[::-1]
        weights = torch.from_numpy(self.forgetting**ages)[:, None]
        kept = torch.stack(self.seen)
        mean = (weights * kept).sum(0) / weights.sum()
        squares = kept**2
        squares[0] = 1.0  # the entry before the first: mean 0, variance 1
        variance = (weights * squares).sum(0) / weights.sum() - mean**2
        z = ((x - mean) / variance.sqrt()).clamp(-5.0, 5.0)
        return u + self.v @ torch.cat([z, torch.ones(1, dtype=torch.float64)])

    def learn(self, window: Tensor, p: Tensor, target: Tensor) -> None:
        self.adam.zero_grad()
        loss = -(target[0].double() * self.scores(window, p).log_softmax(0)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()

    def adapt(self, window: Tensor, p: Tensor) -> None:
        self.seen.append(inputs_of(window, p)[0])


@pytest.mark.parametrize(("decay", "forgetting"), [(0.95, 0.9), (0.99, 1.0), (0.0, 0.5)])
def test_steps_are_those_of_autograd_and_adam_without_momentum(
    decay: float, forgetting: float
) -> None:
    rates = (1.0, 0.2)
    learner = built(Logistic(rates, decay=decay, forgetting=forgetting), SPEC)
    oracles = [Oracle(rate, decay, forgetting) for rate in rates]
    for window, said, target in examples():
        mine = learner.predict(window, said)
        for oracle, got in zip(oracles, mine, strict=True):
            wanted = oracle.scores(window, said.output).softmax(0).detach().float()
            torch.testing.assert_close(got[0], wanted, rtol=1e-5, atol=1e-6)
            oracle.adapt(window, said.output)
            oracle.learn(window, said.output, target)
        learner.adapt(window, said)
        learner.learn(window, said, target, KNOWN)
    for oracle, v in zip(oracles, learner.state.weights[0], strict=True):
        np.testing.assert_allclose(v, oracle.v.detach().numpy(), rtol=1e-6, atol=1e-9)
    assert np.abs(learner.state.weights).max() > 0.05


def test_the_first_prediction_is_the_bases() -> None:
    learner = built(Logistic((1.0, 0.1)), SPEC)
    for window, said, _ in examples(5):
        expected = said.output.expand(2, 1, CLASSES)
        torch.testing.assert_close(learner.predict(window, said), expected)
        learner.adapt(window, said)


@pytest.mark.parametrize("channels", [1, 30])
def test_a_label_moves_the_scores_by_the_rate_however_many_inputs(channels: int) -> None:
    learner = built(Logistic(0.25), spec_of("classification", 1, channels, 1, 2))
    window = torch.ones(1, channels)
    said = base([[0.880797, 0.119203]])  # log odds of 1 and -1: all inputs are 1 or -1
    learner.learn(window, said, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool))
    odds = learner.predict(window, said).flatten().log()
    assert float(odds[0] - odds[1]) == pytest.approx(2.0 - 2 * 0.25, abs=1e-4)


def test_steps_do_not_shrink_with_time() -> None:
    rng = np.random.default_rng(1)
    learner = built(Logistic(0.3), spec_of("classification", 1, 1, 1, 2))
    said, known = base([[0.5, 0.5]]), torch.ones(1, 2, dtype=torch.bool)
    moved = []
    for _ in range(6000):
        x = rng.normal()
        y = int(x > 0.0) if rng.random() < 0.8 else int(rng.integers(2))
        window = torch.full((1, 1), x, dtype=torch.float32)
        before = learner.state.weights.copy()
        learner.adapt(window, said)
        learner.learn(window, said, torch.eye(2)[[y]], known)
        moved.append(np.abs(learner.state.weights - before).sum())
    assert np.mean(moved[5000:]) > 0.9 * np.mean(moved[500:1500])


def test_an_entry_is_standardised_by_the_entries_before_it() -> None:
    """`predict` and `learn` leave means and variances alone; `adapt` changes nothing else."""
    learner = built(Logistic(1.0, forgetting=0.9), SPEC)
    for window, said, target in examples(30):
        before = [a.copy() for a in learner.state]
        learner.predict(window, said)
        learner.learn(window, said, target, KNOWN)
        for name in ("mean", "variance", "seen"):
            kept = before[learner.state._fields.index(name)]
            assert np.array_equal(getattr(learner.state, name), kept), name
        learned = learner.state.weights.copy()
        learner.adapt(window, said)
        assert np.array_equal(learner.state.weights, learned)
        assert not np.array_equal(learner.state.mean, before[3])


def test_units_of_the_inputs_do_not_matter_in_the_long_run() -> None:
    """A channel in other units, behind the same scaling, comes to the same predictions."""

    def said(factor: float, level: float) -> Tensor:
        learner = built(Logistic(0.5, forgetting=0.97), SPEC)
        for window, p, target in examples(2000):
            given = window * factor + level
            last = learner.predict(given, p)
            learner.adapt(given, p)
            learner.learn(given, p, target, KNOWN)
        return last

    torch.testing.assert_close(said(1.0, 0.0), said(100.0, -50.0), rtol=0.02, atol=0.02)


def test_a_constant_input_teaches_nothing() -> None:
    learner = built(Logistic(1.0, forgetting=0.9), SPEC)
    for window, p, target in examples(400):
        window[:, 1] = 7.3
        learner.adapt(window, p)
        learner.learn(window, p, target, KNOWN)
    weights = learner.state.weights.copy()
    for window, p, target in examples(40, seed=1):
        window[:, 1] = 7.3
        learner.adapt(window, p)
        learner.learn(window, p, target, KNOWN)
    moved = np.abs(learner.state.weights - weights)[0, 0].max(0)
    assert moved[[1, 1 + CHANNELS]].max() < 1e-3 < moved[0]


def test_unknown_targets_teach_nothing() -> None:
    learner = built(Logistic(1.0), SPEC)
    for window, p, target in examples(5):
        learner.learn(window, p, target, KNOWN)
    before = [a.copy() for a in learner.state]
    some = KNOWN.clone()
    some[0, 1] = False
    for mask in (~KNOWN, some):
        learner.learn(window, p, torch.full((1, CLASSES), torch.nan), mask)
    assert all(map(np.array_equal, before, learner.state))


def test_weight_and_boost_multiply_the_rate() -> None:
    def taught(rate: float, weight: float, boost: float) -> Tensor:
        learner = built(Logistic(rate), SPEC)
        learner.weight, learner.boost = weight, boost
        window, p, target = next(examples(1))
        learner.learn(window, p, target, KNOWN)
        said: Tensor = learner.predict(window, p)
        return said

    torch.testing.assert_close(taught(0.1, 1.0, 4.0), taught(0.4, 1.0, 1.0))
    torch.testing.assert_close(taught(0.1, 3.0, 1.0), taught(0.3, 1.0, 1.0))
    torch.testing.assert_close(taught(0.1, 1.0, 1e9), taught(5.0, 1.0, 1.0))
    assert not torch.equal(taught(0.1, 0.5, 1.0), taught(0.1, 1.0, 1.0))


def test_forgetting_returns_to_the_base() -> None:
    learner = built(Logistic(1.0), SPEC)
    for window, p, target in examples(50):
        learner.adapt(window, p)
        learner.learn(window, p, target, KNOWN)
    far = (learner.predict(window, p) - p.output).abs().max()
    learner.forget(0.3)
    assert 0.0 < (learner.predict(window, p) - p.output).abs().max() < far
    learner.forget(0.0)
    torch.testing.assert_close(learner.predict(window, p)[0], p.output)
    learner.adapt(window, p)
    learner.learn(window, p, target, KNOWN)
    assert torch.isfinite(learner.predict(window, p)).all()


def test_families_equal_their_members_bit_for_bit() -> None:
    rates, steps = (1.0, 0.3, 0.1), MULTI.steps(120, "rows", CPU)
    together = drive(built(Logistic(rates), MULTI.spec(CPU)), steps)
    for k, rate in enumerate(rates):
        alone = drive(built(Logistic(rate), MULTI.spec(CPU)), steps)
        for both, one in zip(together, alone, strict=True):
            assert torch.equal(both[k], one.view(both[k].shape)), rate


def test_it_learns_what_the_base_does_not_know() -> None:
    """A base that always says the same beside labels that a window decides."""
    rng = np.random.default_rng(2)
    x = rng.normal(5.0, 3.0, (600, 2))
    y = (x[:, 0] > x[:, 1]).astype(np.float32)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2))
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    still = FrozenModel(net, softmax=True)
    pipeline = Pipeline(
        Supervised(1, classes=2), still, default_learners("classification"), device="cpu"
    )
    made = [
        pipeline.observe([entry(v, t, id=str(t), label=y[t : t + 1])])[0] for t, v in enumerate(x)
    ]
    truth = y[300:].astype(int)
    for name in ("logistic-1", "logistic-0.1"):
        said = np.array([p.experts[name][0] for p in made[300:]])
        assert -np.log(said[np.arange(300), truth]).mean() < 0.35, name


@pytest.mark.parametrize("rate", [0.0, 5.1, float("nan"), (), (0.1, 0.1), -0.1])
def test_bad_rates(rate: Any) -> None:
    with pytest.raises(ConfigError, match="rate"):
        Logistic(rate)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_bad_decays(decay: float) -> None:
    with pytest.raises(ConfigError, match="decay"):
        Logistic(decay=decay)


@pytest.mark.parametrize("forgetting", [0.0, 1.1, float("nan")])
def test_bad_forgetting(forgetting: float) -> None:
    with pytest.raises(ConfigError, match="forgetting"):
        Logistic(forgetting=forgetting)


@pytest.mark.parametrize("kind", ["forecast", "regression"])
def test_it_is_for_classes_only(kind: str) -> None:
    with pytest.raises(ConfigError, match="a learner for a"):
        Logistic().check_kind(kind)  # type: ignore[arg-type]
