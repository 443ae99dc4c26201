"""Deliver records to one topic and know, one by one, that they arrived."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from kafka import KafkaAdminClient, KafkaProducer
from kafka import errors as kafka_errors
from kafka.admin import NewTopic

from streamadapt.errors import ConnectorError
from streamadapt.masking import scrubbed
from streamadapt_connectors.kafka_settings import Client, Link, Reach
from streamadapt_connectors.kafka_topics import Topics

__all__ = ["Outgoing", "Writer"]

T = TypeVar("T")

MAX_PENDING: Final = 10_000
MAX_PENDING_BYTES: Final = 64 << 20
LOOK_S: Final = 1.0
CLOSE_S: Final = 5.0
FOR_EVER_MS: Final = 2**31 - 1
FIRST_TRY_MS: Final = 2000
METADATA_AGE_MS: Final = 10_000
"""So late it is noticed that the topic was deleted, where nothing is written to it."""

TOO_LARGE: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record to deliver.

    Attributes
    ----------
    name : str
        For messages: the position it came from.
    partition : int
        The source's; taken over where the topic has that many.
    """

    name: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of key and value."""
        return len(self.key or b"") + len(self.value or b"")


class Writer:
    """A producer with a bounded buffer. Blocks, and says so once, while the broker is away.

    Parameters
    ----------
    reach : Reach
    topic : str
    partitions : int or None
        How many to create the topic with if it is missing; None leaves that to the broker.
    configs : mapping
        For kafka-python's producer.
    shrink : callable or None
        Given a record that is too large, returns a smaller one to send in its place; None makes it an error.
    prepare : callable or None
        Called with the producer, once it is connected, before anything is sent; again if it fails.
    """

    def __init__(
        self,
        reach: Reach,
        topic: str,
        *,
        partitions: int | None,
        configs: Mapping[str, Any],
        shrink: Callable[[Outgoing], Outgoing] | None = None,
        prepare: Callable[[KafkaProducer], None] | None = None,
    ) -> None:
        self._reach = reach
        self._topic = topic
        self._create_partitions = partitions
        self._configs = {"delivery_timeout_ms": FOR_EVER_MS, "max_block_ms": FIRST_TRY_MS, "acks": "all", **configs}
        # The broker would create it again with a number of partitions of its own.
        self._configs |= {"allow_auto_create_topics": False, "metadata_max_age_ms": METADATA_AGE_MS}
        self._shrink = shrink
        self._prepare = prepare
        self._link = Link(f"sink kafka {topic} at {','.join(reach.servers)}")
        self._client = Client()
        self._topics_now = Topics(self._client, [topic])
        self._gone = False
        self._producer: KafkaProducer | None = None
        self._partitions = 0
        self._pending: deque[tuple[Outgoing, Any]] = deque()
        self._pending_bytes = 0
        self._failure: ConnectorError | None = None
        self.closed = False

    @property
    def state(self) -> str:
        """``connected`` or ``connecting``."""
        return self._link.state

    def expect_partitions(self, count: int) -> None:
        """Take the input's number of partitions for a topic that is still to be created, unless told another."""
        self._create_partitions = self._create_partitions or count

    @property
    def trouble(self) -> str:
        """Why nothing can be delivered, where the topic has been deleted; else empty. Says it once in the log."""
        gone = bool(self._partitions) and not self.closed and bool(self._topics_now.gone())
        why = f"topic {self._topic} does not exist: it was deleted; waiting for it to be created again"
        if gone:
            self._link.down(why)
        elif self._gone:
            self._link.up()
        self._gone = gone
        return why if gone else ""

    def send(self, record: Outgoing) -> None:
        """Accept `record`; blocks while the buffer is full or the broker is away."""
        self._check()
        while self._pending and (
            len(self._pending) >= MAX_PENDING or self._pending_bytes + record.size > MAX_PENDING_BYTES
        ):
            self._settle_first()
        self._post(record)

    def flush(self) -> None:
        """Return once everything accepted has been delivered; raises `ConnectorError` for the first that was not."""
        self._check()
        while self._pending:
            self._settle_first()

    def insist(self, job: Callable[[KafkaProducer, int], T]) -> T:
        """Return ``job(producer, partitions of the topic)``, tried again until the broker answers.

        Raises
        ------
        ConnectorError
            For what waiting cannot mend.
        """
        self._check()
        while True:
            try:
                return job(self._connected(), self._partitions)
            except (kafka_errors.RetriableError, OSError) as error:
                self._link.down(str(error) or type(error).__name__)
                time.sleep(self._link.wait_s())
            except kafka_errors.KafkaError as error:
                self._failure = ConnectorError(scrubbed(f"kafka {self._topic}: {error!r}"))
                raise self._failure from error

    def close(self, *, flush: bool = True) -> None:
        """Flush, if told so, and close. Idempotent."""
        if self.closed:
            return
        try:
            if flush and self._failure is None:
                self.flush()
        finally:
            self.closed = True
            if self._producer is not None:
                _close(self._producer)
            with suppress(RuntimeError):  # its thread is still in a call that the broker does not answer
                self._client.close()

    def _check(self) -> None:
        if self.closed:
            raise ConnectorError(f"kafka {self._topic}: the sink is closed")
        if self._failure is not None:  # what was lost stays lost: no later flush may say that all is well
            raise self._failure

    def _post(self, record: Outgoing) -> None:
        while True:
            try:
                producer = self._connected()
                future = producer.send(
                    self._topic,
                    key=record.key,
                    value=record.value,
                    headers=list(record.headers),
                    partition=record.partition % self._partitions,
                )
            except TOO_LARGE as error:  # the client's own limit
                self._replace(record, error)
                return
            except (kafka_errors.RetriableError, OSError) as error:
                self._link.down(str(error) or type(error).__name__)
                time.sleep(self._link.wait_s())
                continue
            except kafka_errors.KafkaError as error:
                raise self._fail(record, error) from error
            self._pending.append((record, future))
            self._pending_bytes += record.size
            return

    def _settle_first(self) -> None:
        record, future = self._pending[0]
        while not future.is_done:
            try:
                future.get(timeout=LOOK_S)
            except kafka_errors.KafkaError as error:
                if not future.is_done:
                    self._look(error)
        self._pending.popleft()
        self._pending_bytes -= record.size
        if future.failed():
            if isinstance(future.exception, TOO_LARGE):
                self._replace(record, future.exception)
                return
            raise self._fail(record, future.exception)
        self._link.up()

    def _replace(self, record: Outgoing, error: Exception) -> None:
        if self._shrink is None:
            raise self._fail(record, error) from error
        smaller = self._shrink(record)
        if smaller.size >= record.size:
            raise self._fail(record, error) from error
        self._post(smaller)

    def _fail(self, record: Outgoing, error: BaseException) -> ConnectorError:
        why = scrubbed(repr(error))
        self._failure = ConnectorError(
            f"kafka {self._topic}: the record of {record.name} ({record.size} bytes) was not delivered: {why}"
        )
        return self._failure

    def _look(self, error: Exception) -> None:
        if self.trouble:
            return
        if not self._client.answers():
            try:
                self._client.check()
            except ConnectorError as refusal:
                self._failure = refusal
                raise
            self._link.down(f"no broker answers ({error})")

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = self._reach.producer(self._client, **self._configs)
        if not self._partitions:
            if self._prepare is not None:
                self._prepare(self._producer)
            self._create_topic()
            self._partitions = len(self._producer.partitions_for(self._topic))
            self._link.up()
        self._partitions = max(self._partitions, self._topics_now.counts()[self._topic])  # some may be added
        return self._producer

    def _create_topic(self) -> None:
        """Best effort: without the right to create topics, an existing one is all we need."""
        configs = {k: v for k, v in self._reach.common().items() if k != "reconnect_backoff_max_ms"}
        client = Client()
        try:
            admin = KafkaAdminClient(kafka_client=client, **configs)
        except kafka_errors.KafkaError:
            client.close()
            return
        try:
            if self._topic not in admin.list_topics():
                admin.create_topics([NewTopic(self._topic, self._create_partitions or -1, -1)])
        except kafka_errors.KafkaError:
            pass  # waiting for its metadata says what is wrong
        finally:
            admin.close()
            client.close()


def _close(producer: KafkaProducer) -> None:
    """Close it, also where what it holds can no longer be delivered: it gives up then before its thread has ended."""
    try:
        producer.close(timeout=CLOSE_S)
    except kafka_errors.KafkaError:
        sender = getattr(producer, "_sender", None)
        if sender is not None:
            sender.force_close()
            sender.join(CLOSE_S)
        with suppress(kafka_errors.KafkaError):
            producer.close(timeout=0)
