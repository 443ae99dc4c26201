"""Offsets without a record, and streams that were recreated: positions and checkpoints, in
memory."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from streamadapt import Bias, Entry, Forecast, KeyedPipeline, Persistence, Pipeline
from streamadapt.engine.engine import Engine
from streamadapt.engine.settings import EngineSettings
from streamadapt.records import StreamPartition
from streamadapt.state.store import CheckpointStore
from streamadapt.testing import (
    IdentityCodec,
    LogSink,
    ManualClock,
    MemoryDeadLetters,
    MemorySource,
    TransactionalLog,
)

AT = StreamPartition("memory", 0)


def entries(count, first=0):
    return [Entry(np.float32([i]), i * 10**9) for i in range(first, first + count)]


def plain():
    return Pipeline(Forecast(1, 1), Persistence(1), [Bias(0.1)])


def engine_of(source, path, sink=None, guarantee="at-least-once", make=plain):
    settings = EngineSettings(checkpoint_path=path, checkpoint_every_s=1.0, guarantee=guarantee)
    return Engine(
        source, make, sink or LogSink(TransactionalLog()), IdentityCodec(), MemoryDeadLetters(),
        settings=settings, clock=ManualClock(),
    )  # fmt: skip


def newest(path):
    return CheckpointStore(path / "memory-0").newest()


@pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
def test_positions_pass_offsets_without_a_record(tmp_path, guarantee):
    """In the checkpoint, in the commit to the source, and in the transaction: a monitor sees no
    lag."""
    source, log = MemorySource(entries(5)), TransactionalLog()
    source.append_gap(3)
    engine_of(source, tmp_path, LogSink(log), guarantee).run()
    assert newest(tmp_path).positions == {AT: 8}
    assert source.committed == {AT: 8}
    assert guarantee != "exactly-once" or dict(next(iter(log.committed.values()))) == {AT: 8}
    more = MemorySource(entries(5), finite=True)
    more.append_gap(3)
    more.append(*entries(2, 5))
    sink = LogSink(log)
    engine = engine_of(more, tmp_path, sink, guarantee)
    engine.run()
    assert engine.runners[0].pipeline.stats.entries == 7
    assert newest(tmp_path).positions == {AT: 10}


def test_a_stream_of_only_offsets_without_records_ends(tmp_path):
    source = MemorySource([])
    source.append_gap(4)
    engine_of(source, tmp_path).run()
    assert source.committed == {AT: 4}


@pytest.mark.parametrize("guarantee", ["at-least-once", "effectively-once", "exactly-once"])
def test_another_stream_of_the_same_name_is_new(tmp_path, caplog, guarantee):
    """It has more records than were read from the old one: all of them are read and predicted."""
    log = TransactionalLog()
    engine_of(MemorySource(entries(5), identity="first"), tmp_path, LogSink(log), guarantee).run()
    assert newest(tmp_path).identities == {AT: "first"}
    again = MemorySource(entries(9, 100), identity="second")
    sink = LogSink(log)
    with caplog.at_level(logging.WARNING, "streamadapt"):
        engine = engine_of(again, tmp_path, sink, guarantee)
        engine.run()
    assert (
        "memory[0] was deleted and created again: it is read from 0, and all of it is new"
        in caplog.text
    )
    assert engine.runners[0].pipeline.stats.entries == 14
    assert newest(tmp_path).identities == {AT: "second"}
    assert newest(tmp_path).positions == {AT: 9}
    ids = [json.loads(value)["id"] for _, value in log.read(StreamPartition("predictions", 0))]
    assert ids == [f"memory[0]@{i}" for i in (*range(5), *range(9))]


def test_the_same_stream_resumes_and_so_does_one_without_identity(tmp_path):
    """A checkpoint from before there were identities, or a source without them: the position is
    accepted."""
    for identity, count in ((None, 3), ("first", 5), ("first", 6), (None, 8)):
        engine = engine_of(MemorySource(entries(count), identity=identity), tmp_path)
        engine.run()
        assert engine.runners[0].pipeline.stats.entries == count
    assert newest(tmp_path).identities == {AT: "first"}


def test_waiting_records_of_a_deleted_stream_are_dropped(tmp_path):
    """Otherwise their offsets would be used as positions in the new stream."""
    source = MemorySource(entries(40), finite=False)
    engine = engine_of(source, tmp_path)
    source.open(engine)
    engine.stopping = True  # records are read and wait
    engine.step()
    assert engine.runners[0].waiting == 40
    engine.stopping = False
    engine.partitions_placed({AT: 0}, recreated=[AT])
    assert engine.runners[0].waiting == 0
    engine.checkpoint()
    assert newest(tmp_path).positions == {AT: 0}
    engine._close()


def keyed():
    return KeyedPipeline(plain)


def timed(count, hour, first=0):
    start = (1_000 + hour) * 3600 * 10**9
    return [
        Entry(np.float32([i]), start + i * 10**9, key=f"k{i % 2}") for i in range(first, count)
    ]


@pytest.mark.parametrize("hours", [1, 240])
@pytest.mark.parametrize("make", [plain, keyed])
def test_the_clock_is_reset_with_the_stream(tmp_path, make, hours):
    """All records of a recreated stream are new, even with older times; a wrong time is refused
    again."""

    def run(items, identity):
        engine = engine_of(MemorySource(items, identity=identity), tmp_path, make=make)
        engine.run()
        stats = engine.runners[0].pipeline.stats
        return stats.entries, dict(stats.rejected)

    assert run(timed(40, 0), "first") == (40, {})
    assert run([], "second") == (40, {})  # the clock is in the checkpoint
    again = timed(30, -hours)
    assert run(again, "second") == (70, {})
    wrong = Entry(np.float32([1]), 10**9, key="k0")
    assert run([*again, wrong, *timed(40, -hours, 30)], "second") == (80, {"time_backwards": 1})
