"""Writes predictions and dead letters to Kafka."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Final

from kafka import TopicPartition
from kafka import errors as kafka_errors

from streamadapt.config.durations import duration_ns
from streamadapt.engine.conditions import Condition, Conditions, Standing
from streamadapt.engine.ports import DeadLetterSink, RecallingSink, TransactionalSink
from streamadapt.errors import ConfigError, ConnectorError, Loss, Reason, TransactionLostError
from streamadapt.records import DeadLetter, Position, Prediction, Record, StreamPartition
from streamadapt_connectors.codecs.json_codec import encode_prediction
from streamadapt_connectors.kafka.client import CONNECTION, Client, Reach
from streamadapt_connectors.kafka.deliveries import SINK_CONDITIONS, Deliveries
from streamadapt_connectors.kafka.letter_headers import split_headers
from streamadapt_connectors.kafka.refusals import Access, Refusals
from streamadapt_connectors.kafka.security import Security
from streamadapt_connectors.kafka.tail import newest_offset
from streamadapt_connectors.kafka.transactions import Transaction
from streamadapt_connectors.kafka.words import counted
from streamadapt_connectors.kafka.writer import (
    TOO_LARGE,
    Outgoing,
    RefusedError,
    TopicLimits,
    Writer,
)

__all__ = ["KafkaDeadLetters", "KafkaSink"]

LOG: Final = logging.getLogger("streamadapt.kafka")
PREDICTION_BYTES: Final = 16 << 20
LETTER_BYTES: Final = 32 << 20
OVERHEAD_BYTES: Final = 64 << 10  # headers and framing
TRUNCATED_BYTES: Final = 64 << 10
DETAIL_BYTES: Final = 1000
SHORT_BYTES: Final = 100
CLOSE_MS: Final = 1000


class KafkaSink(RecallingSink, TransactionalSink):
    """Writes each prediction to the partition of the same number as its entry's; if the topic has
    fewer partitions, to the number modulo their count.

    The producer is idempotent: a retried batch is written once. While the broker is unavailable,
    `write` and `flush` wait. The sink supports all three guarantees; with ``exactly-once`` every
    partition has its own transactional producer.

    Parameters
    ----------
    servers : str
        ``host:port``, several with commas.
    topic : str
        The topic; it is created if it is missing and the broker permits this.
    encoder : callable
        From `Prediction` to bytes; not from a config.
    experts : bool
        Whether to write also the prediction of every expert; not together with an encoder of your
        own.
    partitions : int or None
        The number of partitions, if the topic is created. Default: the number of the source.
    security : mapping or None
        TLS and SASL settings: the keys of ``source.security``.
    compression : {"gzip", "snappy", "lz4", "zstd"}, optional
        The compression of records. Default: none.
    transaction_timeout : duration
        With ``exactly-once``: the broker aborts a transaction that is open for longer, and its
        partition restarts from the last commit. It must be longer than the time between two
        checkpoints, and not longer than the broker allows (Kafka: 15 minutes by default).
    headers : bool
        Whether a prediction has the headers of its entry's record, such as ``traceparent``,
        unchanged.
    broker_timeout : duration
        With ``exactly-once``: if the broker has not answered for this time, the transaction is
        abandoned and its partition restarts from the last commit. At most `transaction_timeout`; a
        longer value counts as that.

    Raises
    ------
    ConfigError
        If a setting is wrong.
    ConnectorError
        From `write` and `flush`, for the first prediction that the broker has refused. The sink
        cannot be used after that.
    """

    connection: ClassVar[tuple[str, ...]] = CONNECTION

    @classmethod
    def dead_letters_beside(cls, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the topic ``TOPIC-dead-letters`` of the same cluster."""
        if not isinstance(topic := settings.get("topic"), str):
            return None
        connection = {name: settings[name] for name in CONNECTION if name in settings}
        return {**connection, "topic": f"{topic}-dead-letters"}

    def __init__(  # noqa: PLR0913 - flat, as the keys of [sink] in a config file
        self,
        servers: str,
        topic: str,
        encoder: Callable[[Prediction], bytes] = encode_prediction,
        *,
        experts: bool = False,
        partitions: int | None = None,
        security: Security | None = None,
        compression: str | None = None,
        transaction_timeout: str = "60s",
        broker_timeout: str = "10s",
        headers: bool = True,
    ) -> None:
        self._configs = {
            "enable_idempotence": True,
            "compression_type": compression,
            "linger_ms": 5,
            "batch_size": 1 << 16,
            "max_request_size": PREDICTION_BYTES,
        }
        self._topic = topic
        self._encoder = partial(encode_prediction, experts=True) if experts else encoder
        self._reach = Reach(servers, security)
        self._create_partitions = partitions
        self._timeout_ms = (
            duration_ns("sink.transaction_timeout", transaction_timeout) // 1_000_000
        )
        if not self._timeout_ms > 0:
            raise ConfigError("sink.transaction_timeout", transaction_timeout, "a duration > 0")
        self._given_up: Callable[[], bool] = lambda: False
        limit_ns = duration_ns("sink.broker_timeout", broker_timeout)
        if not limit_ns > 0:
            raise ConfigError("sink.broker_timeout", broker_timeout, "a duration > 0")
        self._limit_s = min(limit_ns / 1e9, self._timeout_ms / 1000)
        self._headers = headers
        self._refused: list[DeadLetter] = []
        self._limits = TopicLimits(self._reach, topic, compressed=compression is not None)
        self._recalled: set[int] = set()
        known = (*SINK_CONDITIONS, Condition.OFFSETS_EXPIRED)
        self._conditions = Conditions(
            f"sink kafka {topic} at {','.join(self._reach.servers)}", known, LOG
        )
        self._deliveries: dict[str, Deliveries] = {}
        self._writer = self._make_writer({}, None)
        self._transactions: dict[int, Transaction] = {}

    def __repr__(self) -> str:
        return f"KafkaSink({self._topic!r})"

    def expect_partitions(self, count: int) -> None:
        """Create a missing topic with this number of partitions, unless the config sets
        another number."""
        self._create_partitions = self._create_partitions or count
        self._writer.expect_partitions(count)

    @property
    def trouble(self) -> str:
        """The reason why predictions cannot be delivered; empty if they can."""
        self._writer.look()
        for transaction in list(self._transactions.values()):
            transaction.look()
        return self._conditions.trouble

    @property
    def conditions(self) -> Conditions:
        """The present problems of the sink."""
        return self._conditions

    @property
    def standing(self) -> Standing:
        """See `streamadapt.engine.conditions.Standing`."""
        _ = self.trouble
        return self._conditions.standing(max(one.age_s for one in list(self._deliveries.values())))

    def _make_writer(
        self,
        more: Mapping[str, Any],
        prepare: Callable[[Any], None] | None,
        refusals: Refusals | None = None,
        *,
        holder: str = "",
    ) -> Writer:
        deliveries = Deliveries(self._conditions, self._topic, holder)
        writer = Writer(
            self._reach,
            self._topic,
            partitions=self._create_partitions,
            configs={**self._configs, **more},
            prepare=prepare,
            refuse=self._refuse,
            limits=self._limits,
            limit_s=None if prepare is None else self._limit_s,
            deliveries=self._deliveries.setdefault(holder, deliveries),
            refusals=refusals,
        )
        writer.given_up = lambda: self._given_up()  # with the value at the time of the call
        return writer

    @property
    def transaction_timeout_s(self) -> float:
        """The setting `transaction_timeout`, in seconds."""
        return self._timeout_ms / 1000

    @property
    def state(self) -> str:
        """``connected`` or ``connecting``."""
        return self._writer.state

    def break_off_when(self, given_up: Callable[[], bool]) -> None:
        """Call `given_up` while the broker is unavailable, and stop waiting if it returns True."""
        self._given_up = given_up

    def check_before_sending(self, check: Callable[[Collection[int]], None]) -> None:
        """Call `check` with the partitions before every request, also before repeated requests.

        It is not called in a transaction, since the broker itself refuses a writer that is no
        longer the owner.
        """
        self._writer.before_sending = check

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Accept the predictions; blocks while the buffer is full or the broker is unavailable."""
        for p in predictions:
            headers = (
                tuple((name, value or b"") for name, value in p.headers) if self._headers else ()
            )
            record = Outgoing(
                str(p.position),
                p.position.partition,
                _key_of(p),
                self._encoder(p),
                headers,
                p.time,
            )
            transaction = self._transactions.get(p.position.partition)
            if transaction is not None:
                transaction.send(record)
            else:
                self._mending(partial(self._writer.send, record))

    def flush(self) -> None:
        """Return when the broker has acknowledged all predictions."""
        lost = []
        for transaction in self._transactions.values():
            try:
                transaction.flush()
            except TransactionLostError as error:
                # The others have waited as long, so all losses are reported together.
                lost.append(error)
        if lost:
            raise TransactionLostError(
                {p for one in lost for p in one.partitions}, lost[0].cause, str(lost[0])
            )
        self._mending(self._writer.flush)

    def refused(self) -> list[DeadLetter]:
        """Return the predictions that the topic does not accept, and forget them: they are too
        large, or have no key although the topic needs one."""
        refused, self._refused = self._refused, []
        return refused

    def _refuse(self, record: Outgoing, why: str) -> None:
        at = Position.parse(record.name)
        assert at is not None, "it is the name of a position"
        itself = Record(at, record.key, record.value, record.time, record.headers)
        reason = Reason.NO_KEY if "no key" in why else Reason.TOO_LARGE
        self._refused.append(
            DeadLetter(itself, reason.value, "write", f"the prediction cannot be written: {why}")
        )

    def _mending(self, step: Callable[[], None]) -> None:
        """Run a step; if the broker refuses a record, which ends an idempotent producer, continue
        with a new producer.

        The records that the old producer had are sent again, although some may be stored already.
        If the output was read for its newest prediction (effectively-once), it is read again
        instead.
        """
        while True:
            try:
                return step()
            except RefusedError as error:
                self._writer.renew(resend=not self._recalled)
                if self._recalled:
                    partitions, self._recalled = self._recalled, set()
                    raise TransactionLostError(partitions, Loss.REFUSED, str(error)) from error

    def close(self) -> None:
        """Flush and close; open transactions are aborted. Idempotent."""
        for partition in list(self._transactions):
            self.end(partition)
        self._writer.close()

    def newest(self, stream: str, partition: int) -> int | None:
        """Return the newest offset in the committed records of the output's partition; waits while
        the broker is unavailable."""
        self._recalled.add(partition)
        # This process may have unsent predictions from an earlier time as the partition's owner.
        self._writer.flush()

        def look(producer: Any, count: int) -> int | None:
            del producer
            if partition >= count:
                raise ConnectorError(
                    f"kafka {self._topic}: it has {counted(count, 'partition')}, but "
                    f"effectively-once needs one for each partition of the entries, here for "
                    f"partition {partition}; "
                    "give the topic as many partitions as the topic of the entries has"
                )
            client = Client()
            configs = {
                "group_id": None,
                "auto_offset_reset": "none",
                "max_partition_fetch_bytes": PREDICTION_BYTES,
            }
            configs["isolation_level"] = "read_committed"  # aborted predictions do not count
            consumer = self._reach.consumer(client, enable_auto_commit=False, **configs)
            try:
                return newest_offset(
                    consumer, TopicPartition(self._topic, partition), stream, partition
                )
            except kafka_errors.AuthorizationError as error:
                read = Access(
                    "Read", "topic", self._topic, "sink.topic, read back for effectively-once"
                )
                raise ConnectorError(
                    Refusals(self._reach.servers, [read]).explain(error)
                ) from error
            finally:
                consumer.close(autocommit=False, timeout_ms=CLOSE_MS)
                client.close()

        return self._writer.insist(look)

    def begin(self, streams: Sequence[str], partition: int) -> dict[StreamPartition, int]:
        """Begin with the transactional id ``streamadapt/OUTPUT/INPUT/PARTITION``; waits while the
        broker is unavailable."""
        self._end(partition)
        name = self.name_of(streams, partition).rpartition("/")[0]
        make_writer, limits = (
            partial(self._make_writer, holder=str(partition)),
            (self._timeout_ms, self._limit_s),
        )
        transaction = Transaction(
            self._reach, name, partition, make_writer, *limits, output=self._topic, streams=streams
        )
        self._transactions[partition] = transaction
        return transaction.begin([StreamPartition(stream, partition) for stream in streams])

    def name_of(self, streams: Sequence[str], partition: int) -> str:
        """Return the transactional id, which is also the name of the group; it is unique, since
        names of topics have no slash."""
        return f"streamadapt/{self._topic}/{streams[0]}/{partition}"

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        """Commit the partition's transaction, with the positions."""
        self._transactions[next(iter(positions)).partition].commit(positions)

    def end(self, partition: int) -> None:
        """Abort an open transaction, and release the partition. Idempotent."""
        self._end(partition)
        self._forget(partition)

    def _end(self, partition: int) -> None:
        transaction = self._transactions.pop(partition, None)
        if transaction is not None:
            transaction.end()

    def abandon(self, partition: int) -> None:
        """Drop the partition's producer and its connection without another request. Idempotent."""
        transaction = self._transactions.pop(partition, None)
        if transaction is not None:
            transaction.abandon()
        # The problems of a lost transaction remain until the partition begins again.
        if transaction is None or not transaction.lost:
            self._forget(partition)

    def _forget(self, partition: int) -> None:
        self._deliveries.pop(str(partition), None)
        self._conditions.release(str(partition))


