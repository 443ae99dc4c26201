"""Merging entries and labels: one order, for any order of arrival."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamadapt import Entry, Label, Position
from streamadapt.engine.merge import Arrived, Merge
from streamadapt.records import DeadLetter, Record

ENTRIES, LABELS = 0, 1
ALL = 10**9


def record(stream: int, offset: int, time: int) -> Record:
    return Record(Position("el"[stream], 0, offset), None, b"{}", time)


def made(stream: int, offset: int, time: int) -> tuple[Record, Entry | Label]:
    rec = record(stream, offset, time)
    if stream == ENTRIES:
        return rec, Entry(np.zeros(1, np.float32), time, str(offset), position=rec.position)
    return rec, Label(str(offset), np.zeros(1, np.float32), time, rec.position)


def names(released: list[Arrived]) -> list[str]:
    return [f"{a.record.position.stream}{a.record.position.offset}@{a.time}" for a in released]


def merge_of(entry_times: list[int], label_times: list[int], wait_s: float = 5.0) -> Merge:
    merge = Merge(2, wait_s)
    for stream, times in ((ENTRIES, entry_times), (LABELS, label_times)):
        for i, time in enumerate(times):
            merge.offer(stream, *made(stream, i, time), now=0.0)
    return merge


def test_one_stream_keeps_its_order() -> None:
    merge = Merge(1, 5.0)
    for i, time in enumerate((3, 1, 2)):
        merge.offer(ENTRIES, *made(ENTRIES, i, time), now=0.0)
    assert merge.ready
    assert [a.record.position.offset for a in merge.release(0.0, ALL)] == [0, 1, 2]
    assert len(merge) == 0
    assert not merge.ready


def test_by_time_with_the_label_first_in_a_tie() -> None:
    merge = merge_of([10, 20, 30], [10, 20, 40])
    assert names(merge.release(0.0, ALL)) == ["l0@10", "e0@10", "l1@20", "e1@20", "e2@30"]
    assert len(merge) == 1, "the last label waits for the entries to reach its time"
    assert names(merge.release(0.0, ALL, ended=True)) == ["l2@40"]


def test_an_entry_waits_for_the_labels_to_reach_its_time() -> None:
    merge = merge_of([10, 20], [])
    assert merge.release(4.9, ALL) == []
    assert names(merge.release(5.0, ALL)) == ["e0@10", "e1@20"], "at most wait_s"


def test_a_stream_with_records_left_to_read_is_waited_for() -> None:
    merge = merge_of([10], [])
    merge.note_lag(LABELS, 3, now=4.0)
    merge.note_lag(LABELS, None, now=8.0)
    assert merge.release(5.0, ALL) == []
    assert merge.release(8.9, ALL) == []
    assert names(merge.release(9.0, ALL)) == ["e0@10"], "wait_s after it was last behind"
    caught_up = merge_of([10], [])
    caught_up.note_lag(LABELS, 0, now=4.0)
    assert names(caught_up.release(5.0, ALL)) == ["e0@10"], (
        "without lag there is no reason to wait"
    )


def test_a_limit_loses_nothing() -> None:
    merge = merge_of([10, 20, 30], [15, 25, 35])
    found = [merge.release(0.0, 2, ended=True) for _ in range(4)]
    assert [len(f) for f in found] == [2, 2, 2, 0]
    assert names([a for f in found for a in f]) == [
        "e0@10",
        "l0@15",
        "e1@20",
        "l1@25",
        "e2@30",
        "l2@35",
    ]


def test_a_label_behind_the_entries_is_counted_and_not_lost() -> None:
    merge = merge_of([10, 20], [])
    merge.release(99.0, ALL)
    merge.offer(LABELS, *made(LABELS, 0, 15), now=99.0)
    merge.offer(LABELS, *made(LABELS, 1, 20), now=99.0)
    assert names(merge.release(99.0, ALL, ended=True)) == ["l0@15", "l1@20"]
    assert merge.late_labels == 1, "one at the entry's own time is not late"


def test_a_refused_record_does_not_wait_and_keeps_its_place() -> None:
    merge = Merge(2, 5.0)
    merge.offer(ENTRIES, *made(ENTRIES, 0, 10), now=0.0)
    bad = record(ENTRIES, 1, 10**15)
    merge.offer(ENTRIES, bad, DeadLetter(bad, "not_json", "decode", "$"), now=0.0)
    merge.offer(ENTRIES, *made(ENTRIES, 2, 30), now=0.0)
    merge.offer(LABELS, *made(LABELS, 0, 20), now=0.0)
    assert names(merge.release(0.0, ALL)) == ["e0@10", "e1@10", "l0@20"]
    assert names(merge.release(0.0, ALL, ended=True)) == ["e2@30"]


def test_backward_times_within_a_stream_keep_the_streams_order() -> None:
    merge = merge_of([30, 10], [20])
    assert names(merge.release(0.0, ALL, ended=True)) == ["l0@20", "e0@30", "e1@30"]


Times = st.lists(st.integers(0, 30), max_size=15)


def interleaved(
    entry_times: list[int], label_times: list[int], choices: Any, limit: int
) -> list[str]:
    """Offer two streams in any interleaving, releasing in between; an unfinished stream is still
    being read."""
    merge = Merge(2, wait_s=5.0)
    left = [list(enumerate(entry_times)), list(enumerate(label_times))]
    released: list[Arrived] = []
    now = 0.0
    while left[0] or left[1]:
        stream = choices.draw(st.sampled_from([s for s in (ENTRIES, LABELS) if left[s]]))
        offset, time = left[stream].pop(0)
        merge.offer(stream, *made(stream, offset, time), now=now)
        now += choices.draw(st.sampled_from([0.0, 0.1, 100.0]))
        for s in (ENTRIES, LABELS):
            merge.note_lag(s, len(left[s]), now)
        if choices.draw(st.booleans()):
            released += merge.release(now, limit)
    while len(merge):
        released += merge.release(now, limit, ended=True)
    return names(released)


@given(Times, Times, st.data(), st.integers(1, 4))
def test_the_order_does_not_depend_on_the_order_of_arrival(
    e: list[int], lab: list[int], data: Any, limit: int
) -> None:
    """For any interleaving of the two streams' records the order is the same, as long as neither
    wait ends."""
    reference = names(merge_of(e, lab).release(0.0, ALL, ended=True))
    assert interleaved(e, lab, data, limit) == reference
    assert len(reference) == len(e) + len(lab), "nothing is lost"
    times = [int(name.rpartition("@")[2]) for name in reference]
    assert times == sorted(times)


@pytest.mark.parametrize("wait_s", [0.0, 5.0])
def test_each_streams_own_order_is_always_kept(wait_s: float) -> None:
    """Also if waiting ends and labels are late."""
    rng = np.random.default_rng(0)
    merge = Merge(2, wait_s)
    released: list[Arrived] = []
    offsets = [0, 0]
    for step in range(300):
        stream = int(rng.integers(2))
        merge.offer(
            stream, *made(stream, offsets[stream], int(rng.integers(50)) + step), now=float(step)
        )
        offsets[stream] += 1
        released += merge.release(float(step), ALL)
    released += merge.release(300.0, ALL, ended=True)
    for name, count in (("e", offsets[0]), ("l", offsets[1])):
        found = [a.record.position.offset for a in released if a.record.position.stream == name]
        assert found == list(range(count))


@pytest.mark.parametrize("judged", [False, True])
def test_a_forgotten_stream_starts_again(judged: bool) -> None:
    """Its topic was recreated: its waiting records are dropped, and older times are accepted
    again."""
    merge = Merge(2, 5.0)
    later = 10 * 86_400 * ALL
    for offset in range(3):
        merge.offer(ENTRIES, *made(ENTRIES, offset, later + offset * ALL), now=0.0)
        merge.offer(LABELS, *made(LABELS, offset, later + offset * ALL), now=0.0)
    assert len(merge.release(0.0, 4)) == 4
    if judged:
        assert merge.ready
    merge.note_lag(ENTRIES, 7, now=1.0)
    merge.forget(ENTRIES)
    assert names(merge.release(5.0, ALL)) == [f"l2@{later + 2 * ALL}"], (
        "labels no longer wait for the old entries"
    )
    for offset, time in enumerate((10, 30, 20)):
        merge.offer(ENTRIES, *made(ENTRIES, offset, time), now=6.0)
    assert names(merge.release(12.0, ALL)) == ["e0@10", "e1@30", "e2@30"]


def test_records_held_back_are_forgotten_too() -> None:
    merge = Merge(1, 5.0)
    for offset in range(5):
        merge.offer(ENTRIES, *made(ENTRIES, offset, offset), now=0.0)
    merge.offer(ENTRIES, *made(ENTRIES, 5, 10 * 86_400 * ALL), now=0.0)
    assert len(merge.release(0.0, ALL)) == 5
    assert merge.held is not None
    merge.forget(ENTRIES)
    assert merge.held is None
    assert not merge.ready
