"""The kinds of ``python -m benchmarks.faults``: the engine survives them all, and a broken engine
is detected."""

from __future__ import annotations

import pytest
from fault_counts import trials

from benchmarks.faults import brokers, damage, disks, soak
from benchmarks.faults.counts import Counts
from benchmarks.faults.memory_job import Job, final_state, make_keyed, make_plain, written_by
from benchmarks.faults.soak_jobs import CountingSink
from streamadapt.state.store import CheckpointStore
from streamadapt.testing import MemorySink

pytestmark = pytest.mark.slow
KEPT = []


def assert_all_survived(counts):
    assert counts.tried > 0
    assert counts.survived == counts.tried, counts
    assert counts.lost == 0
    assert counts.state_differs == 0
    assert counts.more.get("values_differ", 0) == 0
    assert "unexpected" not in counts.more


def test_a_disk_that_refuses_stops_the_engine_and_a_restart_loses_nothing():
    counts = disks.disk(quick=True)
    assert_all_survived(counts)
    assert counts.more["stopped"] > counts.tried / 2, "most refused operations are necessary ones"


def test_a_damaged_checkpoint_is_skipped_for_the_one_before():
    counts = damage.checkpoint(quick=True)
    assert_all_survived(counts)
    assert counts.more["loud"] >= counts.tried - counts.more["harmless"] > 0.9 * counts.tried


@pytest.mark.kafka
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_broker_that_fails_repeatedly_loses_and_doubles_nothing():
    counts = brokers.broker(quick=True)
    assert_all_survived(counts)
    assert counts.doubled == 0
    assert counts.more["connections"] > counts.tried


def test_a_long_run_leaks_nothing():
    """Memory and time need a long run, which is the benchmark's."""
    counts = soak.measure(trials(1500, soak.QUICK_ENTRIES))
    assert (counts.lost, counts.doubled, counts.more["refused"]) == (0, 0, 0)
    assert (counts.more["fds_growth"], counts.more["threads_growth"]) == (0, 0)


def test_a_leak_is_caught(monkeypatch, tmp_path):
    write = CountingSink.write

    def leaking(self, predictions):
        write(self, predictions)
        KEPT.append((bytearray(1 << 20), (tmp_path / "open").open("w")))

    monkeypatch.setattr(CountingSink, "write", leaking)
    counts = soak.measure(1500)
    for _, file in KEPT:
        file.close()
    KEPT.clear()
    assert counts.survived < counts.tried
    assert counts.more["rss_growth"] > soak.MOST_RSS_GROWTH
    assert counts.more["fds_growth"] > 0


@pytest.mark.parametrize("make", [make_plain, make_keyed])
def test_an_undisturbed_run_equals_itself(make, tmp_path):
    job = Job(40, make, every=30)
    engine, sink = job.engine(tmp_path)
    engine.run()
    counts = Counts()
    assert job.judge(counts, final_state(engine), written_by(sink))
    assert (counts.lost, counts.doubled, counts.state_differs) == (0, 0, 0)


def test_a_dropped_prediction_is_detected(monkeypatch):
    write = MemorySink.write
    monkeypatch.setattr(
        MemorySink,
        "write",
        lambda self, these: write(self, [p for p in these if p.position.offset != 50]),
    )
    monkeypatch.setattr(disks, "QUICK_TRIALS", 1)
    monkeypatch.setattr(disks, "QUICK_LIMIT_TRIALS", 0)
    counts = disks.disk(quick=True)
    assert counts.lost == counts.tried == 2
    assert counts.survived == 0


def test_a_checkpoint_without_its_positions_is_detected(monkeypatch):
    save = CheckpointStore.save
    monkeypatch.setattr(
        CheckpointStore,
        "save",
        lambda self, state, positions, **more: save(self, state, {}, **more),
    )
    monkeypatch.setattr(damage, "QUICK_TRIALS", 1)
    counts = damage.checkpoint(quick=True)
    assert counts.state_differs > 0
    assert counts.survived < counts.tried


def test_silently_accepted_damage_is_detected(monkeypatch):
    def oldest(self, digest=None, not_beyond=None):
        return self.load(self.sequences()[0], digest) if self.sequences() else None

    monkeypatch.setattr(CheckpointStore, "load_latest", oldest)
    monkeypatch.setattr(damage, "QUICK_TRIALS", 1)
    counts = damage.checkpoint(quick=True)
    assert counts.survived == 0, "an older checkpoint is used without a warning"
