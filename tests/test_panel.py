"""Panels: records of single sensors become rows by event time, for any order of arrival."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from core_helpers import bits
from hypothesis import given, settings
from hypothesis import strategies as st
from states import assert_same_state

from streamadapt import (
    RLS,
    Bias,
    Entry,
    Forecast,
    Label,
    Persistence,
    Pipeline,
    Position,
    Supervised,
    TwoLayer,
)
from streamadapt.errors import ConfigError, EntryError, Reason
from streamadapt.pipeline.panel import Panel
from streamadapt.pipeline.watermark import ALONE, TOGETHER, Reading, Watermark
from streamadapt.state.tree import decode, encode

S = 10**9
LATENESS = 20  # seconds, in the tests with random orders


def record(sensor, t, value, offset=0):
    return Entry(
        np.array([value], np.float32),
        round(t * S),
        f"@{offset}",
        sensor,
        None,
        Position("topic", 3, offset),
    )


def rows_of(panel, records):
    """Return all rows, including those of the end of the stream, as (time in s, values)."""
    rows = [row for one in records for row in panel.take(one)] + list(panel.flush())
    return [(row.time / S, row.values.tolist()) for row in rows]


def same(left, right):
    """Compare rows, with NaN equal to NaN."""
    return repr(left) == repr(right)


def oracle(records, sensors, step, max_gap=100):
    """Return the expected rows, computed slowly from the set of all records."""
    by_row = defaultdict(lambda: defaultdict(list))
    for one in records:
        if one.key in sensors:
            t = one.time / S
            row = t if step is None else math.ceil(t / step) * step
            by_row[row][one.key].append((t, float(one.values[0])))
    out, last = [], None
    for row in sorted(by_row):
        if step is not None and last is not None:
            silent = range(1, min(round((row - last) / step), max_gap + 1))
            out += [(float(last + i * step), [math.nan] * len(sensors)) for i in silent]
        values = []
        for sensor in sensors:
            known = sorted(
                (t, v, math.copysign(1, v))
                for t, v in by_row[row].get(sensor, ())
                if not math.isnan(v)
            )
            values.append(known[-1][1] if known else math.nan)
        out.append((float(row), values))
        last = row
    return out


readings = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d"]),
        st.integers(0, 200),
        st.sampled_from([0.0, -0.0, 1.0, 2.5, -3.0, math.nan]),
        st.floats(0, LATENESS),
    ),
    min_size=1,
    max_size=60,
)


def arrivals(readings, *, jitter):
    """Return the records in an order in which none is more than `LATENESS` behind a newer one."""
    order = sorted(readings, key=lambda r: (r[1] + (r[3] if jitter else 0.0), r[0], repr(r[2])))
    return [record(sensor, t, value, i) for i, (sensor, t, value, _) in enumerate(order)]


def test_generated_orders_are_within_the_lateness():
    """A check of the strategy itself: with the jitter no record is more than the lateness behind
    the newest."""
    made = arrivals([("a", 0, 1.0, 19.5), ("b", 19, 1.0, 0.0), ("c", 30, 1.0, 3.0)], jitter=True)
    assert [one.key for one in made] == ["b", "a", "c"]


@given(readings, st.sampled_from([None, 7, 10]))
def test_rows_equal_those_of_a_slow_oracle_in_any_allowed_order(readings, step):
    """With fixed sensors the rows depend only on the set of records, including duplicates."""
    step_text = None if step is None else f"{step}s"
    for jitter in (False, True):
        records = arrivals(readings, jitter=jitter)
        twice = [one for record in records for one in (record, record)]
        for given_ in (records, twice):
            panel = Panel(sensors=["c", "a", "b"], step=step_text, lateness=f"{LATENESS}s")
            refused, rows = [], []
            for one in given_:
                try:
                    rows += panel.take(one)
                except EntryError as error:
                    refused.append(error.reason)
            rows += panel.flush()
            assert same(
                [(r.time / S, r.values.tolist()) for r in rows],
                oracle(records, ["c", "a", "b"], step),
            )
            assert refused == [Reason.UNKNOWN_SENSOR for one in given_ if one.key == "d"]
            assert not panel.lost


def panel_pipeline(panel, learners=None, **more):
    return Pipeline(
        Forecast(3, 2), Persistence(2), learners or [Bias(0.1), RLS(0.99)], panel=panel, **more
    )


def run(pipeline, records):
    """Return predictions bit for bit, with their positions and columns; refused records are left
    out."""
    pipeline.on_rejected = lambda item, error: None
    predictions = pipeline.observe(records) + pipeline.flush()
    return [
        (one, p.position, p.columns) for one, p in zip(bits(predictions), predictions, strict=True)
    ]


@given(readings, st.sampled_from([None, "10s"]), st.sampled_from([2, 3, 6]))
def test_reordered_within_the_lateness_the_results_are_the_same_bits(readings, step, most):
    """Predictions, ids, positions, columns and the pipeline's state; also with more sensors than
    columns."""
    ends = []
    for jitter in (False, True):
        pipeline = panel_pipeline(Panel(max_sensors=most, step=step, lateness=f"{LATENESS}s"))
        ends.append((run(pipeline, arrivals(readings, jitter=jitter)), pipeline.state_dict()))
    assert ends[0][0] == ends[1][0]
    for _, state in ends:
        # The number of records without a free column, not only whether there are any.
        del state["stats"]["rejected"]
        state["panel"]["clock"].pop("newest")
    assert_same_state(ends[0][1], ends[1][1])


@settings(deadline=None, max_examples=25)
@given(readings, st.integers(0, 60), st.sampled_from([None, "10s"]))
def test_a_checkpoint_and_any_grouping_by_polls_change_no_bit(readings, at, step):
    """A checkpoint between any two records changes nothing, through the safe form on disk."""
    records = arrivals(readings, jitter=True)
    whole = panel_pipeline(Panel(max_sensors=4, step=step, lateness="5s"))
    wanted = run(whole, records)
    first = panel_pipeline(Panel(max_sensors=4, step=step, lateness="5s"))
    first.on_rejected = lambda item, error: None
    predictions = [p for one in records[:at] for p in first.observe([one])]
    second = panel_pipeline(Panel(max_sensors=4, step=step, lateness="5s"))
    second.load_state_dict(decode(*encode(first.state_dict())))
    got = [
        (one, p.position, p.columns) for one, p in zip(bits(predictions), predictions, strict=True)
    ] + run(second, records[at:])
    assert got == wanted
    assert_same_state(whole.state_dict(), second.state_dict())


def test_a_row_has_its_time_as_id_and_position():
    """Sinks and replays identify predictions by them: increasing, unique, independent of arrival
    order."""
    pipeline = panel_pipeline(Panel(sensors=["a", "b"], step="10s", lateness="0s"))
    predictions = pipeline.observe(
        [record(s, t, t + i, 7 * t + i) for t in range(5, 95, 10) for i, s in enumerate("ab")]
    )
    assert [p.time for p in predictions] == [t * S for t in range(30, 90, 10)]
    assert [p.id for p in predictions] == [str(p.time) for p in predictions]
    assert [p.position for p in predictions] == [Position("topic", 3, p.time) for p in predictions]
    assert {p.key for p in predictions} == {""}
    assert {p.columns for p in predictions} == {("a", "b")}
    assert pipeline.stats.entries == 8, "the last row still waits"
    assert [p.time for p in pipeline.flush()] == [90 * S]
    assert pipeline.flush() == []


def test_a_late_record_is_refused_and_changes_nothing():
    """A record is late if the watermark, the newest time minus the lateness, has passed its
    row."""
    pipeline = panel_pipeline(Panel(sensors=["a", "b"], step="10s", lateness="15s"))
    # The watermark is 10, and row 10 is not before it.
    pipeline.observe([record("a", 8, 1.0), record("b", 25, 2.0)])
    pipeline.observe([record("b", 1, 3.0)])
    pipeline.observe([record("a", 26, 1.0)])  # 11
    before = pipeline.state_dict()
    with pytest.raises(EntryError, match="late_record") as caught:
        pipeline.observe([record("b", 10, 9.0)])
    assert caught.value.reason is Reason.LATE_RECORD
    after = pipeline.state_dict()
    assert after["stats"].pop("rejected") == {"late_record": 1}
    before["stats"].pop("rejected")
    assert_same_state(before, after)
    pipeline.observe([record("b", 10.5, 9.0)])  # the next row is open


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record("z", 5, 1.0), Reason.UNKNOWN_SENSOR),
        (record("", 5, 1.0), Reason.MISSING_FIELD),
        (replace(record("a", 5, 1.0), values=np.zeros(2, np.float32)), Reason.WRONG_WIDTH),
        (record("a", 5, math.inf), Reason.NOT_FINITE),
        (replace(record("a", 5, 1.0), time=2**63 - 2), Reason.BAD_TIME),
        (Label("a", np.zeros(1, np.float32), 5), Reason.UNKNOWN_LABEL),
    ],
)
def test_bad_records_are_refused_with_their_reason(bad, reason):
    """A bad record never stops the stream, and has no effect."""
    panel = Panel(sensors=["a", "b"], step="10s")
    before = panel.state_dict()
    with pytest.raises(EntryError) as caught:
        list(panel.take(bad))
    assert caught.value.reason is reason
    assert_same_state(before, panel.state_dict())


def test_columns_are_assigned_in_order_of_release_then_name_and_kept():
    """The order of arrival does not matter; sensors beyond the last column are refused, or dropped
    if they were waiting."""
    panel = Panel(max_sensors=2, step="10s", lateness="10s")
    rows = []
    for one in [
        record("c", 12, 3.0),
        record("b", 14, 2.0),
        record("a", 13, 1.0),
        record("z", 3, 9.0),
    ]:
        rows += panel.take(one)
    rows += panel.take(record("z", 40, 8.0))
    assert panel.columns == ("z", "a")
    assert panel.lost == {"too_many_sensors": 2}
    with pytest.raises(EntryError) as caught:
        list(panel.take(record("b", 41, 1.0)))
    assert caught.value.reason is Reason.TOO_MANY_SENSORS
    rows += panel.flush()
    wanted = [
        (10, [9.0, math.nan]),
        (20, [math.nan, 1.0]),
        (30, [math.nan] * 2),
        (40, [8.0, math.nan]),
    ]
    assert same(
        [(r.time / S, r.values.tolist()) for r in rows], [(float(t), v) for t, v in wanted]
    )


def test_a_missing_value_takes_no_column():
    """NaN gives a time, but no value."""
    panel = Panel(max_sensors=1, lateness="0s")
    assert same(
        rows_of(panel, [record("a", 1, math.nan), record("b", 2, 5.0), record("b", 3, math.nan)]),
        [
            (2.0, [5.0]),
            (3.0, [math.nan]),
        ],
    )
    assert panel.columns == ("b",)
    assert not panel.lost


def test_a_gap_is_filled_up_to_a_bound_and_then_skipped():
    """Rows of NaN, released together with the row that ends the gap."""
    panel = Panel(sensors=["a"], step="10s", lateness="0s", max_gap=3)
    assert [row.time // S for t in (8, 9, 10) for row in panel.take(record("a", t, 1.0))] == []
    assert [row.time // S for row in panel.take(record("a", 200, 1.0))] == [10]
    assert [row.time // S for row in panel.take(record("a", 201, 1.0))] == [20, 30, 40, 200]
    assert [row.time // S for row in panel.flush()] == [210]


def test_absent_sensors_are_masked_and_their_parameters_kept():
    """While one sensor is absent its bias is unchanged; the others continue."""
    panel = Panel(max_sensors=3, step="1s", lateness="0s")
    pipeline = panel_pipeline(panel, [Bias(0.2)], guard=TwoLayer())
    rng = np.random.default_rng(0)
    biases = []
    for t in range(1, 120):
        sensors = "ab" if t < 30 else "a" if t < 60 else "abc"
        pipeline.observe(
            [record(s, t, 10 * i + t * 0.5 + 0.1 * rng.normal()) for i, s in enumerate(sensors)]
        )
        if pipeline.spec is not None:
            biases.append({k: v.clone() for k, v in pipeline.learners[0].state_dict().items()})
    prediction = pipeline.flush()[-1]
    assert prediction.columns == ("a", "b", "c")
    assert np.isfinite(prediction.served).all()
    (name,) = (key for key, value in biases[-1].items() if value.ndim and value.shape[-1] == 3)
    bias = [one[name] for one in biases]
    away = [one[..., 1] for one in bias[34:54]]
    assert all(bool((one == away[0]).all()) for one in away)
    assert not bool((bias[54][..., 0] == bias[34][..., 0]).all())


def test_irregular_times_reach_the_learners():
    """Without a step there is a row per event time, and learners receive the times."""
    seen = []

    class Watching(Bias):
        def learn(self, inputs, base, target, mask):
            seen.append(base.times.tolist())
            super().learn(inputs, base, target, mask)

    pipeline = panel_pipeline(Panel(sensors=["a"], lateness="0s"), [Watching(0.1)])
    pipeline.observe([record("a", t, 1.0) for t in (1, 4, 5, 11, 12, 20)])
    assert seen == [[1 * S, 4 * S, 5 * S], [4 * S, 5 * S, 11 * S]]


def test_the_newest_value_wins_and_at_equal_times_the_largest():
    """Not the last one to arrive: that would depend on the order."""
    a, b, c = record("a", 3, 5.0), record("a", 4, 1.0), record("a", 4, 2.0)
    for order in ([a, b, c], [c, b, a], [b, c, a, a]):
        assert rows_of(Panel(sensors=["a"], step="10s"), order) == [(10.0, [2.0])]
    for order in ([0.0, -0.0], [-0.0, 0.0]):
        panel = Panel(sensors=["a"], step="10s")
        ((_, (value,)),) = rows_of(panel, [record("a", 4, v) for v in order])
        assert math.copysign(1.0, value) == 1.0
    assert rows_of(
        Panel(sensors=["a"], step="10s"), [record("a", 4, 7.0), record("a", 5, math.nan)]
    ) == [(10.0, [7.0])]


def test_the_number_of_waiting_rows_is_bounded():
    """Beyond the bound the oldest row is released early; later records for it are late."""
    panel = Panel(sensors=["a"], lateness="1h", max_waiting=50)
    rows = [row for t in range(1, 200) for row in panel.take(record("a", t, float(t)))]
    assert [row.time // S for row in rows] == list(range(1, 150))
    with pytest.raises(EntryError, match="late_record"):
        list(panel.take(record("a", 149, 0.0)))
    assert len(panel.state_dict()["times"]) == 50


# -- wrong clocks


def test_one_record_dated_far_ahead_does_not_close_the_rows():
    """Also at the head of a live stream, where no later record can be awaited; it is dropped and
    counted."""
    panel = Panel(sensors=["a", "b"], step="10s", lateness="20s")
    good = [record("ab"[t % 2], t, float(t)) for t in range(100)]
    century = [record("a", 3e9, 1.0)]
    assert same(
        rows_of(panel, good[:50] + century + good[50:]),
        rows_of(Panel(sensors=["a", "b"], step="10s"), good),
    )
    assert panel.lost == {"bad_time": 1}


def test_a_sensor_with_a_wrong_clock_does_not_affect_the_others():
    """One of three sensors is two days ahead: the other two are served, its records are
    dropped."""
    panel = Panel(sensors=["a", "b", "c"], step="10s", lateness="20s")
    records = [
        record(s, t + (172_800 if s == "c" else 0), 1.0) for t in range(0, 300, 10) for s in "cab"
    ]
    rows = rows_of(panel, records)
    assert [t for t, _ in rows] == [float(t) for t in range(0, 300, 10)]
    assert {tuple(map(str, v)) for _, v in rows} == {("1.0", "1.0", "nan")}
    assert panel.lost == {"bad_time": 30}


@pytest.mark.parametrize("sensors", ["a", "ab"])
def test_after_a_long_gap_the_stream_continues_without_loss(sensors):
    """Two days without a record: no clock is wrong, since no record contradicts the jump."""
    records = [
        record(s, t + (172_800 if t > 50 else 0), 1.0) for t in range(1, 101) for s in sensors
    ]
    panel = Panel(sensors=list(sensors), lateness="5s", step="1s", max_gap=0)
    rows = [row for one in records for row in panel.take(one)]
    assert len(rows) == 94  # the last 6 rows wait
    assert len(rows) + len(list(panel.flush())) == 100
    assert not panel.lost


def test_at_the_end_records_without_contradiction_are_kept():
    """A gap, then two last records: both become rows."""
    panel = Panel(sensors=["a"], lateness="5s")
    assert len(rows_of(panel, [record("a", t, 1.0) for t in (1, 2, 3, 500_000, 500_001)])) == 5
    doubted = [record("a", t, 1.0) for t in (1, 2, 3, 500_000, 500_001, 4)]
    panel = Panel(sensors=["a"], lateness="5s")
    assert [t for t, _ in rows_of(panel, doubted)] == [1.0, 2.0, 3.0, 4.0]
    assert panel.lost == {"bad_time": 2}


def test_a_jump_is_accepted_after_the_documented_number_of_records():
    """`TOGETHER` records of two sensors, or `ALONE` of one."""
    for names, needed in ((["a"], ALONE), (["a", "b"], TOGETHER)):
        mark = Watermark(10, 100)
        for _ in range(TOGETHER):
            mark.admit(Reading(0, "a", 1.0))
        admitted = [
            mark.admit(Reading(1000 + i, names[i % len(names)], 1.0)) for i in range(ALONE)
        ]
        assert [len(one) for one in admitted[:needed]] == [0] * (needed - 1) + [needed]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([0, 5, 50, 1000, 10**6])), max_size=200
    )
)
def test_records_in_doubt_are_bounded_and_all_are_counted(leaps):
    """Every reading is released, dropped, or in doubt; only a few are in doubt."""
    mark, out, now = Watermark(10, 100), 0, 0
    for i, (sensor, leap) in enumerate(leaps):
        now += 3
        out += len(mark.admit(Reading(now + leap, sensor, float(i))))
        assert out + mark.dropped + len(mark.doubted) == i + 1
        assert len(mark.doubted) <= 2 * ALONE + 1
    out += len(mark.finish())
    assert out + mark.dropped == len(leaps)


# -- settings


@pytest.mark.parametrize(
    ("given_", "path"),
    [
        ({}, "panel.sensors"),
        ({"sensors": ["a"], "max_sensors": 1}, "panel.sensors"),
        ({"sensors": []}, "panel.sensors"),
        ({"sensors": "ab"}, "panel.sensors"),
        ({"sensors": ["a", "a"]}, "panel.sensors"),
        ({"max_sensors": 0}, "panel.max_sensors"),
        ({"max_sensors": 2, "step": "0s"}, "panel.step"),
        ({"max_sensors": 2, "step": "soon"}, "panel.step"),
        ({"max_sensors": 2, "lateness": "2d"}, "panel.max_ahead"),
        ({"max_sensors": 2, "max_gap": -1}, "panel.max_gap"),
        ({"max_sensors": 2, "max_waiting": 0}, "panel.max_waiting"),
    ],
)
def test_a_wrong_setting_is_named_with_its_path(given_, path):
    """The error names the setting's path."""
    with pytest.raises(ConfigError) as caught:
        Panel(**given_)
    assert caught.value.path == path


def test_task_and_base_must_fit():
    """Labels have no row, and a fitted base requires its channels."""
    with pytest.raises(ConfigError, match="panel"):
        Pipeline(Supervised(3), lambda inputs: inputs[-1:], panel=Panel(max_sensors=2))

    class Fitted(Persistence):
        @property
        def channels(self):
            return 3

    with pytest.raises(ConfigError, match=r"panel\.max_sensors"):
        Pipeline(Forecast(3, 2), Fitted(2), panel=Panel(max_sensors=2))
