"""Deliver records to one topic and know, one by one, that they arrived."""

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

__all__ = ["NoAnswerError", "Outgoing", "RefusedError", "TopicLimits", "Writer"]

T = TypeVar("T")

MAX_PENDING: Final = 10_000
MAX_PENDING_BYTES: Final = 64 << 20
LOOK_S: Final = 1.0
CLOSE_S: Final = 5.0
FOR_EVER_MS: Final = 2**31 - 1
FIRST_TRY_MS: Final = 2000
ADMIN_MS: Final = 5000
FRAMING_BYTES: Final = 128
"""Of a batch and a record in it, above `Outgoing.size`."""
DROP_S: Final = 1.0
METADATA_AGE_MS: Final = 10_000
"""So late it is noticed that the topic was deleted, where nothing is written to it."""

NEVER_CREATED: Final = (
    kafka_errors.AuthorizationError,
    kafka_errors.PolicyViolationError,
    kafka_errors.InvalidTopicError,
    kafka_errors.InvalidPartitionsError,
)
"""Why a topic cannot be created, however long one waits."""

TOO_LARGE: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
REFUSALS: Final = (*TOO_LARGE, kafka_errors.InvalidRecordError)
"""Of one record, for what it is."""
IN_A_BAD_BATCH: Final = "part of a batch"
"""What kafka-python says to the other records of a batch in which one was refused."""


class NoAnswerError(ConnectorError):
    """The broker did not answer within the writer's limit."""


