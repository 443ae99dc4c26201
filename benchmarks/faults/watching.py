"""A producer and a reader that survive the faults of the brokers."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from benchmarks.faults.services import PARTITIONS, Service
from benchmarks.faults.trials import Arrival, Partition
from streamadapt.records import Position

__all__ = ["Feeder", "Reader"]

STEP_S = 60
START_S = 1.7e9
CALM = {
    "request_timeout_ms": 6000,
    "metadata_max_age_ms": 3000,
    "reconnect_backoff_ms": 50,
    "reconnect_backoff_max_ms": 500,
}
"""Timeouts of both clients: they leave an absent or frozen broker soon, so that the measured gap
is the engine's."""


class Feeder:
    """A thread that writes entries at a steady rate to every partition of every service.

    A reader of the input decides what counts: if a producer gives up, another one continues.

    Parameters
    ----------
    servers : str
    services : sequence of Service
    rate : float
        Entries per second and partition.
    """

    def __init__(self, servers: str, services: Sequence[Service], rate: float) -> None:
        self._servers = servers.split(",")
        self._topics = [service.entries for service in services]
        self._every_s = 1.0 / rate
        self._over = threading.Event()
        self._failed = threading.Event()
        self.renewed = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Return once all pending entries are written."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        producer = self._new()
        number, begin = 0, time.monotonic()
        while not self._over.wait(max(0.0, begin + number * self._every_s - time.monotonic())):
            for topic in self._topics:
                for partition in range(PARTITIONS):
                    x = (number % 97) * 0.1 + partition + (number // 500 % 3)
                    entry = {"time": START_S + STEP_S * number, "x": round(x, 3)}
                    try:
                        sent = producer.send(
                            topic, json.dumps(entry).encode(), partition=partition
                        )
                        sent.add_errback(lambda error: self._failed.set())
                    except KafkaError:
                        self._failed.set()
            number += 1
            if self._failed.is_set():
                self._failed.clear()
                self.renewed += 1
                _close(producer)
                producer = self._new()
        _close(producer)

    def _new(self) -> Any:
        while True:
            try:
                return KafkaProducer(
                    bootstrap_servers=self._servers, acks="all", enable_idempotence=True,
                    linger_ms=5, delivery_timeout_ms=600_000, max_block_ms=30_000, **CALM,
                )  # fmt: skip
            except KafkaError:
                time.sleep(0.5)


def _close(client: Any) -> None:
    with contextlib.suppress(KafkaError, RuntimeError):
        client.close(timeout=10)


class Reader:
    """A thread that reads the input and the output of every service, committed records only, and
    keeps the arrival time of each.

    Parameters
    ----------
    servers : str
    services : sequence of Service
    """

    def __init__(self, servers: str, services: Sequence[Service]) -> None:
        self._servers = servers.split(",")
        self._inputs = {service.entries for service in services}
        topics = [
            topic for service in services for topic in (service.entries, service.predictions)
        ]
        self._next = {TopicPartition(topic, p): 0 for topic in topics for p in range(PARTITIONS)}
        self._fed: dict[TopicPartition, dict[int, float]] = defaultdict(dict)
        self._arrivals: dict[TopicPartition, list[Arrival]] = defaultdict(list)
        self._seen: dict[TopicPartition, set[int]] = defaultdict(set)
        self._over = threading.Event()
        self.renewed = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Return once the thread has ended."""
        self._over.set()
        self._thread.join()

    def ends(self, service: Service) -> list[int]:
        """Return how many entries of each partition of the input were read."""
        return [self._next[TopicPartition(service.entries, p)] for p in range(PARTITIONS)]

    def partitions(self, service: Service, wanted: Sequence[range]) -> list[Partition]:
        """Return what was read of each partition; `wanted` are the entries of the trial."""
        return [
            Partition(
                offsets,
                dict(self._fed[TopicPartition(service.entries, p)]),
                list(self._arrivals[TopicPartition(service.predictions, p)]),
            )
            for p, offsets in enumerate(wanted)
        ]

    def missing(self, service: Service, wanted: Sequence[range]) -> int:
        """Return how many of these entries have no prediction yet."""
        count = 0
        for p, offsets in enumerate(wanted):
            seen = self._seen[TopicPartition(service.predictions, p)]
            count += sum(offset not in seen for offset in offsets)
        return count

    def _run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(KafkaError, OSError):
                self._read()
            self.renewed += 1
            self._over.wait(0.2)

    def _read(self) -> None:
        consumer = KafkaConsumer(
            bootstrap_servers=self._servers, enable_auto_commit=False,
            isolation_level="read_committed", auto_offset_reset="none", max_poll_records=10_000,
            **CALM,
        )  # fmt: skip
        try:
            consumer.assign(list(self._next))
            for at, offset in self._next.items():
                consumer.seek(at, offset)
            while not self._over.is_set():
                for at, records in consumer.poll(100).items():
                    self._take(at, records)
        finally:
            consumer.close()

    def _take(self, at: TopicPartition, records: Sequence[Any]) -> None:
        now = time.monotonic()
        for record in records:
            if at.topic in self._inputs:
                self._fed[at][record.offset] = now
            else:
                of = Position.parse(json.loads(record.value)["id"])
                if of is None:
                    raise ValueError(
                        f"a prediction without a position as its id: {record.value!r}"
                    )
                self._arrivals[at].append(
                    Arrival(now, of.offset, record.value, record.timestamp / 1000.0)
                )
                self._seen[at].add(of.offset)
            self._next[at] = record.offset + 1
