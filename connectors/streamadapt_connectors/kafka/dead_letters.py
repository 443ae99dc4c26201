"""Reads the dead letters of a topic, and writes repaired records to the partitions that they came
from."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors

from streamadapt.config.secrets import scrubbed
from streamadapt.engine.dead_letter_ports import (
    FOREIGN,
    DeadLetterReader,
    ReplayMark,
    Returned,
    Returning,
    StoredLetter,
    StreamWriter,
)
from streamadapt.engine.dead_letters import mark_fields, mark_of, origin_of
from streamadapt.errors import ConnectorError
from streamadapt.records import DeadLetter, Position, Record, StreamPartition
from streamadapt_connectors.kafka.client import CONNECTION, Client, Reach
from streamadapt_connectors.kafka.letter_headers import split_headers
from streamadapt_connectors.kafka.places import OFFSETS_TIMEOUT_MS, fetched_ends, topic_partitions
from streamadapt_connectors.kafka.refusals import Access, Refusals

__all__ = ["KafkaDeadLetterReader", "KafkaStreamWriter"]

MARK: Final = "streamadapt-replay"
"""The header of a replay mark among dead letters."""
REPLAY_OF: Final = "streamadapt-replay-of"
REPLAYED_AT: Final = "streamadapt-replayed-at"
FETCH_BYTES: Final = 4 << 20
RECORD_BYTES: Final = 64 << 20
PATIENCE_S: Final = 30.0
CLOSE_S: Final = 5.0
PRODUCER: Final = {
    "acks": "all",
    "enable_idempotence": True,  # a retry is written once, and in order
    "max_request_size": RECORD_BYTES,
    "max_block_ms": 10_000,
    "request_timeout_ms": 15_000,
    "delivery_timeout_ms": 30_000,
}


class KafkaDeadLetterReader(DeadLetterReader):
    """Reads the records of `KafkaDeadLetters`, without a group.

    Marks of replays are records of the same topic, in partition 0, with the header
    ``streamadapt-replay``.

    Parameters
    ----------
    servers, topic, partitions, security
        As for `KafkaDeadLetters`.
    """

    connection: ClassVar[tuple[str, ...]] = CONNECTION
    made_beforehand: ClassVar[bool] = True

    def __init__(
        self,
        servers: str,
        topic: str,
        *,
        partitions: int | None = None,
        security: Mapping[str, Any] | None = None,
    ) -> None:
        del partitions
        self._reach = Reach(servers, security)
        self._topic = topic
        self._missing = False
        self._producer = _Producer(
            self._reach, [Access("Write", "topic", topic, "dead_letters.topic")]
        )

    @property
    def name(self) -> str:
        """Topic and servers, for messages."""
        return f"kafka topic {self._topic} at {','.join(self._reach.servers)}"

    @property
    def missing(self) -> bool:
        """Whether the topic did not exist when it was read."""
        return self._missing

    def read(
        self, on_progress: Callable[[int, int], None] | None = None
    ) -> Iterator[StoredLetter | ReplayMark]:
        """Yield every record up to the present ends of the partitions; raises `ConnectorError` if
        the broker does not answer for `PATIENCE_S`."""
        accesses = [Access("Read", "topic", self._topic, "dead_letters.topic")]
        with _consumer(self._reach, self.name, accesses) as consumer:
            places = [
                TopicPartition(self._topic, p) for p in topic_partitions(consumer, self._topic)
            ]
            self._missing = not places
            if not places:
                return
            begins = consumer.beginning_offsets(places, timeout_ms=OFFSETS_TIMEOUT_MS)
            ends = consumer.end_offsets(places, timeout_ms=OFFSETS_TIMEOUT_MS)
            held = {at: end for at, end in ends.items() if end > begins[at]}
            if held:
                # Some brokers return the start of the last batch as the end.
                ends = fetched_ends(consumer, held)
                for record in _between(
                    consumer, {at: begins[at] for at in held}, ends, on_progress
                ):
                    yield _stored(record)

    def mark(self, mark: ReplayMark) -> None:
        """Write the mark, and wait until the broker has stored it."""
        if self._missing:
            raise ConnectorError(f"{self.name}: does not exist; a replay must be recorded in it")
        data = msgspec.json.encode(mark_fields(mark))
        # A unique key, so that a compacted topic keeps the record.
        key = f"{MARK} {uuid.uuid4()}".encode()
        headers = [(MARK, mark.state.encode())]
        note = {
            "topic": self._topic,
            "partition": 0,
            "key": key,
            "value": data,
            "headers": headers,
        }
        (done,) = self._producer.send([note])
        if done.state != "sent":
            raise ConnectorError(
                f"{self.name}: the record of the replay was not written: {done.detail}"
            )

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._producer.close()


class KafkaStreamWriter(StreamWriter):
    """Writes records to the topic and partition that they came from, with their key, their headers
    and the additional headers ``streamadapt-replay-of`` (the position of the refused record) and
    ``streamadapt-replayed-at``.

    Parameters
    ----------
    servers, topic, label_topic, security
        As for `KafkaSource`.
    others
        The other settings of `KafkaSource`, which are ignored.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        label_topic: str | None = None,
        *,
        security: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        del others
        self._reach = Reach(servers, security)
        settings = {topic: "source.topic"} | (
            {} if label_topic is None else {label_topic: "source.label_topic"}
        )
        self._accesses = [
            Access("Write", "topic", name, setting) for name, setting in settings.items()
        ]
        self._producer = _Producer(self._reach, self._accesses)

    def check(self, places: Collection[StreamPartition]) -> None:
        """Raise `ConnectorError` for a partition that does not exist."""
        name = f"kafka {','.join(self._reach.servers)}"
        with _consumer(self._reach, name, self._accesses) as consumer:
            for topic, partition in sorted(places):
                existing = topic_partitions(consumer, topic)
                if partition not in existing:
                    has = (
                        f"has the partitions {existing[0]} to {existing[-1]}"
                        if existing
                        else "does not exist"
                    )
                    raise ConnectorError(
                        f"{name}: {topic}[{partition}]: cannot be written to, topic {topic} {has}"
                    )

    def write(self, records: Sequence[Returning]) -> list[Returned]:
        """Write the records, and wait until the broker has stored each."""
        now = datetime.now(UTC).isoformat(timespec="seconds").encode()
        return self._producer.send([_outgoing(one, now) for one in records])

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._producer.close()


