"""No record ends the run, whatever its size, key, id, headers or time; its own fields are passed
on unchanged."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from kafka import KafkaProducer
from kafka_helpers import PATIENCE_S, consume, made, until
from streamadapt_connectors.codecs import FieldMap, JsonCodec, Limits
from streamadapt_connectors.files import JsonlDeadLetterReader, JsonlDeadLetters
from streamadapt_connectors.kafka import (
    KafkaDeadLetterReader,
    KafkaDeadLetters,
    KafkaSink,
    KafkaSource,
    KafkaStreamWriter,
)

from streamadapt import Bias, Entry, Forecast, Persistence, Pipeline
from streamadapt.engine.dead_letter_ports import Returning, StoredLetter
from streamadapt.engine.dead_letters import parse_repaired, stored_fields
from streamadapt.engine.engine import Engine
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import ConfigError, EntryError, Reason
from streamadapt.records import DeadLetter, Position, Record
from streamadapt.testing import IdentityCodec, MemoryDeadLetters, MemorySink, encode

Topic = Callable[..., str]

EMBEDDED = not os.environ.get("STREAMADAPT_TEST_BROKER")
NO_LIMIT = "the embedded broker takes records of any size"
KEY = b"\xff\xfe key"
HEADERS = [
    ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-01"),
    ("bin", b"\x00\xff"),
    ("traceparent", b"again"),
]


def post(
    servers: str,
    topic: str,
    *records: tuple[bytes | None, bytes | None, list[tuple[str, bytes]]],
    partition: int = 0,
) -> None:
    producer = KafkaProducer(bootstrap_servers=servers, acks="all")
    try:
        for key, value, headers in records:
            producer.send(topic, key=key, value=value, headers=headers, partition=partition).get(
                timeout=PATIENCE_S
            )
    finally:
        producer.close()


def small(servers: str, name: str, most: int, partitions: int = 1) -> str:
    """Create a topic that accepts no batch above `most` bytes."""
    return made(servers, name, {"max.message.bytes": str(most)}, partitions)


def engine_of(source: KafkaSource, sink: Any, codec: Any, letters: Any, **settings: Any) -> Engine:
    return Engine(
        source,
        lambda: Pipeline(Forecast(1, 1), Persistence(1), [Bias(0.1)]),
        sink,
        codec,
        letters,
        settings=EngineSettings(checkpoint_every_s=0.3, **settings),
    )


def run_until(engine: Engine, read: int) -> None:
    """Run until the given number of records is processed."""
    engine.source.open(engine)
    until(
        lambda: sum(sum(runner.positions.values()) for runner in engine.runners.values()) >= read,
        engine.step,
    )
    engine.source.open = lambda owner: None  # type: ignore[method-assign]
    engine.stop()
    engine.run()


@pytest.mark.kafka
@pytest.mark.parametrize("key", [KEY, b"", "schlüssel".encode(), b"plain", None])
def test_keys_and_headers_reach_the_predictions(
    kafka_servers: str, topic: Topic, key: bytes | None
) -> None:
    """Byte for byte; a prediction of a record without headers has none."""
    name, out = topic(1), topic(1)
    post(kafka_servers, name, (key, b'{"v": 1}', HEADERS), (b"k", b'{"v": 2}', []))
    codec = JsonCodec(FieldMap(values=("v",)), streams=[name])
    engine = engine_of(
        KafkaSource(kafka_servers, name), KafkaSink(kafka_servers, out), codec, MemoryDeadLetters()
    )
    run_until(engine, 2)
    first, second = consume(kafka_servers, out)
    assert (first.key, first.headers) == (key, HEADERS)
    assert (second.key, second.headers) == (b"k", [])


class NoUtf8(str):
    """A header's name as other clients can write it."""

    __slots__ = ()

    def encode(self, *args: Any) -> bytes:
        del args
        return b"\xffname"


@pytest.mark.kafka
def test_a_header_name_that_is_not_utf_8(kafka_servers: str, topic: Topic) -> None:
    """kafka-python on its own stops reading at such a record."""
    name, sink = topic(1), MemorySink()
    post(
        kafka_servers,
        name,
        (b"k", b'{"v": 1}', []),
        (b"k", b'{"v": 2}', [(NoUtf8("x"), b"y"), ("z", b"z")]),
    )
    post(kafka_servers, name, (b"k", b'{"v": 3}', []))
    codec = JsonCodec(FieldMap(values=("v",)), streams=[name])
    run_until(engine_of(KafkaSource(kafka_servers, name), sink, codec, MemoryDeadLetters()), 3)
    assert [p.position.offset for p in sink.predictions] == [0, 1, 2]
    assert sink.predictions[1].headers == (("\\xffname", b"y"), ("z", b"z"))


