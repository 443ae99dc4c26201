"""Unusual starts: forgotten positions, another guarantee, a new path, an error half way."""

from __future__ import annotations

import numpy as np
import pytest
from test_delivery import EVERY, crash_at, light_pipeline, make_engine
from test_engine import stream

from streamadapt import Entry, Forecast, Persistence, Pipeline
from streamadapt.app.watchdog import Watchdog
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import CheckpointError, ConnectorError
from streamadapt.pipeline.panel import Panel
from streamadapt.records import StreamPartition
from streamadapt.state.store import CheckpointStore
from streamadapt.testing import (
    IdentityCodec,
    LogSink,
    ManualClock,
    MemoryDeadLetters,
    MemorySink,
    MemorySource,
    SimulatedCrash,
    TransactionalLog,
)

NAME = "predictions-memory-0"
AT = StreamPartition("memory", 0)
HALF = 200


def exactly(path, log, n=400, guarantee="exactly-once", step=None, times=1):
    """Run the first `n` entries to their end, or to a crash; return the engine."""
    entries, labels = stream()
    engine = make_engine(entries[:n], labels[:n], path, LogSink(log), guarantee)
    if step is None:
        engine.run()
        return engine
    engine.on_checkpoint_step = crash_at(step, times)
    with pytest.raises(SimulatedCrash):
        engine.run()
    return engine


def seen(log):
    """Release the transaction of a dead writer, and return what readers of committed records
    see."""
    log.open(NAME)
    return LogSink(log).seen(0)


def names(found):
    """Return the names of an earlier run to the end of half a stream: its last labels came before
    the next entries."""
    return [name for _, name in found]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What readers of an undisturbed run see."""
    log = TransactionalLog()
    exactly(tmp_path_factory.mktemp("calm"), log)
    return seen(log)


@pytest.mark.parametrize("killed", [None, "commit", "committed"])
def test_a_broker_that_has_forgotten_the_positions(tmp_path, undisturbed, caplog, killed):
    """Expired or deleted: the output itself shows how far the engine got.

    No checkpoint is deleted.
    """
    log = TransactionalLog()
    exactly(tmp_path, log, HALF, step=killed, times=3)
    log.committed.clear()
    kept = CheckpointStore(tmp_path / "memory-0").sequences()
    resumed = exactly(tmp_path, log)
    assert names(seen(log)) == names(undisturbed)
    assert killed is None or seen(log) == undisturbed
    assert "knows of no commit" in caplog.text
    assert log.committed[NAME] == resumed.runners[0].positions
    assert CheckpointStore(tmp_path / "memory-0").sequences()[0] >= kept[0]


def test_killed_before_the_first_commit(tmp_path, undisturbed):
    """The very first checkpoint was never committed."""
    log = TransactionalLog()
    exactly(tmp_path, log, step="commit")
    assert seen(log) == []
    exactly(tmp_path, log)
    assert seen(log) == undisturbed


def test_a_config_that_does_not_match_deletes_no_checkpoint(tmp_path):
    log = TransactionalLog()
    exactly(tmp_path, log, HALF)
    log.committed[NAME] = {AT: 0}
    store = CheckpointStore(tmp_path / "memory-0")
    before = store.sequences()
    entries, labels = stream()
    settings = EngineSettings(
        checkpoint_path=tmp_path, guarantee="exactly-once", config_digest="another"
    )
    engine = Engine(
        MemorySource(entries, labels), light_pipeline, LogSink(log), IdentityCodec(),
        MemoryDeadLetters(), settings=settings, clock=ManualClock(),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="written with configuration"):
        engine.run()
    assert store.sequences() == before


@pytest.mark.parametrize("first", ["at-least-once", "effectively-once"])
def test_exactly_once_resumes_from_a_state_of_another_guarantee(tmp_path, undisturbed, first):
    log = TransactionalLog()
    exactly(tmp_path, log, HALF, first)
    engine = exactly(tmp_path, log)
    assert engine.runners[0].pipeline.stats.entries == 400, "the entries are not counted again"
    assert names(seen(log)) == names(undisturbed)


def test_exactly_once_after_a_run_with_another_guarantee(tmp_path, undisturbed):
    """The last commit is older than the checkpoints of the other guarantee, which count all the
    same."""
    log = TransactionalLog()
    exactly(tmp_path, log, 100)
    exactly(tmp_path, log, 300, "effectively-once")
    exactly(tmp_path, log)
    assert names(seen(log)) == names(undisturbed)


@pytest.mark.parametrize("second", ["at-least-once", "effectively-once"])
def test_another_guarantee_after_a_crash_between_checkpoint_and_commit(
    tmp_path, undisturbed, second
):
    """That checkpoint's predictions were aborted: no engine may use it."""
    log = TransactionalLog()
    exactly(tmp_path, log, step="commit", times=3)
    exactly(tmp_path, log, guarantee=second)
    assert dict(map(reversed, seen(log))) == dict(map(reversed, undisturbed))
    assert second == "at-least-once" or seen(log) == undisturbed


