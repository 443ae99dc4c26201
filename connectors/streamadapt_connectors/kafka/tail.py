"""Reads the end of an output partition, to find its newest prediction."""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from streamadapt.records import Position
from streamadapt_connectors.kafka.places import OFFSETS_TIMEOUT_MS, fetched_ends

__all__ = ["newest_offset"]

FIRST_SPAN: Final = 64
SPAN_FACTOR: Final = 8
PATIENCE_S: Final = 30.0


class _Id(msgspec.Struct):
    id: str


_ID: Final = msgspec.json.Decoder(_Id)


def newest_offset(
    consumer: KafkaConsumer, at: TopicPartition, stream: str, partition: int
) -> int | None:
    """Return the offset in the id of the last prediction in `at` for a partition of `stream`; None
    if there is no such prediction.

    Usually that is the last record. If other programs also write to the topic, earlier records are
    read, in steps that grow, if necessary back to the beginning of the partition.

    Parameters
    ----------
    consumer : KafkaConsumer
        A consumer without a group that has no other user.
    at : TopicPartition
        The partition of the output.

    Raises
    ------
    KafkaError
        If the broker does not answer for `PATIENCE_S` seconds.
    """
    begin = consumer.beginning_offsets([at], timeout_ms=OFFSETS_TIMEOUT_MS)[at]
    end = consumer.end_offsets([at], timeout_ms=OFFSETS_TIMEOUT_MS)[at]
    if end > begin:  # some brokers return the start of the last batch as the end
        end = fetched_ends(consumer, {at: end})[at]
    consumer.assign([at])
    span, upper = FIRST_SPAN, end
    while upper > begin:
        lower = max(begin, end - span)
        newest = _last_of(consumer, at, (lower, upper), stream, partition)
        if newest is not None:
            return newest
        span, upper = span * SPAN_FACTOR, lower
    return None


def _last_of(
    consumer: KafkaConsumer, at: TopicPartition, span: tuple[int, int], stream: str, partition: int
) -> int | None:
    """Return the same for the offsets of `span`, whose end is excluded."""
    lower, upper = span
    consumer.seek(at, lower)
    newest: int | None = None
    deadline = time.monotonic() + PATIENCE_S
    while consumer.position(at, timeout_ms=OFFSETS_TIMEOUT_MS) < upper:
        records: list[Any] = consumer.poll(100).get(at, [])
        if records:
            deadline = time.monotonic() + PATIENCE_S
        elif time.monotonic() > deadline:
            raise kafka_errors.KafkaTimeoutError(
                f"{at.topic}[{at.partition}]: no answer while its end was read"
            )
        for record in records:
            position = _position(record.value)
            if (
                record.offset < upper
                and position is not None
                and position[:2] == (stream, partition)
            ):
                newest = position.offset
    return newest


def _position(value: bytes | None) -> Position | None:
    """Return the position in the id of a prediction; None if the value is not a prediction."""
    try:
        return Position.parse(_ID.decode(value or b"").id)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
