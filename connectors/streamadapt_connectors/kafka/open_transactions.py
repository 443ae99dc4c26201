"""Another producer's transaction that is not ended: what comes after it in the topic cannot be
read until it is."""

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

__all__ = ["OpenTransactions", "who_holds"]

OPEN_S: Final = 10.0
"""Most transactions are shorter; a reader that waits longer for one reports it."""
ASK_S: Final = 5.0
ASK_MS: Final = 3000


class OpenTransactions:
    """Watch whether a source that reads committed records stands before an open transaction.

    Parameters
    ----------
    conditions : Conditions
    who : callable of TopicPartition and int -> str
        Says who has a transaction open from an offset on; may take long, and is called in a thread
        of its own.
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
        """Compare positions with what can be read.

        Parameters
        ----------
        stable : mapping of TopicPartition to int
            Last stable offsets: no record from there on can be read.
        positions : mapping of TopicPartition to int
            Next offsets wanted.
        ends : mapping of TopicPartition to int
            High watermarks.
        """
        now = self._clock()
        stands = {
            at: offset
            for at, offset in positions.items()
            if at in stable and stable[at] <= offset < ends.get(at, 0)
        }
        for at, (before, _) in list(self._since.items()):
            if at not in positions:  # somebody else reads it now
                del self._since[at]
                self._conditions.release(str(at))
            elif stands.get(at) != before:
                del self._since[at]
                self._conditions.end(
                    Condition.OPEN_TRANSACTION, "the transaction has ended", str(at)
                )
        for at, offset in stands.items():
            self._since.setdefault(at, (offset, now))
        late = [at for at, (_, since) in self._since.items() if now - since >= OPEN_S]
        if not late:
            self._asked_at, self._answer = None, ""
        elif not self._conditions.holds(Condition.OPEN_TRANSACTION) and not self._ask(
            late[0], now
        ):
            return
        for at in late:
            self._conditions.begin(Condition.OPEN_TRANSACTION, self._text(late, ends), str(at))

    def _text(self, late: list[TopicPartition], ends: Mapping[TopicPartition, int]) -> str:
        places = ", ".join(f"{at.topic}[{at.partition}]@{self._since[at][0]}" for at in late[:3])
        waiting = sum(ends[at] - self._since[at][0] for at in late)
        return (
            f"{places}{' and more' if len(late) > 3 else ''}: another producer's transaction "
            f"has been open for more "
            f"than {OPEN_S:g} s{self._answer}, and {waiting} records from there on cannot be "
            f"read until it ends; "
            "commit or abort it, or wait until the broker does after the producer's "
            "transaction.timeout.ms; "
            "source.isolation_level = 'read_uncommitted' does not wait"
        )

    def _ask(self, at: TopicPartition, now: float) -> bool:
        """Have somebody find out whose it is; True once that is known, or has taken too long."""
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


def who_holds(reach: Reach, at: TopicPartition, offset: int) -> str:
    """Return the transactional id of the oldest open transaction of a partition, as part of a
    sentence, if it is told.

    Needs Apache Kafka 3.0, and the right to describe the transactional id.
    """
    client = Client()
    configs = {k: v for k, v in reach.common().items() if k != "reconnect_backoff_max_ms"}
    with suppress(kafka_errors.KafkaError, OSError, ConnectorError, ValueError, KeyError):
        try:
            admin = KafkaAdminClient(kafka_client=client, request_timeout_ms=ASK_MS, **configs)
            producers = admin.describe_producers([at])[at].active_producers
            holds = [
                one for one in producers if 0 <= one.current_transaction_start_offset <= offset
            ]
            oldest = min(holds, key=lambda one: one.current_transaction_start_offset)
            listed = admin.list_transactions(producer_id_filters=[oldest.producer_id])
            names = {one.transactional_id for found in listed.values() for one in found}
            name = f"transactional id {min(names)!r}, " if names else ""
            return f" ({name}producer id {oldest.producer_id})"
        finally:
            client.close()
    return ""
