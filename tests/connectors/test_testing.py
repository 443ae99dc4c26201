"""The sources, sinks and clocks that other tests use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamadapt.errors import ConnectorError, EntryError
from streamadapt.records import Entry, Label, Position, Record, StreamPartition
from streamadapt.testing import (
    CRASH,
    IdentityCodec,
    ManualClock,
    MemoryDeadLetters,
    MemorySink,
    MemorySource,
    SimulatedCrash,
    encode,
)
from streamadapt.testing.checks.sources import Owner

FLOATS = st.floats(width=32, allow_infinity=False)


def made(value: float, partition: int = 0) -> Entry:
    return Entry(
        np.array([value], np.float32),
        int(value),
        f"e{value}",
        "k",
        None,
        Position("", partition, 0),
    )


def opened(source: MemorySource, starts: dict[int, int] | None = None) -> Owner:
    owner = Owner(starts)
    owner.streams = source.streams
    source.open(owner)
    return owner


def names(records: list[Record]) -> list[str]:
    return [str(r.position) for r in records]


@given(
    st.lists(FLOATS),
    st.none() | st.lists(FLOATS),
    st.integers(-(2**63), 2**63 - 1),
    st.text(),
    st.text(),
)
def test_entries_survive_the_identity_codec_bit_for_bit(
    values: list[float], label: list[float] | None, time: int, ident: str, key: str
) -> None:
    row = np.array(values, np.float32)
    target = None if label is None else np.array(label, np.float32)
    record = Record(Position("s", 2, 7), None, encode(Entry(row, time, ident, key, target)), 0)
    got = IdentityCodec().decode(record)
    assert isinstance(got, Entry)
    np.testing.assert_array_equal(got.values, row)
    assert (got.time, got.id, got.key, got.position) == (time, ident, key, Position("s", 2, 7))
    assert (got.label is None) == (label is None)
    if target is not None and got.label is not None:
        np.testing.assert_array_equal(got.label, target)


def test_labels_survive_the_identity_codec() -> None:
    label = Label("e1", np.array([np.nan, 2], np.float32), 9)
    got = IdentityCodec().decode(Record(Position("s", 0, 1), None, encode(label), 0))
    assert isinstance(got, Label)
    assert (got.id, got.time, got.position) == ("e1", 9, Position("s", 0, 1))
    np.testing.assert_array_equal(got.value, label.value)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "empty"),
        (b"x", "not_json"),
        (b"\xff", "not_json"),
        (b"[]", "wrong_type"),
        (b'{"time":1}', "missing"),
    ],
)
def test_the_identity_codec_refuses_foreign_bytes(raw: bytes | None, reason: str) -> None:
    with pytest.raises(EntryError, match=reason):
        IdentityCodec().decode(Record(Position("s", 0, 1), None, raw, 0))


def test_a_crash_happens_once_at_its_place() -> None:
    source = MemorySource([made(0), made(1), CRASH, made(2)])
    opened(source)
    assert names(source.poll(0)) == ["memory[0]@0", "memory[0]@1"]
    assert source.state == "connected"
    with pytest.raises(SimulatedCrash):
        source.poll(0)
    opened(source, {0: 1})
    assert names(source.poll(0)) == ["memory[0]@1", "memory[0]@2"]
    assert source.state == "ended"


def test_no_error_handler_catches_a_crash() -> None:
    assert not issubclass(SimulatedCrash, Exception)


def test_labels_are_a_second_stream() -> None:
    source = MemorySource([made(0)], [Label("e0.0", np.zeros(1, np.float32), 1)])
    opened(source)
    assert source.streams == ("memory", "memory-labels")
    assert names(source.poll(0)) == ["memory[0]@0", "memory-labels[0]@0"]


def test_a_rebalance_revokes_all_partitions_and_assigns_the_given_ones() -> None:
    source = MemorySource([made(i, i % 2) for i in range(6)], batch=1)
    owner = opened(source)
    source.rebalance([1], lost=True)
    assert source.poll(0) == []
    assert (owner.revoked, owner.assigned) == ([[0, 1]], [[0, 1], [1]])
    found: list[Record] = []
    while source.state != "ended":
        found += source.poll(0)
    assert names(found) == ["memory[1]@0", "memory[1]@1", "memory[1]@2"]


def test_an_open_ended_source_accepts_more_records() -> None:
    source = MemorySource([b"a"], finite=False)
    opened(source)
    source.poll(0)
    assert source.state == "connected"
    source.append(b"b")
    assert source.lag() == {StreamPartition("memory", 0): 1}
    assert [r.value for r in source.poll(0)] == [b"b"]


def test_a_position_outside_is_refused() -> None:
    with pytest.raises(ConnectorError, match="position 2 is outside"):
        opened(MemorySource([b"a"]), {0: 2})


def test_sinks_fail_the_chosen_flush() -> None:
    for sink in (MemorySink(fail_flush=[2]), MemoryDeadLetters(fail_flush=[2])):
        sink.write([])
        sink.flush()
        with pytest.raises(ConnectorError, match="flush 2"):
            sink.flush()
        sink.flush()
        assert sink.flushed == 2


def test_a_manual_clock_moves_only_forward_and_only_when_advanced() -> None:
    clock = ManualClock(time_ns=5, monotonic=1.0)
    clock.advance(1.5)
    assert (clock.time_ns(), clock.monotonic()) == (1_500_000_005, 2.5)
    for seconds in (-1, float("nan")):
        with pytest.raises(ValueError, match="forward"):
            clock.advance(seconds)
