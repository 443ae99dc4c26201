"""One transactional producer a partition: predictions and positions become visible together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from streamadapt.errors import ConnectorError
from streamadapt.ports import StreamPartition
from streamadapt_connectors.kafka_settings import Client, Reach
from streamadapt_connectors.kafka_writer import Outgoing, Writer

__all__ = ["Transaction"]

ABORT_S: Final = 5.0


class Transaction:
    """A partition's only writer, for as long as no other begins under the same name.

    The transactional id is ``NAME/PARTITION``; the positions are committed to a group of that name, which nobody joins.

    Parameters
    ----------
    reach : Reach
    name : str
        What all that ever write from the same input to the same output have in common.
    partition : int
        The input's.
    make_writer : callable
        From further producer settings, and what to call when it is connected, to a `Writer`.
    timeout_ms : int, ms
        The broker gives a transaction up that is open for longer.
    """

    def __init__(
        self,
        reach: Reach,
        name: str,
        partition: int,
        make_writer: Callable[[Mapping[str, Any], Callable[[KafkaProducer], None]], Writer],
        timeout_ms: int,
    ) -> None:
        self._reach = reach
        self._id = f"{name}/{partition}"
        self._open = False
        configs = {"transactional_id": self._id, "transaction_timeout_ms": timeout_ms}
        self._writer = make_writer(configs, lambda producer: producer.init_transactions())

    @property
    def trouble(self) -> str:
        """See `Writer.trouble`."""
        return self._writer.trouble

    def begin(self, places: Sequence[StreamPartition]) -> dict[StreamPartition, int]:
        """Shut out who wrote before; return the positions committed last."""
        return self._writer.insist(lambda producer, count: self._committed(places))

    def send(self, record: Outgoing) -> None:
        """Accept a record into the transaction."""
        self._ensure_open()
        self._writer.send(record)

    def flush(self) -> None:
        """Return once the broker has every record; none is visible yet."""
        self._writer.flush()

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        """Make records and positions visible as one."""
        self._ensure_open()
        self._writer.flush()
        offsets = {TopicPartition(*at): OffsetAndMetadata(offset, "", -1) for at, offset in positions.items()}

        def complete(producer: KafkaProducer) -> None:
            producer.send_offsets_to_transaction(offsets, self._id)
            producer.commit_transaction()

        self._do("committed", complete)
        self._open = False

    def end(self) -> None:
        """Make void what is not committed, if the broker answers soon (it does so itself after a while), and let go."""
        if self._open:
            self._open = False
            # Waits for the broker without a limit of its own.
            aborting = threading.Thread(target=self._abort, daemon=True)
            aborting.start()
            aborting.join(ABORT_S)
        self._writer.close(flush=False)

    def _abort(self) -> None:
        with suppress(ConnectorError):
            self._do("aborted", lambda producer: producer.abort_transaction())

    def _ensure_open(self) -> None:
        if not self._open:
            self._do("begun", lambda producer: producer.begin_transaction())
            self._open = True

    def _do(self, what: str, step: Callable[[KafkaProducer], None]) -> None:
        """Take a step that is not to be tried again: whether it was taken, the next `begin` will tell."""
        producer = self._writer.insist(lambda producer, count: producer)
        try:
            step(producer)
        except kafka_errors.KafkaError as error:
            raise ConnectorError(f"kafka transaction {self._id}: could not be {what}: {error!r}") from error

    def _committed(self, places: Sequence[StreamPartition]) -> dict[StreamPartition, int]:
        client = Client()
        consumer: KafkaConsumer = self._reach.consumer(client, group_id=self._id, enable_auto_commit=False)
        try:
            found = {at: consumer.committed(TopicPartition(*at)) for at in places}
        finally:
            with suppress(kafka_errors.KafkaError, OSError, RuntimeError):
                consumer.close(autocommit=False)
            client.close()
        return {at: offset for at, offset in found.items() if offset is not None and offset >= 0}