def _key_of(p: Prediction) -> bytes | None:
    """Return the record key: the bytes of the entry's key if `Prediction.key` was decoded from
    them, else `Prediction.key`."""
    if p.raw_key is not None and p.key == p.raw_key.decode("utf-8", "backslashreplace"):
        return p.raw_key
    return p.key.encode() if p.key else None


class KafkaDeadLetters(DeadLetterSink):
    """Writes refused records with their key, value and headers unchanged, and with additional
    headers after these: reason, stage, topic, partition, offset, time (ns), detail and, if the
    record had headers, ``headers``, the number of them.

    A record of up to 32 MiB is sent whole. If it is larger, or the broker refuses its size, its
    first 64 KiB are sent, then half of that, and so on, until the broker accepts it. Such a letter
    has the header ``truncated``, the original size of its value in bytes; if its key was cut,
    ``truncated-key``, the original size of the key; and if its own headers were left out,
    ``truncated-headers``, the number of them. A record without key and value, which Kafka does not
    accept, gets an empty value and the header ``null``. If a compacted topic does not accept a
    record without a key, the record gets its position as key and the header ``null-key``.

    Parameters
    ----------
    servers, topic, partitions, security
        As for `KafkaSink`.
    """

    connection: ClassVar[tuple[str, ...]] = CONNECTION

    def __init__(
        self,
        servers: str,
        topic: str,
        *,
        partitions: int | None = None,
        security: Security | None = None,
    ) -> None:
        configs = {
            # A batch that is too large would break the sequence of an idempotent producer for
            # later batches. Here it matters most that every letter arrives; the order and
            # duplicates matter less.
            "enable_idempotence": False,
            "max_in_flight_requests_per_connection": 1,
            "max_request_size": LETTER_BYTES + OVERHEAD_BYTES,
        }
        self._topic = topic
        reach = Reach(servers, security)
        what = f"dead letters kafka {topic} at {','.join(reach.servers)}"
        self._deliveries = Deliveries(Conditions(what, SINK_CONDITIONS, LOG), topic)
        self._writer = Writer(
            reach,
            topic,
            partitions=partitions,
            configs=configs,
            shrink=_acceptable,
            deliveries=self._deliveries,
            setting="dead_letters.topic",
        )

    def __repr__(self) -> str:
        return f"KafkaDeadLetters({self._topic!r})"

    @property
    def state(self) -> str:
        """``connected`` or ``connecting``."""
        return self._writer.state

    def break_off_when(self, given_up: Callable[[], bool]) -> None:
        """Call `given_up` while the broker is unavailable, and stop waiting if it returns True."""
        self._writer.given_up = given_up

    def expect_partitions(self, count: int) -> None:
        """Create a missing topic with this number of partitions, unless the config sets
        another number."""
        self._writer.expect_partitions(count)

    @property
    def trouble(self) -> str:
        """The reason why dead letters cannot be delivered; empty if they can."""
        self._writer.look()
        return self._deliveries.conditions.trouble

    @property
    def conditions(self) -> Conditions:
        """The present problems of the sink."""
        return self._deliveries.conditions

    @property
    def standing(self) -> Standing:
        """See `streamadapt.engine.conditions.Standing`."""
        _ = self.trouble
        return self._deliveries.conditions.standing(self._deliveries.age_s)

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Accept the letters; blocks while the buffer is full or the broker is unavailable."""
        for letter in letters:
            self._writer.send(_outgoing(letter))

    def flush(self) -> None:
        """Return when the broker has acknowledged all letters."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close. Idempotent."""
        self._writer.close()


