"""A lost transaction causes a replay from the last commit, in the same engine: nothing is lost or
doubled."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from states import assert_same_state
from test_delivery import crash_at, light_pipeline, make_engine
from test_engine import stream
from variants import variants

from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.ports import Source
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import ConnectorError, Loss, TransactionLostError
from streamadapt.records import Position, StreamPartition
from streamadapt.state.fence import FencedError
from streamadapt.testing import (
    IdentityCodec,
    LogSink,
    ManualClock,
    MemoryDeadLetters,
    MemorySource,
    SimulatedCrash,
    TransactionalLog,
)

N = 200
STEPS = ["begin", "produce", "flush", "offsets", "commit", "committed"]
NAME = "predictions-memory-0"


def lose_at(step, times, partition=0, cause=Loss.NO_ANSWER):
    """Return a hook of a sink that loses the broker's answer when a step is reached for the n-th
    time (or at each of several times)."""
    reached = Counter()
    times = {times} if isinstance(times, int) else set(times)

    def hook(name):
        reached[name] += 1
        if name == step and reached[name] in times:
            raise TransactionLostError([partition], cause, f"lost at {step}, time {reached[name]}")

    return hook


def engine_of(path, sink, **source):
    entries, labels = stream(N)
    engine = make_engine(entries, labels, path, sink, "exactly-once", **source)
    let_time_pass(engine)
    return engine


def let_time_pass(engine):
    """Return a manual clock that advances a tenth of a second at every reading."""
    monotonic = engine.clock.monotonic

    def look():
        engine.clock.advance(0.1)
        return monotonic()

    engine.clock.monotonic = look


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The predictions of an undisturbed run as readers see them, and its final state."""
    log = TransactionalLog()
    engine = engine_of(tmp_path_factory.mktemp("calm"), LogSink(log))
    engine.run()
    return LogSink(log).seen(0), engine.runners[0].pipeline.state_dict()


@pytest.mark.parametrize("times", variants([1, 3]))
@pytest.mark.parametrize("step", STEPS)
def test_an_answer_lost_at_any_step(tmp_path, undisturbed, step, times):
    """Whether the broker executed the request, or never received it."""
    log = TransactionalLog()
    engine = engine_of(tmp_path, LogSink(log, on_step=lose_at(step, times)))
    engine.run()
    assert LogSink(log).seen(0) == undisturbed[0]
    assert_same_state(engine.runners[0].pipeline.state_dict(), undisturbed[1])


@pytest.mark.parametrize(
    ("step", "killed"),
    variants([("produce", "produce"), ("commit", "encode"), ("committed", "commit")]),
)
def test_killed_during_the_replay(tmp_path, undisturbed, step, killed):
    """The replay may be interrupted like any other work."""
    log = TransactionalLog()
    engine = engine_of(tmp_path, LogSink(log, on_step=lose_at(step, 3)))
    crash = crash_at(killed, 4)
    engine.on_checkpoint_step = crash
    if killed == "produce":
        lose, crash = engine.sink._step, crash_at("produce", 150)
        engine.sink._step = lambda name: (lose(name), crash(name))
    with pytest.raises(SimulatedCrash):
        engine.run()
    resumed = engine_of(tmp_path, LogSink(log))
    resumed.run()
    assert LogSink(log).seen(0) == undisturbed[0]
    assert_same_state(resumed.runners[0].pipeline.state_dict(), undisturbed[1])


def test_replayed_work_is_counted_once(tmp_path):
    """In the counts that judge a run: entries, predictions and learned labels."""
    engines = [
        engine_of(tmp_path / step, LogSink(TransactionalLog(), on_step=lose_at(step, {2, 3})))
        for step in ("never", "commit", "produce")
    ]
    runs = [engine.run()["run"] for engine in engines]
    counted = [{name: run[name] for name in ("entries", "predictions", "learned")} for run in runs]
    assert counted[0]["entries"] == N
    assert counted[1] == counted[2] == counted[0]


def test_a_broker_that_is_away_for_a_long_time(tmp_path, undisturbed):
    """The restart of the partition is retried as often as needed; entries in between are not
    skipped."""
    log = TransactionalLog()
    hooks = [lose_at("commit", 2), lose_at("begin", range(2, 30))]
    engine = engine_of(tmp_path, LogSink(log, on_step=lambda name: [hook(name) for hook in hooks]))
    engine.run()
    assert LogSink(log).seen(0) == undisturbed[0]
    assert_same_state(engine.runners[0].pipeline.state_dict(), undisturbed[1])


