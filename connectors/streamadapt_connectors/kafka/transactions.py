"""A transactional producer for each partition: predictions and positions become visible
together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from streamadapt.config.secrets import scrubbed
from streamadapt.errors import ConnectorError, Loss, TransactionLostError
from streamadapt.records import StreamPartition
from streamadapt_connectors.kafka.client import Client, Reach
from streamadapt_connectors.kafka.refusals import Access, Refusals, names_in, source_accesses
from streamadapt_connectors.kafka.writer import (
    CHECK_INTERVAL_S,
    NoAnswerError,
    Outgoing,
    RefusedError,
    Writer,
)

__all__ = ["Transaction"]

CLOSE_MS: Final = 1000
ABORT_S: Final = 2.0
"""The longest wait for an abort when the engine ends; later the broker aborts the transaction by
itself."""

# kafka-python reports many errors only in the text of another error, so their names are searched
# there.
TAKEN: Final = (
    "ProducerFenced",
    "InvalidProducerEpoch",
    "InvalidTxnState",
    "UnknownProducerId",
    "TransactionCoordinatorFenced",
)
"""Errors of a broker for a writer whose transaction the broker has ended, or which another writer
has fenced."""
EXPIRED: Final = "InvalidProducerIdMapping"
"""The error of a broker that no longer knows the transactional id."""
SILENCE: Final = (
    "Timeout",
    "TimedOut",
    "KafkaConnectionError",
    "NotReady",
    "NotCoordinator",
    "CoordinatorNotAvailable",
)


class Transaction:
    """The only writer of a partition, until another writer begins with the same name.

    The transactional id is ``NAME/PARTITION``; the positions are committed to a group of that
    name, which has no members. Every wait for the broker ends after `limit_s`. Then, or if the
    broker refuses a request, the transaction is lost (`TransactionLostError`). A lost transaction
    sends nothing more. Requests of it that still reach the broker have an old epoch when the next
    transaction has begun, and are refused.

    Parameters
    ----------
    reach : Reach
    name : str
        The same for all writers from the same input to the same output.
    partition : int
        The partition of the input.
    make_writer : callable
        From additional producer settings, a function to call after connecting, and `Refusals` to a
        `Writer` with the same limit.
    timeout_ms : int, ms
        The broker aborts a transaction that is open for longer.
    limit_s : float, s
        The longest wait for an answer.
    output : str
        The topic of the predictions.
    streams : sequence of str
        The topics whose positions are committed.
    """

    def __init__(
        self,
        reach: Reach,
        name: str,
        partition: int,
        make_writer: Callable[
            [Mapping[str, Any], Callable[[KafkaProducer], None], Refusals], Writer
        ],
        timeout_ms: int,
        limit_s: float,
        *,
        output: str,
        streams: Sequence[str],
    ) -> None:
        self._reach = reach
        self._id = f"{name}/{partition}"
        self._partition = partition
        self._limit_s = limit_s
        self._open = False
        self._lost: TransactionLostError | None = None
        configs = {
            "transactional_id": self._id,
            "transaction_timeout_ms": timeout_ms,
            "request_timeout_ms": max(1, int(1000 * limit_s)),
        }
        name = "exactly-once: from sink.topic and source.topic"
        accesses = [
            Access("Write", "topic", output, "sink.topic"),
            Access("Write", "transactional-id", self._id, name),
            Access("Read", "group", self._id, name),
            *source_accesses(streams, None),
        ]
        self._refusals = Refusals(reach.servers, accesses, timeout_ms / 1000)
        self._writer = make_writer(
            configs, lambda producer: producer.init_transactions(), self._refusals
        )

    @property
    def lost(self) -> bool:
        """Whether the transaction was lost, and must begin again."""
        return self._lost is not None

    def look(self) -> None:
        """See `Writer.look`."""
        self._writer.look()

    def begin(self, places: Sequence[StreamPartition]) -> dict[StreamPartition, int]:
        """Fence earlier writers; return the positions that were committed last."""
        with self._watched("begun"):
            return self._writer.insist(lambda producer, count: self._committed(places))

    def send(self, record: Outgoing) -> None:
        """Accept a record into the transaction."""
        with self._watched("written to"):
            self._ensure_open()
            self._writer.send(record)

    def flush(self) -> None:
        """Return when the broker has stored all records; they are not visible yet."""
        with self._watched("flushed"):
            self._writer.flush()

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        """Make records and positions visible together."""
        offsets = {
            TopicPartition(*at): OffsetAndMetadata(offset, "", -1)
            for at, offset in positions.items()
        }
        with self._watched("committed"):
            self._ensure_open()
            self._writer.flush()
            self._ask(
                lambda manager: manager.send_offsets_to_transaction(offsets, self._id),
                self._limit_s,
            )
            self._ask(lambda manager: manager.begin_commit(), self._limit_s)
        self._open = False

    def end(self) -> None:
        """Abort the open transaction, if the broker answers soon (otherwise it aborts the
        transaction by itself later), and close the writer."""
        if self._lost is not None:
            return
        if self._open:
            self._open = False
            with suppress(ConnectorError, kafka_errors.KafkaError):
                self._ask(lambda manager: manager.begin_abort(), min(ABORT_S, self._limit_s))
        if self._writer.fenced:
            self._writer.abandon()
        else:
            self._writer.close(flush=False)

    def abandon(self) -> None:
        """Drop the writer without another request to the broker."""
        self._open = False
        self._writer.abandon()

    def _ensure_open(self) -> None:
        if not self._open:
            self._writer.insist(lambda producer, count: producer).begin_transaction()
            self._open = True

    def _ask(self, ask: Callable[[Any], Any], limit_s: float) -> None:
        """Call kafka-python's transaction manager, and wait for the result at most `limit_s`.

        The public methods of the producer make the same calls, but wait without a limit.
        """
        producer: Any = self._writer.insist(lambda producer, count: producer)
        result = ask(producer._transaction_manager)
        producer._sender.wakeup()
        deadline = time.monotonic() + limit_s
        while not result.wait(
            timeout_ms=1000 * max(0.0, min(CHECK_INTERVAL_S, deadline - time.monotonic()))
        ):
            self._writer.check_given_up()
            self._writer.look()
            if time.monotonic() >= deadline:
                raise NoAnswerError(f"no answer from the broker within {limit_s:g} s")

    @contextmanager
    def _watched(self, what: str) -> Iterator[None]:
        """Make every error a loss of the transaction: the next `begin` finds out what was
        committed."""
        if self._lost is not None:
            raise self._lost
        try:
            yield
        except NoAnswerError as error:
            self._lose(what, Loss.NO_ANSWER, str(error))
        except ConnectorError as error:
            cause = error.__cause__
            if not isinstance(cause, kafka_errors.KafkaError):
                raise
            self._lose_by(what, cause, error)
        except kafka_errors.KafkaError as error:
            self._lose_by(what, error, error)

    def _lose_by(self, what: str, cause: BaseException, error: Exception) -> None:
        errors_text = f"{cause!r} {error!r}"
        if refusal := self._refusals.explain(cause, self._writer.shown()):
            raise ConnectorError(
                f"kafka transaction {self._id}: could not be {what}: {refusal}"
            ) from error
        if isinstance(error, RefusedError):
            self._lose(what, Loss.REFUSED, str(error))
        if EXPIRED in errors_text or self._writer.forgotten:
            self._lose(
                what,
                Loss.EXPIRED,
                "the broker has forgotten the transactional id, which was not used for longer "
                "than the brokers' transactional.id.expiration.ms; nothing is lost; raise that "
                "setting above the longest pause of the input",
            )
        if self._writer.fenced or any(name in errors_text for name in TAKEN):
            self._lose(
                what, Loss.TAKEN, f"fenced by another engine, or open for too long: {cause!r}"
            )
        silent = isinstance(cause, kafka_errors.RetriableError) or any(
            name in errors_text for name in SILENCE
        )
        self._lose(what, Loss.NO_ANSWER if silent else Loss.FAILED, str(error))

    def _lose(self, what: str, cause: Loss, why: str) -> None:
        text = scrubbed(f"kafka transaction {self._id}: could not be {what}: {why}")
        self._lost = TransactionLostError([self._partition], cause, text)
        self.abandon()
        raise self._lost

    def _committed(self, places: Sequence[StreamPartition]) -> dict[StreamPartition, int]:
        client = Client()
        limit_ms = max(1, int(1000 * self._limit_s))
        consumer: KafkaConsumer = self._reach.consumer(
            client, group_id=self._id, enable_auto_commit=False
        )
        try:
            committed = {
                at: consumer.committed(TopicPartition(*at), timeout_ms=limit_ms) for at in places
            }
        except kafka_errors.TopicAuthorizationFailedError as error:
            streams = names_in(error) or {at.stream for at in places}
            raise kafka_errors.TopicAuthorizationFailedError(streams) from error
        finally:
            with suppress(kafka_errors.KafkaError, OSError, RuntimeError):
                consumer.close(autocommit=False, timeout_ms=CLOSE_MS)
            client.close()
        return {
            at: offset for at, offset in committed.items() if offset is not None and offset >= 0
        }
