"""Reports open transactions of other producers: the records after the start of such a transaction
cannot be read until it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from kafka import KafkaAdminClient, TopicPartition
from kafka import errors as kafka_errors

from streamadapt.engine.conditions import Condition, Conditions
from streamadapt.errors import ConnectorError
from streamadapt_connectors.kafka.client import Client, Reach

__all__ = ["OpenTransactions", "transaction_holder"]

OPEN_S: Final = 10.0
"""Most transactions are shorter; a reader that waits longer for a transaction reports it."""
ASK_S: Final = 5.0
ASK_MS: Final = 3000


class OpenTransactions:
    """Detects whether a source that reads committed records waits for an open transaction.

    Parameters
    ----------
    conditions : Conditions
    who : callable of TopicPartition and int -> str
        Returns the owner of the transaction that is open from an offset on; it may take long, and
        is called in a separate thread.
    clock : callable () -> float, optional
        Monotonic time in seconds.
    """

    def __init__(
        self,
        conditions: Conditions,
        who: Callable[[TopicPartition, int], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._conditions = conditions
        self._who = who
        self._clock = clock
        self._since: dict[TopicPartition, tuple[int, float]] = {}
        self._asked_at: float | None = None
        self._answer = ""

    def look(
        self,
        stable: Mapping[TopicPartition, int],
        positions: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> None:
        """Compare the positions with the last stable offsets, and report transactions that are
        open for too long.

        Parameters
        ----------
        stable : mapping of TopicPartition to int
            Last stable offsets: records from there on cannot be read yet.
        positions : mapping of TopicPartition to int
            The next offsets to read.
        ends : mapping of TopicPartition to int
            High watermarks.
        """
        now = self._clock()
        blocked = {
            at: offset
            for at, offset in positions.items()
            if at in stable and stable[at] <= offset < ends.get(at, 0)
        }
        for at, (before, _) in list(self._since.items()):
            if at not in positions:  # another member of the group reads it now
                del self._since[at]
                self._conditions.release(str(at))
            elif blocked.get(at) != before:
                del self._since[at]
                self._conditions.end(
                    Condition.OPEN_TRANSACTION, "the transaction has ended", str(at)
                )
        for at, offset in blocked.items():
            self._since.setdefault(at, (offset, now))
        late = [at for at, (_, since) in self._since.items() if now - since >= OPEN_S]
        if not late:
            self._asked_at, self._answer = None, ""
        elif not self._conditions.holds(Condition.OPEN_TRANSACTION) and not self._ask(
            late[0], now
        ):
            return
        for at in late:
            self._conditions.begin(
                Condition.OPEN_TRANSACTION, self._text(late, ends), str(at), self._since[at][1]
            )

    def _text(self, late: list[TopicPartition], ends: Mapping[TopicPartition, int]) -> str:
        places = ", ".join(f"{at.topic}[{at.partition}]@{self._since[at][0]}" for at in late[:3])
        waiting = sum(ends[at] - self._since[at][0] for at in late)
        return (
            f"{places}{' and more' if len(late) > 3 else ''}: another producer's transaction "
            f"has been open for more than {OPEN_S:g} s{self._answer}, and {waiting} records from "
            "there on cannot be read until it ends; commit or abort it, or wait until the broker "
            "aborts it after the producer's transaction.timeout.ms; "
            "source.isolation_level = 'read_uncommitted' does not wait"
        )

    def _ask(self, at: TopicPartition, now: float) -> bool:
        """Find the owner of the transaction in a thread; return True when the owner is known, or
        when this has taken too long."""
        if self._asked_at is None:
            self._asked_at = now
            threading.Thread(
                target=self._find,
                args=(at, self._since[at][0]),
                name="streamadapt-kafka-who",
                daemon=True,
            ).start()
        return bool(self._answer) or now - self._asked_at >= ASK_S

    def _find(self, at: TopicPartition, offset: int) -> None:
        self._answer = self._who(at, offset)


def transaction_holder(reach: Reach, at: TopicPartition, offset: int) -> str:
    """Return the transactional id of the oldest open transaction of a partition, as part of a
    sentence; an empty text if the broker does not return it.

    This needs Apache Kafka 3.0, and the right to describe the transactional id.
    """
    client = Client()
    configs = {k: v for k, v in reach.common().items() if k != "reconnect_backoff_max_ms"}
    with suppress(kafka_errors.KafkaError, OSError, ConnectorError, ValueError, KeyError):
        try:
            admin = KafkaAdminClient(kafka_client=client, request_timeout_ms=ASK_MS, **configs)
            producers = admin.describe_producers([at])[at].active_producers
            open_ones = [
                one for one in producers if 0 <= one.current_transaction_start_offset <= offset
            ]
            oldest = min(open_ones, key=lambda one: one.current_transaction_start_offset)
            listed = admin.list_transactions(producer_id_filters=[oldest.producer_id])
            names = {one.transactional_id for answer in listed.values() for one in answer}
            name = f"transactional id {min(names)!r}, " if names else ""
            return f" ({name}producer id {oldest.producer_id})"
        finally:
            client.close()
    return ""
