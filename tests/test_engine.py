"""The engine in memory: order, checkpoints, crashes, dead letters, backpressure, draining."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from states import assert_same_state
from variants import variants

from streamadapt import (
    RLS,
    Bias,
    DriftMonitor,
    Entry,
    Forecast,
    Label,
    Persistence,
    Pipeline,
    Position,
    Supervised,
)
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.reject_limit import BAD_SHARE_WINDOW
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import CheckpointError, ConnectorError, StreamadaptError
from streamadapt.testing import (
    CRASH,
    IdentityCodec,
    ManualClock,
    MemoryDeadLetters,
    MemorySink,
    MemorySource,
    SimulatedCrash,
)

HOUR = 3600 * 10**9
DELAY = 6


def base(inputs):
    return inputs[-1:, :1] * 2.0


def make_pipeline():
    learners = [Bias((0.1, 0.01)), RLS(0.98)]
    return Pipeline(Supervised(3), base, learners, drift=[DriftMonitor("adwin", "loss", "boost")])


def stream(n=400, delay=DELAY):
    rng = np.random.default_rng(0)
    x = rng.normal(size=n).astype(np.float32)
    y = (2.0 * x + np.where(np.arange(n) > n // 2, 5.0, 1.0)).astype(np.float32)
    entries = [Entry(x[i : i + 1], i * HOUR, f"e{i}") for i in range(n)]
    labels = [Label(f"e{i}", y[i : i + 1], (i + delay) * HOUR) for i in range(n)]
    return entries, labels


def make_engine(
    entries, labels, path=None, sink=None, make=make_pipeline, finite=True, **settings
):
    clock = ManualClock()
    options = {
        "checkpoint_path": path,
        "checkpoint_every_entries": 37,
        "label_wait_s": 1.0,
    } | settings
    source = MemorySource(entries, labels, finite=finite)
    sink = MemorySink() if sink is None else sink
    engine = Engine(
        source,
        make,
        sink,
        IdentityCodec(),
        MemoryDeadLetters(),
        settings=EngineSettings(**options),
        clock=clock,
    )
    return engine, sink


def written(sink):
    return {p.position: p.served.tobytes() for p in sink.predictions}


def test_every_entry_is_predicted_and_every_label_learned():
    """A clean run: one prediction per full window, labels counted by outcome."""
    entries, labels = stream()
    engine, sink = make_engine(entries, labels)
    summary = engine.run()
    assert summary["entries"] == 400
    assert len(sink.predictions) == summary["predictions"] == 398
    assert summary["labels"] == {"learned": 398, "unpredicted": 2}
    assert summary["served"] < 0.8 * summary["frozen"]
    assert summary["dead_letters"] == {}


def test_labels_in_their_own_stream_come_in_event_time_order():
    """Two streams give the result of one stream in event-time order, bit for bit."""
    entries, labels = stream()
    both = sorted([*entries, *labels], key=lambda item: (item.time, isinstance(item, Entry)))
    two, _ = make_engine(entries, labels)
    one, _ = make_engine(both, None)
    two.run()
    one.run()
    states = (
        [engine.runners[0].pipeline.state_dict() for engine in (one, two)] if one.runners else []
    )
    assert states
    assert_same_state(*states)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The final state and the predictions of an undisturbed run."""
    engine, sink = make_engine(*stream(), tmp_path_factory.mktemp("calm"))
    engine.run()
    return engine.runners[0].pipeline.state_dict(), written(sink)


@pytest.mark.parametrize("crash_at", variants([1, 50, 111, 250, 399], quick=2))
def test_a_crash_anywhere_leaves_no_trace(tmp_path, calm, crash_at):
    """Killed and started again: the same final state, every prediction there, repeats with the
    same value."""
    entries, labels = stream()
    crashed, first = make_engine(
        [*entries[:crash_at], CRASH, *entries[crash_at:]], labels, tmp_path / "crash"
    )
    with pytest.raises(SimulatedCrash):
        crashed.run()
    resumed, second = make_engine(entries, labels, tmp_path / "crash")
    resumed.run()
    assert_same_state(calm[0], resumed.runners[0].pipeline.state_dict())
    said = written(first)
    for position, value in written(second).items():
        assert said.setdefault(position, value) == value
    assert said == calm[1]