def _outgoing(one: Returning, now: bytes) -> dict[str, Any]:
    at = one.record.position
    # The record's own headers without those of an earlier replay; the client allows no null value.
    own = [
        (name, raw or b"")
        for name, raw in one.record.headers
        if name not in (REPLAY_OF, REPLAYED_AT)
    ]
    return {
        "topic": at.stream,
        "partition": at.partition,
        "key": one.record.key,
        "value": one.record.value,
        "headers": [*own, (REPLAY_OF, str(at).encode()), (REPLAYED_AT, now)],
        "timestamp_ms": one.record.time // 1_000_000 if one.timed else None,
    }


class _Producer:
    """A producer that connects when it is first needed, and returns the result of each record."""

    def __init__(self, reach: Reach, accesses: Sequence[Access]) -> None:
        self._reach = reach
        self._refusals = Refusals(reach.servers, accesses)
        self._client = Client()
        self._producer: KafkaProducer | None = None

    def send(self, records: Sequence[Mapping[str, Any]]) -> list[Returned]:
        try:
            if self._producer is None:
                self._producer = self._reach.producer(self._client, **PRODUCER)
        except (kafka_errors.KafkaError, OSError) as error:
            return [Returned("not-sent", self._why(error))] * len(records)
        posted = [self._post(self._producer, record) for record in records]
        done = [self._settled(one) for one in posted]
        if any(one.state != "sent" for one in done):
            # A refused batch breaks the sequence of an idempotent producer: later records need a
            # new producer.
            self.close()
        return done

    def _post(self, producer: KafkaProducer, record: Mapping[str, Any]) -> Any:
        try:
            return producer.send(**record)
        except (kafka_errors.KafkaError, OSError) as error:
            return Returned("not-sent", self._why(error))

    def _settled(self, posted: Any) -> Returned:
        if isinstance(posted, Returned):
            return posted
        try:
            receipt = posted.get(timeout=PATIENCE_S + CLOSE_S)
        except (kafka_errors.RetriableError, kafka_errors.KafkaTimeoutError, OSError) as error:
            # The broker may have stored the record, with its answer lost.
            return Returned("unknown", self._why(error))
        except kafka_errors.KafkaError as error:
            return Returned("not-sent", self._why(error))
        return Returned("sent", f"{receipt.topic}[{receipt.partition}]@{receipt.offset}")

    def _why(self, error: Exception) -> str:
        return _why(error, self._client, self._refusals)

    def close(self) -> None:
        if self._producer is not None:
            with suppress(kafka_errors.KafkaError):
                self._producer.close(timeout=CLOSE_S)
            self._producer = None
        self._client.close()
        self._client = Client()


