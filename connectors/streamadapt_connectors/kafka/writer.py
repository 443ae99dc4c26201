"""Delivers records to one topic, and checks the delivery of each record."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from kafka import KafkaAdminClient, KafkaProducer
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic

from streamadapt.config.secrets import scrubbed
from streamadapt.engine.conditions import Condition, Conditions
from streamadapt.errors import ConnectorError
from streamadapt_connectors.kafka.answers import PRODUCE
from streamadapt_connectors.kafka.client import Client, Link, Reach
from streamadapt_connectors.kafka.deliveries import SINK_CONDITIONS, Deliveries
from streamadapt_connectors.kafka.refusals import Access, Refusals
from streamadapt_connectors.kafka.topics import Topics
from streamadapt_connectors.kafka.words import deleted

__all__ = ["NoAnswerError", "Outgoing", "RefusedError", "TopicLimits", "Writer"]

T = TypeVar("T")

MAX_PENDING: Final = 10_000
MAX_PENDING_BYTES: Final = 64 << 20
CHECK_INTERVAL_S: Final = 1.0
CLOSE_S: Final = 5.0
UNLIMITED_MS: Final = 2**31 - 1
FIRST_TRY_MS: Final = 2000
ADMIN_MS: Final = 5000
FRAMING_BYTES: Final = 128
"""The size of the framing of a batch and a record in it, in addition to `Outgoing.size`."""
DROP_S: Final = 1.0
METADATA_AGE_MS: Final = 10_000
"""The largest delay until a deleted topic is noticed, if no record is written to it."""

NEVER_CREATED: Final = (
    kafka_errors.AuthorizationError,
    kafka_errors.PolicyViolationError,
    kafka_errors.InvalidTopicError,
    kafka_errors.InvalidPartitionsError,
)
"""Errors of the creation of a topic that waiting cannot solve."""

TOO_LARGE: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
REFUSALS: Final = (*TOO_LARGE, kafka_errors.InvalidRecordError)
"""Errors that are about one record itself."""
IN_A_BAD_BATCH: Final = "part of a batch"
"""A part of kafka-python's error for the other records of a batch in which one was refused."""


class NoAnswerError(ConnectorError):
    """Raised if the broker does not answer within the writer's limit."""


class RefusedError(ConnectorError):
    """Raised if the broker has refused a record, and it is known which records not to send again.

    The producer cannot be used after that; see `Writer.renew`.
    """


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record to deliver.

    Attributes
    ----------
    name : str
        The position of the record's entry, for messages.
    partition : int
        The partition of the source; the topic's partition is this number modulo its partitions.
    """

    name: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    time: int = 0

    @property
    def size(self) -> int:
        """The size of key, value and headers, in bytes."""
        headers = sum(len(name.encode()) + len(value) for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


class TopicLimits:
    """The limits of a topic for records, learned from the records that the broker has refused.

    Parameters
    ----------
    reach : Reach
    topic : str
    compressed : bool
        Whether records are compressed: then the size to which the topic's limit applies is smaller
        than the record.
    """

    def __init__(self, reach: Reach, topic: str, *, compressed: bool) -> None:
        self._reach = reach
        self._topic = topic
        self._compressed = compressed
        self._most: int | None = None
        self._needs_key = False

    def forbids(self, record: Outgoing) -> str:
        """Return the reason why the broker would refuse the record; empty if it may accept it."""
        if self._most is not None and record.size > self._most:
            return (
                f"it has {record.size} bytes, topic {self._topic} accepts {self._most} "
                f"(max.message.bytes)"
            )
        if self._needs_key and record.key is None:
            return f"it has no key, and topic {self._topic} needs one (cleanup.policy = compact)"
        return ""

    def learn(self, failed: Sequence[tuple[Outgoing, BaseException]]) -> bool:
        """Learn from refused records; return whether a limit was learned.

        If one record is refused, kafka-python fails all of its records with the same error. The
        largest of these is assumed to be too large: if any record is above the limit, it is above
        the limit, too.
        """
        large = [record for record, error in failed if isinstance(error, TOO_LARGE)]
        if large:
            self._learn_size(max(record.size for record in large))
        if any(
            record.key is None
            for record, error in failed
            if isinstance(error, kafka_errors.InvalidRecordError)
        ):
            self._needs_key = True
            return True
        return bool(large)

    def _learn_size(self, refused: int) -> None:
        most = refused - 1
        if not self._compressed:
            with suppress(kafka_errors.KafkaError, OSError, ConnectorError, KeyError, ValueError):
                most = min(most, self._configured())
        self._most = most if self._most is None else min(self._most, most)

    def _configured(self) -> int:
        client = Client()
        configs = {
            k: v for k, v in self._reach.common().items() if k != "reconnect_backoff_max_ms"
        }
        try:
            admin = KafkaAdminClient(kafka_client=client, request_timeout_ms=ADMIN_MS, **configs)
            topic = ConfigResource(ConfigResourceType.TOPIC, self._topic)
            configs_found = admin.describe_configs([topic])
            return int(_value_in(configs_found, "max.message.bytes")) - FRAMING_BYTES
        finally:
            client.close()


def _value_in(configs: Any, name: str) -> str:
    """Return one setting in the result of kafka-python's `describe_configs`."""
    if isinstance(configs, Mapping):
        if isinstance(value := configs.get(name), Mapping):
            return str(value["value"])
        configs = list(configs.values())
    for part in configs if isinstance(configs, list) else ():
        with suppress(KeyError):
            return _value_in(part, name)
    raise KeyError(name)