STEPS = [
    "flush",
    "encode",
    "mkdir",
    "write state.safetensors",
    "write manifest.json",
    "rename",
    "sync parent",
    "prune",
    "commit",
]


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_of_a_checkpoint_leaves_no_trace(tmp_path, calm, step):
    """At every named step of the third checkpoint."""
    entries, labels = stream()
    crashed, first = make_engine(entries, labels, tmp_path / "crash")
    reached = []

    def crash(name):
        reached.append(name)
        if reached.count(step) == 3:
            raise SimulatedCrash

    crashed.on_checkpoint_step = crash
    with pytest.raises(SimulatedCrash):
        crashed.run()
    resumed, second = make_engine(entries, labels, tmp_path / "crash")
    resumed.run()
    assert_same_state(calm[0], resumed.runners[0].pipeline.state_dict())
    assert written(first) | written(second) == calm[1]


def test_a_checkpoint_never_passes_undelivered_predictions(tmp_path):
    """A flush that fails stops the engine before the checkpoint; the restart predicts those
    entries again."""
    entries, labels = stream()
    failing = MemorySink(fail_flush=[2])
    engine, _ = make_engine(entries, labels, tmp_path, failing)
    with pytest.raises(ConnectorError):
        engine.run()
    resumed, sink = make_engine(entries, labels, tmp_path)
    resumed.run()
    undisturbed, undisturbed_sink = make_engine(entries, labels)
    undisturbed.run()
    assert written(failing) | written(sink) == written(undisturbed_sink)
    assert_same_state(
        undisturbed.runners[0].pipeline.state_dict(), resumed.runners[0].pipeline.state_dict()
    )


def test_bad_records_go_to_the_dead_letters_and_change_nothing(tmp_path):
    """Refused by the codec or by the task: the state is that of the clean stream."""
    entries, labels = stream()
    clean, undisturbed_sink = make_engine(entries, labels)
    clean.run()
    bad = [
        b"",
        b"nonsense",
        b"{}",
        Entry(np.array([1.0, 2.0], np.float32), 200 * HOUR, "wide"),
        entries[3],
    ]
    dirty = [*entries[:200], *bad, *entries[200:]]
    engine, sink = make_engine(
        dirty,
        [
            *labels[:50],
            labels[10],
            Label("nobody", labels[0].value, labels[50].time),
            *labels[50:],
        ],
    )
    summary = engine.run()
    letters = engine.dead_letters.letters
    assert len(letters) == 7
    assert sum(summary["dead_letters"].values()) == 7
    assert {letter.stage for letter in letters} == {"decode", "process"}
    assert summary["dead_letters"]["unknown_label"] == 1
    assert summary["dead_letters"]["duplicate_label"] == 1
    assert [p.served.tobytes() for p in sink.predictions] == [
        p.served.tobytes() for p in undisturbed_sink.predictions
    ]
    states = [e.runners[0].pipeline.state_dict() for e in (clean, engine)]
    for state in states:
        state["stats"].pop("rejected")
    assert_same_state(*states)


def test_a_record_dated_next_century_delays_nothing():
    """For an entry and for a label: each is refused, and the results are as without it."""
    entries, labels = stream()
    clean, undisturbed_sink = make_engine(entries, labels)
    clean.run()
    century = 36_500 * 24 * HOUR
    lost_entry = Entry(entries[0].values, century, "lost")
    dirty = [*entries[:150], lost_entry, *entries[150:]]
    lost_label = Label("e200", labels[0].value, century)
    engine, sink = make_engine(dirty, [*labels[:90], lost_label, *labels[90:]])
    summary = engine.run()
    assert summary["dead_letters"] == {"bad_time": 2}
    assert [p.served.tobytes() for p in sink.predictions] == [
        p.served.tobytes() for p in undisturbed_sink.predictions
    ]
    states = [e.runners[0].pipeline.state_dict() for e in (clean, engine)]
    for state in states:
        state["stats"].pop("rejected")
    assert_same_state(*states)


def test_a_long_gap_is_not_a_wrong_clock():
    """A stream that was silent for a year continues, since the records after the gap are later
    still."""
    entries, labels = stream(100)
    year = 365 * 24 * HOUR
    later = [Entry(e.values, e.time + year, f"{e.id}-later") for e in entries]
    engine, _ = make_engine([*entries, *later], labels)
    summary = engine.run()
    assert summary["entries"] == 200
    assert summary["dead_letters"] == {}


