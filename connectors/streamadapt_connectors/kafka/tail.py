"""The end of an output partition: how far have its predictions come?"""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from streamadapt.records import Position
from streamadapt_connectors.kafka.places import OFFSETS_TIMEOUT_MS, fetched_ends

__all__ = ["newest_offset"]

FIRST_LOOK: Final = 64
WIDER: Final = 8
PATIENCE_S: Final = 30.0


class _Id(msgspec.Struct):
    id: str


_ID: Final = msgspec.json.Decoder(_Id)


def newest_offset(
    consumer: KafkaConsumer, at: TopicPartition, stream: str, partition: int
) -> int | None:
    """Return the offset in the id of the last prediction in `at` that was made from a partition of
    `stream`.

    Usually that is the last record. Where others write to the topic too, what lies before is read
    in wider and wider steps, to its beginning if need be.

    Parameters
    ----------
    consumer : KafkaConsumer
        Without a group; must not be shared with other users.
    at : TopicPartition
        Of the output.

    Raises
    ------
    KafkaError
        If the broker does not answer for `PATIENCE_S` seconds.
    """
    begin = consumer.beginning_offsets([at], timeout_ms=OFFSETS_TIMEOUT_MS)[at]
    end = consumer.end_offsets([at], timeout_ms=OFFSETS_TIMEOUT_MS)[at]
    if end > begin:  # some brokers name the start of the last batch here
        end = fetched_ends(consumer, {at: end})[at]
    consumer.assign([at])
    look, upper = FIRST_LOOK, end
    while upper > begin:
        lower = max(begin, end - look)
        newest = _last_of(consumer, at, (lower, upper), stream, partition)
        if newest is not None:
            return newest
        look, upper = look * WIDER, lower
    return None


def _last_of(
    consumer: KafkaConsumer, at: TopicPartition, span: tuple[int, int], stream: str, partition: int
) -> int | None:
    """Read the offsets of `span`, its end excluded."""
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
            found = _position(record.value)
            if record.offset < upper and found is not None and found[:2] == (stream, partition):
                newest = found.offset
    return newest


def _position(value: bytes | None) -> Position | None:
    """Return the id of a prediction; None if it is something else."""
    try:
        return Position.parse(_ID.decode(value or b"").id)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
