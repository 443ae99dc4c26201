"""effectively-once and exactly-once in memory: killed at any step, nothing is lost, doubled or
learned twice."""

from __future__ import annotations

from collections import Counter

import pytest
from states import assert_same_state
from test_engine import base
from test_engine import stream as stream_of

from streamadapt import Bias, Pipeline, Supervised
from streamadapt.engine.engine import Engine
from streamadapt.engine.ports import Sink
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import CheckpointError, ConfigError, ConnectorError
from streamadapt.records import StreamPartition
from streamadapt.state.fence import FencedError
from streamadapt.state.store import CheckpointStore
from streamadapt.testing import (
    CRASH,
    IdentityCodec,
    LogSink,
    ManualClock,
    MemoryDeadLetters,
    MemorySink,
    MemorySource,
    SimulatedCrash,
    TransactionalLog,
)
from streamadapt.testing.checks.sources import CheckError
from streamadapt.testing.checks.transactions import TransactionCase, yield_transaction_checks

N, EVERY = 160, 37
ENGINE_STEPS = [
    "flush",
    "encode",
    "mkdir",
    "write state.safetensors",
    "write state.json",
    "write manifest.json",
]
ENGINE_STEPS += ["sync folder", "rename", "sync parent", "prune", "commit", "committed"]
SINK_STEPS = ["begin", "produce", "offsets", "commit", "committed"]


def stream():
    return stream_of(N)


def light_pipeline():
    """Return a pipeline that learns, so that a label learned twice shows; `test_engine` crashes
    whole pipelines."""
    return Pipeline(Supervised(3), base, [Bias(0.1)])