def test_a_stream_of_only_bad_records_stops_the_engine():
    """This is a wrong config; the message shows the error of the newest record."""
    engine, _ = make_engine([b"nonsense"] * (BAD_SHARE_WINDOW + 100), None)
    with pytest.raises(StreamadaptError, match=r"limits\.max_bad_share tolerates .*for example "):
        engine.run()


def test_an_entry_waits_for_a_silent_label_topic_for_label_wait():
    """At the end of the label stream an entry is held for label_wait and no longer; a later label
    is late."""
    entries, labels = stream(20)
    engine, sink = make_engine(entries, labels[:2], finite=False)
    metrics = engine.metrics = Metrics(engine.clock)
    source = engine.source
    source.open(engine)
    for _ in range(5):
        engine.step()
    held = len(sink.predictions)
    assert held < 17
    engine.clock.advance(1.5)
    engine.step()
    assert len(sink.predictions) == 18
    source.append(labels[2], stream=source.streams[1])
    engine.step()
    engine.clock.advance(1.5)
    engine.step()
    assert engine.summary()["labels"]["learned"] == 1
    assert metrics.samples()["streamadapt_late_labels_total"] == [((), 1.0)]


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    """The digest ties a state to the settings that made it."""
    entries, labels = stream(50)
    engine, _ = make_engine(entries, labels, tmp_path, config_digest="one")
    engine.run()
    other, _ = make_engine(entries, labels, tmp_path, config_digest="two")
    with pytest.raises(CheckpointError, match=r"one.*two"):
        other.run()


def test_stop_drains_and_checkpoints(tmp_path):
    """Processed entries are saved when a stop is requested; the next run resumes there."""
    entries, labels = stream()
    engine, sink = make_engine(
        entries, labels, tmp_path, checkpoint_every_entries=None, checkpoint_every_s=1e9
    )
    engine.source.open(engine)
    engine.step()
    engine.stop()
    engine.checkpoint()
    engine._close()
    resumed, rest = make_engine(entries, labels, tmp_path)
    resumed.run()
    positions = [p.position for p in (*sink.predictions, *rest.predictions)]
    assert sorted(set(positions)) == sorted(positions)
    assert len(positions) == 398


def test_a_full_buffer_pauses_its_stream():
    """Waiting entries are read no further than the buffer's bound."""
    entries, labels = stream()
    engine, _ = make_engine(entries, labels[:1], max_buffer=50, finite=False)
    engine.source.open(engine)
    for _ in range(30):
        engine.step()
    assert engine._paused
    assert len(engine.runners[0].merge) <= 50 + 100


def test_forecasts_need_no_labels(tmp_path):
    """The other task through the same engine, crash included."""
    rng = np.random.default_rng(1)
    values = np.cumsum(rng.normal(size=(200, 3)), axis=0).astype(np.float32)
    values[50:60, 1] = np.nan
    entries = [Entry(values[i], i * HOUR) for i in range(200)]

    def make():
        return Pipeline(Forecast(4, 3), Persistence(3), [Bias(0.1), RLS(0.99)])

    undisturbed, sink = make_engine(entries, None, tmp_path / "calm", make=make)
    undisturbed.run()
    crashed, first = make_engine(
        [*entries[:123], CRASH, *entries[123:]], None, tmp_path / "crash", make=make
    )
    with pytest.raises(SimulatedCrash):
        crashed.run()
    resumed, second = make_engine(entries, None, tmp_path / "crash", make=make)
    resumed.run()
    assert_same_state(
        undisturbed.runners[0].pipeline.state_dict(), resumed.runners[0].pipeline.state_dict()
    )
    assert written(first) | written(second) == written(sink)


def test_a_lost_partition_is_released_without_a_write(tmp_path, caplog):
    """Revoked: saved and handed over. Lost: nothing is written, since another engine may own
    it."""
    entries, labels = stream(100)
    engine, _ = make_engine(
        entries, labels, tmp_path, checkpoint_every_entries=None, checkpoint_every_s=1e9
    )
    engine.source.open(engine)
    engine.step()
    with caplog.at_level(logging.INFO, "streamadapt"):
        engine.partitions_revoked([0], lost=True)
    assert engine.runners == {}
    assert "lost" in caplog.text
    fresh, sink = make_engine(entries, labels, tmp_path)
    fresh.run()
    assert sink.predictions[0].position == Position(fresh.source.streams[0], 0, 2)