def _why(error: Exception, client: Client, refusals: Refusals) -> str:
    if isinstance(error, kafka_errors.InvalidTimestampError):
        return (
            f"{scrubbed(str(error))}: the topic's message.timestamp.before.max.ms or "
            "message.timestamp.after.max.ms does not allow the record's time; raise it, or set "
            "fields.time to the field of the event time"
        )
    return refusals.explain(error, client.shown()) or scrubbed(client.explain(error))


@contextmanager
def _consumer(reach: Reach, name: str, accesses: Sequence[Access]) -> Iterator[KafkaConsumer]:
    client = Client()
    configs = {
        "group_id": None,
        "auto_offset_reset": "none",
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "max_partition_fetch_bytes": FETCH_BYTES,
        "fetch_max_bytes": 2 * FETCH_BYTES,
    }
    try:
        consumer = reach.consumer(client, **configs)
        try:
            yield consumer
        finally:
            consumer.close(autocommit=False, timeout_ms=1000 * CLOSE_S)
            client.close()
    except (kafka_errors.KafkaError, OSError) as error:
        refusals = Refusals(reach.servers, accesses)
        refusal = refusals.explain(error, client.shown())
        raise ConnectorError(refusal or f"{name}: {_why(error, client, refusals)}") from error


def _between(
    consumer: KafkaConsumer,
    begins: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[Any]:
    """Yield the records from `begins` to `ends`."""
    consumer.assign(list(begins))
    for at, offset in begins.items():
        consumer.seek(at, offset)
    total = sum(ends[at] - begins[at] for at in begins)
    deadline = time.monotonic() + PATIENCE_S
    done = -1
    while True:
        found = consumer.poll(100)
        for at, records in found.items():
            yield from (record for record in records if record.offset < ends[at])
        reached = {at: consumer.position(at, timeout_ms=OFFSETS_TIMEOUT_MS) for at in begins}
        moved = sum(min(reached[at], ends[at]) - begins[at] for at in begins)
        if moved > done:
            deadline, done = time.monotonic() + PATIENCE_S, moved
            if on_progress is not None:
                on_progress(done, total)
        elif time.monotonic() > deadline:
            raise kafka_errors.KafkaTimeoutError(
                f"nothing more came for {PATIENCE_S:g} s, after {done} of {total}"
            )
        finished = [at for at in begins if reached[at] >= ends[at]]
        if len(finished) == len(begins):
            return
        consumer.pause(*finished)


def _stored(record: Any) -> StoredLetter | ReplayMark:
    place = Position(record.topic, record.partition, record.offset)
    try:
        own, reasons = split_headers(record.headers or ())
    except (TypeError, ValueError):
        own, reasons = (), tuple(record.headers or ())
    headers = {name: raw.decode("utf-8", "replace") for name, raw in reasons if raw is not None}
    if MARK in headers and (mark := mark_of(record.value or b"")) is not None:
        return mark
    try:
        origin, reason = origin_of(headers), headers["reason"]
        refused_time = int(headers.get("time", "0"))
        truncated = int(headers["truncated"]) if "truncated" in headers else None
    except (KeyError, ValueError, TypeError) as error:
        what = f"header {error}" + (" is missing" if isinstance(error, KeyError) else "")
        detail = f"not written by streamadapt: {what}"
        time_ns = max(0, record.timestamp) * 1_000_000
        itself = Record(place, record.key, record.value, time_ns, tuple(record.headers or ()))
        return StoredLetter(DeadLetter(itself, FOREIGN, "", detail), place, foreign=True)
    value = None if headers.get("null") == "true" and not record.value else record.value
    key = None if headers.get("null-key") == "true" else record.key
    refused = Record(origin, key, value, refused_time, own)
    letter = DeadLetter(refused, reason, headers.get("stage", ""), headers.get("detail", ""))
    return StoredLetter(letter, place, truncated)
