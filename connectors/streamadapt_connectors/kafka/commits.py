"""Committing to a consumer group how far the work is done, until the broker has taken it: for
monitoring only."""

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

AGAIN_S: Final = 5.0


class Commits:
    """The offsets that the group should have, and those that it is known to have.

    A commit may fail, during a rebalance for instance. Without another try the group would stand
    at an old offset until the next checkpoint, which may never come where no record does.
    """

    def __init__(self) -> None:
        self._wanted: dict[TopicPartition, int] = {}
        self._told: dict[TopicPartition, int] = {}
        self._not_before = 0.0

    def want(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Take offsets that the group should have."""
        self._wanted.update(offsets)
        self._not_before = 0.0

    def forget(self, places: Collection[TopicPartition]) -> None:
        """These partitions are somebody else's."""
        for at in places:
            self._wanted.pop(at, None)
            self._told.pop(at, None)

    def send(self, consumer: Any) -> None:
        """Commit what the group does not have yet; returns at once.

        Tries again after `AGAIN_S`.
        """
        if time.monotonic() < self._not_before:
            return
        due = {at: offset for at, offset in self._wanted.items() if self._told.get(at) != offset}
        if not due:
            return
        self._not_before = time.monotonic() + AGAIN_S

        def done(_: object, response: object) -> None:
            if not isinstance(response, Exception):
                self._told.update(due)

        with suppress(kafka_errors.KafkaError):
            offsets = {at: OffsetAndMetadata(offset, OWN_COMMIT, -1) for at, offset in due.items()}
            consumer.commit_async(offsets, callback=done)
