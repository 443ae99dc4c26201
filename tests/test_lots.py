"""Predictions do not depend on how items are grouped, nor on whether they are taken in lots or
alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import with_scaling

from streamadapt import (
    ADCSD,
    RLS,
    Batch,
    Bias,
    Columns,
    DriftMonitor,
    Entry,
    Forecast,
    FrozenModel,
    Gain,
    Holt,
    Label,
    LastValue,
    Linear,
    Logistic,
    Persistence,
    Pipeline,
    Prediction,
    Seasonal,
    Supervised,
)
from streamadapt.errors import EntryError, ShapeError
from streamadapt.models.fit import fit_supervised
from streamadapt.pipeline.intervals import Intervals
from streamadapt.tasks.label_budget import LabelBudget

SECOND = 10**9
CHANNELS = 3
ENTRIES = 700
Item = Entry | Label


def walk(seed: int, size: int = ENTRIES + 200) -> np.ndarray:
    """Return a stream of values in a fixed range, whose second half is shifted."""
    rng = np.random.default_rng(seed)
    values = np.zeros((size, CHANNELS))
    for t in range(1, size):
        values[t] = 0.95 * values[t - 1] + rng.normal(size=CHANNELS)
    values[size // 2 :] += 3.0
    return values


def with_faults(items: list[Item], seed: int) -> list[Item]:
    """Put missing values, outliers, wrong clocks, repeated ids and odd labels into a stream."""
    rng = np.random.default_rng(seed)
    found: list[Item] = []
    for item in items:
        fault = rng.random()
        if isinstance(item, Entry):
            values = item.values.copy()
            if fault < 0.05:
                values[rng.integers(CHANNELS)] = np.nan
            elif fault < 0.06:
                values[rng.integers(CHANNELS)] = 1e9
            time = item.time - int(fault * 100) * SECOND if 0.06 < fault < 0.08 else item.time
            time += 10**18 if 0.08 < fault < 0.085 else 0
            item = Entry(values, time, item.id, label=item.label)
        elif fault < 0.02:
            item = Label(item.id, item.value * 1e6, item.time)
        elif fault < 0.04:
            item = Label("nobody", item.value, item.time)
        elif fault < 0.05:
            item = Label(item.id, np.full_like(item.value, np.nan), item.time)
        found.append(item)
        if 0.5 < fault < 0.52:
            found.append(item)
    return found


def labelled(seed: int, value: Callable[[np.ndarray, int], float], own: bool) -> list[Item]:
    """Return entries with labels inside, or 15 entries later; some never come."""
    rng, values, items = np.random.default_rng(seed), walk(seed), []
    waiting: list[Label] = []
    for t in range(ENTRIES):
        label = np.array([value(values[t], t)])
        entry = Entry(values[t], t * SECOND, str(t), label=label if own else None)
        items.append(entry)
        if not own and rng.random() < 0.9:
            waiting.append(Label(str(t), label, t * SECOND))
        if len(waiting) > 15:
            items.append(Label(waiting[0].id, waiting.pop(0).value, t * SECOND))
    return items


def level(values: np.ndarray, t: int) -> float:
    return float(values @ [1.0, -0.5, 0.2] + (t > ENTRIES / 2))


def side(values: np.ndarray, t: int) -> float:
    return float(level(values, t) > 0.5)


def linear() -> Linear:
    """A ridge regression that was fitted before the stream."""
    values = walk(9)[:150]
    labels = np.array([[level(row, 0)] for row in values])
    return fit_supervised(Batch(values, np.arange(150), labels), 2)


def softmax() -> Linear:
    """The same for two classes."""
    fitted = linear()
    weights = torch.cat([-fitted.weights, fitted.weights], dim=1)
    scaling = {name: getattr(fitted, name) for name in ("input_loc", "input_scale")}
    scaling |= {"output_loc": torch.zeros(2), "output_scale": torch.ones(2)}
    return Linear("classification", weights, 2, subtract_last=False, scaling=scaling)


def regression(**more: Any) -> Pipeline:
    learners = [Bias((0.5, 0.02)), Gain(0.05), RLS((0.9, 0.98))]
    task = Supervised(window=2, ttl=60 * SECOND, max_pending=40)
    monitors = [DriftMonitor("adwin", "loss"), DriftMonitor("page-hinkley", "residual")]
    more = {"intervals": Intervals(0.8), **more}
    return Pipeline(task, linear(), learners, drift=monitors, **more)


def plain_base(inputs: torch.Tensor) -> torch.Tensor:
    return inputs[-1, :1] * 0.5


def own_base(**more: Any) -> Pipeline:
    return Pipeline(Supervised(window=2), plain_base, [Bias(0.1), RLS(0.98)], **more)


def budgeted(**more: Any) -> Pipeline:
    budget = LabelBudget(0.3)
    return Pipeline(Supervised(window=2), linear(), [Bias(0.1)], budget=budget, **more)


def forecast(**more: Any) -> Pipeline:
    learners = [Bias(0.02), RLS(0.99), Holt(), LastValue(), Seasonal(7)]
    monitors = [
        DriftMonitor("adwin", "loss", channels="each"),
        DriftMonitor("adwin", "input"),
        DriftMonitor("kswin", "loss"),
    ]
    more = {"intervals": Intervals(), **more}
    base = with_scaling(Persistence(3), CHANNELS, CHANNELS)
    return Pipeline(Forecast(4, 3), base, learners, drift=monitors, **more)


def step(**more: Any) -> Pipeline:
    base = with_scaling(Persistence(1), CHANNELS, CHANNELS)
    return Pipeline(Forecast(3, 1), base, [Bias(0.1), RLS(0.98)], **more)


def classes(**more: Any) -> Pipeline:
    task = Supervised(window=2, classes=2)
    learners = [Bias(0.1), RLS(0.98), LastValue(), Logistic(0.3)]
    monitors = [DriftMonitor("ddm", "error"), DriftMonitor("adwin", "confidence")]
    base = softmax()
    return Pipeline(task, base, learners, drift=monitors, **more)


STREAMS: dict[str, tuple[Callable[..., Pipeline], Callable[[], list[Item]]]] = {
    "regression": (regression, lambda: labelled(1, level, own=False)),
    "regression-faults": (regression, lambda: with_faults(labelled(2, level, own=False), 3)),
    "own-labels": (regression, lambda: with_faults(labelled(3, level, own=True), 4)),
    "own-base": (own_base, lambda: with_faults(labelled(4, level, own=False), 5)),
    "budget": (budgeted, lambda: labelled(5, level, own=False)),
    "forecast": (forecast, lambda: labelled(6, level, own=True)),
    "forecast-faults": (forecast, lambda: with_faults(labelled(7, level, own=True), 6)),
    "one-step": (step, lambda: with_faults(labelled(7, level, own=True), 8)),
    "classes": (classes, lambda: with_faults(labelled(8, side, own=False), 7)),
}


def groups(cut: int | None, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ends of groups of `cut` items, or of random sizes."""
    rng, first = np.random.default_rng(11), 0
    while first < size:
        stop = first + (cut or int(rng.choice([1, 2, 30, 200])))
        yield first, min(stop, size)
        first = stop