class RefusedError(ConnectorError):
    """The broker has refused a record, and it is known which ones not to send again.

    The producer is of no use after that: `Writer.renew`.
    """


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
    time: int = 0

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        headers = sum(len(name.encode()) + len(value) for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


class TopicLimits:
    """What records a topic takes, as far as that is known: learned from those that the broker
    refused.

    Parameters
    ----------
    reach : Reach
    topic : str
    compressed : bool
        Whether what the topic's limit is held against is smaller than the record.
    """

    def __init__(self, reach: Reach, topic: str, *, compressed: bool) -> None:
        self._reach = reach
        self._topic = topic
        self._compressed = compressed
        self._most: int | None = None
        self._needs_key = False

    def forbids(self, record: Outgoing) -> str:
        """Return why the broker would not take the record; empty where it may."""
        if self._most is not None and record.size > self._most:
            return (
                f"it has {record.size} bytes, topic {self._topic} takes {self._most} "
                f"(max.message.bytes)"
            )
        if self._needs_key and record.key is None:
            return (
                f"it has no key, and topic {self._topic} takes none such (cleanup.policy = "
                f"compact)"
            )
        return ""

    def learn(self, failed: Sequence[tuple[Outgoing, BaseException]]) -> bool:
        """Learn from refused records; return whether there was anything to learn.

        With one refused record kafka-python fails all that it holds, with the same error. So the
        largest one of them is taken for the one that is too large: whatever the limit is, it is
        above it too.
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
                most = min(most, self._asked())
        self._most = most if self._most is None else min(self._most, most)

    def _asked(self) -> int:
        client = Client()
        configs = {
            k: v for k, v in self._reach.common().items() if k != "reconnect_backoff_max_ms"
        }
        try:
            admin = KafkaAdminClient(kafka_client=client, request_timeout_ms=ADMIN_MS, **configs)
            found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, self._topic)])
            return int(_value_in(found, "max.message.bytes")) - FRAMING_BYTES
        finally:
            client.close()


def _value_in(found: Any, name: str) -> str:
    """Return one setting of what kafka-python's `describe_configs` returns."""
    if isinstance(found, Mapping):
        if isinstance(value := found.get(name), Mapping):
            return str(value["value"])
        found = list(found.values())
    for part in found if isinstance(found, list) else ():
        with suppress(KeyError):
            return _value_in(part, name)
    raise KeyError(name)


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
        Given a record that was refused and the error, returns another to send in its place, or the
        same: then it is an error.
    refuse : callable or None
        Given a record that the topic does not take and why, keeps it: it is not sent. Goes before
        `shrink`.
    limits : TopicLimits or None
        Known to all writers of a topic; with `refuse`.
    prepare : callable or None
        Called with the producer, once it is connected, before anything is sent; again if it fails.
    limit_s : float, s, or None
        Raise `NoAnswerError` where the broker has confirmed nothing for so long. None waits as
        long as it takes.
    deliveries : Deliveries or None
        Those of the writers before this one, of the same partition of a sink.
    setting : str
        Where the topic's name comes from, for errors.
    refusals : Refusals or None
        What errors mean; by default those of a writer to this topic.
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
            "delivery_timeout_ms": FOR_EVER_MS,
            "max_block_ms": FIRST_TRY_MS,
            "acks": "all",
            **configs,
        }
        # The broker would create it again with a number of partitions of its own.
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
        self._link = Link(self._conditions, self._holder)
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
        client.before_sending = lambda partitions: self.before_sending(partitions)  # as it is then
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
        """Take the input's number of partitions for a topic that is still to be created, unless
        told another."""
        self._create_partitions = self._create_partitions or count

    @property
    def deliveries(self) -> Deliveries:
        """What is sent and not acknowledged."""
        return self._deliveries

    def look(self) -> None:
        """Say what keeps records from being delivered: once in the log when it begins, and once
        when it is over.

        From any thread.
        """
        if self.closed or not self._partitions:
            return
        if self._topics_now.gone():
            self._conditions.begin(
                Condition.TOPIC_MISSING,
                f"topic {self._topic} does not exist: it was deleted; waiting for it to be "
                f"created again",
                self._holder,
            )
            return
        self._conditions.end(
            Condition.TOPIC_MISSING, f"topic {self._topic} is there again", self._holder
        )
        self._deliveries.look(
            quiet=self._client.quiet(PRODUCE),
            refusal=self._client.refusal(self._topic),
            connected=self._link.state == "connected",
        )

    def send(self, record: Outgoing) -> None:
        """Accept `record`; blocks while the buffer is full or the broker is away."""
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
        """Return once everything accepted has been delivered; raises `ConnectorError` for the
        first that was not."""
        self._check()
        self._send_held()
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
        """Go on after an error with a new producer; with `resend`, what the old one held is sent
        again, in order.

        What was under way may arrive twice then.
        """
        held = [record for record, _ in self._pending] if resend else []
        self.abandon()
        self.closed = False
        self._client, self._producer, self._failure = self._make_client(), None, None
        self._topics_now = Topics(self._client, [self._topic])
        self._deliveries.begun()  # that the broker has refused a record was an answer
        self._partitions, self._pending_bytes = 0, 0
        self._held = deque([*held, *(self._held if resend else ())])

    def _send_held(self) -> None:
        while self._held:
            self._accept(self._held[0])
            self._held.popleft()

    def shown(self) -> Collection[str]:
        """Return the topics that the broker has told of."""
        return self._client.shown()

    @property
    def fenced(self) -> bool:
        """Whether the broker has said that somebody else writes under this producer's
        transactional id."""
        return self._client.fenced

    @property
    def forgotten(self) -> bool:
        """Whether the broker has said that it does not know this producer's transactional id any
        more."""
        return self._client.forgotten

    def abandon(self) -> None:
        """Drop the producer and everything it holds, and say nothing more to the broker.

        Idempotent.
        """
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
            # Its thread is still in a call that the broker does not answer.
            with suppress(RuntimeError):
                self._client.close()

    def _check(self) -> None:
        if self.closed:
            raise ConnectorError(f"kafka {self._topic}: the sink is closed")
        self._failure = self._failure or self._client.stopped_by
        # What was lost stays lost: no later flush may say that all is well.
        if self._failure is not None:
            raise self._failure

    def _check_rights(self) -> None:
        """Raise `ConnectorError` if the right to the topic has been taken away: its records would
        wait without end."""
        if self._topics_now.denied():
            error = kafka_errors.TopicAuthorizationFailedError({self._topic})
            self._failure = ConnectorError(self._refusals.explain(error, {self._topic}))
            raise self._failure from error

    def _wait(self, seconds: float) -> None:
        """Sleep, but hear it when nobody wants to wait any longer."""
        self.look()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0.0:
            self.check_given_up()
            time.sleep(min(left, LOOK_S))
        self.check_given_up()

    def check_given_up(self) -> None:
        """Raise `ConnectorError` if nobody wants to wait any longer."""
        if self.given_up():
            self._failure = ConnectorError(
                f"kafka {self._topic}: no broker has taken all of it, and the engine is to stop; "
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
                future.get(timeout=LOOK_S if self._limit_s is None else min(LOOK_S, self._limit_s))
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
        """Raise `RefusedError` if a record was refused that will not be sent again; what is
        pending stays so."""
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
        # Some may be added.
        self._partitions = max(self._partitions, self._topics_now.counts()[self._topic])
        return self._producer

    def _unknown_topic(self, not_created: BaseException | None, error: Exception) -> Exception:
        """Return what it means that the broker does not know the topic."""
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
        """Best effort: without the right to create topics, an existing one is all we need.

        Return what went wrong.
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
            return why  # waiting for its metadata says whether that matters
        finally:
            admin.close()
            client.close()
        return None


def _drop(producer: Any) -> bool:
    """End it without a word: what it holds fails.

    Return whether its thread has ended; else that closes the connection.

    Not with `KafkaProducer.close`, which waits for what it holds, also when it is collected as
    garbage.
    """
    producer._unregister_cleanup()
    producer._closed = True
    producer._sender.force_close()
    producer._sender.join(DROP_S)
    return not producer._sender.is_alive()


def _close(producer: KafkaProducer) -> None:
    """Close it, also where what it holds can no longer be delivered: it gives up then before its
    thread has ended."""
    try:
        producer.close(timeout=CLOSE_S)
    except kafka_errors.KafkaError:
        sender = getattr(producer, "_sender", None)
        if sender is not None:
            sender.force_close()
            sender.join(CLOSE_S)
        with suppress(kafka_errors.KafkaError):
            producer.close(timeout=0)