class Writer:
    """A producer with a bounded buffer. It blocks while the broker is unavailable, and logs this
    once.

    Parameters
    ----------
    reach : Reach
    topic : str
    partitions : int or None
        The number of partitions, if the topic is created; None leaves it to the broker.
    configs : mapping
        Settings of kafka-python's producer.
    shrink : callable or None
        From a refused record and the error to a replacement for it; if it returns the same record,
        the refusal is an error.
    refuse : callable or None
        Called with a record that the topic does not accept, and the reason; the record is not
        sent. It takes precedence over `shrink`.
    limits : TopicLimits or None
        Shared by all writers of a topic; needed with `refuse`.
    prepare : callable or None
        Called with the producer after it has connected, before records are sent; called again if
        it fails.
    limit_s : float, s, or None
        Raise `NoAnswerError` if the broker has confirmed nothing for this time. None waits without
        a limit.
    deliveries : Deliveries or None
        The deliveries of earlier writers of the same partition of a sink.
    setting : str
        The setting with the topic's name, for errors.
    refusals : Refusals or None
        Explains errors; by default as errors of a writer to this topic.
    """

    def __init__(  # noqa: PLR0913 - each is one decision of the sink
        self,
        reach: Reach,
        topic: str,
        *,
        partitions: int | None,
        configs: Mapping[str, Any],
        shrink: Callable[[Outgoing, BaseException], Outgoing] | None = None,
        refuse: Callable[[Outgoing, str], None] | None = None,
        limits: TopicLimits | None = None,
        prepare: Callable[[KafkaProducer], None] | None = None,
        limit_s: float | None = None,
        deliveries: Deliveries | None = None,
        setting: str = "sink.topic",
        refusals: Refusals | None = None,
    ) -> None:
        self._limit_s = limit_s
        self._setting = setting
        self._refusals = refusals or Refusals(
            reach.servers, [Access("Write", "topic", topic, setting)]
        )
        self._reach = reach
        self._topic = topic
        self._create_partitions = partitions
        self._configs = {
            "delivery_timeout_ms": UNLIMITED_MS,
            "max_block_ms": FIRST_TRY_MS,
            "acks": "all",
            **configs,
        }
        # Otherwise the broker would recreate a deleted topic with its own number of partitions.
        self._configs |= {
            "allow_auto_create_topics": False,
            "metadata_max_age_ms": METADATA_AGE_MS,
        }
        self._shrink = shrink
        self._refuse = refuse
        self._limits = limits
        self._prepare = prepare
        what = f"sink kafka {topic} at {','.join(reach.servers)}"
        self._deliveries = deliveries or Deliveries(Conditions(what, SINK_CONDITIONS), topic)
        self._conditions, self._holder = self._deliveries.conditions, self._deliveries.holder
        self._link = Link(self._conditions, self._holder, self._answered_at)
        self._client = self._make_client()
        self._topics_now = Topics(self._client, [topic])
        self._producer: KafkaProducer | None = None
        self._partitions = 0
        self._pending: deque[tuple[Outgoing, Any]] = deque()
        self._held: deque[Outgoing] = deque()
        self._pending_bytes = 0
        self._failure: Exception | None = None
        self.closed = False
        self.before_sending: Callable[[Collection[int]], None] = lambda partitions: None
        # See `streamadapt.engine.ports.Sink.break_off_when`.
        self.given_up: Callable[[], bool] = lambda: False

    def _make_client(self) -> Client:
        client = Client()
        # With the value at the time of the call.
        client.before_sending = lambda partitions: self.before_sending(partitions)
        return client

    @property
    def state(self) -> str:
        """``connected`` or ``connecting``."""
        return (
            "connecting"
            if self._conditions.holds(Condition.NO_ANSWER, self._holder)
            else self._link.state
        )

    def expect_partitions(self, count: int) -> None:
        """Create a missing topic with this number of partitions, unless another number was
        given."""
        self._create_partitions = self._create_partitions or count

    def _answered_at(self) -> float:
        return self._deliveries.answered_at(self._client.answered_at)

    @property
    def deliveries(self) -> Deliveries:
        """The records that were sent but not acknowledged."""
        return self._deliveries

    def look(self) -> None:
        """Report the reason why records are not delivered: once in the log when it begins, and
        once when it ends.

        Any thread may call this.
        """
        if self.closed or not self._partitions:
            return
        if self._topics_now.gone():
            self._conditions.begin(
                Condition.TOPIC_MISSING,
                deleted([self._topic]),
                self._holder,
            )
            return
        self._conditions.end(
            Condition.TOPIC_MISSING, f"topic {self._topic} exists again", self._holder
        )
        self._answered_at()
        self._deliveries.look(
            quiet=self._client.quiet(PRODUCE),
            refusal=self._client.refusal(self._topic),
            connected=self._link.state == "connected",
        )

    def send(self, record: Outgoing) -> None:
        """Accept a record; blocks while the buffer is full or the broker is unavailable."""
        self._check()
        self._send_held()
        self._accept(record)

    def _accept(self, record: Outgoing) -> None:
        if (
            self._refuse is not None
            and self._limits is not None
            and (why := self._limits.forbids(record))
        ):
            self._refuse(record, why)
            return
        self._make_room(record)
        self._post(record)

    def _make_room(self, record: Outgoing) -> None:
        while self._pending and (
            len(self._pending) >= MAX_PENDING
            or self._pending_bytes + record.size > MAX_PENDING_BYTES
        ):
            self._settle_first()

    def flush(self) -> None:
        """Return when all accepted records are delivered; raise `ConnectorError` for the first
        record that was not delivered."""
        self._check()
        self._send_held()
        while self._pending:
            self._settle_first()

    def insist(self, job: Callable[[KafkaProducer, int], T]) -> T:
        """Return ``job(producer, partitions of the topic)``, tried again until the broker answers.

        Raises
        ------
        ConnectorError
            For an error that waiting cannot solve.
        """
        self._check()
        deadline = self._deadline()
        while True:
            try:
                return job(self._connected(), self._partitions)
            except (kafka_errors.RetriableError, OSError) as error:
                self._wait_again(error, deadline)
            except kafka_errors.KafkaError as error:
                why = self._refusals.explain(error, self._client.shown())
                self._failure = ConnectorError(why or scrubbed(f"kafka {self._topic}: {error!r}"))
                raise self._failure from error

    def renew(self, *, resend: bool) -> None:
        """Continue after an error with a new producer; with `resend`, the records of the old
        producer are sent again, in order.

        Records that were being sent may then arrive twice.
        """
        held = [record for record, _ in self._pending] if resend else []
        self.abandon()
        self.closed = False
        self._client, self._producer, self._failure = self._make_client(), None, None
        self._topics_now = Topics(self._client, [self._topic])
        self._deliveries.begun()  # the refusal of a record was an answer of the broker
        self._partitions, self._pending_bytes = 0, 0
        self._held = deque([*held, *(self._held if resend else ())])

    def _send_held(self) -> None:
        while self._held:
            self._accept(self._held[0])
            self._held.popleft()

    def shown(self) -> Collection[str]:
        """Return the topics in the metadata that the broker has sent."""
        return self._client.shown()

    @property
    def fenced(self) -> bool:
        """Whether the broker has reported that another producer uses this transactional id."""
        return self._client.fenced

    @property
    def forgotten(self) -> bool:
        """Whether the broker has reported that it no longer knows this transactional id."""
        return self._client.forgotten

    def abandon(self) -> None:
        """Drop the producer and its records without another request to the broker. Idempotent."""
        self.closed = True
        self._pending.clear()
        self._deliveries.given_up()
        self._client.fall_silent()
        if self._producer is None or _drop(self._producer):
            with suppress(RuntimeError):
                self._client.close()

    def _deadline(self) -> float | None:
        return None if self._limit_s is None else time.monotonic() + self._limit_s

    def _check_limit(self, deadline: float | None, why: object) -> None:
        if deadline is not None and time.monotonic() >= deadline:
            raise NoAnswerError(
                scrubbed(f"no answer from the broker within {self._limit_s:g} s ({why})")
            )

    def _wait_again(self, error: Exception, deadline: float | None) -> None:
        why = self._client.explain(error)
        self._link.down(why)
        self._check_limit(deadline, why)
        self._wait(self._link.wait_s())

    def close(self, *, flush: bool = True) -> None:
        """Flush, if `flush` is true, and close. Idempotent."""
        if self.closed:
            return
        try:
            if flush and self._failure is None:
                self.flush()
        finally:
            self.closed = True
            if self._producer is not None:
                _close(self._producer)
            # RuntimeError: the client's thread still waits for an answer of the broker.
            with suppress(RuntimeError):
                self._client.close()

    def _check(self) -> None:
        if self.closed:
            raise ConnectorError(f"kafka {self._topic}: the sink is closed")
        self._failure = self._failure or self._client.stopped_by
        # After a loss, no later flush may succeed.
        if self._failure is not None:
            raise self._failure

    def _check_rights(self) -> None:
        """Raise `ConnectorError` if the right to the topic was removed: its records would wait
        forever."""
        if self._topics_now.denied():
            error = kafka_errors.TopicAuthorizationFailedError({self._topic})
            self._failure = ConnectorError(self._refusals.explain(error, {self._topic}))
            raise self._failure from error

    def _wait(self, seconds: float) -> None:
        """Sleep, but stop if the caller does not want to wait any longer."""
        self.look()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0.0:
            self.check_given_up()
            time.sleep(min(left, CHECK_INTERVAL_S))
        self.check_given_up()

    def check_given_up(self) -> None:
        """Raise `ConnectorError` if the caller does not want to wait any longer."""
        if self.given_up():
            self._failure = ConnectorError(
                f"kafka {self._topic}: not all records were delivered, and the engine is to stop; "
                "a restart replays from the last checkpoint"
            )
            raise self._failure

    def _post(self, record: Outgoing) -> None:
        deadline = self._deadline()
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
                if self._refuse is not None:
                    self._refuse(record, str(error))
                else:
                    self._replace(record, error)
                return
            except (kafka_errors.RetriableError, OSError) as error:
                self._wait_again(error, deadline)
                continue
            except kafka_errors.KafkaError as error:
                raise self._fail(record, error) from error
            self._pending.append((record, future))
            self._deliveries.posted(future)
            self._pending_bytes += record.size
            return

    def _settle_first(self) -> None:
        record, future = self._pending[0]
        deadline = self._deadline()
        while not future.is_done:
            try:
                limit_s = CHECK_INTERVAL_S if self._limit_s is None else self._limit_s
                future.get(timeout=min(CHECK_INTERVAL_S, limit_s))
            except kafka_errors.KafkaError as error:
                if not future.is_done:
                    self.check_given_up()
                    self._check_rights()
                    self._look()
                    self._check_limit(deadline, error)
        if future.failed() and self._limits is not None:
            self._learn(record, future.exception)
        self._pending.popleft()
        self._pending_bytes -= record.size
        if not future.failed():
            self._link.up()
        elif self._shrink is not None and IN_A_BAD_BATCH in str(future.exception):
            self._post(record)
        elif isinstance(future.exception, REFUSALS):
            self._replace(record, future.exception)
        else:
            raise self._fail(record, future.exception)

    def _learn(self, record: Outgoing, error: BaseException) -> None:
        """Raise `RefusedError` if a record was refused that will not be sent again; pending
        records remain pending."""
        assert self._limits is not None, "asked before"
        failed = [
            (other, future.exception)
            for other, future in self._pending
            if future.is_done and future.failed()
        ]
        if self._limits.learn(failed):
            self._failure = RefusedError(str(self._fail(record, error)))
            raise self._failure from error

    def _replace(self, record: Outgoing, error: BaseException) -> None:
        other = record if self._shrink is None else self._shrink(record, error)
        if other == record:
            raise self._fail(record, error) from error
        self._post(other)

    def _fail(self, record: Outgoing, error: BaseException) -> Exception:
        if self._client.stopped_by is not None:
            self._failure = self._client.stopped_by
            return self._failure
        name = (
            f"kafka {self._topic}: the record of {record.name} ({record.size} bytes) was not "
            f"delivered"
        )
        refusal = self._refusals.explain(error, self._client.shown())
        self._failure = ConnectorError(refusal or f"{name}: {scrubbed(repr(error))}")
        self._failure.__cause__ = error
        return self._failure

    def _look(self) -> None:
        self.look()
        if not self._client.answers() and not self._topics_now.gone():
            try:
                self._client.check()
            except ConnectorError as refusal:
                self._failure = refusal
                raise

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = self._reach.producer(self._client, **self._configs)
        if not self._partitions:
            if self._prepare is not None:
                self._prepare(self._producer)
            not_created = self._create_topic()
            try:
                self._partitions = len(self._producer.partitions_for(self._topic))
            except kafka_errors.KafkaTimeoutError as error:
                raise self._unknown_topic(not_created, error) from error
            self._link.up()
            self._deliveries.begun()
        # Partitions may be added.
        self._partitions = max(self._partitions, self._topics_now.counts()[self._topic])
        return self._producer

    def _unknown_topic(self, not_created: BaseException | None, error: Exception) -> Exception:
        """Return the error for a topic that the broker does not know."""
        if not self._client.answers():
            return error
        if isinstance(not_created, kafka_errors.AuthorizationError):
            create = Refusals(
                self._reach.servers, [Access("Create", "topic", self._topic, self._setting)]
            )
            why = create.explain(kafka_errors.TopicAuthorizationFailedError({self._topic}))
            self._failure = ConnectorError(f"{why}; or create the topic: it does not exist")
            return self._failure
        text = f"topic {self._topic!r} ({self._setting}) does not exist"
        if not_created is not None:
            text += f", and could not be created: {scrubbed(str(not_created))}; create it"
        if isinstance(not_created, NEVER_CREATED):
            self._failure = ConnectorError(f"kafka {','.join(self._reach.servers)}: {text}")
            return self._failure
        return ConnectionError(text)

    def _create_topic(self) -> BaseException | None:
        """Create the topic if it is missing, and return the error if this fails.

        An error does not matter if the topic exists: then no right to create it is needed.
        """
        configs = {
            k: v for k, v in self._reach.common().items() if k != "reconnect_backoff_max_ms"
        }
        configs["request_timeout_ms"] = ADMIN_MS
        client = Client()
        try:
            admin = KafkaAdminClient(kafka_client=client, **configs)
        except kafka_errors.KafkaError as error:
            client.close()
            why: BaseException = error
            return why
        try:
            if self._topic not in admin.list_topics():
                admin.create_topics([NewTopic(self._topic, self._create_partitions or -1, -1)])
        except kafka_errors.KafkaError as error:
            why = error
            return why  # the wait for its metadata will show whether that matters
        finally:
            admin.close()
            client.close()
        return None


def _drop(producer: Any) -> bool:
    """End a producer without another request; its records fail.

    Return whether its thread has ended; if not, the thread will close the connection.

    `KafkaProducer.close` is not used, because it waits for the records; the garbage collector must
    not call it either.
    """
    producer._unregister_cleanup()
    producer._closed = True
    producer._sender.force_close()
    producer._sender.join(DROP_S)
    return not producer._sender.is_alive()


def _close(producer: KafkaProducer) -> None:
    """Close a producer, also if its records can no longer be delivered: then its first `close`
    fails before its thread has ended."""
    try:
        producer.close(timeout=CLOSE_S)
    except kafka_errors.KafkaError:
        sender = getattr(producer, "_sender", None)
        if sender is not None:
            sender.force_close()
            sender.join(CLOSE_S)
        with suppress(kafka_errors.KafkaError):
            producer.close(timeout=0)
