"""Writing to Kafka: the right partition, every record verified, and an absent broker."""

from __future__ import annotations

import gc
import json
import logging
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import errors as kafka_errors
from kafka.future import Future
from kafka_helpers import PATIENCE_S, consume
from streamadapt_connectors.kafka import KafkaDeadLetters, KafkaSink
from streamadapt_connectors.kafka import writer as kafka_writer

from benchmarks.faults.proxy import Proxy
from streamadapt.app.demo.broker import EmbeddedBroker, create_topics
from streamadapt.errors import ConfigError, ConnectorError
from streamadapt.records import DeadLetter, Position, Prediction, Record
from streamadapt.state.fence import FencedError
from streamadapt.state.store import CheckpointStore
from streamadapt.testing import ManualClock

pytestmark = pytest.mark.kafka

Topic = Callable[..., str]

outage = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)


def prediction(offset: int, partition: int = 0, key: str = "k") -> Prediction:
    row = np.array([[offset]], np.float32)
    return Prediction(
        Position("in", partition, offset),
        f"e{offset}",
        key,
        offset,
        row,
        row,
        {"base": row},
        {"base": 1},
    )


def letter(value: bytes | None, key: bytes | None = b"k", detail: str = "$: broken") -> DeadLetter:
    return DeadLetter(
        Record(Position("in", 1, 9), key, value, 12_345), "not_json", "decode", detail
    )


class RefusingProducer:
    """In place of a broker that refuses some records, with the client's own error."""

    def __init__(self, refuse: Callable[[bytes], bool], error: type[Exception]) -> None:
        self._refuse = refuse
        self._error = error
        self.taken: list[dict[str, Any]] = []

    def partitions_for(self, topic: str) -> set[int]:
        return {0}

    def send(self, topic: str, **record: Any) -> Future:
        if self._refuse(record["value"]):
            return Future().failure(self._error("refused"))
        self.taken.append(record)
        return Future().success(None)

    def close(self, timeout: float) -> None:
        pass


def with_producer(monkeypatch: pytest.MonkeyPatch, producer: RefusingProducer) -> None:
    monkeypatch.setattr(kafka_writer.Reach, "producer", lambda *_, **__: producer)
    monkeypatch.setattr(kafka_writer.Writer, "_create_topic", lambda _: None)


def test_predictions_keep_their_partition_and_key(kafka_servers: str, topic: Topic) -> None:
    name = topic(3)
    sink = KafkaSink(kafka_servers, name)
    sink.write([prediction(0, 2, "a"), prediction(1, 0, ""), prediction(2, 2, "ü")])
    sink.flush()
    assert sink.state == "connected"
    sink.close()
    got = [(r.partition, r.key, json.loads(r.value)["id"]) for r in consume(kafka_servers, name)]
    assert got == [(0, None, "in[0]@1"), (2, b"a", "in[2]@0"), (2, "ü".encode(), "in[2]@2")]


def test_a_topic_with_fewer_partitions_keeps_the_order(kafka_servers: str, topic: Topic) -> None:
    name = topic(2)
    sink = KafkaSink(kafka_servers, name)
    sink.write([prediction(i, partition=5) for i in range(50)])
    sink.close()
    got = consume(kafka_servers, name)
    assert {r.partition for r in got} == {1}
    assert [json.loads(r.value)["id"] for r in got] == [f"in[5]@{i}" for i in range(50)]


def test_a_missing_topic_is_created_like_the_source(kafka_servers: str, topic: Topic) -> None:
    name = topic(0)
    sink = KafkaSink(kafka_servers, name, partitions=3)
    sink.write([prediction(0, partition=2)])
    sink.close()
    assert [r.partition for r in consume(kafka_servers, name)] == [2]


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_batches_are_written(
    compression: str, kafka_servers: str, topic: Topic
) -> None:
    name = topic()
    sink = KafkaSink(kafka_servers, name, compression=compression)
    sink.write([prediction(i) for i in range(20)])
    sink.close()
    assert len(consume(kafka_servers, name)) == 20


