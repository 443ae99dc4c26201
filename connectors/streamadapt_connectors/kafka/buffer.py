"""Fetched records on their way to the engine.

kafka-python 3.0 can hold back a paused partition, but loses track of one that it is in the middle
of delivering: after `resume` nothing more comes of it. So a whole fetch is taken over at once and
cut into polls here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from kafka import TopicPartition

from streamadapt.records import Position, Record

__all__ = ["TAKE_ALL", "Buffer"]

LATEST_NS: Final = 2**63 - 1
"""In 2262. Kafka's milliseconds reach further; the codec takes none of those."""
TAKE_ALL: Final = 2**31 - 1
"""For kafka-python's max_poll_records: never stop in the middle of a fetch."""


class Buffer:
    """Records by partition, in order; of each never more than was fetched at once.

    Parameters
    ----------
    most : int
        Most records that `take` returns.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._records: dict[TopicPartition, list[Record]] = {}
        self._sizes: dict[TopicPartition, int] = {}

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return bool(self._records)

    @property
    def places(self) -> set[TopicPartition]:
        """The partitions of which records are held."""
        return set(self._records)

    @property
    def size(self) -> int:
        """Bytes of the keys and values held."""
        return sum(self._sizes.values())

    def put(self, fetched: Mapping[TopicPartition, Sequence[Any]]) -> None:
        """Add what a kafka-python poll returned."""
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
        """Return the next records, the same share of every partition that is not paused."""
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
        """Return the offset of the first record held of a partition; None if there is none."""
        records = self._records.get(at)
        return records[0].position.offset if records else None

    def drop(self, places: Collection[TopicPartition]) -> None:
        """Forget what is held of some partitions."""
        for at in places:
            self._records.pop(at, None)
            self._sizes.pop(at, None)