def test_a_transaction_that_the_broker_aborted_is_restarted(tmp_path, undisturbed):
    """It was open for too long: it is aborted, and its epoch is old.

    The token is still the highest: the partition continues.
    """
    log = TransactionalLog()
    engine = engine_of(tmp_path, LogSink(log))
    engine.metrics = Metrics()
    expired = iter([True, False, True])
    engine.on_checkpoint_step = lambda name: (
        name == "commit" and next(expired, False) and log.expire(NAME)
    )
    engine.run()
    assert LogSink(log).seen(0) == undisturbed[0]
    assert_same_state(engine.runners[0].pipeline.state_dict(), undisturbed[1])
    counts = dict(engine.metrics.samples()["streamadapt_transactions_lost_total"])
    assert counts == {("0", cause.value): 2 * (cause is Loss.TAKEN) for cause in Loss}


def test_a_transaction_that_is_taken_over_repeatedly_is_an_error(tmp_path):
    """Two engines with two checkpoint folders and one output: they must not take it from each
    other forever."""
    log = TransactionalLog()
    engine = engine_of(tmp_path, LogSink(log))
    engine.on_checkpoint_step = lambda name: name == "commit" and log.expire(NAME)
    with pytest.raises(ConnectorError, match=r"lost 6 times in a row.*fenced by another engine"):
        engine.run()
    assert LogSink(log).seen(0) == []


def test_a_fenced_engine_writes_nothing_more(tmp_path):
    """Its transaction was taken, and its token is not the highest: it ends, and its successor's
    transaction stays."""
    log = TransactionalLog()
    entries, labels = stream(N)
    zombie, successor = (
        make_engine(entries, labels, tmp_path, LogSink(log), "exactly-once", shared=True, batch=10)
        for _ in range(2)
    )
    zombie.source.open(zombie)
    zombie.step()
    assert zombie.runners[0].since_checkpoint
    calls = []
    abort = log.abort
    log.abort = lambda session: (calls.append(session), abort(session))
    successor.source.open(successor)
    successor.step()
    zombie.source.open = lambda owner: None  # continues where it was stopped
    with pytest.raises(FencedError, match="fenced by another engine"):
        zombie.run()
    assert not calls
    successor.checkpoint()
    assert LogSink(log).seen(0)


# -- several partitions


def spread(items, partitions):
    """Distribute the items over partitions in turn."""
    return [
        replace(item, position=Position("", i % partitions, 0)) for i, item in enumerate(items)
    ]


def two_partitions(path, log, step=None, times=1, cause=Loss.NO_ANSWER):
    entries, labels = (spread(items, 2) for items in stream(N))
    hook = lose_at(step, times, 1, cause) if step else None

    class Second(LogSink):
        """A sink that loses answers of partition 1 only."""

        partition = 0

        def begin(self, streams, partition):
            self.partition = partition
            return super().begin(streams, partition)

        def write(self, predictions):
            for p in predictions:
                self.partition = p.position.partition
                super().write([p])

        def commit(self, positions):
            self.partition = next(iter(positions)).partition
            super().commit(positions)

    sink = Second(log)
    if hook is not None:
        sink._step = lambda name: hook(name) if sink.partition == 1 else None
    engine = make_engine(entries, labels, path, sink, "exactly-once")
    let_time_pass(engine)
    return engine


def seen(log):
    return [LogSink(log).seen(p) for p in (0, 1)]


@pytest.fixture(scope="module")
def calm_two(tmp_path_factory):
    """What readers see of two partitions that nothing happens to, and their final states."""
    log = TransactionalLog()
    engine = two_partitions(tmp_path_factory.mktemp("calm"), log)
    engine.run()
    return seen(log), [engine.runners[p].pipeline.state_dict() for p in (0, 1)]


@pytest.mark.parametrize(
    "step", variants(["begin", "produce", "offsets", "commit", "committed"], quick=2)
)
def test_the_other_partitions_go_on(tmp_path, calm_two, step):
    log = TransactionalLog()
    engine = two_partitions(tmp_path / "lost", log, step, 1 if step == "begin" else 2)
    first = engine.runners
    engine.run()
    assert seen(log) == calm_two[0]
    assert first is engine.runners
    for p in (0, 1):
        assert_same_state(engine.runners[p].pipeline.state_dict(), calm_two[1][p])