@pytest.mark.kafka
def test_headers_can_be_left_out(kafka_servers: str, topic: Topic) -> None:
    name, out = topic(1), topic(1)
    post(kafka_servers, name, (KEY, b'{"v": 1}', HEADERS))
    codec = JsonCodec(FieldMap(values=("v",)), streams=[name])
    sink = KafkaSink(kafka_servers, out, headers=False)
    run_until(engine_of(KafkaSource(kafka_servers, name), sink, codec, MemoryDeadLetters()), 1)
    (found,) = consume(kafka_servers, out)
    assert (found.key, found.headers) == (KEY, [])


@pytest.mark.kafka
def test_a_dead_letter_and_its_replay_keep_key_and_headers(
    kafka_servers: str, topic: Topic
) -> None:
    """Also if a record has headers with the names that dead letters use themselves."""
    name, letters = topic(1), topic(1)
    headers = [*HEADERS, ("reason", b"of its own"), ("headers", b"7")]
    post(kafka_servers, name, (KEY, b"not json", headers))
    codec = JsonCodec(FieldMap(values=("v",)), streams=[name])
    dead = KafkaDeadLetters(kafka_servers, letters)
    run_until(engine_of(KafkaSource(kafka_servers, name), MemorySink(), codec, dead), 1)
    reader = KafkaDeadLetterReader(kafka_servers, letters)
    (stored,) = [item for item in reader.read() if isinstance(item, StoredLetter)]
    reader.close()
    assert (stored.letter.record.key, stored.letter.reason) == (KEY, "not_json")
    assert list(stored.letter.record.headers) == headers
    repaired = parse_repaired(msgspec.json.encode(stored_fields(stored)), [name])
    assert repaired == stored.letter.record
    writer = KafkaStreamWriter(kafka_servers, name)
    (done,) = writer.write([Returning(repaired, timed=False)])
    assert done.state == "sent"
    (again,) = writer.write(
        [Returning(Record(*_parts(consume(kafka_servers, name)[1])), timed=False)]
    )
    writer.close()
    assert again.state == "sent"
    for found in consume(kafka_servers, name)[1:]:
        assert found.key == KEY
        assert found.headers[: len(headers)] == headers
        assert [header for header, _ in found.headers[len(headers) :]] == [
            "streamadapt-replay-of",
            "streamadapt-replayed-at",
        ]


def _parts(record: Any) -> tuple[Any, ...]:
    at = Position(record.topic, record.partition, record.offset)
    return at, record.key, record.value, 0, tuple(record.headers)


@pytest.mark.kafka
@pytest.mark.parametrize("guarantee", ["at-least-once", "effectively-once", "exactly-once"])
def test_a_prediction_that_its_topic_does_not_accept(
    kafka_servers: str, topic: Topic, tmp_path: Any, guarantee: str
) -> None:
    """It becomes a dead letter that fits, shortened and marked; every other prediction is written
    once."""
    if EMBEDDED:
        pytest.skip(NO_LIMIT)
    name, out = topic(2), small(kafka_servers, topic(0), 3000, 2)
    letters = small(kafka_servers, topic(0), 1200)
    large = {3: 4000, 11: 20_000, 12: 3500, 30: 3600, 31: 100_000}
    ids = [f"e{i}" + "x" * large.get(i, 0) for i in range(40)]
    rows = [encode(Entry(np.array([i % 7], np.float32), i * 10**9, ids[i])) for i in range(40)]
    post(kafka_servers, name, *((None, row, []) for row in rows))
    short = [encode(Entry(np.array([i % 7], np.float32), i * 10**9, f"e{i}")) for i in range(40)]
    post(kafka_servers, name, *((None, row, []) for row in short), partition=1)
    engine = engine_of(
        KafkaSource(kafka_servers, name),
        KafkaSink(kafka_servers, out),
        IdentityCodec(),
        KafkaDeadLetters(kafka_servers, letters),
        guarantee=guarantee,
        checkpoint_path=tmp_path,
    )
    run_until(engine, 80)
    counts = Counter(
        json.loads(r.value)["id"]
        for r in consume(kafka_servers, out, isolation_level="read_committed")
    )
    wanted = {f"{name}[{p}]@{i}" for p in (0, 1) for i in range(40) if p or i not in large}
    assert set(counts) == wanted
    assert guarantee == "at-least-once" or set(counts.values()) == {1}
    dead = consume(kafka_servers, letters)
    marks = [dict(r.headers) for r in dead]
    assert {(mark["partition"], int(mark["offset"])) for mark in marks} == {
        (b"0", i) for i in large
    }
    assert {(mark["reason"], mark["stage"]) for mark in marks} == {(b"too_large", b"write")}
    for record, mark in zip(dead, marks, strict=True):
        assert int(mark["truncated"]) > large[int(mark["offset"])] > len(record.value)


