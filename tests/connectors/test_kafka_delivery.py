"""What the guarantees need of Kafka: the end of the output, and transactions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from kafka_helpers import consume, produce
from streamadapt_connectors.file_sinks import JsonlSink
from streamadapt_connectors.kafka import KafkaSink

from streamadapt.checks.transactions import TransactionCase, yield_transaction_checks
from streamadapt.entry import Position, Prediction
from streamadapt.errors import ConnectorError
from streamadapt.ports import RecallingSink

Topic = Callable[..., str]


def prediction(stream: str, partition: int, offset: int) -> Prediction:
    row = np.zeros((1, 1), np.float32)
    at = Position(stream, partition, offset)
    return Prediction(at, f"e{offset}", "", offset, row, row, {"base": row}, {"base": 1.0})


def check_newest(sink: RecallingSink, more: Callable[[Sequence[bytes]], None]) -> None:
    """By stream and partition, behind what others wrote, garbage included, and after many records."""
    assert sink.newest("in", 0) is None
    sink.write([prediction("in", 0, i) for i in range(3)])
    sink.flush()
    assert sink.newest("in", 0) == 2
    assert sink.newest("in-2", 0) is None
    more([b"not json", b"{}", b'{"id": 3}', b'{"id": "in[0]@"}', b'{"id": "in[0]@x"}', b"\xff\xfe", b""])
    sink.write([prediction("other", 0, i) for i in range(700)])
    sink.flush()
    assert sink.newest("in", 0) == 2
    assert sink.newest("other", 0) == 699
    sink.write([prediction("in", 0, 7)])
    sink.flush()
    assert sink.newest("in", 0) == 7


@pytest.mark.kafka
def test_the_newest_prediction_in_a_topic(kafka_servers: str, topic: Topic) -> None:
    name = topic(2)
    sink = KafkaSink(kafka_servers, name)
    try:
        check_newest(sink, lambda values: produce(kafka_servers, name, [values]))
        sink.write([prediction("in", 1, 70), prediction("in", 0, 8)])
        sink.flush()
        assert (sink.newest("in", 0), sink.newest("in", 1)) == (8, 70)
        with pytest.raises(ConnectorError, match="it has 2 partitions, but the entries' partition 2"):
            sink.newest("in", 2)
    finally:
        sink.close()


@pytest.mark.kafka
def test_a_topic_that_is_made_for_it_is_empty(kafka_servers: str, topic: Topic) -> None:
    sink = KafkaSink(kafka_servers, topic(0), partitions=3)
    try:
        assert sink.newest("in", 2) is None
    finally:
        sink.close()


def test_the_newest_prediction_in_a_file(tmp_path: Any) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonlSink(path)

    def more(values: Sequence[bytes]) -> None:
        with path.open("ab") as file:
            file.writelines(value + b"\n" for value in values)

    check_newest(sink, more)
    sink.close()
    path.write_bytes(path.read_bytes() + b'{"id": "in[0]@8", "se')  # torn: it is cut off, and comes again
    again = JsonlSink(path)
    assert again.newest("in", 0) == 7
    again.close()


EMBEDDED = not os.environ.get("STREAMADAPT_TEST_BROKER")
SHOWS_ABORTED = "the embedded broker shows the records of aborted transactions to readers of committed ones"
VOID = ("end_makes_void", "killed_writer", "fences_the_old", "before_the_commit", "partitions_are_apart")


@pytest.mark.kafka
@pytest.mark.parametrize("check", [*yield_transaction_checks()], ids=lambda c: c.__name__)
def test_transactions(check: Any, kafka_servers: str, topic: Topic) -> None:
    """The suite that the log in memory passes; what rests on void records cannot be shown on the embedded broker."""
    if EMBEDDED and any(name in check.__name__ for name in VOID):
        pytest.skip(SHOWS_ABORTED)
    name = topic(2)

    def seen(partition: int) -> list[str]:
        records = consume(kafka_servers, name, isolation_level="read_committed")
        return [json.loads(r.value)["id"] for r in records if r.partition == partition]

    check(TransactionCase(lambda: KafkaSink(kafka_servers, name), seen, topic(2), topic(2)))