@pytest.mark.parametrize("killed", variants(["produce", "encode", "commit"]))
def test_killed_while_one_partition_replays(tmp_path, calm_two, killed):
    """Two partitions, one of which has begun again: kill -9, and a start, and every prediction is
    there once."""
    log = TransactionalLog()
    engine = two_partitions(tmp_path / "lost", log, "commit", 2)
    crash = crash_at(killed, 120 if killed == "produce" else 6)
    engine.on_checkpoint_step = crash
    lose = engine.sink._step
    engine.sink._step = lambda name: (lose(name), crash(name) if name == "produce" else None)
    with pytest.raises(SimulatedCrash):
        engine.run()
    two_partitions(tmp_path / "lost", log).run()
    assert seen(log) == calm_two[0]


@pytest.mark.parametrize("lost", variants([False, True]))
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_partition_that_is_lost_moves_to_another_engine(tmp_path, calm_two, lost, when):
    """Its next owner begins from the last commit, as after a crash."""
    log = TransactionalLog()
    step, times = ("begin", range(2, 10**6)) if when == "before" else ("commit", 3)
    engine = two_partitions(tmp_path / "lost", log, step, times)
    engine.source.open(engine)
    for _ in range(3):
        engine.step()
    if when == "before":
        engine._lose(TransactionLostError([1], Loss.NO_ANSWER, "the broker is away"))
        engine.step()
    engine.source.rebalance([0], lost=lost)
    engine.step()
    assert list(engine.runners) == [0]
    engine.stop()
    engine.source.open = lambda owner: None  # continues unchanged
    engine.run()
    two_partitions(tmp_path / "lost", log).run()
    assert seen(log) == calm_two[0]


# -- a start chosen by the source


class FromTheEnd(MemorySource):
    """Like a topic that is read from its end: without a position it starts at the tenth record,
    and later further on."""

    entered = 10

    def _assign(self, partitions):
        super()._assign(partitions)
        starts = {StreamPartition(stream, 0): self.entered for stream in self.streams}
        unknown = {
            at: n
            for at, n in starts.items()
            if self._owner.partitions_assigned([0]).get(at) is None
        }
        if unknown:
            self._owner.partitions_placed(unknown, recreated=())
            self.seek(unknown)


def test_a_start_chosen_by_the_source_is_kept(tmp_path):
    """No commit covers it yet: asked again, the source would start at the current end."""
    entries, labels = stream(N)
    log = TransactionalLog()
    settings = EngineSettings(
        checkpoint_path=tmp_path, checkpoint_every_entries=37, guarantee="exactly-once"
    )
    engine = Engine(
        FromTheEnd(entries, labels, batch=30),
        light_pipeline,
        LogSink(log, on_step=lose_at("produce", 5)),
        IdentityCodec(),
        MemoryDeadLetters(),
        settings=settings,
        clock=ManualClock(),
    )
    let_time_pass(engine)
    engine.run()
    assert [name for _, name in LogSink(log).seen(0)] == [f"memory[0]@{i}" for i in range(12, N)]


def test_a_start_chosen_without_an_answer_of_the_broker_is_not_kept(tmp_path):
    """The broker is away when the engine starts: the checkpoint's positions count once they are
    known."""
    entries, labels = stream(N)
    log = TransactionalLog()
    first = engine_of(tmp_path, LogSink(log))
    first.source = MemorySource(entries[:100], labels[:100], batch=30)
    first.run()
    settings = EngineSettings(
        checkpoint_path=tmp_path, checkpoint_every_entries=37, guarantee="exactly-once"
    )
    source = FromTheEnd(entries, labels, batch=30)
    source.entered = N - 10
    sink = LogSink(log, on_step=lose_at("begin", {1, 2}))
    again = Engine(
        source,
        light_pipeline,
        sink,
        IdentityCodec(),
        MemoryDeadLetters(),
        settings=settings,
        clock=ManualClock(),
    )
    let_time_pass(again)
    again.run()
    assert [name for _, name in LogSink(log).seen(0)] == [f"memory[0]@{i}" for i in range(2, N)]


def test_a_source_that_cannot_seek_back_ends_the_run(tmp_path):
    """The error names the remedy; the restart resumes from the last commit."""
    log = TransactionalLog()
    engine = engine_of(tmp_path, LogSink(log, on_step=lose_at("commit", 2)))
    engine.source.seek = lambda starts: Source.seek(engine.source, starts)
    with pytest.raises(
        ConnectorError, match=r"MemorySource cannot go back to memory\[0\].*start the engine again"
    ):
        engine.run()