def observe(pipeline: Pipeline, items: list[Item], cut: int | None) -> list[Prediction]:
    found: list[Prediction] = []
    for first, stop in groups(cut, len(items)):
        found += pipeline.observe(items[first:stop])
    return found


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal to the bit, NaN included."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray | torch.Tensor):
        return np.asarray(one).tobytes() == np.asarray(other).tobytes()
    return bool(one == other or (one != one and other != other))


def fields(prediction: Prediction) -> dict[str, Any]:
    return {name: getattr(prediction, name) for name in Prediction.__slots__}


def assert_same(one: Prediction, other: Prediction) -> None:
    for name, value in fields(one).items():
        assert same(value, getattr(other, name)), (one.id, name, value, getattr(other, name))


def alone(name: str, **more: Any) -> tuple[list[Prediction], Pipeline, list[Item], list[str]]:
    """Return what is predicted if every item is taken alone, and what is refused."""
    make, stream = STREAMS[name]
    refused: list[str] = []
    pipeline = make(on_rejected=lambda item, error: refused.append(error.reason.value), **more)
    pipeline.lots.allowed = False
    items = stream()
    return observe(pipeline, items, 1), pipeline, items, refused


def state_of(pipeline: Pipeline) -> dict[str, Any]:
    state = pipeline.state_dict()
    del state["health"]["good"], state["health"]["candidates"]  # compared by what follows
    return state


