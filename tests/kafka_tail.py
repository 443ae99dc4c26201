"""Reading a topic to its true end: some brokers give the start of the last batch as the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka_helpers import until

MORE_MS = 500


def read_until(servers: str, topic: str, enough: Callable[[list[Any]], bool]) -> list[Any]:
    """Return the records of partition 0 once `enough` of them are written, with those that follow
    directly."""
    consumer = KafkaConsumer(
        bootstrap_servers=servers, enable_auto_commit=False, fetch_max_bytes=64 << 20
    )
    at = TopicPartition(topic, 0)
    found: list[Any] = []
    try:
        consumer.assign([at])
        consumer.seek(at, 0)
        until(lambda: enough(found), lambda: found.extend(consumer.poll(MORE_MS).get(at, ())))
        found += consumer.poll(MORE_MS).get(at, ())
    finally:
        consumer.close()
    return found
