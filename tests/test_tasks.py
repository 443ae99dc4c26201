"""Maturing: rows of forecasts, labels that arrive with their entry, later, too late or never; and
bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import base, entries, entry, walk

from streamadapt import Bias, Forecast, Label, Persistence, Pipeline, Supervised
from streamadapt.errors import ConfigError, EntryError, Reason, ShapeError
from streamadapt.records import Batch
from streamadapt.tasks import Arrival, Issued, Task

NAN = float("nan")


def issue(task: Task, arrival: Arrival, item: Any, number: int) -> None:
    """Remember a prediction whose expert predicts ``100 * number + row``."""
    assert arrival.inputs is not None
    columns = task.columns(arrival.inputs.shape[1])
    output = 100.0 * number + np.arange(task.rows)[:, None].repeat(columns, 1)
    inputs = torch.from_numpy(arrival.inputs.copy())
    task.remember(Issued(item, inputs, base(output), output[None], output[None] + 0.5))


def label(id_: str, value: Any, time: int) -> Label:
    return Label(id_, np.atleast_1d(np.asarray(value, np.float32)), time)


def reason_of(task: Task, item: Any) -> Reason:
    with pytest.raises(EntryError) as caught:
        task.observe(item)
    return caught.value.reason


# -- forecasts


def test_which_row_matures_when() -> None:
    """Window 2, horizon 3, values 0, 10, 20, ...: the expected rows are written by hand."""
    task = Forecast(2, 3)
    arrivals = []
    for t in range(6):
        item = entry(10.0 * t, t + 1)
        arrival = task.observe(item)
        arrivals.append(arrival)
        if t >= 1:
            issue(task, arrival, item, number=t)
    assert [a.inputs is not None for a in arrivals] == [False, True, True, True, True, True]
    assert [len(a.matured) for a in arrivals] == [0, 0, 1, 1, 1, 1]
    # Entry 2 (value 20) is row 0 of forecast 1; entry 3 is row 0 of forecast 2 and row 1 of
    # forecast 1; ...
    known = [a.matured[0].mask.ravel().tolist() for a in arrivals[2:]]
    assert known == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
        [True, True, True],
    ]
    charged = [a.matured[0].experts[0].ravel().tolist() for a in arrivals[2:]]
    assert charged == [
        [100.0, 0.0, 0.0],
        [200.0, 101.0, 0.0],
        [300.0, 201.0, 102.0],
        [400.0, 301.0, 202.0],
    ]
    own = [a.matured[0].aggregator_outputs[0].ravel().tolist() for a in arrivals[4:]]
    assert own == [[300.5, 201.5, 102.5], [400.5, 301.5, 202.5]]
    for t, arrival in enumerate(arrivals[2:], 2):
        matured = arrival.matured[0]
        assert (matured.target[matured.mask] == 10.0 * t).all(), (
            "every row's target is the newest entry"
        )
        assert torch.equal(
            matured.rows.inputs.ravel(), torch.tensor([10.0 * (t - 2), 10.0 * (t - 1)])
        )
        assert torch.equal(
            matured.rows.base.output[matured.mask],
            torch.from_numpy(matured.experts[0]).float()[matured.mask],
        )
    # Forecast 1 is complete with entry 4, forecast 2 with entry 5.
    assert [a.matured[0].path is not None for a in arrivals[2:]] == [False, False, True, True]
    for t, number in ((4, 1), (5, 2)):
        path = arrivals[t].matured[0].path
        assert path is not None
        assert path.target.ravel().tolist() == [10.0 * (t - 2), 10.0 * (t - 1), 10.0 * t]
        assert path.base.output.ravel().tolist() == [100.0 * number + h for h in range(3)]
        assert path.inputs.ravel().tolist() == [10.0 * (number - 1), 10.0 * number]
        assert path.mask.all()


def test_missing_values_are_masked_in_rows_and_paths() -> None:
    task = Forecast(1, 2)
    for t, value in enumerate(([1.0, 2.0], [3.0, NAN], [NAN, 6.0])):
        item = entry(value, t + 1)
        arrival = task.observe(item)
        issue(task, arrival, item, t)
    matured = arrival.matured[0]
    assert matured.mask.tolist() == [[False, True], [False, True]]
    assert matured.path is not None
    assert matured.path.mask.tolist() == [[True, False], [False, True]]
    assert matured.path.target[0, 0] == 3.0
    assert arrival.inputs.tolist() == [[3.0, 6.0]], (
        "a missing input is replaced by the last one seen"
    )  # type: ignore[union-attr]


def test_missing_values_are_never_learned_as_zeros() -> None:
    """A base that is right in every known cell leaves nothing to learn, whatever cells are
    missing."""
    values = np.full((120, 2), 100.0, np.float32)
    values[np.random.default_rng(0).random(values.shape) < 0.5] = np.nan
    values[0] = 100.0
    learner = Bias((0.5, 0.01))
    pipeline = Pipeline(Forecast(3, 2), Persistence(2), [learner])
    predictions = pipeline.observe(entries(values))
    assert (learner.state.bias == 0.0).all()
    assert pipeline.stats.loss_sum == {
        "base": 0.0,
        "bias-0.5": 0.0,
        "bias-0.01": 0.0,
        "served": 0.0,
    }
    assert pipeline.stats.loss_cells["served"] < 2 * 2 * 120 * 0.6
    assert all((p.served == 100.0).all() for p in predictions)


def test_a_channel_is_unknown_until_its_first_value() -> None:
    values = walk(30, 2)
    values[:20, 1] = np.nan
    pipeline = Pipeline(Forecast(3, 2), Persistence(2), [Bias(0.1)])
    for t, p in enumerate(pipeline.observe(entries(values)), 2):
        assert np.isfinite(p.served[:, 0]).all()
        for output in (p.served, p.base, p.experts["bias-0.1"]):
            assert np.isnan(output[:, 1]).all() == (t < 20), t


def test_forecasts_hold_no_more_than_their_horizon() -> None:
    task = Forecast(2, 3)
    for t in range(200):
        item = entry([1.0, 2.0], t + 1)
        arrival = task.observe(item)
        if arrival.inputs is not None:
            issue(task, arrival, item, t)
    assert task.pending == 3
    assert len(task.actual) == 3


def test_a_forecast_takes_no_labels() -> None:
    assert reason_of(Forecast(2, 2), label("0", 1.0, 5)) is Reason.UNKNOWN_LABEL


def test_entries_with_equal_times_are_accepted() -> None:
    task = Forecast(2, 1)
    for _ in range(3):
        task.observe(entry([1.0], 7))
    assert reason_of(task, entry([1.0], 6 - 5 * 10**9)) is Reason.TIME_BACKWARDS


# -- supervised


def supervised(n: int = 1, **settings: Any) -> Supervised:
    """A task that has seen `n` entries, ids 0 to n - 1, a second apart."""
    task = Supervised(**settings)
    for t in range(n):
        send(task, t)
    return task


def send(task: Supervised, t: int, **more: Any) -> Arrival:
    item = entry([float(t)], t * 10**9, id=str(t), **more)
    arrival = task.observe(item)
    if arrival.inputs is not None:
        issue(task, arrival, item, t)
    return arrival


def test_a_label_inside_its_entry_is_learned_at_the_next_arrival() -> None:
    task = Supervised()
    assert send(task, 0, label=np.array([5.0], np.float32)).matured == []
    second = send(task, 1, label=np.array([6.0], np.float32))
    assert [m.target.item() for m in second.matured] == [5.0]
    assert second.matured[0].experts.item() == 0.0, "the prediction of entry 0"
    assert second.matured[0].rows is second.matured[0].path
    third = send(task, 2)
    assert [m.experts.item() for m in third.matured] == [100.0]
    assert task.pending == 1
    assert task.outcomes == {"learned": 2}


def test_a_separate_label_is_learned_when_it_arrives() -> None:
    task = supervised(3)
    matured = task.observe(label("1", 7.0, 3 * 10**9)).matured
    assert [(m.target.item(), m.experts.item()) for m in matured] == [(7.0, 100.0)]
    assert task.pending == 2
    assert reason_of(task, label("1", 7.0, 3 * 10**9)) is Reason.DUPLICATE_LABEL
    assert reason_of(task, label("9", 7.0, 3 * 10**9)) is Reason.UNKNOWN_LABEL


def test_a_separate_label_for_an_entry_that_brought_its_own_is_a_second_one() -> None:
    task = Supervised()
    send(task, 0, label=np.array([5.0], np.float32))
    assert reason_of(task, label("0", 5.0, 1)) is Reason.DUPLICATE_LABEL
    assert [m.target.item() for m in task.observe(label("0", 6.0, 1)).matured] == [6.0], (
        "the second label corrects the first"
    )
    assert task.outcomes == {"corrected": 1, "learned": 1}
    assert reason_of(task, label("0", 7.0, 2)) is Reason.DUPLICATE_LABEL


def test_labels_of_entries_before_the_first_full_window_are_counted() -> None:
    task = supervised(2, window=3)
    assert task.observe(label("0", 1.0, 2 * 10**9)).matured == []
    assert task.outcomes == {"unpredicted": 1}
    assert reason_of(task, label("0", 1.0, 2 * 10**9)) is Reason.DUPLICATE_LABEL
    send(task, 2)
    assert task.pending == 1


def test_predictions_expire_and_ids_are_forgotten() -> None:
    task = supervised(1, ttl=10 * 10**9)
    assert task.pending == 1
    send(task, 10)
    assert task.pending == 2, "exactly ttl old is not too old"
    send(task, 11)
    assert task.pending == 2
    assert task.outcomes == {"expired": 1}
    assert reason_of(task, label("0", 1.0, 11 * 10**9)) is Reason.LATE_LABEL
    assert reason_of(task, entry([1.0], 12 * 10**9, id="0")) is Reason.DUPLICATE_ID
    send(task, 21)
    assert reason_of(task, label("0", 1.0, 21 * 10**9)) is Reason.UNKNOWN_LABEL, (
        "after twice the ttl"
    )


def test_the_delay_of_a_label_is_judged_by_its_own_time() -> None:
    task = supervised(1, ttl=10 * 10**9)
    assert reason_of(task, label("0", 1.0, 10 * 10**9 + 1)) is Reason.LATE_LABEL
    assert task.pending == 1
    assert len(task.observe(label("0", 1.0, 10 * 10**9)).matured) == 1


@pytest.mark.parametrize("with_labels", [False, True])
def test_memory_is_bounded_by_max_pending(with_labels: bool) -> None:
    task = Supervised(max_pending=5)
    for t in range(300):
        send(task, t)
        assert task.pending <= 5
        if with_labels and t % 2:
            task.observe(label(str(t), 1.0, t * 10**9))
        assert len(task.closed) <= 3 * 5
    assert task.outcomes["expired"] > 100


def test_classes_become_one_hot_and_unknown_ones_are_masked() -> None:
    task = supervised(3, classes=3)
    matured = task.observe(label("0", 2.0, 10**10)).matured[0]
    assert matured.target.tolist() == [[0.0, 0.0, 1.0]]
    assert matured.mask.tolist() == [[True, True, True]]
    unknown = task.observe(label("1", NAN, 10**10)).matured[0]
    assert unknown.mask.tolist() == [[False, False, False]]
    for bad in (3.0, -1.0, 0.5):
        assert reason_of(task, label("2", bad, 10**10)) is Reason.BAD_CLASS
    assert reason_of(task, label("2", np.inf, 10**10)) is Reason.NOT_FINITE


def test_a_label_may_be_partly_known() -> None:
    task = supervised(1, outputs=3)
    matured = task.observe(label("0", [1.0, NAN, 3.0], 10**9)).matured[0]
    assert matured.mask.tolist() == [[True, False, True]]
    assert matured.target[0, [0, 2]].tolist() == [1.0, 3.0]
    assert reason_of(supervised(1, outputs=3), label("0", [1.0], 10**9)) is Reason.WRONG_WIDTH


def test_after_a_refused_label_its_entry_keeps_waiting() -> None:
    task = supervised(1)
    assert reason_of(task, label("0", [1.0, 2.0], 10**9)) is Reason.WRONG_WIDTH
    assert len(task.observe(label("0", 1.0, 10**9)).matured) == 1


def test_messages_do_not_repeat_a_whole_payload() -> None:
    task = supervised(1)
    with pytest.raises(EntryError) as caught:
        task.observe(label("x" * 10_000, 1.0, 10**9))
    assert len(str(caught.value)) < 200


# -- settings


@pytest.mark.parametrize(
    "make",
    [
        lambda: Forecast(0, 1), lambda: Forecast(1, 0), lambda: Forecast(1, 10_001),
        lambda: Forecast(100_001, 1), lambda: Forecast(1, True),
        lambda: Forecast(1, 1, loss="log"), lambda: Forecast(1, 1, loss="l0"),
        lambda: Supervised(0), lambda: Supervised(outputs=0), lambda: Supervised(classes=1),
        lambda: Supervised(ttl=0), lambda: Supervised(classes=3, outputs=2),
        lambda: Supervised(classes=3, loss="absolute"), lambda: Supervised(loss="log"),
        lambda: Supervised(max_pending=0),
    ],
)  # fmt: skip
def test_bad_settings(make: Any) -> None:
    with pytest.raises(ConfigError, match="task"):
        make()


def test_batches_check_their_shapes() -> None:
    with pytest.raises(ShapeError):
        Batch(np.zeros((3, 2), np.float32), np.arange(2))
    with pytest.raises(ShapeError):
        Batch(np.zeros((3, 2), np.float32), np.arange(3), np.zeros((2, 1), np.float32))
    labels = np.array([[1.0], [NAN]], np.float32)
    rows = list(Batch(np.zeros((2, 2), np.float32), np.arange(2), labels).entries())
    assert rows[0].label is not None
    assert rows[1].label is None
