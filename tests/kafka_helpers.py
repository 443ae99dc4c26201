"""Small helpers of the Kafka tests: write, read back, poll until."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from streamadapt.engine.ports import Source
from streamadapt.records import Record
from streamadapt.testing.checks.sources import Owner

PATIENCE_S = 120.0  # a bound against hanging, far above any step here


def produce(servers: str, topic: str, logs: Sequence[Sequence[bytes]], **configs: Any) -> None:
    producer = KafkaProducer(
        bootstrap_servers=servers, acks="all", max_request_size=64 << 20, **configs
    )
    try:
        futures = [producer.send(topic, v, partition=p) for p, log in enumerate(logs) for v in log]
        for future in futures:
            future.get(timeout=PATIENCE_S)
    finally:
        producer.close()


def made(servers: str, name: str, configs: dict[str, str], partitions: int = 1) -> str:
    """Create a topic with some topic settings."""
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
        admin.wait_for_topics([name], timeout_ms=30_000)
    finally:
        admin.close()
    return name


def consume(servers: str, topic: str, **configs: Any) -> list[Any]:
    """Return every record of `topic`, partition by partition."""
    consumer = KafkaConsumer(
        bootstrap_servers=servers,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_bytes=64 << 20,
        **configs,
    )
    try:
        places = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(places)
        ends = consumer.end_offsets(places)
        found: list[Any] = []
        for at in places:
            consumer.seek(at, 0)
        while any(consumer.position(at) < ends[at] for at in places):
            found += [r for batch in consumer.poll(500).values() for r in batch]
        # Some brokers give the start of the last batch as the end.
        while batches := consumer.poll(500):
            found += [r for batch in batches.values() for r in batch]
        return sorted(found, key=lambda r: (r.partition, r.offset))
    finally:
        consumer.close()


@contextmanager
def opened(source: Source, starts: dict[int, int] | None = None) -> Iterator[Owner]:
    owner = Owner(starts)
    owner.streams = source.streams
    source.open(owner)
    try:
        yield owner
    finally:
        source.close()


def read(source: Source, count: int) -> list[Record]:
    records: list[Record] = []
    until(lambda: len(records) >= count, lambda: records.extend(source.poll(0.2)))
    return records


def until(holds: Callable[[], bool], step: Callable[[], object]) -> None:
    """Repeat `step` until `holds`, or fail."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "the condition was never true"
        step()


def offsets(records: Sequence[Record], partition: int = 0) -> list[int]:
    return [r.position.offset for r in records if r.position.partition == partition]
