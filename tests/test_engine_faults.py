"""A slow sink, and a wall clock that goes back."""

from __future__ import annotations

import tracemalloc

from benchmarks.faults.counts import Counts
from benchmarks.faults.memory_job import Job, final_state, written_by
from benchmarks.faults.soak_jobs import CountingSink, GeneratedSource, SoakJob
from streamadapt import Bias, Pipeline, Supervised
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.settings import EngineSettings
from streamadapt.state.store import CheckpointStore
from streamadapt.testing import IdentityCodec, ManualClock, MemoryDeadLetters

BUFFER, BATCH = 500, 300


class SlowSink(CountingSink):
    """Every write takes a second."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def write(self, predictions):
        super().write(predictions)
        self.clock.advance(1.0)


def small():
    return Pipeline(Supervised(1), lambda x: x[-1:, :1], [Bias(0.1)])


def test_a_slow_sink_pauses_the_source_and_memory_stays_flat():
    """The source delivers ten times as fast as the sink writes: the number of waiting records is
    bounded, and nothing is lost."""
    clock = ManualClock()
    sink, letters = SlowSink(clock), MemoryDeadLetters()
    source = GeneratedSource("slow", SoakJob(small, 1.0, 1, 1, lambda i, x: x), 2400, BATCH)
    settings = EngineSettings(max_buffer=BUFFER, turn_s=1.0)
    engine = Engine(source, small, sink, IdentityCodec(), letters, settings=settings, clock=clock)
    source.open(engine)
    tracemalloc.start()
    try:
        held, memory, polls, idle, ended = [], [], 0, 0, False
        while not ended:
            before = source.lag()
            ended = engine.step()
            polls += 1
            idle += source.lag() == before
            held.append(engine.runners[0].waiting)
            memory.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert BUFFER <= max(held) <= BUFFER + BATCH + 16, "and the records that wait for later ones"
    assert idle > polls / 2, "it was paused"
    third = polls // 3
    assert max(memory[2 * third :]) < 1.1 * max(memory[third : 2 * third])
    engine.stop()
    engine.run()
    assert sink.count == 2400
    assert sink.again == 0
    assert letters.letters == []


def test_a_wall_clock_that_goes_back_changes_nothing(tmp_path, monkeypatch):
    """Checkpoints are ordered by number, never by time: the newest is used, and the final state is
    that of an undisturbed run."""
    hour_ns, now = 3600 * 10**9, [10**18]

    def earlier():
        now[0] -= hour_ns
        return now[0]

    monkeypatch.setattr("streamadapt.clock.time.time_ns", earlier)
    job = Job(80, every=40)
    metrics = Metrics()
    first, one = job.engine(tmp_path, metrics=metrics)
    first.source.open(first)
    for _ in range(3):  # not to its end, then closed without a last checkpoint
        first.source._batch = 30
        first.step()
    first._close()
    store = CheckpointStore(next(tmp_path.iterdir()))
    infos = store.list()
    times = [info.time_ns for info in infos]
    assert len(times) >= 2
    assert times == sorted(times, reverse=True)
    newest = infos[-1].positions
    second, two = job.engine(tmp_path, metrics=metrics)
    assert dict(second.partitions_assigned([0])) == newest
    second._close()
    second, two = job.engine(tmp_path, metrics=metrics)
    second.run()
    assert job.judge(Counts(), final_state(second), written_by(one, two))
    assert all(age >= 0 for _, age in metrics.samples()["streamadapt_checkpoint_age_seconds"])