@pytest.mark.parametrize("name", STREAMS)
def test_predictions_do_not_depend_on_the_grouping(name: str) -> None:
    expected, reference, items, refused = alone(name)
    assert len(expected) > ENTRIES / 2
    for cut in (1, 7, 1024, None):
        found: list[str] = []
        pipeline = STREAMS[name][0](
            on_rejected=lambda _, error, to=found: to.append(error.reason.value)
        )
        predictions = observe(pipeline, items, cut)
        assert len(predictions) == len(expected)
        for one, other in zip(expected, predictions, strict=True):
            assert_same(one, other)
        assert sorted(found) == sorted(refused)
        assert same(state_of(reference), state_of(pipeline)), cut
        assert pipeline.lots.taken > 0, "a test of lots"


@pytest.mark.parametrize("name", ["regression-faults", "own-labels", "forecast", "classes"])
def test_columns_are_the_same_as_objects(name: str) -> None:
    expected, reference, items, refused = alone(name)
    pipeline = STREAMS[name][0]()
    n = len(items)
    values, labels = np.full((n, CHANNELS), np.nan), np.full((n, 1), np.nan)
    for i, item in enumerate(items):
        if isinstance(item, Entry):
            values[i] = item.values
            labels[i] = np.nan if item.label is None else item.label
        else:
            labels[i] = item.value
    is_label = np.array([isinstance(item, Label) for item in items])
    times, ids = np.array([item.time for item in items]), [item.id for item in items]
    found = pipeline.observe_lot(Columns(values, times, ids, labels, is_label))
    assert [items[i].id for i in found.items] == [one.id for one in expected]
    assert same(found.served, np.array([one.served for one in expected]))
    for k, expert in enumerate(found.names):
        assert same(found.experts[:, k], np.array([one.experts[expert] for one in expected]))
        weights = np.array([one.weights[expert] for one in expected])
        assert same(found.weights[:, k].copy(), weights)
    assert same(found.base.copy(), np.array([one.base for one in expected]))
    assert [name for _, name in found.drifts] == [d for one in expected for d in one.drifts]
    assert sorted(one.reason.value for one in found.refused) == sorted(refused)
    assert same(state_of(reference), state_of(pipeline))


@pytest.mark.parametrize("name", ["regression", "forecast"])
@pytest.mark.parametrize("bias", [np.nan, 1e4])
def test_a_learner_that_breaks_inside_a_lot_is_set_back_there(name: str, bias: float) -> None:
    """The others, and what follows, are as if every item had been taken alone."""
    found = []
    for cut in (1, 500):
        pipeline = STREAMS[name][0]()
        pipeline.lots.allowed = cut > 1
        items = STREAMS[name][1]()[:500]
        half = observe(pipeline, items[:300], cut)
        assert pipeline.health is not None
        # No number at once, or losses that are too large over the next 50 targets.
        pipeline.learners[0].state.bias[:, -1] = bias  # type: ignore[attr-defined]
        rest = observe(pipeline, items[300:], cut)
        restored = {name: dict(counts) for name, counts in pipeline.stats.updates.items()}
        found.append(([*half, *rest], restored, state_of(pipeline)))
    (one, counts, state), (other, other_counts, other_state) = found
    assert any("restored" in each for each in counts.values())
    assert counts == other_counts
    for a, b in zip(one, other, strict=True):
        assert_same(a, b)
    assert same(state, other_state)