@pytest.mark.kafka
@pytest.mark.parametrize("guarantee", ["at-least-once", "effectively-once", "exactly-once"])
def test_a_prediction_without_a_key_for_a_compacted_topic(
    kafka_servers: str, topic: Topic, tmp_path: Any, guarantee: str
) -> None:
    """The broker refuses it together with its batch; it becomes a dead letter, in a compacted
    topic too."""
    if EMBEDDED:
        pytest.skip("the embedded broker takes records without a key everywhere")
    name = topic(1)
    out, letters = (made(kafka_servers, topic(0), {"cleanup.policy": "compact"}) for _ in range(2))
    bare = {0, 4, 5, 19}
    post(
        kafka_servers,
        name,
        *((None if i in bare else b"k%d" % i, b'{"v": %d}' % i, []) for i in range(20)),
    )
    codec = JsonCodec(FieldMap(values=("v",)), streams=[name])
    sink, dead = KafkaSink(kafka_servers, out), KafkaDeadLetters(kafka_servers, letters)
    source = KafkaSource(kafka_servers, name)
    run_until(
        engine_of(source, sink, codec, dead, guarantee=guarantee, checkpoint_path=tmp_path), 20
    )
    positions = [
        json.loads(r.value)["id"]
        for r in consume(kafka_servers, out, isolation_level="read_committed")
    ]
    assert set(positions) == {f"{name}[0]@{i}" for i in range(20) if i not in bare}
    assert guarantee == "at-least-once" or len(positions) == 20 - len(bare)
    reader = KafkaDeadLetterReader(kafka_servers, letters)
    found = [item.letter for item in reader.read() if isinstance(item, StoredLetter)]
    reader.close()
    assert {letter.record.position.offset for letter in found} == bare
    assert {(letter.reason, letter.stage, letter.record.key) for letter in found} == {
        ("no_key", "write", None)
    }


@pytest.mark.kafka
@pytest.mark.parametrize(
    "record", [(b"k", b"v" * 100_000, ()), (b"k" * 50_000, None, ()), (b"k", b"v", "headers")]
)
def test_a_dead_letter_is_cut_until_it_fits(kafka_servers: str, topic: Topic, record: Any) -> None:
    if EMBEDDED:
        pytest.skip(NO_LIMIT)
    key, value, headers = record
    own = tuple((f"h{i}", b"x" * 1000) for i in range(30)) if headers else ()
    name = small(kafka_servers, topic(0), 800)
    sink = KafkaDeadLetters(kafka_servers, name)
    for _ in range(2):
        itself = Record(Position("in", 0, 5), key, value, 0, own)
        sink.write([DeadLetter(itself, "not_json", "decode", "d" * 900)])
    sink.write(
        [DeadLetter(Record(Position("in", 0, 6), b"k", b"v", 0), "not_json", "decode", "short")]
    )
    sink.close()
    found = consume(kafka_servers, name)
    marks = sorted((dict(r.headers) for r in found), key=lambda mark: int(mark["offset"]))
    assert [mark["offset"] for mark in marks] == [b"5", b"5", b"6"]
    assert [mark.get("truncated") for mark in marks] == [str(len(value or b"")).encode()] * 2 + [
        None
    ]
    if len(key) > 1:
        assert marks[0]["truncated-key"] == str(len(key)).encode()
    if own:
        assert marks[0]["truncated-headers"] == b"30"


@pytest.mark.kafka
@pytest.mark.parametrize("tombstones", ["skip", "dead-letter"])
def test_tombstones(kafka_servers: str, topic: Topic, tmp_path: Any, tombstones: str) -> None:
    """Skipped tombstones change only the position; the default is a dead letter."""
    name, letters, sink = topic(1), MemoryDeadLetters(), MemorySink()
    post(
        kafka_servers,
        name,
        (b"a", b'{"v": 1}', []),
        (b"a", None, []),
        (b"b", b'{"v": 2}', []),
        (b"b", None, []),
    )
    codec = JsonCodec(FieldMap(values=("v",)), streams=[name])
    source = KafkaSource(kafka_servers, name, tombstones=tombstones)
    engine = engine_of(source, sink, codec, letters, checkpoint_path=tmp_path)
    run_until(engine, 4)
    assert [p.position.offset for p in sink.predictions] == [0, 2]
    refused = [(letter.record.position.offset, letter.reason) for letter in letters.letters]
    assert refused == ([] if tombstones == "skip" else [(1, "empty_value"), (3, "empty_value")])
    assert engine.runners[0].pipeline.stats.rejected.total() == len(refused)