def _outgoing(letter: DeadLetter) -> Outgoing:
    record = letter.record
    stream, partition, offset = record.position
    headers = {
        "reason": str(letter.reason),
        "stage": letter.stage,
        "topic": stream,
        "partition": str(partition),
        "offset": str(offset),
        "time": str(record.time),
        "detail": letter.detail,
    }
    if record.headers:
        headers["headers"] = str(len(record.headers))
    encoded = [
        (name, text.encode("utf-8", "backslashreplace")[:DETAIL_BYTES])
        for name, text in headers.items()
    ]
    value = record.value
    if record.key is None and value is None:
        value = b""
        encoded.append(("null", b"true"))
    # The client allows no header without a value.
    own = [(name, value or b"") for name, value in record.headers]
    return Outgoing(str(record.position), partition, record.key, value, (*own, *encoded))


def _acceptable(record: Outgoing, error: BaseException) -> Outgoing:
    """Return a replacement for a record that the broker has refused: a shorter record, or a record
    with a key."""
    if isinstance(error, TOO_LARGE):
        return _shorter(record)
    if record.key is None:  # the topic is compacted
        return replace(
            record, key=record.name.encode(), headers=(*record.headers, ("null-key", b"true"))
        )
    return record


def _shorter(record: Outgoing) -> Outgoing:
    """Return the record cut to `TRUNCATED_BYTES`, or to half of its present size; unchanged if it
    cannot be cut any further."""
    own, added = split_headers(record.headers)
    marks = dict(added)
    size = max(len(record.value or b""), len(record.key or b""))
    most = TRUNCATED_BYTES if size > TRUNCATED_BYTES else size // 2
    key = record.key if record.key is None else record.key[:most]
    value = record.value if record.value is None else record.value[:most]
    marks.setdefault("truncated", str(len(record.value or b"")).encode())
    if key != record.key:
        marks.setdefault("truncated-key", str(len(record.key or b"")).encode())
    if own and sum(len(name) + len(value) for name, value in own) > most:
        marks["truncated-headers"] = marks.pop("headers")
        own = ()
    if "detail" in marks and not most:
        marks["detail"] = marks["detail"][:SHORT_BYTES]
    return replace(record, key=key, value=value, headers=(*own, *marks.items()))
