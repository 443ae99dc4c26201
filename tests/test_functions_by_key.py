"""What follows the guard, as functions on arrays by key: a compiled loop over many events of
several keys gives the bits of the classes, event by event; so does the loop in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from streamadapt.compiled import Kernel
from streamadapt.drift import signal_kernels
from streamadapt.drift.signal_kernels import SignalSettings
from streamadapt.drift.signals import UsualError
from streamadapt.guard.base import Mixture
from streamadapt.pipeline import interval_kernels
from streamadapt.pipeline.intervals import Intervals
from streamadapt.pipeline.label_requests import LabelRequests, put_sums, sums_of
from streamadapt.pipeline.stats import Stats
from streamadapt.tasks import Matured, Supervised, Task, outlier_kernels
from streamadapt.tasks.estimate_kernels import count_estimated, label_step
from streamadapt.tasks.loss_kernels import loss_settings
from streamadapt.tasks.outliers import LabelOutliers

KEYS, EVENTS = 3, 200
TURNS = np.arange(EVENTS) % KEYS
EXPERTS, COLUMNS = 4, 3
DELAY = 4
TASKS: dict[str, Callable[[], Task]] = {
    "absolute": lambda: Supervised(outputs=COLUMNS),
    "squared": lambda: Supervised(outputs=COLUMNS, loss="squared"),
    "log": lambda: Supervised(classes=COLUMNS),
}


def by_key(state: Any) -> Any:
    """Return a state of one key as one of `KEYS`."""
    if isinstance(state, np.ndarray):
        return np.repeat(state, KEYS, axis=0)
    return type(state)(*(by_key(part) for part in state))


def arrays_of(state: Any) -> list[Any]:
    if isinstance(state, np.ndarray):
        return [state]
    return [array for part in state for array in arrays_of(part)]


def assert_same_state(state: Any, ones: list[Any]) -> None:
    """Assert that each key has the bits of a state of its own."""
    for key, one in enumerate(ones):
        for mine, its in zip(arrays_of(state), arrays_of(one), strict=True):
            assert np.array_equal(mine[key], its[0], equal_nan=True)


def both(kernel: Kernel) -> list[Any]:
    """The kernel as compiled code, and as plain Python."""
    return [kernel, kernel.function]


def predictions_of(task: Task, *, rows: int = 1) -> tuple[Any, Any, Any, Any]:
    """Return experts, target, mask and weights of all events: outliers, unknown cells, a base
    without a prediction."""
    rng = np.random.default_rng(0)
    cells = (EVENTS, rows, COLUMNS)
    mask = rng.random(cells) < 0.8
    mask[::9] = False
    if task.kind == "classification":
        target = np.eye(COLUMNS)[rng.integers(COLUMNS, size=cells[:2])]
        experts = rng.dirichlet(np.ones(COLUMNS), size=(EVENTS, EXPERTS, rows))
        mask[1::2] = True
    else:
        target = rng.normal(size=cells)
        experts = target[:, None] + rng.normal(size=(EVENTS, EXPERTS, rows, COLUMNS))
        experts[60:63] *= 1e9
        experts[90:93, 0] = np.nan
        mask[90:93] = False
        target = np.where(mask, target, np.nan)
    return experts, target, mask, np.tile([1.0, 0.5, 3.0, 0.0], EVENTS // 4)


# -- loss estimates


@cache
def estimate_loop(estimate: Any, learn: Any) -> Kernel:
    step = label_step(learn)

    def run(loss: Any, p: Any, s: Any, keys: Any, w: Any, sums: Any, experts: Any,
            served: Any, scale: Any, unit: Any, target: Any, mask: Any, asked: Any, weights: Any,
            out: Any) -> None:  # fmt: skip
        for e in range(keys.shape[0]):
            key = keys[e]
            estimate(p, s, key, w, experts[e], served[e], scale[e], unit[e], out[e])
            count_estimated(sums, key, out[e])
            step(loss, p, s, key, w, sums, experts[e, 0, 0], served[e, 0], target[e, 0],
                 mask[e, 0], asked[e], out[e], weights[e])  # fmt: skip

    return Kernel(run)


@pytest.mark.parametrize("name", TASKS)
def test_loss_estimates(name: str) -> None:
    task = TASKS[name]()
    experts, target, mask, weights = predictions_of(task)
    served, scale = experts.mean(axis=1), np.full((EVENTS, 1, COLUMNS), 0.7)
    if name == "log":
        scale = scale[:, :, :1] * 0.0 + 1.0
    unit = task.loss.length_of(scale)
    asked = np.where(np.arange(EVENTS) % 5 == 0, 0.3, 0.0)
    ones = [LabelRequests(task) for _ in range(KEYS)]
    notes = []
    for e, key in enumerate(TURNS):
        one, issued = ones[key], np.stack([experts[e, 1], served[e]])
        notes.append(one.record(experts[e], served[e], scale[e], commit=True))
        made: Any = (None, None, experts[e], issued, target[e], mask[e])
        one.learn(Matured(*made, weight=weights[e], note=notes[-1]))
    first = LabelRequests(task)
    estimate = first.estimate
    assert estimate is not None
    for run in both(
        estimate_loop(estimate.steps.estimate.function, estimate.steps.learn.function)
    ):
        state, sums = by_key(estimate.state), by_key(sums_of(Stats(), first.measures))
        out, room = np.zeros((EVENTS, estimate.length)), estimate.room(EXPERTS, COLUMNS)
        with np.errstate(all="ignore"):
            run(loss_settings(task.loss), estimate.settings, state, TURNS, room, sums, experts,
                served, scale, unit, target, mask, asked, weights, out)  # fmt: skip
        assert np.array_equal(out, notes, equal_nan=True)
        assert_same_state(state, [one.estimate.state for one in ones if one.estimate])
        for key, one in enumerate(ones):
            stats = Stats()
            put_sums(stats, first.measures, type(sums)(*(each[key : key + 1] for each in sums)))
            for field in ("estimated", "foreseen", "seen", "estimated_count", "seen_count"):
                assert getattr(stats, field) == getattr(one.stats, field)
            assert stats.asked_weight > 0.0


# -- intervals


def _interval_loop() -> Kernel:
    def run(p: Any, s: Any, keys: Any, served: Any, target: Any, mask: Any, weights: Any,
            counts: Any, kept: Any) -> None:  # fmt: skip
        for e in range(keys.shape[0]):
            interval_kernels.issue(p, s, keys[e], served[e], kept[e])
            if e >= DELAY:  # a target is known after this many predictions
                at = e - DELAY
                interval_kernels.learn(p, s, keys[at], kept[at], target[at], mask[at],
                                       weights[at], counts)  # fmt: skip

    return Kernel(run)


def test_intervals() -> None:
    experts, target, mask, weights = predictions_of(TASKS["absolute"](), rows=2)
    served = experts.mean(axis=1)
    first = Intervals(0.8)
    ones, stats = [Intervals(0.8) for _ in range(KEYS)], [Stats() for _ in range(KEYS)]
    issued = []
    for e, key in enumerate(TURNS):
        issued.append(ones[key].issue(Mixture(served[e], served[e : e + 1], weights)))
        if e >= DELAY:
            at = e - DELAY
            made: Any = (None, None, experts[at], issued[at], target[at], mask[at])
            one = Matured(*made, weight=weights[at])
            (rest,) = ones[TURNS[at]].learn([one], stats[TURNS[at]])
            assert np.array_equal(rest.aggregator_outputs, served[at : at + 1], equal_nan=True)
    for run in both(_interval_loop()):
        state = interval_kernels.empty_intervals(KEYS, (2, COLUMNS), first.first)
        counts, kept = np.zeros((KEYS, 2), np.int64), np.zeros((EVENTS, 3, 2, COLUMNS))
        run(first.settings, state, TURNS, served, target, mask, weights, counts, kept)
        assert np.array_equal(kept, np.stack(issued)[:, :3], equal_nan=True)
        assert_same_state(state, [one.state for one in ones])
        assert counts.tolist() == [[one.interval_cells, one.interval_hits] for one in stats]
        assert counts.min() > 20


# -- outliers among labels


def _outlier_loop() -> Kernel:
    def run(p: Any, s: Any, keys: Any, w: Any, labels: Any, errors: Any, levels: Any,
            outliers: Any) -> None:  # fmt: skip
        for e in range(keys.shape[0]):
            outlier_kernels.judge(p, s, keys[e], w, labels[e], errors[e], levels[e], outliers[e])

    return Kernel(run)


@pytest.mark.parametrize("unit", [None, np.array([1.0, 0.5, 2.0])], ids=["unscaled", "scaled"])
def test_outliers_among_labels(unit: Any) -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=(EVENTS, COLUMNS))
    labels = base + rng.normal(size=(EVENTS, COLUMNS))
    labels[rng.random((EVENTS, COLUMNS)) < 0.1] *= 1e6
    labels[rng.random((EVENTS, COLUMNS)) < 0.2] = np.nan
    labels[120:180] += 1e5  # a change of the stream
    errors = np.abs(labels - base)
    ones = [LabelOutliers(COLUMNS, 20.0) for _ in range(KEYS)]
    for one in ones:
        one.unit = unit
    found = [ones[TURNS[e]].outliers(labels[e], errors[e], base[e]) for e in range(EVENTS)]
    for run in both(_outlier_loop()):
        state = outlier_kernels.empty_outliers(KEYS, COLUMNS)
        outliers, room = np.zeros((EVENTS, COLUMNS), np.bool_), outlier_kernels.outlier_room()
        run(ones[0].settings, state, TURNS, room, labels, errors, np.abs(base), outliers)
        assert np.array_equal(outliers, found)
        assert_same_state(state, [one.state for one in ones])
        assert 20 < outliers.sum() < 0.5 * outliers.size
        assert state.changed.all()


# -- signals for drift detectors


def _signal_loop() -> Kernel:
    def run(p: Any, s: Any, keys: Any, w: Any, experts: Any, target: Any, mask: Any, one: Any,
            out: Any) -> None:  # fmt: skip
        for e in range(keys.shape[0]):
            signal_kernels.signals(p, s, keys[e], w, experts[e, 0], target[e], mask[e], one)
            judged = one.losses.shape[0]
            for i in range(3):
                out[e, i] = one.means[i]
            for j in range(judged):
                out[e, 3 + j], out[e, 3 + judged + j] = one.losses[j], one.residuals[j]

    return Kernel(run)


@pytest.mark.parametrize("name", TASKS)
def test_signals(name: str) -> None:
    task, judged = TASKS[name](), 1 if name == "log" else COLUMNS
    experts, target, mask, _ = predictions_of(task, rows=2)
    ones = [UsualError() for _ in range(KEYS)]
    found = []
    for e, key in enumerate(TURNS):
        one = ones[key].signals(experts[e, 0], target[e], mask[e], task.loss, task.kind)
        found.append(np.concatenate(one))
    settings = SignalSettings(loss_settings(task.loss), task.kind == "classification")
    for run in both(_signal_loop()):
        state, out = signal_kernels.empty_usual(KEYS, 2, COLUMNS), np.zeros_like(found)
        room, one = signal_kernels.signal_room(2, judged), signal_kernels.empty_signals(judged)
        run(settings, state, TURNS, room, experts, target, mask, one, out)
        assert np.array_equal(out, found, equal_nan=True)
        assert_same_state(state, [one.state for one in ones])
        assert np.isfinite(out).mean() > 0.4
