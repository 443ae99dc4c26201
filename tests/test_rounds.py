"""Partitions take turns: even with a slow model, polls, checkpoints and signals are on time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from variants import variants

from streamadapt import Bias, Entry, Forecast, Pipeline, Position
from streamadapt.engine.engine import Engine
from streamadapt.engine.rounds import Turns
from streamadapt.engine.settings import EngineSettings
from streamadapt.testing import (
    IdentityCodec,
    ManualClock,
    MemoryDeadLetters,
    MemorySink,
    MemorySource,
)


class Watched(MemorySource):
    """Records the time of every poll."""

    def poll(self, timeout_s):
        self.polls.append(self.clock.monotonic())
        return super().poll(timeout_s)


class Job:
    """Partitions with a number of entries each, and a slow base; only the base moves the clock."""

    def __init__(self, counts, cost_s, path=None, on_call=None, **settings):
        self.clock = ManualClock()
        self.calls = 0

        def base(inputs):
            self.calls += 1
            self.clock.advance(cost_s)
            if on_call is not None:
                on_call(self)
            return inputs[-1:]

        items = [
            Entry(np.float32([i % 5]), i * 10**9, position=Position("memory", p, 0))
            for p, count in enumerate(counts)
            for i in range(count)
        ]
        self.source = Watched(items, batch=10**6, finite=False)
        self.source.polls, self.source.clock = [], self.clock
        self.sink = MemorySink()
        self.engine = Engine(
            self.source, lambda: Pipeline(Forecast(1, 1), base, [Bias(0.1)]), self.sink,
            IdentityCodec(), MemoryDeadLetters(),
            settings=EngineSettings(checkpoint_path=path, **settings), clock=self.clock,
        )  # fmt: skip
        self.source.open(self.engine)

    def done(self):
        return Counter(p.position.partition for p in self.sink.predictions)


def test_a_slow_base_serves_every_partition_equally():
    """10 ms per entry, as in practice: not 2,143 predictions for the first partition and none for
    the others."""
    job = Job([5000] * 3, 0.01)
    while job.clock.monotonic() < 30.0:
        job.engine.step()
    done = job.done()
    assert sum(done.values()) > 2900
    assert max(done.values()) - min(done.values()) <= 100, "the entries of one round"


@pytest.mark.parametrize("cost_s", variants([0.05, 0.7, 2.0], quick=2))
def test_a_round_over_many_partitions_is_bounded(cost_s):
    """It ends after `turn_s` and one more entry, at any partition; partitions not reached come
    first in the next round."""
    job = Job([40] * 64, cost_s, turn_s=1.0)
    for _ in range(200):
        job.engine.step()
    gaps = np.diff(job.source.polls)
    assert max(gaps) <= 1.0 + cost_s + 1e-9
    done = job.done()
    assert len(done) == 64
    per_turn = max(1, int(np.ceil(1.0 / 64 / cost_s)))
    assert max(done.values()) - min(done.values()) <= per_turn


def test_many_partitions_with_few_entries_do_not_wait_for_a_full_one():
    """Sixty-three partitions with two entries each are finished in the first round, although the
    first partition has thousands."""
    job = Job([5000] + [2] * 63, 0.001, turn_s=1.0)
    for _ in range(2):
        job.engine.step()
    done = job.done()
    assert all(done[p] == 2 for p in range(1, 64))
    assert done[0] > 1500, "the full partition gets the remaining time"


def test_checkpoints_are_on_time_however_slow_the_base_is(tmp_path):
    job = Job([20] * 16, 2.0, tmp_path, checkpoint_every_s=10.0, turn_s=1.0)
    at = []
    job.engine.on_checkpoint_step = lambda name: (
        at.append(job.clock.monotonic()) if name == "flush" else None
    )
    for _ in range(60):
        job.engine.step()
    assert len(at) > 4
    assert max(np.diff([0.0, *at])) <= 10.0 + 1.0 + 2.0


def test_a_stop_takes_effect_after_the_current_entry():
    job = Job([100, 100], 0.001, on_call=lambda job: job.calls == 7 and job.engine.stop())
    job.engine.run()
    assert job.calls == 7
    assert len(job.sink.predictions) == 7


def test_turns_change_no_prediction():
    def predictions(cost_s, turn_s):
        job = Job([60, 30, 7], cost_s, turn_s=turn_s)
        for _ in range(400):
            job.engine.step()
        return {p.position: p.served.tobytes() for p in job.sink.predictions}

    whole = predictions(0.0, 1.0)
    assert len(whole) == 97
    assert predictions(0.3, 1.0) == predictions(0.3, 5.0) == predictions(0.01, 0.1) == whole


@given(
    st.integers(1, 12),
    st.lists(st.sampled_from([0.001, 0.01, 0.3, 1.5]), min_size=1, max_size=9),
    st.integers(1, 30),
)
def test_no_partition_is_skipped(partitions, costs_s, rounds):
    """For any cost of records: among partitions that always have work, none is two turns ahead of
    another."""
    clock, served = ManualClock(), []

    def serve(partition, until):
        served.append(partition)
        while True:
            clock.advance(costs_s[len(served) % len(costs_s)])
            if clock.monotonic() >= until:
                return True

    turns = Turns(clock, 1.0)
    for _ in range(rounds):
        turns.round(range(partitions), serve)
    for end in range(1, len(served) + 1):
        had = Counter(served[:end])
        assert max(had.values()) - min(had[p] for p in range(partitions)) <= 1
