"""A transaction that is lost costs a replay from the last commit, in the same engine: nothing is
lost or said twice."""

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
    """A hook of a sink: the broker's answer is lost when a step is reached so often (or at each of
    several times)."""
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
    """A manual clock, on which every look takes a tenth of a second."""
    monotonic = engine.clock.monotonic

    def look():
        engine.clock.advance(0.1)
        return monotonic()

    engine.clock.monotonic = look


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """What readers see of an undisturbed run, and its final state."""
    log = TransactionalLog()
    engine = engine_of(tmp_path_factory.mktemp("calm"), LogSink(log))
    engine.run()
    return LogSink(log).seen(0), engine.runners[0].pipeline.state_dict()


@pytest.mark.parametrize("times", variants([1, 3]))
@pytest.mark.parametrize("step", STEPS)
def test_an_answer_that_is_lost_at_any_step(tmp_path, calm, step, times):
    """Whether the broker did what it was asked for, or never heard of it."""
    log = TransactionalLog()
    engine = engine_of(tmp_path, LogSink(log, on_step=lose_at(step, times)))
    engine.run()
    assert LogSink(log).seen(0) == calm[0]
    assert_same_state(engine.runners[0].pipeline.state_dict(), calm[1])


@pytest.mark.parametrize(
    ("step", "killed"),
    variants([("produce", "produce"), ("commit", "encode"), ("committed", "commit")]),
)
def test_killed_after_it_began_again(tmp_path, calm, step, killed):
    """The replay may be cut off as anything else may be."""
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
    assert LogSink(log).seen(0) == calm[0]
    assert_same_state(resumed.runners[0].pipeline.state_dict(), calm[1])


def test_what_is_done_again_is_counted_once(tmp_path):
    """In the words that judge a run: entries, predictions and what was learned."""
    engines = [
        engine_of(tmp_path / step, LogSink(TransactionalLog(), on_step=lose_at(step, {2, 3})))
        for step in ("never", "commit", "produce")
    ]
    runs = [engine.run()["run"] for engine in engines]
    counted = [{name: run[name] for name in ("entries", "predictions", "learned")} for run in runs]
    assert counted[0]["entries"] == N
    assert counted[1] == counted[2] == counted[0]


def test_a_broker_that_is_away_for_long(tmp_path, calm):
    """Beginning again is tried as often as it takes; what came in between is not skipped."""
    log = TransactionalLog()
    hooks = [lose_at("commit", 2), lose_at("begin", range(2, 30))]
    engine = engine_of(tmp_path, LogSink(log, on_step=lambda name: [hook(name) for hook in hooks]))
    engine.run()
    assert LogSink(log).seen(0) == calm[0]
    assert_same_state(engine.runners[0].pipeline.state_dict(), calm[1])


def test_a_transaction_that_the_broker_ended_is_begun_again(tmp_path, calm):
    """Open for too long: aborted, its epoch is old.

    The token is still the highest: the partition goes on.
    """
    log = TransactionalLog()
    engine = engine_of(tmp_path, LogSink(log))
    engine.metrics = Metrics()
    expired = iter([True, False, True])
    engine.on_checkpoint_step = lambda name: (
        name == "commit" and next(expired, False) and log.expire(NAME)
    )
    engine.run()
    assert LogSink(log).seen(0) == calm[0]
    assert_same_state(engine.runners[0].pipeline.state_dict(), calm[1])
    counts = dict(engine.metrics.samples()["streamadapt_transactions_lost_total"])
    assert counts == {("0", cause.value): 2 * (cause is Loss.TAKEN) for cause in Loss}


def test_one_that_is_taken_again_and_again_is_an_error(tmp_path):
    """Two engines with two checkpoint folders and one output: neither may take it from the other
    for all time."""
    log = TransactionalLog()
    engine = engine_of(tmp_path, LogSink(log))
    engine.on_checkpoint_step = lambda name: name == "commit" and log.expire(NAME)
    with pytest.raises(ConnectorError, match=r"lost 6 times in a row.*fenced by another engine"):
        engine.run()
    assert LogSink(log).seen(0) == []


def test_who_is_fenced_says_nothing_more(tmp_path):
    """Its transaction was taken, and its token is not the highest: it ends, and its successor's
    transaction stands."""
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
    zombie.source.open = lambda owner: None  # goes on where it was stopped
    with pytest.raises(FencedError, match="fenced by another engine"):
        zombie.run()
    assert not calls
    successor.checkpoint()
    assert LogSink(log).seen(0)


# -- several partitions


def spread(items, partitions):
    """Give the items out to partitions in turn."""
    return [
        replace(item, position=Position("", i % partitions, 0)) for i, item in enumerate(items)
    ]


def two_partitions(path, log, step=None, times=1, cause=Loss.NO_ANSWER):
    entries, labels = (spread(items, 2) for items in stream(N))
    hook = lose_at(step, times, 1, cause) if step else None

    class Second(LogSink):
        """Only partition 1 loses anything."""

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
    engine.source.open = lambda owner: None  # goes on as it is
    engine.run()
    two_partitions(tmp_path / "lost", log).run()
    assert seen(log) == calm_two[0]


# -- where the source chose the start


class FromTheEnd(MemorySource):
    """As a topic that is entered at its end: what is not asked for starts at the tenth record, and
    later further on."""

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


def test_a_start_that_the_source_chose_is_kept(tmp_path):
    """No commit covers it yet: asked again, the source would start at what is the end by now."""
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


def test_a_start_that_the_source_chose_for_want_of_an_answer_is_not(tmp_path):
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


def test_a_source_that_cannot_go_back_ends_the_run(tmp_path):
    """With what to do; the restart goes on from the last commit, as ever."""
    log = TransactionalLog()
    engine = engine_of(tmp_path, LogSink(log, on_step=lose_at("commit", 2)))
    engine.source.seek = lambda starts: Source.seek(engine.source, starts)
    with pytest.raises(
        ConnectorError, match=r"MemorySource cannot go back to memory\[0\].*start the engine again"
    ):
        engine.run()
