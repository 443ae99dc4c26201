"""Write predictions and dead letters to Kafka."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from kafka import TopicPartition

from streamadapt.durations import duration_ns
from streamadapt.entry import Prediction
from streamadapt.errors import ConfigError, ConnectorError
from streamadapt.ports import DeadLetter, DeadLetterSink, RecallingSink, StreamPartition, TransactionalSink
from streamadapt_connectors.codecs import encode_prediction
from streamadapt_connectors.kafka_settings import Client, Reach
from streamadapt_connectors.kafka_tail import newest_offset
from streamadapt_connectors.kafka_transactions import Transaction
from streamadapt_connectors.kafka_writer import Outgoing, Writer

__all__ = ["KafkaDeadLetters", "KafkaSink"]

PREDICTION_BYTES: Final = 16 << 20
LETTER_BYTES: Final = 32 << 20
OVERHEAD_BYTES: Final = 64 << 10  # headers and framing
TRUNCATED_BYTES: Final = 64 << 10
DETAIL_BYTES: Final = 1000


class KafkaSink(RecallingSink, TransactionalSink):
    """Write predictions, each to the partition its entry came from, where the topic has that many.

    The producer is idempotent: a retried batch is written once. While the broker is away `write` and `flush` wait.
    Gives all three guarantees; with ``exactly-once`` every partition has a transactional producer of its own.

    Parameters
    ----------
    servers : str
        ``host:port``, several with commas.
    topic : str
        Created if it is missing and the broker permits.
    encoder : callable
        From `Prediction` to bytes; not from a config.
    experts : bool
        Also write what every expert said; not together with an encoder of one's own.
    partitions : int or None
        How many to create the topic with. None: as many as the input has.
    security : mapping or None
        TLS and SASL settings by kafka-python's names.
    compression : str or None
        ``gzip``, ``snappy``, ``lz4`` or ``zstd``.
    transaction_timeout : str
        With ``exactly-once``: the broker gives up a transaction that is open for longer, and the engine stops. More
        than the time between two checkpoints, and no more than the broker allows (Kafka: 15 minutes, unless set).

    Raises
    ------
    ConfigError
        For a wrong setting.
    ConnectorError
        From `write` and `flush`: the first prediction that the broker refused. The sink is of no use after that.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        encoder: Callable[[Prediction], bytes] = encode_prediction,
        *,
        experts: bool = False,
        partitions: int | None = None,
        security: Mapping[str, Any] | None = None,
        compression: str | None = None,
        transaction_timeout: str = "60s",
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
        self._timeout_ms = duration_ns("sink.transaction_timeout", transaction_timeout) // 1_000_000
        if not self._timeout_ms > 0:
            raise ConfigError("sink.transaction_timeout", transaction_timeout, "a duration > 0")
        self._writer = self._make_writer({}, None)
        self._transactions: dict[int, Transaction] = {}

    def __repr__(self) -> str:
        return f"KafkaSink({self._topic!r})"

    def expect_partitions(self, count: int) -> None:
        """Create the topic with so many partitions, if it is to be created and the config does not say otherwise."""
        self._create_partitions = self._create_partitions or count
        self._writer.expect_partitions(count)

    @property
    def trouble(self) -> str:
        """That the topic has been deleted, if it has."""
        return self._writer.trouble or next((w for t in list(self._transactions.values()) if (w := t.trouble)), "")

    def _make_writer(self, more: Mapping[str, Any], prepare: Callable[[Any], None] | None) -> Writer:
        configs = {**self._configs, **more}
        return Writer(self._reach, self._topic, partitions=self._create_partitions, configs=configs, prepare=prepare)

    @property
    def transaction_timeout_s(self) -> float:
        """As told."""
        return self._timeout_ms / 1000

    @property
    def state(self) -> str:
        """``connected`` or ``connecting``."""
        return self._writer.state

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Accept them; blocks while the buffer is full or the broker is away."""
        for p in predictions:
            key = p.key.encode() if p.key else None
            to: Transaction | Writer = self._transactions.get(p.position.partition, self._writer)
            to.send(Outgoing(str(p.position), p.position.partition, key, self._encoder(p)))

    def flush(self) -> None:
        """Return once the broker has acknowledged every one."""
        for transaction in self._transactions.values():
            transaction.flush()
        self._writer.flush()

    def close(self) -> None:
        """Flush and close; what is in a transaction that is still open is void. Idempotent."""
        for partition in list(self._transactions):
            self.end(partition)
        self._writer.close()

    def newest(self, stream: str, partition: int) -> int | None:
        """Read the end of the output's partition, of what is committed; waits while the broker is away."""
        self._writer.flush()  # this process may have said more than what is there yet, in an earlier turn as its owner

        def look(producer: Any, count: int) -> int | None:
            del producer
            if partition >= count:
                raise ConnectorError(
                    f"kafka {self._topic}: it has {count} partitions, but the entries' partition {partition} needs one "
                    "of its own to be written effectively once; give the topic as many as the entries' has"
                )
            client = Client()
            configs = {"group_id": None, "auto_offset_reset": "none", "max_partition_fetch_bytes": PREDICTION_BYTES}
            configs["isolation_level"] = "read_committed"  # what was taken back was never said
            consumer = self._reach.consumer(client, enable_auto_commit=False, **configs)
            try:
                return newest_offset(consumer, TopicPartition(self._topic, partition), stream, partition)
            finally:
                consumer.close(autocommit=False)
                client.close()

        return self._writer.insist(look)

    def begin(self, streams: Sequence[str], partition: int) -> dict[StreamPartition, int]:
        """Begin under the transactional id ``streamadapt/OUTPUT/INPUT/PARTITION``; waits while the broker is away."""
        self.end(partition)
        name = f"streamadapt/{self._topic}/{streams[0]}"  # no topic has a slash in its name
        transaction = Transaction(self._reach, name, partition, self._make_writer, self._timeout_ms)
        self._transactions[partition] = transaction
        return transaction.begin([StreamPartition(stream, partition) for stream in streams])

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        """Commit the partition's transaction, positions included."""
        self._transactions[next(iter(positions)).partition].commit(positions)

    def end(self, partition: int) -> None:
        """Abort what is open, and let go. Idempotent."""
        transaction = self._transactions.pop(partition, None)
        if transaction is not None:
            transaction.end()