def make_engine(items, labels, path, sink, guarantee, **source):
    settings = EngineSettings(
        checkpoint_path=path, checkpoint_every_entries=EVERY, label_wait_s=1.0, guarantee=guarantee
    )
    source = MemorySource(items, labels, **{"batch": 30, **source})
    return Engine(
        source,
        light_pipeline,
        sink,
        IdentityCodec(),
        MemoryDeadLetters(),
        settings=settings,
        clock=ManualClock(),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The predictions of an undisturbed run, and its final state."""
    entries, labels = stream()
    sink = MemorySink()
    engine = make_engine(entries, labels, tmp_path_factory.mktemp("calm"), sink, "at-least-once")
    engine.run()
    predictions = [(p.served.tobytes().hex(), str(p.position)) for p in sink.predictions]
    return predictions, engine.runners[0].pipeline.state_dict()


def crash_at(step, times):
    """Return a hook that crashes the engine when a step is reached for the n-th time."""
    reached = Counter()

    def hook(name):
        reached[name] += 1
        if name == step and reached[name] == times:
            raise SimulatedCrash(f"{step}, time {times}")

    return hook


def run_twice(path, guarantee, sinks, step=None, times=1, at=None):
    """Crash at an engine's step or while reading an entry, and start again; return the second
    engine."""
    entries, labels = stream()
    items = entries if at is None else [*entries[:at], CRASH, *entries[at:]]
    crashed = make_engine(items, labels, path, sinks(), guarantee)
    if step is not None:
        crashed.on_checkpoint_step = crash_at(step, times)
    with pytest.raises(SimulatedCrash):
        crashed.run()
    resumed = make_engine(entries, labels, path, sinks(), guarantee)
    resumed.run()
    return resumed


def effectively(written):
    """Each new sink finds what earlier sinks have written."""

    def make():
        written.append(MemorySink(written=[p for sink in written[-1:] for p in sink.predictions]))
        return written[-1]

    return make


def predictions_in(written):
    """Return the predictions in the output."""
    return [(p.served.tobytes().hex(), str(p.position)) for p in written[-1].predictions]


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("step", ENGINE_STEPS)
def test_effectively_once_survives_every_step_of_a_checkpoint(tmp_path, undisturbed, step, times):
    written = []
    engine = run_twice(tmp_path, "effectively-once", effectively(written), step, times)
    assert predictions_in(written) == undisturbed[0]
    assert_same_state(engine.runners[0].pipeline.state_dict(), undisturbed[1])


@pytest.mark.parametrize("at", [1, 38, 75, 111, N - 1])
def test_effectively_once_survives_a_crash_anywhere(tmp_path, undisturbed, at):
    written = []
    engine = run_twice(tmp_path, "effectively-once", effectively(written), at=at)
    assert predictions_in(written) == undisturbed[0]
    assert_same_state(engine.runners[0].pipeline.state_dict(), undisturbed[1])


def test_at_least_once_repeats_predictions_after_the_same_crash(tmp_path, undisturbed):
    """This shows that the test above can fail."""
    written = []
    run_twice(tmp_path, "at-least-once", effectively(written), at=100)
    assert len(predictions_in(written)) > len(undisturbed[0])


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("step", ENGINE_STEPS)
def test_exactly_once_survives_every_step_of_a_checkpoint(tmp_path, undisturbed, step, times):
    log = TransactionalLog()
    engine = run_twice(tmp_path, "exactly-once", lambda: LogSink(log), step, times)
    assert LogSink(log).seen(0) == undisturbed[0]
    assert_same_state(engine.runners[0].pipeline.state_dict(), undisturbed[1])


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("step", SINK_STEPS)
def test_exactly_once_survives_every_step_of_a_transaction(tmp_path, undisturbed, step, times):
    """Killed before the broker received the request, and after it committed but before the engine
    knew."""
    if (step, times) == ("begin", 3):
        pytest.skip("a partition is begun once")
    log = TransactionalLog()
    hooks = iter([crash_at(step, times), None])
    engine = run_twice(tmp_path, "exactly-once", lambda: LogSink(log, on_step=next(hooks)))
    assert LogSink(log).seen(0) == undisturbed[0]
    assert_same_state(engine.runners[0].pipeline.state_dict(), undisturbed[1])


def test_exactly_once_survives_a_transaction_that_the_broker_aborted(tmp_path, undisturbed):
    """The transaction is open for too long again and again: finally the engine stops; a restart
    loses and doubles nothing."""
    log = TransactionalLog()
    entries, labels = stream()
    engine = make_engine(entries, labels, tmp_path, LogSink(log), "exactly-once")
    engine.on_checkpoint_step = lambda name: (
        log.expire("predictions-memory-0") if name == "commit" else None
    )
    with pytest.raises(ConnectorError, match="fenced"):
        engine.run()
    assert LogSink(log).seen(0) == []
    resumed = make_engine(entries, labels, tmp_path, LogSink(log), "exactly-once")
    resumed.run()
    assert LogSink(log).seen(0) == undisturbed[0]
    assert_same_state(resumed.runners[0].pipeline.state_dict(), undisturbed[1])


def test_a_zombie_commits_nothing(tmp_path, undisturbed):
    """A paused engine lost its partition: its successor's records stay, its own are aborted, and
    it stops."""
    log = TransactionalLog()
    entries, labels = stream()
    zombie = make_engine(entries, labels, tmp_path, LogSink(log), "exactly-once", shared=True)
    zombie.source.open(zombie)
    for _ in range(2):
        zombie.step()
    successor = make_engine(entries, labels, tmp_path, LogSink(log), "exactly-once", shared=True)
    successor.run()
    with pytest.raises(FencedError, match="another engine"):
        zombie.step()
    with pytest.raises((FencedError, ConnectorError)):
        zombie.checkpoint()
    assert LogSink(log).seen(0) == undisturbed[0]
    fresh = CheckpointStore(tmp_path / "memory-0", shared=True)
    assert_same_state(fresh.load_latest().state, undisturbed[1])


@pytest.mark.parametrize("guarantee", ["effectively-once", "exactly-once"])
def test_after_a_rollback_nothing_is_predicted_twice(tmp_path, undisturbed, guarantee):
    """Back by one checkpoint: the replay writes nothing that readers have already seen."""
    entries, labels = stream()
    log, written = TransactionalLog(), []
    make = (lambda: LogSink(log)) if guarantee == "exactly-once" else effectively(written)
    first = make_engine(entries[:120], labels[:120], tmp_path, make(), guarantee)
    first.run()
    with CheckpointStore(tmp_path / "memory-0") as store:
        store.rollback(store.sequences()[0])
    again = make_engine(entries, labels, tmp_path, make(), guarantee)
    again.run()
    assert (
        LogSink(log).seen(0) if guarantee == "exactly-once" else predictions_in(written)
    ) == undisturbed[0]
    assert_same_state(again.runners[0].pipeline.state_dict(), undisturbed[1])


def test_a_guarantee_without_its_requirements_is_refused():
    class Plain(Sink):
        def write(self, predictions): ...
        def flush(self): ...
        def close(self): ...

    with pytest.raises(ConfigError, match=r"\[checkpoint\]"):
        EngineSettings(guarantee="effectively-once")
    with pytest.raises(ConfigError, match="keep: expected at least 2"):
        EngineSettings(guarantee="exactly-once", checkpoint_path="x", keep=1)
    for guarantee, why in (
        ("effectively-once", "cannot tell"),
        ("exactly-once", "no transactions"),
        ("at-most-once", "one of"),
    ):
        with pytest.raises(ConfigError, match=why):
            make_engine([], None, "x", Plain(), guarantee)


# -- the log itself


def log_case(log=None, make=LogSink):
    log = log or TransactionalLog()
    return TransactionCase(
        lambda: make(log, "out"), lambda p: [name for _, name in LogSink(log, "out").seen(p)]
    )


@pytest.mark.parametrize("check", [*yield_transaction_checks()], ids=lambda c: c.__name__)
def test_the_log_in_memory(check):
    check(log_case())


class ShowsAborted(TransactionalLog):
    """As the embedded broker does."""

    def read(self, at, *, committed=True):
        del committed
        return super().read(at, committed=False)


class NoFence(TransactionalLog):
    def _ongoing(self, session):
        producer = self._producers[session.name]
        producer.ongoing = True
        return producer


class ForgetsPositions(LogSink):
    def begin(self, streams, partition):
        super().begin(streams, partition)
        return {}


class TakesItBack(LogSink):
    """As kafka-python's producer does, which asks for a new epoch where the broker calls its own
    old."""

    def end(self, partition):
        for session in self._sessions.values():
            self._log.open(session.name)
        super().end(partition)


class CommitsAtOnce(LogSink):
    def flush(self):
        for session in self._sessions.values():
            self._log.commit(session)


@pytest.mark.parametrize(
    "case",
    [
        lambda: log_case(ShowsAborted()),
        lambda: log_case(NoFence()),
        lambda: log_case(make=ForgetsPositions),
        lambda: log_case(make=CommitsAtOnce),
        lambda: log_case(make=TakesItBack),
    ],
    ids=["shows aborted", "no fence", "forgets positions", "commits at once", "takes it back"],
)
def test_the_checks_catch_broken_logs(case):
    def fails(check):
        try:
            check(case())
        except (CheckError, ConnectorError):
            return True
        return False

    assert any(fails(check) for check in yield_transaction_checks())


def test_a_reader_waits_at_the_first_open_transaction():
    """The last stable offset: committed records behind an open transaction wait for its end;
    markers use offsets."""
    log, at = TransactionalLog(), StreamPartition("t", 0)
    one, two = log.open("one"), log.open("two")
    assert [log.append(at, b"a", one), log.append(at, b"b", two), log.append(at, b"c")] == [
        0,
        1,
        2,
    ]
    log.commit(two)
    assert log.read(at) == []
    assert log.read(at, committed=False) == [(0, b"a"), (1, b"b"), (2, b"c")]
    log.abort(one)
    assert log.read(at) == [(1, b"b"), (2, b"c")]
    assert log.append(at, b"d") == 5
    assert log.stable(at) == 6


# -- fencing


def save(store, offset):
    at = StreamPartition("t", 0)
    return store.save({"n": offset}, {at: offset}, config_digest="", summary={})


def test_a_shared_folder_belongs_to_the_newest_owner(tmp_path):
    """The previous owner notices it at its next write, and what it wrote in between is not the
    newest checkpoint."""
    old = CheckpointStore(tmp_path, shared=True)
    first = save(old, 1)
    new = CheckpointStore(tmp_path, shared=True)
    new.acquire()
    with pytest.raises(FencedError, match=r"token 2, this one has 1"):
        save(old, 2)
    assert new.load_latest().state == {"n": 1}
    second = save(new, 3)
    assert second.sequence > first.sequence
    assert [first.fence, second.fence] == [1, 2]
    with pytest.raises(FencedError):
        old.check_owner()
    new.check_owner()


@pytest.mark.parametrize("step", ["encode", "mkdir", "write state.json", "sync folder", "rename"])
def test_taken_over_in_the_middle_of_a_checkpoint(tmp_path, step):
    """Whatever the old owner was doing: its successor's checkpoint is the newest, complete and
    undisturbed."""
    old, new = (CheckpointStore(tmp_path, shared=True) for _ in range(2))
    save(old, 1)

    def take_over(name):
        if name == step:
            new.acquire()
            assert new.load_latest().state == {"n": 1}
            save(new, 10)

    at = StreamPartition("t", 0)
    with pytest.raises(CheckpointError):  # fenced, or its incomplete folder was removed
        old.save({"n": 2}, {at: 2}, config_digest="", summary={}, on_step=take_over)
    save(new, 11)
    assert new.load_latest().state == {"n": 11}
    assert CheckpointStore(tmp_path).load_latest().state == {"n": 11}


def test_a_late_rename_is_not_the_newest(tmp_path):
    """The rename comes after the last look at the token: the old owner's checkpoint appears,
    numbered below its successor's."""
    old, new = (CheckpointStore(tmp_path, shared=True) for _ in range(2))
    save(old, 1)
    old.check_owner = new.acquire
    late = save(old, 2)
    assert save(new, 10).sequence > late.sequence
    assert CheckpointStore(tmp_path).load_latest().state == {"n": 10}


def test_a_lease_is_checked_again_when_the_last_check_is_old(tmp_path, monkeypatch):
    """The check is cheap in normal operation, and it works after the store is closed."""
    clock = ManualClock()
    old, new = (
        CheckpointStore(tmp_path, shared=True, clock=clock),
        CheckpointStore(tmp_path, shared=True),
    )
    old.acquire()
    lease = old.lease()
    clock.advance(0.9)
    with monkeypatch.context() as patched:
        patched.setattr(old.folder, "names", None)  # a check would call it
        lease()
    clock.advance(0.2)
    lease()
    old.close()
    new.acquire()
    lease()
    clock.advance(1.1)
    for _ in range(2):
        with pytest.raises(FencedError, match="another engine"):
            lease()


def test_an_owner_with_a_lock_does_not_check_its_lease(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.folder.names = None
        store.lease()()


class LateSink(MemorySink):
    """Sends at a flush the predictions that were written before."""

    def __init__(self):
        super().__init__()
        self.held = []
        self.asked = []
        self.check = None

    def check_before_sending(self, check):
        self.check = check

    def write(self, predictions):
        self.held += predictions

    def flush(self):
        if self.held:
            self.asked.append({p.position.partition for p in self.held})
            self.check(self.asked[-1])
        super().write(self.held)
        self.held = []
        super().flush()

    def close(self):
        self.flush()


@pytest.fixture
def late(tmp_path, monkeypatch):
    """An engine under effectively-once whose sink holds predictions, and a function that takes the
    partition away from it."""
    monkeypatch.setattr("streamadapt.state.store.FRESH_S", 0.0)
    engine = make_engine(*stream(), tmp_path, LateSink(), "effectively-once", shared=True)
    engine.source.open(engine)
    engine.step()
    engine.sink.flush()
    while not engine.sink.held:
        engine.step()
    assert engine.sink.asked[0] == {0}
    return engine, CheckpointStore(tmp_path / f"{engine.source.streams[0]}-0", shared=True)


def test_predictions_written_before_a_takeover_are_not_sent_after_it(late):
    engine, other = late
    sent = list(engine.sink.predictions)
    other.acquire()
    with pytest.raises(FencedError, match="another engine"):
        engine.sink.flush()
    assert engine.sink.predictions == sent


def test_a_fenced_engine_sends_nothing_when_it_closes(late, caplog):
    """Whatever the sink holds, also for partitions that the engine still owns."""
    engine, other = late
    sent = list(engine.sink.predictions)
    engine.source.close()
    other.acquire()
    with pytest.raises(FencedError, match="token 2"):
        engine.run()
    assert "while closing after that: fenced by another engine" in caplog.text
    assert engine.sink.predictions == sent


def test_predictions_of_a_lost_partition_are_not_sent_if_it_has_another_owner(late):
    engine, other = late
    sent = list(engine.sink.predictions)
    engine.partitions_revoked([0], lost=True)
    other.acquire()
    for step in (engine.sink.flush, lambda: engine.partitions_assigned([0])):
        with pytest.raises(FencedError):
            step()
    assert engine.sink.predictions == sent


def test_predictions_of_a_partition_that_was_lost_and_regained_are_sent(late):
    engine, _ = late
    sent = list(engine.sink.predictions)
    engine.partitions_revoked([0], lost=True)
    held = list(engine.sink.held)
    engine.partitions_assigned([0])
    assert engine.sink.predictions == sent + held
