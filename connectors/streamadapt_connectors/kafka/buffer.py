"""Buffers fetched records until the engine polls them.

kafka-python 3.0 can pause a partition, but not while it is in the middle of delivering a fetch:
after `resume` that partition delivers nothing more. So a whole fetch is moved to this buffer at
once, and is divided into polls here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from kafka import TopicPartition

from streamadapt.records import Position, Record

__all__ = ["TAKE_ALL", "Buffer"]

LATEST_NS: Final = 2**63 - 1
"""The largest time, in 2262. Kafka's time stamps in ms can be later; the codec refuses these."""
TAKE_ALL: Final = 2**31 - 1
"""A value of kafka-python's max_poll_records with which it never stops in the middle of a
fetch."""


class Buffer:
    """Records by partition, in order; for each partition at most one fetch.

    Parameters
    ----------
    most : int
        The largest number of records that `take` returns.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._records: dict[TopicPartition, list[Record]] = {}
        self._sizes: dict[TopicPartition, int] = {}

    def __bool__(self) -> bool:
        """Whether the buffer has records."""
        return bool(self._records)

    @property
    def places(self) -> set[TopicPartition]:
        """The partitions that have records in the buffer."""
        return set(self._records)

    @property
    def size(self) -> int:
        """The size of all keys and values in the buffer, in bytes."""
        return sum(self._sizes.values())

    def put(self, fetched: Mapping[TopicPartition, Sequence[Any]]) -> None:
        """Add the result of a poll of kafka-python."""
        for at, batch in fetched.items():
            self._records.setdefault(at, []).extend(
                Record(
                    Position(at.topic, at.partition, r.offset),
                    r.key,
                    r.value,
                    min(max(0, r.timestamp) * 1_000_000, LATEST_NS),
                    tuple(r.headers or ()),
                )
                for r in batch
            )
            size = sum(len(r.key or b"") + len(r.value or b"") for r in batch)
            self._sizes[at] = self._sizes.get(at, 0) + size

    def take(self, paused: Collection[TopicPartition]) -> list[Record]:
        """Return the next records, the same number from every partition that is not paused."""
        ready = [at for at in self._records if at not in paused]
        taken: list[Record] = []
        for i, at in enumerate(ready):
            share = max(1, (self._most - len(taken)) // (len(ready) - i))
            records = self._records.pop(at)
            taken += records[:share]
            if share < len(records):
                self._records[at] = records[share:]  # to the end of the queue
            else:
                self._sizes.pop(at, None)
            if len(taken) >= self._most:
                break
        return taken

    def next_of(self, at: TopicPartition) -> int | None:
        """Return the offset of a partition's first record in the buffer; None if there is none."""
        records = self._records.get(at)
        return records[0].position.offset if records else None

    def drop(self, places: Collection[TopicPartition]) -> None:
        """Remove the records of some partitions."""
        for at in places:
            self._records.pop(at, None)
            self._sizes.pop(at, None)
