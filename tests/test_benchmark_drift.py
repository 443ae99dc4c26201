"""The counts of the drift benchmark: alarms by hand, dummies, and a pipeline's own monitors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.drift import measured, synthetic
from benchmarks.drift.channels import NOISES, Plan, measure, params_of
from benchmarks.drift.compare import Compared, compare, rows_for
from benchmarks.drift.score import Change, Tally, cooled, score
from benchmarks.drift.signals import ALWAYS, MOVING, NEVER, Stream, record, watch
from streamadapt import Batch, Entry
from streamadapt.drift.detectors import DETECTORS
from streamadapt.drift.monitor import DriftMonitor

pytestmark = pytest.mark.slow

HOUR = 3_600_000_000_000
TWO = (Change(100, "away"), Change(200, "back"))


def quiet(text: str) -> None:
    del text


@pytest.fixture(scope="module")
def small() -> Stream:
    """The stream Mixed inverts its labels: a base that was nearly always right is nearly always
    wrong."""
    return synthetic.of_family("mixed", "abrupt", 0, spacing=200, fit=400)


def test_alarms_by_hand() -> None:
    """One alarm in the first horizon and its repeat, one too late, none in the second, one before
    all changes."""
    tally = score([50, 110, 120, 131, 199, 240], TWO, 30, 300)
    assert tally.delays == {"away": [10], "back": []}
    assert (tally.detected, tally.count, tally.delay) == (1, 2, 10.0)
    assert tally.repeats == 1  # 120
    assert tally.false == 4  # 50, 131 (the horizon ends before 130), 199, 240
    assert tally.quiet == 300 - 60
    assert tally.false_rate == pytest.approx(1e4 * 4 / 240)
    assert tally.chance == pytest.approx(2 * (1 - (1 - 6 / 300) ** 30))
    assert tally.as_json()["missed"] == 1


def test_borders_of_a_horizon() -> None:
    """The change's own entry counts, the horizon's end does not; the next change and the stream's
    end shorten it."""
    at = (Change(10), Change(15), Change(28))
    assert score([10], at, 8, 30).delays == {"event": [0]}
    assert score([9], at, 8, 30).false == 1
    assert score([15], at, 8, 30).delays == {
        "event": [0]
    }  # it belongs to the second change, not the first
    assert score([22], at, 8, 30).delays == {"event": [7]}
    assert score([23], at, 8, 30).false == 1
    assert score([], at, 8, 30).quiet == 30 - 5 - 8 - 2
    assert score([], (), 8, 30).delay is None


def test_sums_over_streams() -> None:
    """Counts add; the median is of all delays, the rate of all quiet entries."""
    total = Tally.total([score([101, 5], TWO, 10, 300), score([109, 209], TWO, 10, 300)])
    assert total.delays == {"away": [1, 9], "back": [9]}
    assert (total.delay, total.false, total.quiet, total.entries) == (9.0, 1, 560, 600)


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 12))
def test_the_cool_down_equals_that_of_the_monitor(fires: list[bool], cool_down: int) -> None:
    """Leaving alarms out afterwards equals `DriftMonitor(cool_down=...)`."""
    monitor = DriftMonitor(
        "page-hinkley", "loss", cool_down=cool_down, params={"min_instances": 1, "threshold": 0.5}
    )
    bare = DriftMonitor("page-hinkley", "loss", params={"min_instances": 1, "threshold": 0.5})
    values = [3.0 if f else 0.0 for f in fires]
    raw = [i for i, v in enumerate(values) if bare.update(v)]
    assert cooled(raw, cool_down) == [i for i, v in enumerate(values) if monitor.update(v)]


def test_the_cool_down_by_hand() -> None:
    """Three values after an alarm are quiet; a suppressed alarm starts no new cool-down."""
    assert cooled([1, 3, 4, 5, 9], 3) == [1, 5, 9]
    assert cooled([1, 2, 3], 0) == [1, 2, 3]


def test_recorded_signals_equal_those_of_the_pipeline(small: Stream) -> None:
    """A detector on the recording fires at exactly the entries at which the pipeline reports
    it."""
    traces = record(small)
    for detector, signal in (
        ("hddm-w", "error"),
        ("adwin", "loss"),
        ("adwin", "input"),
        ("adwin", "embedding"),
    ):
        pipeline = small.pipeline([DriftMonitor(detector, signal)])  # type: ignore[arg-type]
        drift_ids = [int(p.id) for p in pipeline.observe(list(small.items)) if p.drifts]
        assert watch(detector, signal, traces[signal], 0).raw == drift_ids
        assert drift_ids or signal in ("input", "embedding")


def test_the_dummies(small: Stream) -> None:
    """`Always` detects every change at its first known loss, and all its other alarms are false;
    `Never` has none."""
    compared = compare([("mixed", 0, lambda: small)], quiet)
    always = compared.total((ALWAYS, "loss"), "abrupt")
    assert always.delays == {"away": [0, 0], "back": [0]}
    assert always.alarms == small.entries - 1  # the last label is never learned
    assert always.false_rate == pytest.approx(1e4, rel=0.01)
    assert always.above_chance == pytest.approx(0.0, abs=0.01)
    never = compared.total((NEVER, "loss"), "abrupt")
    assert (never.alarms, never.detected, never.count, never.false_rate) == (0, 0, 3, 0.0)
    cooler = compared.total((ALWAYS, "loss"), "abrupt", quiet=True)
    assert cooler.alarms == -(-always.alarms // (small.horizon + 1))


def test_a_small_run(small: Stream) -> None:
    """All detectors are included; one of errors detects the inverted labels at once; costs are
    reported."""
    compared = compare([("mixed", 0, lambda: small)], quiet)
    rows = compared.rows("abrupt")
    assert {detector for detector, _ in rows} == {ALWAYS, NEVER, *DETECTORS}
    assert rows == rows_for(small, slow=True)
    found = compared.total(("hddm-w", "error"), "abrupt")
    assert len(found.delays["away"]) == 2
    assert found.delay is not None
    assert found.delay < 40
    result = compared.as_json()
    assert (
        result["streams"]["mixed-abrupt"]["0"]["hddm-w:error"]["alarms"]["kinds"]["away"][
            "detected"
        ]
        == 2
    )
    assert set(result["microseconds"]) == {":".join(row) for row in rows}
    assert compared.groups() == ["abrupt"]


def test_changes_are_at_the_marks(small: Stream) -> None:
    """The base's error jumps at the marks; controls have no jumps; every stream gives its
    length."""
    error = record(small)["error"]
    known = dict(zip(error.at.tolist(), error.values.tolist(), strict=True))
    for change in small.changes:
        before = np.mean([known[i] for i in range(change.at - 60, change.at - 5)])
        after = np.mean([known[i] for i in range(change.at + 10, change.at + 60)])
        assert (after - before > 0.5) == (change.kind == "away")
        assert abs(after - before) > 0.5
    assert small.entries == 600
    assert synthetic.of_family("sea", "stationary", 1, spacing=100, fit=200).changes == ()


def test_friedman_changes() -> None:
    """River's own positions, counted from the end of the base's training part."""
    stream = synthetic.friedman("gra", 0, spacing=600, fit=300)
    assert [(c.at, c.kind) for c in stream.changes] == [(300, "away"), (900, "back")]
    traces = record(stream)
    means = {}
    for signal in ("loss", MOVING):
        loss = dict(zip(traces[signal].at.tolist(), traces[signal].values.tolist(), strict=True))
        means[signal] = [np.nanmean([loss[i] for i in range(a, a + 250)]) for a in (40, 600, 1200)]
    assert means["loss"][1] > 1.15 * max(means["loss"][0], means["loss"][2])
    # Long after a change it has no effect.
    assert means[MOVING] == pytest.approx([1.0, 1.0, 1.0], abs=0.15)


def test_sensor_changes_by_hand() -> None:
    """A pause of two hours is a change, two minutes less is none; the mark is the row after it."""
    times = np.cumsum(np.array([0, 5, 120, 5, 118, 500]) * (HOUR // 60))
    assert measured.sensor_changes(times) == [2, 5]


def test_the_sensor_stream_counts_entries() -> None:
    """Marks are the entries after the pauses, although labels are between the entries."""
    rows = 400
    minutes = np.full(rows, 5)
    minutes[[150, 300]] = 200
    times = np.cumsum(minutes.astype(np.int64)) * (HOUR // 60)
    rng = np.random.default_rng(0)
    current = rng.normal(20.0, 3.0, size=(rows, 1)).astype(np.float32)
    stream = measured.sensor(Batch(current, times, 5.0 * current))
    assert [c.at for c in stream.changes] == [150 - 80, 300 - 80]
    entries = [item for item in stream.items if isinstance(item, Entry)]
    assert all(
        entries[c.at].time - entries[c.at - 1].time == 200 * HOUR // 60 for c in stream.changes
    )
    assert measured.sureness(Batch(current, times, 5.0 * current)).large == 0.0


@pytest.mark.parametrize("noise", NOISES)
def test_noise_does_not_change(noise: str) -> None:
    """Positive, stationary, and with the stated correlation of neighbours."""
    made = NOISES[noise](np.random.default_rng(0), (400, 500))
    assert made.min() > 0.0
    assert np.median(made[:50]) == pytest.approx(np.median(made[-50:]), rel=0.05)
    signed = np.log(made)
    correlation = np.mean([np.corrcoef(signed[:-1, i], signed[1:, i])[0, 1] for i in range(100)])
    assert (correlation > 0.3) == (noise == "autocorrelated")


def test_levels_with_and_without_correction() -> None:
    """Without it each of many channels is tested at the level of one channel; with it there are
    fewer alarms."""
    plan = Plan("kswin", "independent", {}, entries=150)
    assert params_of(plan) == {"alpha": 0.005}
    assert params_of(Plan("adwin", "independent", {}, level=0.1)) == {"delta": 0.1}
    alone = DriftMonitor("kswin", "loss", channels="each", params={"alpha": 10 * 0.005})
    noise = np.random.default_rng(3).lognormal(size=(150, 10))
    noise[100:, 0] += 10.0
    apart = [DriftMonitor("kswin", "loss") for _ in range(10)]
    # Ten times the level, divided by ten: every channel fires as a monitor of its own would.
    for row in noise:
        fired = [one.update(v) for one, v in zip(apart, row.tolist(), strict=True)]
        assert alone.update(row) == any(fired)
    full, divided = (measure(plan, 10, 1, divided=d) for d in (False, True))
    assert (full.level, full.corrected, divided.corrected) == (0.005, False, True)
    assert divided.per_10000 <= full.per_10000


def test_groups_sum_their_streams(small: Stream) -> None:
    """A group's counts are the sums over its streams."""
    compared = Compared()
    other = synthetic.of_family("stagger", "abrupt", 0, spacing=200, fit=400)
    for stream in (small, other):
        compared.add(
            stream,
            ("hddm-w", "error"),
            watch("hddm-w", "error", record(stream)["error"], stream.horizon),
        )
    both = compared.total(("hddm-w", "error"), "abrupt")
    apart = [compared.total(("hddm-w", "error"), "abrupt", s.name) for s in (small, other)]
    assert both.count == 6
    assert both.alarms == sum(t.alarms for t in apart)
    assert both.entries == 1200