def test_more_records_than_the_buffer_holds(
    kafka_servers: str, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_writer, "MAX_PENDING", 10)
    name = topic()
    sink = KafkaSink(kafka_servers, name)
    sink.write([prediction(i) for i in range(200)])
    assert len(sink._writer._pending) <= 10
    sink.close()
    assert [json.loads(r.value)["entry"] for r in consume(kafka_servers, name)] == [
        f"e{i}" for i in range(200)
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            kafka_errors.CorruptRecordError,
            r"kafka out: the record of in\[0\]@1 .* was not delivered",
        ),
        (
            kafka_errors.TopicAuthorizationFailedError,
            r"no right to write to the topic 'out' \(sink\.topic\)",
        ),
    ],
)
def test_a_refused_prediction_is_never_forgotten(
    error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the prediction, or the missing permission, which concerns all of them."""
    with_producer(monkeypatch, RefusingProducer(lambda value: b"e1" in value, error))
    sink = KafkaSink("h:1", "out")
    sink.write([prediction(i) for i in range(3)])
    for _ in range(2):
        with pytest.raises(ConnectorError, match=message):
            sink.flush()
    with pytest.raises(ConnectorError, match=message):
        sink.write([prediction(4)])
    sink.close()
    sink.close()
    with pytest.raises(ConnectorError, match="closed"):
        sink.write([prediction(5)])


def test_dead_letters_carry_the_raw_record_and_the_reason(
    kafka_servers: str, topic: Topic
) -> None:
    name = topic(2)
    sink = KafkaDeadLetters(kafka_servers, name)
    sink.write(
        [letter(b"\xff\x00"), letter(None), letter(None, None), letter(b"", detail="ü" * 5000)]
    )
    sink.close()
    raw, tombstone, nothing, long = consume(kafka_servers, name)
    assert (raw.partition, raw.key, raw.value) == (1, b"k", b"\xff\x00")
    assert dict(raw.headers) == {
        "reason": b"not_json",
        "stage": b"decode",
        "topic": b"in",
        "partition": b"1",
        "offset": b"9",
        "time": b"12345",
        "detail": b"$: broken",
    }
    assert (tombstone.key, tombstone.value) == (b"k", None)
    assert (nothing.key, nothing.value, dict(nothing.headers)["null"]) == (None, b"", b"true")
    assert len(dict(long.headers)["detail"]) <= 1000


def test_a_large_dead_letter_is_complete_or_states_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for error in (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError):
        producer = RefusingProducer(lambda value: len(value) > 1 << 20, error)
        with_producer(monkeypatch, producer)
        sink = KafkaDeadLetters("h:1", "dead")
        sink.write([letter(b"x" * 5_000_000), letter(b"small")])
        sink.flush()
        by_size = sorted(producer.taken, key=lambda r: len(r["value"]))
        assert [r["value"] for r in by_size] == [b"small", b"x" * (64 << 10)]
        assert ("truncated", b"5000000") in by_size[1]["headers"]
        assert "truncated" not in dict(by_size[0]["headers"])
        sink.close()


def test_a_dead_letter_beyond_the_clients_own_limit_is_truncated(
    kafka_servers: str, topic: Topic
) -> None:
    name = topic(1)
    sink = KafkaDeadLetters(kafka_servers, name)
    sink.write([letter(b"x" * (33 << 20)), letter(b"y")])
    sink.close()
    cut, small = consume(kafka_servers, name)
    assert (len(cut.value), dict(cut.headers)["truncated"], small.value) == (
        64 << 10,
        str(33 << 20).encode(),
        b"y",
    )


@outage
def test_the_sink_waits_for_an_absent_broker(caplog: pytest.LogCaptureFixture) -> None:
    proxy = Proxy()
    try:
        with (
            EmbeddedBroker(advertised_port=proxy.port) as broker,
            caplog.at_level(logging.INFO, "streamadapt"),
        ):
            proxy.target_port = broker.port
            create_topics(broker.servers.replace(str(broker.port), str(proxy.port)), {"out": 1})
            proxy.cut(refuse=True)
            sink = KafkaSink(f"127.0.0.1:{proxy.port}", "out")
            assert sink.state == "connecting"
            waits = threading.Event()
            threading.Timer(0.5, lambda: (waits.set(), proxy.mend())).start()
            sink.write([prediction(i) for i in range(100)])  # blocks until the network is back
            assert waits.is_set()
            sink.flush()
            proxy.cut(refuse=True)
            sink.write([prediction(i) for i in range(100, 200)])
            threading.Timer(2.5, proxy.mend).start()
            sink.flush()
            assert sink.state == "connected"
            sink.close()
            got = [json.loads(r.value)["entry"] for r in consume(f"127.0.0.1:{proxy.port}", "out")]
    finally:
        proxy.close()
    gc.collect()
    assert got == [f"e{i}" for i in range(200)]


@outage
def test_connections_cut_in_the_middle_lose_and_double_nothing() -> None:
    proxy = Proxy()
    try:
        with EmbeddedBroker(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            servers = f"127.0.0.1:{proxy.port}"
            create_topics(servers, {"out": 1})
            sink = KafkaSink(servers, "out")
            for part in range(10):
                sink.write([prediction(i) for i in range(100 * part, 100 * part + 100)])
                proxy.cut()
                if part % 3 == 2:
                    sink.flush()
            sink.close()
            assert proxy.connections >= 10
            got = [json.loads(r.value)["entry"] for r in consume(servers, "out")]
    finally:
        proxy.close()
    gc.collect()
    assert list(dict.fromkeys(got)) == [f"e{i}" for i in range(1000)]  # nothing lost, and in order
    assert len(got) == 1000


def test_wrong_settings_name_their_path() -> None:
    with pytest.raises(ConfigError, match=r"security\.sasl_x"):
        KafkaSink("h:1", "t", security={"sasl_x": "secret"})
    with pytest.raises(ConfigError, match="servers"):
        KafkaDeadLetters("h", "t")


def test_predictions_written_before_a_takeover_are_not_sent_after_it(
    kafka_servers: str, topic: Topic, tmp_path: Path
) -> None:
    """The process is paused between the two: when it continues, it only does the check."""
    name, clock = topic(2), ManualClock()
    old, new = (
        CheckpointStore(tmp_path, shared=True, clock=clock),
        CheckpointStore(tmp_path, shared=True),
    )
    old.acquire()
    lease, goes_on, asked = old.lease(), threading.Event(), list[set[int]]()

    def check(partitions: Collection[int]) -> None:
        asked.append(set(partitions))
        assert goes_on.wait(PATIENCE_S)
        lease()

    sink = KafkaSink(kafka_servers, name)
    sink.check_before_sending(check)
    goes_on.set()
    sink.write([prediction(0, 1)])
    sink.flush()
    goes_on.clear()
    sink.write([prediction(1, 1)])
    new.acquire()
    clock.advance(7.0)
    goes_on.set()
    for step in (sink.flush, lambda: sink.write([prediction(2, 1)])):
        with pytest.raises(FencedError, match="fenced by another engine"):
            step()
    sink.close()
    assert asked == [{1}, {1}]
    assert [json.loads(r.value)["entry"] for r in consume(kafka_servers, name)] == ["e0"]