def test_a_checkpoint_between_lots_continues() -> None:
    expected, _, items, _ = alone("regression-faults")
    make = STREAMS["regression-faults"][0]
    first, second = make(on_rejected=lambda *_: None), make(on_rejected=lambda *_: None)
    found = observe(first, items[:400], None)
    second.load_state_dict(first.state_dict())
    found += observe(second, items[400:], None)
    for one, other in zip(expected, found, strict=True):
        assert_same(one, other)


def test_an_item_that_is_refused_without_a_callback_ends_the_call_there() -> None:
    pipeline = regression()
    items = labelled(1, level, own=False)
    observe(pipeline, items[:300], None)
    wrong = [*items[300:340], Label("nobody", np.array([1.0]), 340 * SECOND), *items[340:360]]
    with pytest.raises(EntryError, match="nobody"):
        pipeline.observe(wrong)
    other = regression()
    observe(other, items[:340], None)
    state, expected = state_of(pipeline), state_of(other)
    del state["stats"], expected["stats"]  # it counts the refused label
    assert same(state, expected)


def test_a_changed_method_is_called() -> None:
    """A learner, guard or base whose methods are replaced is not what its kernel computes."""

    class Mine(Bias):
        def predict(self, inputs: torch.Tensor, base: Any) -> torch.Tensor:
            return torch.full((1, 1, 1), 7.0)

    pipeline = Pipeline(Supervised(window=2), linear(), [Mine(0.1)])
    found = observe(pipeline, labelled(1, level, own=False), 50)
    assert all(one.experts["bias-0.1"] == 7.0 for one in found[:40])  # later it is taken out
    assert pipeline.lots.taken == 0
    pipeline = regression()
    items = labelled(1, level, own=False)
    observe(pipeline, items[:100], 50)
    base = pipeline.base
    base.forward = lambda inputs: type(base).forward(base, inputs * 0.0)  # type: ignore[method-assign]
    found = observe(pipeline, items[100:], 50)
    assert len({float(one.base[0, 0]) for one in found}) == 1


@pytest.mark.parametrize("at", [150, 151, 249])
def test_a_gradient_that_is_too_long_sets_a_learner_back_at_its_example(at: int) -> None:
    """Its experts are out from that example on, not from the beginning of the lot."""
    found = []
    values = np.cumsum(np.random.default_rng(5).normal(size=(250, 2)), axis=0) * 0.1
    items: list[Item] = [Entry(row, t * SECOND) for t, row in enumerate(values)]
    for lots in (False, True):
        pipeline = Pipeline(Forecast(3, 2), Persistence(2), [ADCSD(1e-3), Bias(0.1)])
        pipeline.lots.allowed = lots
        predictions = observe(pipeline, items[:100], None)
        norms, learner = [], pipeline.learners[0]
        usual = learner.take_gradient_norm

        def norm(usual: Any = usual, norms: Any = norms) -> float | None:
            found = usual()
            norms.append(found)
            return 1e9 if len(norms) == at - 100 else found

        learner.take_gradient_norm = norm  # type: ignore[method-assign]
        predictions += observe(pipeline, items[100:], 1 if not lots else 200)
        counts = {name: dict(each) for name, each in pipeline.stats.updates.items()}
        found.append((predictions, counts, state_of(pipeline)))
    (one, counts, state), (other, other_counts, other_state) = found
    assert counts["adcsd-1e-3"]["restored"] == 1
    assert counts == other_counts
    for a, b in zip(one, other, strict=True):
        assert_same(a, b)
    assert same(state, other_state)


def test_a_copy_of_a_pipeline_goes_on_by_itself() -> None:
    expected, _, items, _ = alone("regression-faults")
    pipeline = STREAMS["regression-faults"][0](on_rejected=print)
    first = observe(pipeline, items[:400], 50)
    copied = copy.deepcopy(pipeline)
    rest = observe(copied, items[400:], 50)
    observe(pipeline, items[400:600], 7)
    for one, other in zip(expected, [*first, *rest], strict=True):
        assert_same(one, other)