class KafkaDeadLetters(DeadLetterSink):
    """Write refused records with key and value untouched and the headers reason, stage, topic, partition, offset, time
    (ns) and detail.

    A record of up to 32 MiB is sent whole. If it is larger, or the broker refuses its size, its first 64 KiB are sent,
    with the header ``truncated`` = original size in bytes. A record without key and value (Kafka takes none such) gets
    an empty value and the header ``null``.

    Parameters
    ----------
    servers, topic, partitions, security
        As for `KafkaSink`.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        *,
        partitions: int | None = None,
        security: Mapping[str, Any] | None = None,
    ) -> None:
        configs = {
            # A batch that is too large would break the idempotent producer's sequence for those after it;
            # order and single copies matter less here than that every letter arrives.
            "enable_idempotence": False,
            "max_in_flight_requests_per_connection": 1,
            "max_request_size": LETTER_BYTES + OVERHEAD_BYTES,
        }
        self._topic = topic
        self._writer = Writer(
            Reach(servers, security), topic, partitions=partitions, configs=configs, shrink=_first_bytes
        )

    def __repr__(self) -> str:
        return f"KafkaDeadLetters({self._topic!r})"

    @property
    def state(self) -> str:
        """``connected`` or ``connecting``."""
        return self._writer.state

    def expect_partitions(self, count: int) -> None:
        """Create the topic with so many partitions, if it is to be created and the config does not say otherwise."""
        self._writer.expect_partitions(count)

    @property
    def trouble(self) -> str:
        """That the topic has been deleted, if it has."""
        return self._writer.trouble

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Accept them; blocks while the buffer is full or the broker is away."""
        for letter in letters:
            self._writer.send(_outgoing(letter))

    def flush(self) -> None:
        """Return once the broker has acknowledged every one."""
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
    encoded = [(name, text.encode("utf-8", "backslashreplace")[:DETAIL_BYTES]) for name, text in headers.items()]
    value = record.value
    if record.key is None and value is None:
        value = b""
        encoded.append(("null", b"true"))
    return Outgoing(str(record.position), partition, record.key, value, tuple(encoded))


def _first_bytes(record: Outgoing) -> Outgoing:
    """Return the record cut to `TRUNCATED_BYTES` of value, and of key if that is what is long."""
    key = record.key if record.key is None else record.key[:TRUNCATED_BYTES]
    value = record.value if record.value is None else record.value[:TRUNCATED_BYTES]
    headers = (*record.headers, ("truncated", str(len(record.value or b"")).encode()))
    return Outgoing(record.name, record.partition, key, value, headers)