def test_a_sink_without_transactions_cannot_tell_whether_a_checkpoint_counts(tmp_path):
    exactly(tmp_path, TransactionalLog(), HALF)
    entries, labels = stream()
    with pytest.raises(CheckpointError, match="this sink has no transactions"):
        make_engine(entries, labels, tmp_path, MemorySink(), "effectively-once").run()


@pytest.mark.parametrize("every", [7, 10])
def test_the_rows_of_a_panels_end_are_committed(tmp_path, every):
    """These rows are made after the last record, at the position that was committed before."""
    second_ns = 10**9
    items = [Entry(np.array([i], np.float32), i * second_ns, "", "a") for i in range(20)]

    def run(path, sink, guarantee):
        settings = EngineSettings(
            checkpoint_path=path, checkpoint_every_entries=every, guarantee=guarantee
        )
        Engine(
            MemorySource(items, batch=5),
            lambda: Pipeline(
                Forecast(2, 1), Persistence(1), panel=Panel(sensors=["a"], lateness="5s")
            ),
            sink,
            IdentityCodec(),
            MemoryDeadLetters(),
            settings=settings,
            clock=ManualClock(),
        ).run()

    log, plain = TransactionalLog(), MemorySink()
    run(tmp_path / "plain", plain, "at-least-once")
    run(tmp_path / "exactly", LogSink(log), "exactly-once")
    wanted = [str(p.position) for p in plain.predictions]
    assert [name for _, name in LogSink(log).seen(0)] == wanted
    run(tmp_path / "exactly", LogSink(log), "exactly-once")
    assert [name for _, name in LogSink(log).seen(0)] == wanted


def test_a_new_checkpoint_path_and_a_silent_stream(tmp_path):
    """There is nothing new to commit; a label's position does not move back, either."""
    log = TransactionalLog()
    exactly(tmp_path / "old", log, HALF)
    before = dict(log.committed[NAME])
    entries, labels = stream()
    engine = make_engine(
        entries[:HALF], labels[:HALF], tmp_path / "new", LogSink(log), "exactly-once", finite=False
    )
    engine.source.open(engine)
    engine.checkpoint()
    assert log.committed[NAME] == before
    for _ in range(30):
        engine.step()
    engine.checkpoint()
    assert log.committed[NAME] == before
    assert len(LogSink(log).seen(0)) == HALF - 2


def test_positions_of_a_long_silent_stream_do_not_expire(tmp_path):
    """A broker forgets positions that were not committed for a week."""
    log = TransactionalLog()
    entries, labels = stream()
    engine = make_engine(
        entries[:HALF], labels[:HALF], tmp_path, LogSink(log), "exactly-once", finite=False
    )
    engine.source.open(engine)
    for _ in range(30):
        engine.step()
    engine.checkpoint()
    log.committed.clear()
    engine.step()
    assert not log.committed
    engine.clock.advance(7 * 3600.0)
    engine.step()
    assert log.committed[NAME] == engine.runners[0].positions


