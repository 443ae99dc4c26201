"""Commits positions to a consumer group, for monitoring only, and repeats a commit until the
broker accepts it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from streamadapt_connectors.kafka.group_offsets import OWN_COMMIT

__all__ = ["Commits"]

RETRY_S: Final = 5.0


class Commits:
    """The offsets that the group should have, and those that it is known to have.

    A commit may fail, for example during a rebalance. Without a retry the group would keep an old
    offset until the next checkpoint, which never comes if there are no more records.
    """

    def __init__(self) -> None:
        self._wanted: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._not_before = 0.0

    def want(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Set offsets that the group should have."""
        self._wanted.update(offsets)
        self._not_before = 0.0

    def forget(self, places: Collection[TopicPartition]) -> None:
        """Forget partitions that this source no longer owns."""
        for at in places:
            self._wanted.pop(at, None)
            self._committed.pop(at, None)

    def send(self, consumer: Any) -> None:
        """Commit the offsets that the group does not have yet, without waiting; a failed commit is
        repeated after `RETRY_S`."""
        if time.monotonic() < self._not_before:
            return
        due = {
            at: offset for at, offset in self._wanted.items() if self._committed.get(at) != offset
        }
        if not due:
            return
        self._not_before = time.monotonic() + RETRY_S

        def done(_: object, response: object) -> None:
            if not isinstance(response, Exception):
                self._committed.update(due)

        with suppress(kafka_errors.KafkaError):
            offsets = {at: OffsetAndMetadata(offset, OWN_COMMIT, -1) for at, offset in due.items()}
            consumer.commit_async(offsets, callback=done)