def test_room_grows_with_the_lots_and_no_further() -> None:
    pipeline, items = regression(), labelled(1, level, own=False)
    observe(pipeline, items[:100], 1)
    small = pipeline.lots.room(1)
    assert small.size < 20
    assert small.places.size < 100  # 40 predictions wait at most
    observe(pipeline, items[100:], 1024)
    large = pipeline.lots.room(1)
    assert large.size == 1024
    assert large.places is small.places
    assert large.places.size < 4 * len(items)


def test_an_outlier_among_the_first_entries_does_not_part_the_two_ways() -> None:
    """The intervals begin again when it is found."""
    values = np.random.default_rng(0).normal(size=(60, 1))
    values[4, 0] = 1e6
    items: list[Item] = [Entry(row, t * SECOND) for t, row in enumerate(values)]
    found = []
    for lots in (False, True):
        base = with_scaling(Persistence(1), 1, 1)
        pipeline = Pipeline(Forecast(1, 1), base, [Bias(0.1)], intervals=Intervals())
        pipeline.lots.allowed = lots
        found.append((observe(pipeline, items, 60), state_of(pipeline)))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert_same(one, other)
    assert same(found[0][1], found[1][1])


class Counting:
    """A base that counts its calls, and fails in a way that ends the process."""

    def __init__(self, fails_at: int = -1) -> None:
        self.calls, self.fails_at = 0, fails_at

    def __call__(self, inputs: torch.Tensor) -> Any:
        self.calls += 1
        if self.calls == self.fails_at:
            raise MemoryError
        embedding = torch.ones(2, 1, dtype=torch.bfloat16) * self.calls
        return inputs[-1:, :1] * 0.5, embedding


def counted(count: Counting, **task: Any) -> Pipeline:
    base = with_scaling(FrozenModel(count), CHANNELS, 1)
    monitors = [DriftMonitor("adwin", "embedding")]
    return Pipeline(Supervised(2, **task), base, [Bias(0.1)], drift=monitors)


def test_a_base_is_asked_about_once_for_each_entry_where_lots_end_early() -> None:
    items = [item for item in labelled(4, level, own=False) if isinstance(item, Entry)][:300]
    for task in ({"max_pending": 4}, {"ttl": 3 * SECOND}, {}):
        count = Counting()
        predictions = observe(counted(count, **task), items, 1024)
        assert len(predictions) == len(items) - 1
        assert count.calls < 2.5 * len(items)


def test_what_came_before_a_fatal_error_of_the_base_is_taken() -> None:
    items = labelled(4, level, own=False)
    pipeline = counted(Counting(fails_at=151))
    with pytest.raises(MemoryError):
        pipeline.observe(items)
    assert pipeline.stats.predictions == 150
    assert pipeline.lots.taken > 100


def test_columns_of_wrong_shapes_are_refused() -> None:
    values, times = np.zeros((3, 2)), np.arange(3)
    wrong: list[dict[str, Any]] = [
        {"times": times[:2]}, {"times": times[:, None]}, {"times": times + 0.5},
        {"values": values[0]}, {"labels": np.zeros(2)}, {"labels": np.zeros((3, 1, 1))},
        {"is_label": np.zeros((3, 1))}, {"ids": ["a"]},
    ]  # fmt: skip
    for more in wrong:
        with pytest.raises(ShapeError):
            Columns(**{"values": values, "times": times, **more})
    assert len(Columns(np.zeros((0, 2)), np.zeros(0), labels=np.zeros((0, 1)))) == 0


def test_columns_with_labels_of_a_wrong_width_or_ids_that_are_no_text_are_refused_one_by_one() -> (
    None
):
    items = labelled(1, level, own=True)[:200]
    values = np.array([item.values for item in items if isinstance(item, Entry)])
    times, ids = np.arange(200) * SECOND, [str(t) for t in range(200)]
    ids[150] = "\ud800"
    found = regression().observe_lot(Columns(values, times, ids, np.ones((200, 2))))
    assert len(found) == 198
    reasons = [one.reason.value for one in found.refused]
    assert (reasons.count("wrong_width"), reasons.count("wrong_type")) == (199, 1)