class Buffered(MemorySink):
    """Written records arrive with `flush` or `close`, as with a producer."""

    def __init__(self, out):
        super().__init__()
        self.predictions, self._waiting = out, []

    def write(self, predictions):
        self._waiting += predictions

    def flush(self):
        self.predictions += self._waiting
        self._waiting = []

    def close(self):
        self.flush()


def test_a_successor_after_an_error_finds_all_predictions(tmp_path):
    """The engine leaves the group last: a successor must not read the output before the rest of it
    is written."""
    out = []
    entries, labels = stream()

    class Source(MemorySource):
        def close(self):
            super().close()
            make_engine(
                entries, labels, tmp_path, Buffered(out), "effectively-once", shared=True
            ).run()

    settings = EngineSettings(
        checkpoint_path=tmp_path, checkpoint_every_entries=EVERY, guarantee="effectively-once"
    )
    source = Source(entries, labels, batch=30, shared=True)
    engine = Engine(
        source, light_pipeline, Buffered(out), IdentityCodec(), MemoryDeadLetters(),
        settings=settings, clock=ManualClock(),
    )  # fmt: skip
    process, lots = engine._process, []

    def failing(runner, released):
        process(runner, released)
        lots.append(released)
        if len(lots) == 5:
            raise RuntimeError("as any error does")

    engine._process = failing
    with pytest.raises(RuntimeError, match="as any error does"):
        engine.run()
    names = [str(p.position) for p in out]
    assert len(names) == len(set(names)) == 398


def test_an_error_while_closing_does_not_hide_the_first_error(tmp_path, caplog):
    class Broken(MemorySink):
        def write(self, predictions):
            raise ConnectorError("the reason")

        def close(self):
            raise OSError("no space left")

    entries, labels = stream()
    with pytest.raises(ConnectorError, match="the reason"):
        make_engine(entries, labels, tmp_path, Broken(), "at-least-once").run()
    assert "no space left" in caplog.text


def test_a_failed_start_releases_the_folder(tmp_path):
    class NoTail(MemorySink):
        def newest(self, stream, partition):
            raise ConnectorError("too few partitions")

    entries, labels = stream()
    with pytest.raises(ConnectorError, match="too few"):
        make_engine(entries, labels, tmp_path, NoTail(), "effectively-once").run()
    with CheckpointStore(tmp_path / "memory-0"):
        pass


def test_a_stop_with_nothing_new_writes_no_checkpoint(tmp_path):
    """Restarts of an idle engine must not remove older checkpoints that a rollback may need."""
    log = TransactionalLog()
    exactly(tmp_path, log, HALF, "effectively-once")
    before = CheckpointStore(tmp_path / "memory-0").sequences()
    for _ in range(3):
        exactly(tmp_path, log, HALF, "effectively-once")
    assert CheckpointStore(tmp_path / "memory-0").sequences() == before


def test_saving_many_partitions_keeps_the_heartbeat(tmp_path):
    """Each step of a checkpoint counts: a loop that saves for a long time is not stuck."""
    engine = make_engine([], [], tmp_path, MemorySink(), "at-least-once")
    beats = []
    engine.on_checkpoint_step = lambda name: beats.append(engine.heartbeat)
    engine.partitions_assigned([0, 1, 2])
    assert engine.heartbeat == 3
    engine.checkpoint()
    assert beats == sorted(set(beats))
    assert not Watchdog(engine, Metrics(), 60.0).stalled


def test_a_recreated_stream_starts_from_the_beginning(tmp_path):
    """The source reports it, by the configured policy: from there on nothing is held back."""
    log = TransactionalLog()
    exactly(tmp_path / "old", log, HALF)
    entries, labels = stream()
    engine = make_engine(entries, labels, tmp_path / "new", LogSink(log), "exactly-once")
    assert engine.partitions_assigned([0])[AT] is None
    assert engine.known_end(AT) == HALF
    engine.partitions_placed({AT: 0}, recreated=[AT])
    assert engine.known_end(AT) == 0
    engine.run()
    assert len(LogSink(log).seen(0)) == HALF - 2 + 398
