"""A component that raises does not end the run: it is left out, counted and logged once, and the
rest continues as before."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import logging_as_before
from core_helpers import bits, entries, entry, state, walk, with_scaling
from states import assert_same_state
from torch import Tensor

from streamadapt import (
    RLS,
    Bias,
    DriftMonitor,
    Entry,
    Forecast,
    Hedge,
    KeyedPipeline,
    Panel,
    Pipeline,
    Position,
    Supervised,
    TwoLayer,
    Unlabelled,
)
from streamadapt.app.commands import run_command
from streamadapt.errors import ConfigError, EntryError, Reason, ShapeError
from streamadapt.guard.base import Mixture
from streamadapt.guard.two_layer import Mean
from streamadapt.learners import BaseOutput
from streamadapt.pipeline.rollback import PROBATION, SNAPSHOT_EVERY, WINDOW

N = 300


class Raises(Bias):
    """A learner with every optional method that raises in one of them, from its `first` call on,
    `times` times."""

    kind = "raises"

    def __init__(
        self,
        where: str,
        first: int = 100,
        times: int = 1,
        error: type[BaseException] = RuntimeError,
    ) -> None:
        super().__init__(0.1)
        self.where, self.first, self.last, self.error = where, first, first + times - 1, error
        self.calls = 0

    def _maybe(self, where: str) -> None:
        if where == self.where:
            self.calls += 1
            if self.first <= self.calls <= self.last:
                raise self.error(f"call {self.calls} of {where}")

    @property
    def signal_names(self) -> tuple[str, ...]:
        return ("raises-signal",)

    @property
    def gradient_norm(self) -> float | None:
        self._maybe("gradient_norm")
        return None

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        self._maybe("predict")
        return super().predict(inputs, base)

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        self.state.bias[:] += 1.0  # half of a step
        self._maybe("learn")
        self.state.bias[:] -= 1.0
        super().learn(inputs, base, target, mask)

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        self._maybe("adapt")

    def signals(self) -> dict[str, float]:
        self._maybe("signals")
        return {"raises-signal": 0.5}

    def forget(self, keep: float) -> None:
        self._maybe("forget")
        super().forget(keep)

    def snapshot(self) -> dict[str, Any]:
        self._maybe("snapshot")
        return super().snapshot()

    def restore(self, snapshot: Any) -> None:
        self._maybe("restore")
        super().restore(snapshot)

    def reset(self) -> None:
        self._maybe("reset")
        super().reset()


def wrong_base(inputs: Tensor) -> Tensor:
    return inputs[-1:].repeat(2, 1) - 1.0


def pipeline_with(*learners: Any, **more: Any) -> Pipeline:
    return Pipeline(
        Forecast(3, 2), with_scaling(more.pop("base", wrong_base), 2, 2), list(learners), **more
    )


def other_bits(predictions: list[Any], name: str = "bias-0.05") -> list[bytes]:
    return [p.experts[name].tobytes() for p in predictions]


@pytest.fixture
def tracebacks(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.ERROR, "streamadapt")
    return lambda: [
        str(r.exc_info[1]) for r in caplog.records if r.exc_info and r.name == "streamadapt"
    ]


@pytest.mark.parametrize("where", ["predict", "learn", "adapt", "signals", "gradient_norm"])
def test_a_learner_that_raises_is_suspended_and_returns(where: str, tracebacks: Any) -> None:
    values = walk(N, 2)
    pipeline = pipeline_with(Raises(where), Bias(0.05))
    predictions = pipeline.observe(entries(values))
    assert len(predictions) == N - 2
    assert all(np.isfinite(p.served).all() for p in predictions)
    out = [i for i, p in enumerate(predictions) if np.array_equal(p.experts["raises-0.1"], p.base)]
    assert WINDOW - 1 <= sum(i > 50 for i in out) <= WINDOW + 1
    assert max(out) < 100 + WINDOW + 5, "the learner is back"
    assert float(np.abs(predictions[-1].experts["raises-0.1"] - predictions[-1].base).max()) > 0.1
    assert pipeline.stats.updates["raises-0.1"]["restored"] == 1
    assert pipeline.stats.updates["raises-0.1"]["ok"] >= N - 10
    assert pipeline.stats.faults["learner:raises-0.1"] == 1
    assert tracebacks() == [f"call 100 of {where}"]
    alone = pipeline_with(Bias(0.05)).observe(entries(values))
    assert other_bits(predictions) == other_bits(alone), "the other learner is not affected"


@pytest.mark.parametrize("where", ["predict", "learn", "adapt"])
def test_a_learner_that_always_raises_is_logged_once_and_never_served(
    where: str, tracebacks: Any
) -> None:
    values = walk(N, 2)
    pipeline = pipeline_with(Raises(where, 1, 10**9), Bias(0.05))
    predictions = pipeline.observe(entries(values))
    assert all(np.array_equal(p.experts["raises-0.1"], p.base) for p in predictions[1:])
    assert pipeline.stats.faults["learner:raises-0.1"] >= N - 5
    assert len(tracebacks()) == 1
    assert other_bits(predictions) == other_bits(
        pipeline_with(Bias(0.05)).observe(entries(values))
    )


def test_a_learner_that_raises_in_restore_is_reset() -> None:
    learner = Raises("learn", 100)
    pipeline = pipeline_with(learner)

    def restore(snapshot: Any) -> None:
        raise OSError("no")

    learner.restore = restore  # type: ignore[method-assign]
    predictions = pipeline.observe(entries(walk(N, 2)))
    assert not np.array_equal(predictions[-1].experts["raises-0.1"], predictions[-1].base)
    assert np.abs(learner.state.bias).max() < 3.0
    assert pipeline.stats.faults["learner:raises-0.1"] == 2


def test_a_learner_that_cannot_be_reset_is_left_out_until_it_can() -> None:
    learner = Raises("predict", 60, 10**9)
    broken = True

    def fails(*given: Any) -> None:
        if broken:
            raise OSError("no")
        Bias.reset(learner)

    learner.restore = fails  # type: ignore[method-assign]
    learner.reset = fails  # type: ignore[method-assign]
    pipeline = pipeline_with(learner, Bias(0.05))
    items = entries(walk(600, 2))
    pipeline.observe(items[:300])
    calls = learner.calls
    assert calls == 60, "the learner was not called again"
    state(pipeline)
    learner.last, broken = 0, False
    predictions = pipeline.observe(items[300:])
    assert not np.array_equal(predictions[-1].experts["raises-0.1"], predictions[-1].base)


def test_a_snapshot_that_raises_loses_no_entry_and_no_checkpoint() -> None:
    n = SNAPSHOT_EVERY + PROBATION + 20
    items = entries(walk(n, 2))
    # The first snapshot is made when the learner is built.
    pipeline = pipeline_with(Raises("snapshot", 2, 10**9), Bias(0.05))
    assert len(pipeline.observe(items)) == n - 2
    pipeline.state_dict()
    assert pipeline.stats.faults["learner:raises-0.1"] >= 2
    assert len(pipeline.observe([entry(items[-1].values, n + 1)])) == 1


@pytest.mark.parametrize(
    "output", [None, "text", [1.0, 2.0], torch.zeros(2, 3), torch.zeros(1), 1j * torch.ones(2, 2)]
)
def test_an_invalid_prediction_counts_as_an_exception(output: Any) -> None:
    class Odd(Bias):
        def predict(self, inputs: Tensor, base: BaseOutput) -> Any:
            return output

    pipeline = pipeline_with(Odd(0.1), Bias(0.05))
    values = walk(120, 2)
    found = pipeline.observe(entries(values))
    assert all(np.array_equal(p.experts["bias-0.1"], p.base) for p in found)
    assert pipeline.stats.faults["learner:bias-0.1"] == len(found)
    assert other_bits(found) == other_bits(pipeline_with(Bias(0.05)).observe(entries(values)))


def test_a_prediction_of_another_dtype_is_accepted() -> None:
    class Doubles(Bias):
        def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
            return super().predict(inputs, base)[0].double()

    values = walk(120, 2)
    found = pipeline_with(Doubles(0.1)).observe(entries(values))
    plain = pipeline_with(Bias(0.1)).observe(entries(values))
    assert other_bits(found, "bias-0.1") == other_bits(plain, "bias-0.1")


class Scribbles(Bias):
    """A learner that writes into all of its arguments."""

    kind = "scribbles"

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        output = super().predict(inputs, base)
        self._scribble(inputs, base)
        return output

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        super().learn(inputs, base, target, mask)
        self._scribble(inputs, base)
        target.fill_(7e7)
        mask.fill_(False)

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        self._scribble(inputs, base)

    def _scribble(self, inputs: Tensor, base: BaseOutput) -> None:
        inputs.fill_(1e9)
        base.output.fill_(-1e9)
        assert base.times is not None
        base.times.zero_()


def test_a_learner_that_writes_into_its_arguments_affects_no_other_component() -> None:
    values = walk(150, 2)
    pipeline = pipeline_with(Scribbles(0.1), Bias(0.05), RLS(0.98))
    predictions = pipeline.observe(entries(values))
    clean = pipeline_with(Bias(0.1), Bias(0.05), RLS(0.98)).observe(entries(values))
    for name in ("bias-0.05", "rls-0.98"):
        assert other_bits(predictions, name) == other_bits(clean, name)
    assert [p.served.tobytes() for p in predictions] == [p.served.tobytes() for p in clean]
    assert pipeline.stats.faults["learner:scribbles-0.1"] > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupts_and_memory_errors_end_the_run(error: type[BaseException]) -> None:
    pipeline = pipeline_with(Raises("learn", 50, error=error))
    with pytest.raises(error):
        pipeline.observe(entries(walk(100, 2)))


def test_a_learner_that_cannot_be_built_is_left_out() -> None:
    class Unbuilt(Bias):
        def allocate(self, spec: Any) -> None:
            raise RuntimeError("no")

    pipeline = pipeline_with(Unbuilt(0.1), Bias(0.05))
    values = walk(150, 2)
    predictions = pipeline.observe(entries(values))
    assert all(np.array_equal(p.experts["bias-0.1"], p.base) for p in predictions)
    assert other_bits(predictions) == other_bits(
        pipeline_with(Bias(0.05)).observe(entries(values))
    )
    again = pipeline_with(Unbuilt(0.1), Bias(0.05))
    again.load_state_dict(pipeline.state_dict())
    assert_same_state(again.state_dict(), pipeline.state_dict())


def test_a_config_error_while_a_learner_is_built_ends_the_run() -> None:
    class Unfit(Bias):
        def allocate(self, spec: Any) -> None:
            raise ConfigError("rate", 1, "another")

    with pytest.raises(ConfigError):
        pipeline_with(Unfit(0.1)).observe(entries(walk(10, 2)))


@pytest.mark.parametrize("at", [99, 101, 120, 149, 152])
@pytest.mark.parametrize("where", ["learn", "predict"])
def test_a_restart_while_a_learner_is_suspended_changes_no_bit(where: str, at: int) -> None:
    items = entries(walk(N, 2))

    def make(first: int) -> Pipeline:
        return pipeline_with(Raises(where, first), Bias(0.05))

    whole = make(100)
    predictions = whole.observe(items)
    first = make(100)
    head = first.observe(items[:at])
    learner: Any = first.learners[0]
    second = make(100)
    again: Any = second.learners[0]
    again.calls = learner.calls  # the cause of the error is not part of its state
    second.load_state_dict(first.state_dict())
    tail = second.observe(items[at:])
    assert bits(head + tail) == bits(predictions)
    assert_same_state(second.state_dict(), whole.state_dict())


# -- label-free: one gradient that is not finite


class StaysNan(Bias):
    """Adapts without labels; its gradient norm becomes NaN at its 100th step and stays NaN."""

    kind = "stays-nan"
    needs_labels = False

    def __init__(self) -> None:
        super().__init__(0.1)
        self.seen, self.norm = 0, 1.0

    @property
    def gradient_norm(self) -> float | None:
        return self.norm

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        raise AssertionError

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        self.seen += 1
        self.state.bias[:] += 0.01
        if self.seen >= 100:
            self.norm = float("nan")


@pytest.mark.parametrize("labelled", [True, False])
def test_one_nan_gradient_suspends_a_learner_once(labelled: bool) -> None:
    task: Any = Supervised() if labelled else Unlabelled()
    pipeline = Pipeline(
        task, lambda x: x[-1:], [StaysNan()], guard=Hedge(prior={"stays-nan-0.1": 0.5})
    )
    values = walk(N, 1)
    label = (lambda v: v) if labelled else (lambda v: None)
    predictions = pipeline.observe(
        [entry(v, t, id=str(t), label=label(v)) for t, v in enumerate(values, 1)]
    )
    assert pipeline.stats.updates["stays-nan-0.1"]["restored"] == 1
    assert not np.array_equal(predictions[-1].experts["stays-nan-0.1"], predictions[-1].base)


# -- the guard


class BadGuard(TwoLayer):
    """Fails in the way that `what` names, from call `first` on, `times` times."""

    def __init__(self, what: str, first: int = 100, times: int = 1) -> None:
        super().__init__()
        self.what, self.bad_calls, self.calls = what, range(first, first + times), 0

    def _bad(self, where: str) -> bool:
        if not self.what.startswith(where):
            return False
        self.calls += 1
        return self.calls in self.bad_calls

    def mix(self, predictions: Any) -> Mixture:
        mixture = super().mix(predictions)
        if self._bad("mix"):
            if self.what == "mix raises":
                raise ZeroDivisionError("no")
            if self.what == "mix writes":
                predictions[:] = 0.0
            served = {"mix nan": mixture.served * np.nan, "mix shape": mixture.served[:1]}[
                self.what
            ]
            return Mixture(served, mixture.aggregator_outputs, mixture.weights)
        return mixture

    def update(self, *given: Any) -> None:
        if self._bad("update"):
            self.second.rule.weights[:] = np.nan  # interrupted half way
            raise ZeroDivisionError("no")
        super().update(*given)


@pytest.mark.parametrize("what", ["mix raises", "mix nan", "mix shape", "mix writes", "update"])
def test_when_the_guard_raises_the_base_is_served_and_it_is_repaired(
    what: str, tracebacks: Any
) -> None:
    values = walk(N, 2)
    pipeline = pipeline_with(Bias(0.1), RLS(0.99), guard=BadGuard(what))
    predictions = pipeline.observe(entries(values))
    plain = pipeline_with(Bias(0.1), RLS(0.99)).observe(entries(values))
    for name in ("base", "bias-0.1", "rls-0.99"):
        assert other_bits(predictions, name) == other_bits(plain, name)
    assert all(np.isfinite(p.served).all() for p in predictions)
    assert pipeline.stats.faults["guard"] == 1
    assert len(tracebacks()) == 1
    if what != "update":
        assert np.array_equal(predictions[99].served, predictions[99].base)
        assert predictions[99].weights["base"] == 1.0
    assert not np.array_equal(predictions[-1].served, predictions[-1].base), (
        "the guard mixes again"
    )
    loss = np.abs(np.stack([p.served[0] for p in predictions[-101:-1]]) - values[-100:]).mean()
    usual = np.abs(np.stack([p.served[0] for p in plain[-101:-1]]) - values[-100:]).mean()
    assert loss < 1.25 * usual


def test_with_a_guard_that_always_raises_the_base_is_served() -> None:
    pipeline = pipeline_with(Bias(0.1), guard=BadGuard("mix raises", 1, 10**9))
    predictions = pipeline.observe(entries(walk(100, 2)))
    assert all(np.array_equal(p.served, p.base) for p in predictions)
    assert np.isfinite(pipeline.stats.loss_sum["served"])


@pytest.mark.parametrize("at", [100, 102, 160])
def test_a_restart_with_a_broken_guard_changes_no_bit(at: int) -> None:
    items = entries(walk(220, 2))
    whole = pipeline_with(Bias(0.1), guard=BadGuard("update"))
    predictions = whole.observe(items)
    first, second = (pipeline_with(Bias(0.1), guard=BadGuard("update")) for _ in range(2))
    head = first.observe(items[:at])
    second.guard.calls = first.guard.calls  # type: ignore[attr-defined]
    second.load_state_dict(first.state_dict())
    assert bits(head + second.observe(items[at:])) == bits(predictions)
    assert_same_state(second.state_dict(), whole.state_dict())


def test_predict_counts_and_repairs_nothing() -> None:
    pipeline = pipeline_with(Bias(0.1), guard=Mean())
    items = entries(walk(60, 2))
    pipeline.observe(items)
    before = state(pipeline)

    def fails(*given: Any) -> Any:
        raise OSError("no")

    pipeline.guard.mix = fails  # type: ignore[method-assign]
    pipeline.learners[0].predict = fails  # type: ignore[method-assign]
    asked = pipeline.predict(entry(items[-1].values, 100))
    assert np.array_equal(asked.served, asked.base)
    assert state(pipeline) == before


# -- detectors and reactions


@pytest.mark.parametrize("channels", ["mean", "each"])
def test_a_detector_that_raises_is_reset_and_the_rest_continues(
    channels: Any, tracebacks: Any
) -> None:
    class Bad(DriftMonitor):
        calls = 0

        def update(self, value: Any) -> bool:
            self.calls += 1
            if self.calls in (60, 70):
                raise OverflowError("no")
            return super().update(value)

    values = walk(N, 2)
    values[150:] += 5.0
    bad, good = (kind("adwin", "input", channels=channels) for kind in (Bad, DriftMonitor))
    pipeline = pipeline_with(Bias(0.1), drift=[bad, DriftMonitor("page-hinkley", "loss")])
    predictions = pipeline.observe(entries(values))
    plain = pipeline_with(Bias(0.1), drift=[good, DriftMonitor("page-hinkley", "loss")]).observe(
        entries(values)
    )
    assert [p.served.tobytes() for p in predictions] == [p.served.tobytes() for p in plain]
    assert pipeline.stats.faults["detector:adwin:input"] == 2
    assert pipeline.stats.drifts["adwin:input"] >= 1, "the detector still finds the jump"
    assert len(tracebacks()) == 1


@pytest.mark.parametrize("reaction", ["forget", "reset"])
def test_a_reaction_that_raises_suspends_its_learner(reaction: Any) -> None:
    values = walk(N, 2)
    values[150:] += 5.0
    monitor = DriftMonitor("adwin", "input", reaction, cool_down=1000)
    pipeline = pipeline_with(Raises(reaction, 1, 1), Bias(0.05), drift=[monitor])
    predictions = pipeline.observe(entries(values))
    assert pipeline.stats.faults[f"reaction:{reaction}"] == 1
    assert pipeline.stats.reactions[reaction] == 1, "the other learner's reaction"
    assert pipeline.stats.updates["raises-0.1"]["restored"] == 1
    assert not np.array_equal(predictions[-1].experts["raises-0.1"], predictions[-1].base)
    alone = pipeline_with(
        Bias(0.05), drift=[DriftMonitor("adwin", "input", reaction, cool_down=1000)]
    )
    assert other_bits(predictions) == other_bits(alone.observe(entries(values)))


def test_a_replacement_that_raises_ends_its_trial() -> None:
    class Fresh(Bias):
        kind = "fresh"

        def reset(self) -> None:
            super().reset()
            self.is_fresh = True

        def learn(self, *given: Any) -> None:
            if getattr(self, "is_fresh", False):
                raise RuntimeError("no")
            super().learn(*given)

    values = walk(N, 2)
    values[150:] += 5.0
    pipeline = pipeline_with(
        Fresh(0.1), drift=[DriftMonitor("adwin", "input", "refit", cool_down=1000)]
    )
    predictions = pipeline.observe(entries(values))
    assert pipeline.stats.faults["reaction:refit"] == 1
    assert pipeline.stats.updates["fresh-0.1"] == {"ok": N - 3}
    plain = pipeline_with(Bias(0.1)).observe(entries(values))
    assert other_bits(predictions, "fresh-0.1") == other_bits(plain, "bias-0.1")


# -- the base


class BadBase:
    """A base that gives `answer`, or raises it, for entries whose newest value is `at`."""

    def __init__(self, at: float, answer: Any) -> None:
        self.at, self.answer = at, answer

    def __call__(self, inputs: Tensor) -> Any:
        if float(inputs[-1, 0]) != self.at:
            return wrong_base(inputs)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


ODD = [
    ValueError("no"),
    ShapeError("no"),
    EntryError(Reason.TOO_DEEP, "no"),
    None,
    "text",
    np.array([object()]),
    torch.zeros(2, 2) * 1j,
    torch.zeros(3, 3),
    torch.zeros(2, 2, 2, 2),
    (torch.zeros(2, 2), torch.zeros(3)),
]


@pytest.mark.parametrize("answer", ODD, ids=lambda odd: type(odd).__name__)
def test_an_entry_on_which_the_base_fails_is_refused_and_changes_nothing(
    answer: Any, tracebacks: Any
) -> None:
    values = walk(120, 2)
    values[[60, 61, 90], 0] = -77.0
    refused: list[Any] = []
    pipeline = pipeline_with(
        Bias(0.1),
        RLS(0.99),
        base=BadBase(-77.0, answer),
        on_rejected=lambda *both: refused.append(both),
    )
    items = entries(values)
    found = pipeline.observe(items)
    assert [item.id for item, _ in refused] == ["60", "61", "90"]
    assert all(error.reason == Reason.BASE_FAILED for _, error in refused)
    assert pipeline.stats.rejected == {"base_failed": 3}
    assert len(tracebacks()) == 1
    without = pipeline_with(Bias(0.1), RLS(0.99))
    assert bits(found) == bits(
        without.observe([item for item in items if item.id not in ("60", "61", "90")])
    )
    assert state(pipeline, without=["stats"]) == state(without, without=["stats"])
    with pytest.raises(EntryError, match="base_failed"):
        pipeline.predict(entry([-77.0, 1.0], 500))
    assert state(pipeline, without=["stats"]) == state(without, without=["stats"])


def test_a_base_that_never_fits_the_task_still_ends_the_run() -> None:
    with pytest.raises(ShapeError):
        pipeline_with(Bias(0.1), base=lambda x: x[-1:].repeat(5, 1)).observe(entries(walk(5, 2)))


def test_a_base_that_writes_into_its_input_or_reuses_its_output_changes_no_result() -> None:
    buffer = torch.zeros(2, 2)

    def reusing(inputs: Tensor) -> Tensor:
        buffer.copy_(wrong_base(inputs))
        inputs.fill_(1e9)
        return buffer

    values = walk(100, 2)
    found = pipeline_with(Bias(0.1), RLS(0.99), base=reusing).observe(entries(values))
    assert bits(found) == bits(pipeline_with(Bias(0.1), RLS(0.99)).observe(entries(values)))


def test_a_failing_base_refuses_one_entry_of_one_key() -> None:
    refused: list[Any] = []
    keyed = KeyedPipeline(
        lambda: pipeline_with(Bias(0.1), base=BadBase(-77.0, ValueError("no"))),
        on_rejected=lambda *both: refused.append(both),
    )
    items = [
        entry([float(t), 1.0], t, id=f"{t}{key}", key=key) for t in range(1, 40) for key in "ab"
    ]
    items[31] = entry([-77.0, 1.0], 16, id="bad", key="b")
    assert len(keyed.observe(items)) == 2 * (39 - 2) - 1
    assert [item.id for item, _ in refused] == ["bad"]
    assert keyed.stats.rejected == {"base_failed": 1}


@pytest.mark.parametrize("end", ["a later record", "flush"])
def test_a_panel_loses_only_the_row_on_which_the_base_fails(end: str) -> None:
    def record(sensor: str, t: int, value: float) -> Entry:
        return Entry(
            np.array([value], np.float32), t * 10**9, key=sensor, position=Position("t", 0, t)
        )

    records = [
        record(s, t, -77.0 if (s, t) == ("a", 8) else float(t)) for t in range(10) for s in "ab"
    ]
    refused: list[Any] = []
    task = Forecast(3, 2)
    base = BadBase(-77.0, ValueError("no"))
    panel = Panel(["a", "b"], lateness="20s", max_ahead="1d")
    pipeline = Pipeline(
        task, base, [Bias(0.1)], panel=panel, on_rejected=lambda *both: refused.append(both)
    )
    assert pipeline.observe(records) == []
    predictions = pipeline.flush() if end == "flush" else pipeline.observe([record("a", 60, 1.0)])
    assert [p.time // 10**9 for p in predictions][:7] == [2, 3, 4, 5, 6, 7, 9]
    assert [(item.time // 10**9, error.reason) for item, error in refused] == [
        (8, Reason.BASE_FAILED)
    ]
    assert pipeline.stats.rejected == {"base_failed": 1}


# -- from the command line

CONFIG = """
[source]
kind = "files"
path = "in.jsonl"
[fields]
values = ["x"]
key = "sensor"
time = "at"
time_format = "unix_s"
{panel}
[task]
kind = "forecast"
window = 3
horizon = 2
[base]
kind = "module"
factory = "fragile_base:make"
[[learners]]
kind = "bias"
[sink]
kind = "files"
path = "out.jsonl"
[checkpoint]
path = "state"
every_entries = 10
"""
FRAGILE = """
import torch
class Fragile(torch.nn.Module):
    def forward(self, x):
        if float(x[0, -1, 0]) == 77.0:
            raise ValueError("77 is no good")
        return x[:, -1:].repeat(1, 2, 1)
make = Fragile
"""


@pytest.fixture
def _logging() -> Any:
    yield from logging_as_before()


@pytest.mark.usefixtures("_logging")
@pytest.mark.parametrize("panel", [False, True])
def test_run_writes_a_dead_letter_when_the_base_fails(
    panel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a panel it is the last row but one, which is released at the end of the stream."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("fragile_base.py").write_text(FRAGILE)
    table = '[panel]\nsensors = ["a"]\nlateness = "5s"' if panel else ""
    Path("c.toml").write_text(CONFIG.format(panel=table))
    values = [float(t) for t in range(30)]
    values[28] = 77.0
    records = [json.dumps({"at": t, "x": x, "sensor": "a"}) + "\n" for t, x in enumerate(values)]
    Path("in.jsonl").write_text("".join(records))
    assert run_command(["run", "c.toml"]).code == 0
    out = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(out) == 30 - 2 - 1
    letters = [
        json.loads(line) for line in Path("out.jsonl.dead-letters").read_text().splitlines()
    ]
    assert [letter["reason"] for letter in letters] == ["base_failed"]
    assert "77 is no good" in letters[0]["detail"]
