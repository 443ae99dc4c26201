"""Wrong clocks and entries out of order: one wrong record does not stop the stream, a real jump in
time is followed, and nothing gets stuck."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from cli_helpers import logging_as_before
from core_helpers import bits
from dlq_helpers import go
from hypothesis import given
from hypothesis import strategies as st
from states import assert_same_state
from variants import variants

from streamadapt import (
    RLS,
    Bias,
    Entry,
    Forecast,
    Label,
    Persistence,
    Pipeline,
    Position,
    Supervised,
    TwoLayer,
    Unlabelled,
)
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import EntryError, Reason
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.testing import (
    IdentityCodec,
    ManualClock,
    MemoryDeadLetters,
    MemorySink,
    MemorySource,
)

S = 10**9
DAY = 86_400 * S
START = 1_700_000_000 * S
CENTURY = 4_070_908_800 * S  # 2099
FEW = 4
"""The largest share of a stream's records that is lost where event time really jumps, as the docs
state."""


def forecast(**more):
    return Pipeline(Forecast(3, 1), Persistence(1), [Bias(0.1)], **more)


def twice(inputs):
    return inputs[-1:, :1] * 2.0


def supervised(**more):
    task = Supervised(1, ttl=3600 * S)
    return Pipeline(task, twice, [Bias(0.1), RLS(0.99)], **more)


def unlabelled(**more):
    return Pipeline(Unlabelled(2), twice, [], TwoLayer(prior={"base": 1.0}), **more)


MADE = {"forecast": forecast, "supervised": supervised, "unlabelled": unlabelled}


def entries_at(times, key="", first=0):
    """One entry for each time, ns."""
    values = np.random.default_rng(0).normal(size=(len(times), 1)).astype(np.float32)
    return [
        Entry(values[i], int(t), f"{key}{first + i}", key, position=Position("t", 0, first + i))
        for i, t in enumerate(times)
    ]


def minutes(n, start=START):
    return [start + 60 * S * i for i in range(n)]


def wrong(time, key=""):
    return Entry(np.ones(1, np.float32), time, f"wrong{time}{key}", key)


def observed(make, items):
    """Run a pipeline in process; return it, its predictions, and the ids of refused entries by
    reason."""
    pipeline, refused = make(), []
    pipeline.on_rejected = lambda item, error: refused.append((item.id, error.reason.value))
    return pipeline, pipeline.observe(items), refused


def inserted(items, at, item):
    return [*items[:at], item, *items[at:]]


# -- in process


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("at", variants([5, 50, 99, 100], quick=2))
def test_a_record_of_the_next_century_is_refused_and_changes_nothing(make, at):
    """In the middle and at the end: the predictions are the same, and so is the state once a good
    record has arrived."""
    items = entries_at(minutes(100))
    undisturbed, predictions, _ = observed(
        make, [*items, *entries_at(minutes(1, START + 6000 * S), first=100)]
    )
    disturbed, also, refused = observed(make, inserted(items, at, wrong(CENTURY)))
    also += disturbed.observe(entries_at(minutes(1, START + 6000 * S), first=100))
    assert refused == [(f"wrong{CENTURY}", "bad_time")]
    assert bits(also) == bits(predictions)
    states = [undisturbed.state_dict(), disturbed.state_dict()]
    for state in states:
        state["stats"].pop("rejected")
    assert_same_state(*states)
    assert disturbed.stats.last_time == START + 6000 * S


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("time", variants([CENTURY, 0, -(2**62), 2**62], quick=2))
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_wrong_clock_on_the_first_record_loses_at_most_two_entries(make, time, at):
    """Two records cannot show which of them is wrong: the present time wins as soon as three
    agree."""
    pipeline, _, refused = observed(make, inserted(entries_at(minutes(60)), at, wrong(time)))
    lost = [id_ for id_, _ in refused if not id_.startswith("wrong")]
    assert len(lost) <= 2
    assert pipeline.stats.last_time == START + 59 * 60 * S
    assert pipeline.task.window.times[-1] == START + 59 * 60 * S
    assert (np.diff(pipeline.task.window.times) >= 0).all()


def test_records_dated_1970_are_refused_and_change_nothing():
    """However many there are, also in a row: 50 of them after 200 good ones."""
    items = entries_at(minutes(200))
    old = [wrong(i * S) for i in range(50)]
    more = entries_at(minutes(20, START + 12_000 * S), first=200)
    _, predictions, refused = observed(forecast, [*items, *old, *more])
    assert Counter(reason for _, reason in refused) == {"time_backwards": 50}
    assert len(predictions) == 218


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_device_with_a_broken_clock_loses_no_record_of_other_devices(make):
    """Every tenth record is dated 2099, for a long time."""
    items = []
    for i, good in enumerate(entries_at(minutes(600))):
        items += [good] if i % 9 or not i else [good, wrong(CENTURY + i * S)]
    _, _, refused = observed(make, items)
    assert {reason for _, reason in refused} == {"bad_time"}
    assert all(id_.startswith("wrong") for id_, _ in refused)
    assert len(refused) == 66


def test_wrong_times_on_one_record_in_ten_lose_almost_no_good_record():
    """Several wrong records then come in a row, too."""
    wild = np.random.default_rng(3).random(4000) < 0.1
    items = [
        wrong(CENTURY + i * S) if wild[i] else one
        for i, one in enumerate(entries_at(minutes(4000)))
    ]
    _, _, refused = observed(unlabelled, items)
    assert sum(not id_.startswith("wrong") for id_, _ in refused) <= 20


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("leap", [3 * DAY, 730 * DAY])
def test_a_jump_of_the_whole_stream_is_followed_after_a_few_records(make, leap):
    items = [*entries_at(minutes(100)), *entries_at(minutes(100, START + leap), first=100)]
    pipeline, _, refused = observed(make, items)
    assert refused == [(str(100 + i), "bad_time") for i in range(FEW)]
    assert pipeline.stats.times == {"leap": 1}
    assert pipeline.stats.last_time == items[-1].time


@pytest.mark.parametrize("wrong_ones", [1, 3, 20])
def test_an_accepted_wrong_time_is_abandoned(wrong_ones):
    """If the first N records were wrong, at most max(N, 3) of the others are refused."""
    items = [wrong(CENTURY + i * S) for i in range(wrong_ones)] + entries_at(minutes(100))
    pipeline, _, refused = observed(forecast, items)
    assert len(refused) == max(3, wrong_ones) - 1
    assert {reason for _, reason in refused} == {"time_backwards"}
    assert pipeline.stats.times["back"] == 1


def test_a_clock_some_hours_ahead_is_undone_although_it_was_no_jump():
    """The record is less than max_ahead ahead: it is accepted, and three older records undo it."""
    items = inserted(entries_at(minutes(100)), 50, wrong(START + 50 * 60 * S + 20 * 3600 * S))
    _, predictions, refused = observed(forecast, items)
    assert [reason for _, reason in refused] == ["time_backwards"] * 2
    assert len(predictions) == 97


SPARSE = {
    "monthly": [START + 31 * DAY * i for i in range(60)],
    "every minute, then monthly": minutes(100) + [START + 31 * DAY * (i + 1) for i in range(60)],
    "monthly, five a time": [START + 31 * DAY * (i // 5) for i in range(200)],
    "hourly on weekdays": [
        START + d * DAY + h * 3600 * S for d in range(60) if d % 7 < 5 for h in range(24)
    ],
    "every ten days or so": list(
        START + np.cumsum(np.random.default_rng(0).exponential(10 * DAY, 300)).astype(int)
    ),
    "daily on weekdays": [START + d * DAY for d in range(300) if d % 7 < 5],
}


@pytest.mark.parametrize("pause_hours", [4, 60])
@pytest.mark.parametrize("ahead_hours", variants([1, 10, 30, 200], quick=2))
@pytest.mark.parametrize("after", [5, 100])
def test_past_pauses_do_not_make_a_wrong_time_normal(pause_hours, ahead_hours, after):
    """A stream that pauses at weekends: one record with a clock some hours or days ahead makes the
    stream lose two other records."""
    before = minutes(100)
    times = [*before, *minutes(300, before[-1] + pause_hours * 3600 * S)]
    at = 100 + after
    one = wrong(times[at] + ahead_hours * 3600 * S)
    pipeline, _, refused = observed(forecast, inserted(entries_at(times), at, one))
    undisturbed = observed(forecast, entries_at(times))[2]  # the first long pause is a jump itself
    assert len([id_ for id_, _ in refused if not id_.startswith("wrong")]) <= len(undisturbed) + 2
    assert pipeline.stats.last_time == times[-1]


@pytest.mark.parametrize("times", SPARSE.values(), ids=SPARSE)
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_sparse_streams_and_pauses_lose_a_few_records_once(make, times):
    """A step that is longer than max_ahead but usual for the stream is not a jump."""
    _, _, refused = observed(make, entries_at(times))
    assert len(refused) <= FEW


# -- out of order


def two_producers(n, skew, step=S):
    """Two producers in turn, each in order; the second's clock is behind."""
    return [START + i // 2 * step - (skew if i % 2 else 0) for i in range(n)]


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_two_producers_with_different_clocks_lose_nothing(make):
    """Entries are predicted in the order of arrival. A prediction has its entry's own time; the
    pipeline keeps the newest time."""
    items = entries_at(two_producers(200, 3 * S))
    pipeline, predictions, refused = observed(make, items)
    assert refused == []
    assert [p.time for p in predictions] == [
        item.time for item in items[len(items) - len(predictions) :]
    ]
    assert (np.diff(pipeline.task.window.times) >= 0).all()
    assert pipeline.stats.times == {"raised": 100}
    assert pipeline.stats.last_time == items[-2].time


def test_an_entry_out_of_order_is_predicted_as_if_it_had_the_newest_time():
    """Bit for bit, except for the time in the prediction."""
    items = entries_at(two_producers(100, 2 * S))
    newest = np.maximum.accumulate([item.time for item in items])
    _, predictions, _ = observed(forecast, items)
    _, raised, _ = observed(
        forecast, [replace(item, time=int(t)) for item, t in zip(items, newest, strict=True)]
    )
    assert [b[2:] for b in bits(predictions)] == [b[2:] for b in bits(raised)]


def test_max_behind_is_exact():
    """An entry exactly max_behind late is accepted, one nanosecond more is refused; equal times
    are in order."""
    for limit, behind in (("5s", 5 * S), ("60ms", 60_000_000), ("2h", 7200 * S), ("0s", 0)):
        pipeline = forecast(max_behind=limit)
        pipeline.observe(entries_at(minutes(50)))
        at = START + 49 * 60 * S - behind
        pipeline.observe([Entry(np.ones(1, np.float32), at)])
        with pytest.raises(EntryError, match=r"limits\.max_behind") as caught:
            pipeline.observe([Entry(np.ones(1, np.float32), at - 1)])
        assert caught.value.reason is Reason.TIME_BACKWARDS
        with pytest.raises(EntryError, match="time_backwards"):
            pipeline.predict(Entry(np.ones(1, np.float32), at - 1))
        assert pipeline.predict(Entry(np.ones(1, np.float32), at)).time == at


def test_the_slower_of_two_clocks_too_far_apart_is_refused():
    """Half of the records are refused: the time does not swing between two producers."""
    _, _, refused = observed(forecast, entries_at(two_producers(400, 10 * S)))
    assert Counter(reason for _, reason in refused) == {"time_backwards": 200}


def test_repeated_records_are_not_learned_again():
    """A producer that repeats its last hour."""
    items = entries_at(minutes(100))
    again = [replace(item, id=f"{item.id}again") for item in items[-60:-1]]
    _, _, refused = observed(forecast, [*items, *again])
    assert Counter(reason for _, reason in refused) == {"time_backwards": 59}


# -- labels and pending predictions


def test_an_entry_with_a_wrong_time_expires_no_prediction_label_or_id():
    pipeline, refused = supervised(), []
    pipeline.on_rejected = lambda item, error: refused.append(error.reason)
    items = entries_at(minutes(30))
    pipeline.observe([*items, wrong(CENTURY)])
    assert pipeline.task.pending == 30
    labels = [Label(item.id, item.values, items[-1].time) for item in items]
    pipeline.observe(labels)
    pipeline.observe(entries_at(minutes(1, START + 1800 * S), first=30))
    assert pipeline.stats.labels == {"learned": 30}
    pipeline.observe([labels[0], replace(items[1], time=START + 1800 * S)])
    assert refused == [Reason.BAD_TIME, Reason.DUPLICATE_LABEL, Reason.DUPLICATE_ID]


@pytest.mark.parametrize("settle", [0, 600 * S])
def test_a_wrong_label_time_affects_its_own_entry_only(settle):
    """The label is refused, and a good label of the same entry is still learned."""
    task = Supervised(1, ttl=3600 * S, correction_window=settle)
    pipeline, refused = Pipeline(task, twice, [Bias(0.1)]), []
    pipeline.on_rejected = lambda item, error: refused.append(error.reason)
    items = entries_at(minutes(60))
    for i, item in enumerate(items):
        pipeline.observe([item])
        if i == 20:
            pipeline.observe([Label(items[19].id, item.values, CENTURY)])
        if i >= 2:
            pipeline.observe([Label(items[i - 2].id, item.values, item.time)])
    assert refused == [Reason.LATE_LABEL]  # its time is too long after its entry
    pipeline.observe(entries_at(minutes(1, START + 7200 * S), first=60))
    assert pipeline.stats.labels == {"learned": 58, "expired": 2}


def test_after_time_is_corrected_backwards_entries_expire_as_usual():
    """Entries that were accepted with a wrong time expire like others."""
    task = Supervised(1, ttl=3600 * S, correction_window=60 * S)
    pipeline = Pipeline(task, twice, [Bias(0.1)], on_rejected=lambda item, error: None)
    bad = [Entry(np.ones(1, np.float32), CENTURY + i * S, f"bad{i}") for i in range(4)]
    pipeline.observe([*bad, Label("bad0", np.ones(1, np.float32), CENTURY + 5 * S)])
    pipeline.observe(entries_at(minutes(200)))
    assert pipeline.stats.times["back"] == 1
    assert pipeline.stats.labels["learned"] == 1
    assert pipeline.task.pending == 61, "those of the last hour"


# -- keys


def keyed(max_keys=2, make=supervised):
    return KeyedPipeline(make, max_keys)


def by_turns(n, keys, start=START):
    """Every key once a minute."""
    times = minutes(n, start)
    return [entries_at([t], key, i)[0] for i, t in enumerate(times) for key in keys]


def test_a_wrong_clock_of_one_key_affects_no_key():
    """Several wrong records of the key during the stream; pending predictions do not expire,
    either."""
    items = by_turns(60, "abc")
    for at in range(150, 20, -10):
        items.insert(at, wrong(CENTURY + at * S, "b"))
    undisturbed, predictions, _ = observed(lambda: keyed(3), by_turns(60, "abc"))
    pipeline, also, refused = observed(lambda: keyed(3), items)
    assert Counter(reason for _, reason in refused) == {"bad_time": 13}
    assert bits(also) == bits(predictions)
    assert pipeline.stats.pending == undisturbed.stats.pending == 180
    assert pipeline.stats.last_time == START + 59 * 60 * S


def test_rare_keys_cause_no_jumps_in_a_running_stream():
    """A key that was silent for a month is at the time of all others."""
    items = by_turns(50, ["often", "rare"])
    for half in range(1, 400):
        items += entries_at([START + half * DAY // 2], "often", 100 + half)
        if half % 60 == 0:
            items += entries_at([START + half * DAY // 2 + 7200 * S], "rare", 100 + half)
    _, _, refused = observed(keyed, items)
    assert refused == []


def test_a_jump_of_all_keys_loses_a_few_entries_in_total_not_per_key():
    keys = [f"key{i}" for i in range(20)]
    items = by_turns(10, keys) + [
        replace(x, id=f"{x.id}b") for x in by_turns(10, keys, START + 30 * DAY)
    ]
    pipeline, _, refused = observed(lambda: keyed(20), items)
    assert Counter(reason for _, reason in refused) == {"bad_time": FEW}
    assert pipeline.stats.last_time == items[-1].time
    assert pipeline.stats.times == {"leap": 1}


def test_a_key_whose_clock_is_always_ahead_follows_its_own_time():
    items = [
        replace(x, time=x.time + 700 * DAY) if x.key == "b" else x for x in by_turns(100, "abc")
    ]
    _, _, refused = observed(keyed, items)
    assert refused == []


def test_an_evicted_key_remembers_records_in_doubt(tmp_path):
    """Its clock was wrong. Its own entries vote against that time, although other keys evict it
    from memory in between."""
    engine = engine_of([], keyed(1, lambda: forecast()), tmp_path)
    pipeline = engine.source_pipeline
    refused = []
    pipeline.on_rejected = lambda item, error: refused.append(item.id)
    pipeline.observe([wrong(CENTURY, "a")])
    for i in range(8):
        pipeline.observe(entries_at([START + 60 * i * S], "a", i))
        pipeline.observe(entries_at([START + 60 * i * S], "b", i))
    assert refused == ["a0", "a1"]


# -- in the engine


def engine_of(items, make, path=None, labels=None, **more):
    """Return an engine over a source that can grow; its one runner has `source_pipeline`."""
    pipelines = make if callable(make) else (lambda: make)
    settings = EngineSettings(
        checkpoint_path=path, checkpoint_every_entries=7, label_wait_s=1.0, **more
    )
    source = MemorySource(items, labels, finite=False)
    engine = Engine(
        source, pipelines, MemorySink(), IdentityCodec(), MemoryDeadLetters(), settings=settings,
        clock=ManualClock(), metrics=Metrics(ManualClock()),
    )  # fmt: skip
    source.open(engine)
    engine.source_pipeline = engine.runners[0].pipeline
    return engine


def refused_live(engine, items, stream=None):
    """Add records one by one, each read while no other record is waiting; return the refused
    ids."""
    before = len(engine.dead_letters.letters)
    for item in items:
        engine.source.append(item, stream=stream)
        for _ in range(3):
            engine.step()
            engine.clock.advance(2.0)
    return [letter.reason for letter in engine.dead_letters.letters[before:]]


def ids(engine):
    return [p.id for p in engine.sink.predictions]


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_one_wrong_record_at_lag_0_does_not_stop_the_stream(make, tmp_path, caplog):
    """All records after it are predicted; the record becomes a dead letter, and the log reports it
    once."""
    engine = engine_of([], make, tmp_path)
    items = entries_at(minutes(131))
    with caplog.at_level(logging.WARNING, "streamadapt"):
        assert refused_live(engine, items[:30]) == []
        assert refused_live(engine, [wrong(CENTURY)]) == [], (
            "it is held back until other records arrive"
        )
        assert "memory[0]@30 is dated far ahead" in caplog.text
        assert refused_live(engine, items[30:]) == ["bad_time"]
    assert ids(engine) == [str(i) for i in range(131 - len(ids(engine)), 131)]
    assert len(caplog.records) == 3, "held back, refused, and a dead letter"
    assert "limits.max_ahead" in engine.dead_letters.letters[0].detail
    assert (
        "refused as bad_time, 1 so far; look at the producer's clock. memory[0]@30: time is"
        in caplog.text
    )
    dead = dict(engine.metrics.samples()["streamadapt_dead_letters_total"])
    assert {at: n for at, n in dead.items() if n} == {("bad_time", "process"): 1}


@pytest.mark.parametrize("make", [*MADE.values(), lambda: keyed(1)], ids=[*MADE, "keyed"])
@pytest.mark.parametrize("stop_at", variants([31, 34, 29, 32, 60], quick=2))
def test_a_restart_goes_on_with_the_same_doubts(make, stop_at, tmp_path):
    """Stopped anywhere around wrong records, and around a real leap: the same predictions, letters
    and state."""
    items = entries_at(minutes(40)) + entries_at(minutes(40, START + 30 * DAY), first=40)
    items = [*items[:30], wrong(CENTURY), wrong(CENTURY + S), *items[30:]]
    undisturbed = engine_of([], make, tmp_path / "calm")
    refused_live(undisturbed, items)
    first = engine_of([], make, tmp_path / "two")
    refused_live(first, items[:stop_at])
    first.checkpoint()
    first._close()
    second = engine_of(items[:stop_at], make, tmp_path / "two")
    refused_live(second, items[stop_at:])
    both = first.sink.predictions + second.sink.predictions
    assert bits(both) == bits(undisturbed.sink.predictions)
    letters = first.dead_letters.letters + second.dead_letters.letters
    assert [x.record.position for x in letters] == [
        x.record.position for x in undisturbed.dead_letters.letters
    ]
    assert_same_state(
        second.source_pipeline.state_dict(), undisturbed.source_pipeline.state_dict()
    )


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_live_and_replayed_records_are_judged_the_same(make):
    """Which records are refused does not depend on how many records wait to be read."""
    rng = np.random.default_rng(7)
    times = np.array(minutes(300)) + 5 * DAY * (np.arange(300) > 150)
    items = [replace(x, time=CENTURY + i) if rng.random() < 0.1 and i > 9 else x
             for i, x in enumerate(entries_at(times))]  # fmt: skip
    live, batch = engine_of([], make), engine_of(items, make)
    refused_live(live, [*items, *entries_at(minutes(1, START + 9 * DAY), first=999)])
    for _ in range(5):
        batch.step()
    refused_live(batch, entries_at(minutes(1, START + 9 * DAY), first=999))
    assert bits(live.sink.predictions) == bits(batch.sink.predictions)
    assert [x.record.position for x in live.dead_letters.letters] == [
        x.record.position for x in batch.dead_letters.letters
    ]


def test_a_real_jump_loses_nothing_in_the_engine(caplog):
    """The records are held back until five agree; then all of them are predicted, and the log says
    that time jumped."""
    engine = engine_of([], forecast)
    refused_live(engine, entries_at(minutes(30)))
    after = entries_at(minutes(30, START + 2 * 365 * DAY), first=30)
    assert refused_live(engine, after[:4]) == []
    assert len(ids(engine)) == 28
    with caplog.at_level(logging.WARNING, "streamadapt"):
        assert refused_live(engine, after[4:]) == []
    assert ids(engine) == [str(i) for i in range(2, 60)]
    logged = [r.message for r in caplog.records if "held back" not in r.message]
    assert logged == ["partition 0: event time leapt ahead to 2025-11-13T22:17:20+00:00"]
    assert len(caplog.records) == 2
    assert ("0", "leap") in [
        labels for labels, n in engine.metrics.samples()["streamadapt_event_times_total"] if n
    ]


def test_a_small_buffer_does_not_hold_up_a_record_in_doubt():
    """A paused stream brings no more records: the records at hand decide."""
    engine = engine_of([], forecast, max_buffer=1)
    refused_live(engine, entries_at(minutes(30)))
    assert refused_live(engine, [wrong(CENTURY)]) == ["bad_time"]
    assert refused_live(engine, entries_at(minutes(3, START + 1800 * S), first=30)) == []


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_wrong_first_record_loses_nothing_when_others_follow(at):
    """In a replay the following records are already there to vote."""
    items = entries_at(minutes(50))
    engine = engine_of(inserted(items, at, wrong(CENTURY)), forecast)
    engine.step()
    assert [letter.reason for letter in engine.dead_letters.letters] == ["bad_time"]
    assert ids(engine) == [str(i) for i in range(2, 50)]


def test_a_wrong_last_record_is_refused_at_the_end_of_a_file():
    source = MemorySource([*entries_at(minutes(50)), wrong(CENTURY)])
    letters = MemoryDeadLetters()
    summary = Engine(
        source, forecast, MemorySink(), IdentityCodec(), letters, clock=ManualClock()
    ).run()
    assert summary["entries"] == 50
    assert summary["dead_letters"] == {"bad_time": 1}


def test_a_wrong_label_delays_no_entry_and_no_label():
    """The wrong label is the newest of its stream, at lag 0; the labels after it are learned in
    order."""
    engine = engine_of([], supervised, labels=[])
    names = engine.source.streams
    items = entries_at(minutes(40))
    for i, item in enumerate(items):
        refused_live(engine, [item])
        if i >= 2:
            refused_live(engine, [Label(items[i - 2].id, item.values, item.time + S)], names[1])
        if i == 20:
            refused_live(engine, [Label(items[10].id, item.values, CENTURY)], names[1])
    assert len(ids(engine)) == 40
    assert engine.summary()["labels"] == {"learned": 38}
    assert engine.summary()["dead_letters"] == {"bad_time": 1}
    assert engine.runners[0].merge.late_labels <= 1


def test_a_checkpoint_that_was_written_with_a_wrong_time_recovers(tmp_path):
    """As an earlier version wrote it: last_time is 2099, and there are no records in doubt."""
    for make in MADE.values():
        pipeline = make()
        items = entries_at(minutes(60))
        pipeline.observe(items[:30])
        state = pipeline.state_dict()
        del state["task"]["clock"], state["stats"]["times"]
        state["task"]["last_time"] = state["stats"]["last_time"] = CENTURY
        state["task"]["window"]["times"][-1] = CENTURY
        resumed, refused = make(), []
        resumed.load_state_dict(state)
        resumed.on_rejected = lambda item, error, refused=refused: refused.append(
            error.reason.value
        )
        assert len(resumed.observe(items[30:])) == 30 - FEW
        assert refused == ["time_backwards"] * FEW
        assert resumed.stats.times == {"back": 1}
        assert resumed.stats.last_time == items[-1].time


# -- properties


@given(
    st.lists(st.integers(0, 3 * DAY), min_size=12, max_size=80),
    st.integers(0, 80),
    st.one_of(st.integers(-(2**62), 2**62), st.integers(START - 10 * DAY, START + 300 * DAY)),
    st.sampled_from(sorted(MADE)),
)
def test_one_wrong_record_anywhere_loses_a_bounded_number_of_others(steps, at, time, name):
    """Whatever the steps of an ordered stream: the records lost without the wrong one, and a few
    more."""
    items = entries_at(START + np.cumsum(steps))
    undisturbed = len(observed(MADE[name], items)[2])
    pipeline, _, refused = observed(MADE[name], inserted(items, min(at, len(items)), wrong(time)))
    assert len(refused) <= undisturbed + 1 + 2 * FEW
    after = [replace(x, id=f"{x.id}x") for x in entries_at(minutes(30, items[-1].time))]
    pipeline.observe(after)
    assert pipeline.stats.last_time == after[-1].time, "nothing is stuck"


@given(
    st.lists(st.integers(0, 20 * S), min_size=5, max_size=60), st.integers(0, 2**32), st.booleans()
)
def test_disorder_within_the_tolerance_refuses_nothing(steps, seed, state_too):
    """Entries may move in any way, as long as none is older than the newest by more than
    max_behind."""
    times = START + np.cumsum(steps)
    late = np.random.default_rng(seed).integers(0, 5 * S, len(times))
    items = entries_at([int(t) for t in times[np.argsort(times + late, kind="stable")]])
    whole, predictions, refused = observed(forecast, items)
    assert refused == []
    assert len(predictions) == max(0, len(items) - 2)
    pieces, cut = forecast(), len(items) // 2
    first = pieces.observe(items[:cut])
    if state_too:
        state, pieces = pieces.state_dict(), forecast()
        pieces.load_state_dict(state)
    assert bits(first + pieces.observe(items[cut:])) == bits(predictions)
    assert_same_state(whole.state_dict(), pieces.state_dict())


# -- the command line

CONFIG = """
[source]
kind = "files"
path = "x.jsonl"
[fields]
values = ["v"]
time = "at"
time_format = "unix_ms"
[task]
kind = "forecast"
window = 4
horizon = 1
[base]
kind = "persistence"
[sink]
kind = "files"
path = "out.jsonl"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(CONFIG)
    yield from with_logging(tmp_path)


def with_logging(value):
    """Yield a value; undo afterwards the logging that a command sets up."""
    before = logging_as_before()
    next(before)
    yield value
    next(before, None)


def replayed(folder, capsys, times, *more):
    text = "\n".join(json.dumps({"at": t // 10**6, "v": i % 7}) for i, t in enumerate(times))
    (folder / "x.jsonl").write_text(text)
    return go(capsys, "replay", "c.toml", "x.jsonl", *more).out


def test_a_replay_of_two_producers_60_ms_apart_predicts_all(folder, capsys):
    times = two_producers(600, 60_000_000, 110_000_000)
    summary = json.loads(replayed(folder, capsys, times, "--json"))
    assert (summary["entries"], summary["predictions"], summary["dead_letters"]) == (600, 597, {})
    output = replayed(folder, capsys, times).splitlines()[0]
    assert "300 of 600 entries (50.0%) came out of order, for example x.jsonl[0]@" in output
    assert "limits.max_behind" in output


def test_a_replay_reports_first_what_was_lost_and_which_setting_avoids_it(folder, capsys):
    """The report is the first line, with the share, an example and the setting, which then avoids
    the loss."""
    times = two_producers(600, 60 * S)
    output = replayed(folder, capsys, times).splitlines()[0]
    assert "300 of 600 entries (50.0%) came out of order by more than limits.max_behind" in output
    assert "refused as time_backwards, for example x.jsonl[0]@599: time is 60 s before" in output
    summary = json.loads(
        replayed(folder, capsys, times, "--json", "--set", "limits.max_behind=1m")
    )
    assert (summary["predictions"], summary["dead_letters"]) == (597, {})


def test_a_few_entries_out_of_order_are_not_reported(folder, capsys):
    times = minutes(600)
    for i in range(10, 600, 60):
        times[i] -= 130 * S
    output = replayed(folder, capsys, times)
    assert "out of order" not in output
    assert "time_backwards" in output


def test_limits_are_checked_and_passed_to_each_task(folder, capsys):
    output = go(capsys, "check", "c.toml", "--set", "limits.max_behind=5", code=2).err
    assert "limits.max_behind: expected a duration with its unit" in output
    times = [START + i * 3600 * S * 30 for i in range(3)] + minutes(100, START + 10 * DAY)
    summary = json.loads(replayed(folder, capsys, times, "--json", "--set", "limits.max_ahead=1h"))
    assert summary["entries"] == 103
