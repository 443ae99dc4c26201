"""Requirements of the guarantees on Kafka: the end of the output, and transactions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from kafka_helpers import consume, produce, until
from streamadapt_connectors.files import JsonlSink
from streamadapt_connectors.kafka import KafkaSink, KafkaSource
from streamadapt_connectors.kafka.group import owners_errors

from streamadapt import Bias, Entry, Forecast, Persistence, Pipeline
from streamadapt.engine.engine import Engine
from streamadapt.engine.ports import RecallingSink
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import ConnectorError
from streamadapt.records import Position, Prediction, StreamPartition
from streamadapt.testing import IdentityCodec, MemoryDeadLetters, MemorySink, encode
from streamadapt.testing.checks.sources import Owner
from streamadapt.testing.checks.transactions import TransactionCase, yield_transaction_checks

Topic = Callable[..., str]


def prediction(stream: str, partition: int, offset: int) -> Prediction:
    row = np.zeros((1, 1), np.float32)
    at = Position(stream, partition, offset)
    return Prediction(at, f"e{offset}", "", offset, row, row, {"base": row}, {"base": 1.0})


def check_newest(sink: RecallingSink, more: Callable[[Sequence[bytes]], None]) -> None:
    """Check by stream and partition, behind records of other writers, invalid ones included, and
    after many records."""
    assert sink.newest("in", 0) is None
    sink.write([prediction("in", 0, i) for i in range(3)])
    sink.flush()
    assert sink.newest("in", 0) == 2
    assert sink.newest("in-2", 0) is None
    more(
        [
            b"not json",
            b"{}",
            b'{"id": 3}',
            b'{"id": "in[0]@"}',
            b'{"id": "in[0]@x"}',
            b"\xff\xfe",
            b"",
        ]
    )
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
        with pytest.raises(
            ConnectorError, match=r"it has 2 partitions, but .*here for partition 2"
        ):
            sink.newest("in", 2)
    finally:
        sink.close()


@pytest.mark.kafka
def test_predictions_of_this_process_count(kafka_servers: str, topic: Topic) -> None:
    """A partition is lost and returns to the same engine: its producer may still hold its last
    predictions."""
    sink = KafkaSink(kafka_servers, topic(1))
    try:
        sink.write([prediction("in", 0, i) for i in range(50)])
        assert sink.newest("in", 0) == 49
    finally:
        sink.close()


class Knows(Owner):
    """An engine whose output has predictions of more records than the topic has."""

    def known_end(self, at: StreamPartition) -> int:
        return 1000 if at.stream == self.streams[0] else 0


@pytest.mark.kafka
@pytest.mark.parametrize("policy", ["error", "earliest", "latest"])
def test_a_recreated_topic_is_not_mistaken_for_the_old_one(
    kafka_servers: str, topic: Topic, policy: str
) -> None:
    """Offsets start again at 0: an engine that stays silent up to the newest offset of the output
    would never predict again."""
    name = topic(1)
    produce(kafka_servers, name, [[b"x"] * 10])
    owner = Knows()
    source = KafkaSource(kafka_servers, name, out_of_range=policy)
    owner.streams = source.streams
    source.open(owner)
    try:
        if policy == "error":
            with pytest.raises(
                ConnectorError, match=r"up to 999, but the topic ends at 10: it was deleted"
            ):
                until(lambda: False, lambda: source.poll(0.2))
            return
        until(lambda: bool(owner.placed), lambda: source.poll(0.2))
        assert owner.placed == {StreamPartition(name, 0): 0 if policy == "earliest" else 10}
        assert owner.recreated == [StreamPartition(name, 0)]
    finally:
        source.close()


@pytest.mark.kafka
def test_a_start_at_the_end_of_an_empty_topic_is_kept(
    kafka_servers: str, topic: Topic, tmp_path: Any
) -> None:
    """Records that arrive while the engine is down are read: the end at a later time is another
    position."""
    name = topic(2)
    entries = [Entry(np.array([i % 7], np.float32), i * 10**9, f"e{i}") for i in range(10)]
    values = [encode(entry) for entry in entries]

    def run(wanted: int, between: Callable[[], None]) -> int:
        engine = Engine(
            KafkaSource(kafka_servers, name, start="latest"),
            lambda: Pipeline(Forecast(3, 1), Persistence(1), [Bias(0.1)]),
            MemorySink(),
            IdentityCodec(),
            MemoryDeadLetters(),
            settings=EngineSettings(checkpoint_path=tmp_path, checkpoint_every_s=0.2),
        )
        engine.source.open(engine)
        until(lambda: len(engine.runners) == 2 and engine.source.state == "connected", engine.step)
        between()
        until(
            lambda: (
                sum(runner.pipeline.stats.entries for runner in engine.runners.values()) >= wanted
            ),
            engine.step,
        )
        engine.stop()
        engine.run()
        return sum(runner.pipeline.stats.entries for runner in engine.runners.values())

    assert run(10, lambda: produce(kafka_servers, name, [values, []])) == 10
    produce(kafka_servers, name, [[], values])
    assert run(20, lambda: None) == 20


def test_an_error_of_the_owner_is_not_mistaken_for_an_absent_broker() -> None:
    """Otherwise the source would wait forever."""
    with (
        pytest.raises(ConnectorError, match=r"came or went: FileNotFoundError: weights"),
        owners_errors(),
    ):
        raise FileNotFoundError("weights")


@pytest.mark.kafka
def test_an_auto_created_output_topic_counts_as_empty(kafka_servers: str, topic: Topic) -> None:
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
    # a torn line: it is cut off and written again
    path.write_bytes(path.read_bytes() + b'{"id": "in[0]@8", "se')
    again = JsonlSink(path)
    assert again.newest("in", 0) == 7
    again.close()


EMBEDDED = not os.environ.get("STREAMADAPT_TEST_BROKER")
SHOWS_ABORTED = (
    "the embedded broker shows the records of aborted transactions to readers of committed ones"
)
VOID = (
    "takes_nothing_back",
    "end_makes_void",
    "killed_writer",
    "fences_the_old",
    "before_the_commit",
    "partitions_are_apart",
)


@pytest.mark.kafka
@pytest.mark.parametrize("check", [*yield_transaction_checks()], ids=lambda c: c.__name__)
def test_transactions(check: Any, kafka_servers: str, topic: Topic) -> None:
    """The suite that the log in memory passes; checks that need aborted records cannot run on the
    embedded broker."""
    if EMBEDDED and any(name in check.__name__ for name in VOID):
        pytest.skip(SHOWS_ABORTED)
    name = topic(2)

    def seen(partition: int) -> list[str]:
        records = consume(kafka_servers, name, isolation_level="read_committed")
        return [json.loads(r.value)["id"] for r in records if r.partition == partition]

    check(TransactionCase(lambda: KafkaSink(kafka_servers, name), seen, topic(2), topic(2)))