@pytest.mark.kafka
def test_a_timestamp_far_in_the_future(kafka_servers: str, topic: Topic, tmp_path: Any) -> None:
    """It becomes a dead letter, which can be written to a file and read like any other."""
    name, path = (
        made(kafka_servers, topic(0), {"message.timestamp.after.max.ms": str(2**63 - 1)}),
        tmp_path / "dead",
    )
    post(kafka_servers, name, (b"k", b'{"v": 1}', []))
    producer = KafkaProducer(bootstrap_servers=kafka_servers)
    producer.send(name, b'{"v": 2}', timestamp_ms=2**62).get(timeout=PATIENCE_S)
    producer.close()
    post(kafka_servers, name, (b"k", b'{"v": 3}', []))
    codec, sink, dead = (
        JsonCodec(FieldMap(values=("v",)), streams=[name]),
        MemorySink(),
        JsonlDeadLetters(path),
    )
    run_until(engine_of(KafkaSource(kafka_servers, name), sink, codec, dead), 3)
    assert [p.position.offset for p in sink.predictions] == [0, 2]
    (stored,) = [
        item for item in JsonlDeadLetterReader(path).read() if isinstance(item, StoredLetter)
    ]
    assert (stored.letter.reason, stored.letter.record.position.offset) == ("bad_time", 1)
    assert parse_repaired(msgspec.json.encode(stored_fields(stored)), [name]).value == b'{"v": 2}'


@pytest.mark.kafka
def test_a_replay_with_a_timestamp_that_the_topic_refuses(
    kafka_servers: str, topic: Topic
) -> None:
    """The record is not sent, and the message names the topic's setting; later records can be
    sent."""
    if EMBEDDED:
        pytest.skip("the embedded broker takes every time stamp")
    name = made(kafka_servers, topic(0), {"message.timestamp.before.max.ms": "60000"})
    writer = KafkaStreamWriter(kafka_servers, name)
    record = Record(Position(name, 0, 0), b"k", b"v", 10**15)
    (old,) = writer.write([Returning(record, timed=True)])
    (new,) = writer.write([Returning(record, timed=False)])
    writer.close()
    assert (old.state, new.state) == ("not-sent", "sent")
    assert "message.timestamp.before.max.ms" in old.detail


def test_the_setting_tombstones_has_two_values() -> None:
    with pytest.raises(
        ConfigError, match=r"source\.tombstones: expected dead-letter or skip, got 'keep'"
    ):
        KafkaSource("127.0.0.1:1", "in", tombstones="keep")


# -- the codec


def refusal(
    value: bytes, *, key: bytes | None = None, time: int = 0, fields: FieldMap | None = None
) -> EntryError:
    fields = fields or FieldMap(values=("v",), id="id")
    codec = JsonCodec(fields, streams=["in"], limits=Limits(id_bytes=8))
    with pytest.raises(EntryError) as caught:
        codec.decode(Record(Position("in", 0, 0), key, value, time))
    return caught.value


def test_ids_and_keys_have_a_limit() -> None:
    """In bytes of UTF-8; a length at the limit is still accepted."""
    codec = JsonCodec(FieldMap(values=("v",), id="id"), streams=["in"], limits=Limits(id_bytes=8))
    taken = codec.decode(
        Record(Position("in", 0, 0), b"12345678", '{"v": 1, "id": "ääää"}'.encode(), 0)
    )
    assert (taken.id, taken.key) == ("ääää", "12345678")  # type: ignore[union-attr]
    for error in (
        refusal(b'{"v": 1, "id": "123456789"}'),
        refusal('{"v": 1, "id": "ääää1"}'.encode()),
        refusal(b'{"v": 1, "id": "1"}', key=b"123456789"),
        refusal(b'{"v": 1, "k": "123456789"}', fields=FieldMap(values=("v",), key="k")),
        refusal(
            b'{"l": 1, "id": "123456789"}', fields=FieldMap(values=("v",), id="id", label="l")
        ),
    ):
        assert error.reason is Reason.TOO_LARGE
        assert "8 bytes (limits.id_bytes), got 9" in error.detail


@pytest.mark.parametrize("time", [2**63 - 1, 2**63, -(2**63) - 1, (2**63 - 1) * 10**6])
def test_a_timestamp_beyond_64_bits_of_nanoseconds_is_refused(time: int) -> None:
    """Kafka's timestamps are milliseconds in 64 bits, so such values occur."""
    assert refusal(b'{"v": 1, "id": "1"}', time=time).reason is Reason.BAD_TIME


@pytest.mark.parametrize("payload", [b'{"v": 1, "id": "1"}', b"\x02\x06abc", b""])
def test_the_framing_of_a_schema_registry_is_named(payload: bytes) -> None:
    error = refusal(b"\x00\x00\x00\x01\x02" + payload)
    assert error.reason is Reason.NOT_JSON
    assert "framing of a schema registry" in error.detail
    assert "schema id 258" in error.detail
    assert "framing" not in refusal(b"\x00{}").detail
