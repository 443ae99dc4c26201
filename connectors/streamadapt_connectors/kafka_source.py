"""Read entries, and labels where they have a topic of their own, from Kafka."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from streamadapt.errors import ConfigError, ConnectorError
from streamadapt.masking import scrubbed
from streamadapt.ports import PartitionOwner, Record, Source, StreamPartition
from streamadapt_connectors.kafka_assignor import CoPartitioned
from streamadapt_connectors.kafka_buffer import TAKE_ALL, Buffer
from streamadapt_connectors.kafka_group import Handover, RebalanceListener, owners_errors, session_of
from streamadapt_connectors.kafka_places import Places, Range, check_partition_counts, partition_counts, ranges_of
from streamadapt_connectors.kafka_settings import Client, Link, Reach, Setup

__all__ = ["KafkaSource"]

FETCH_BYTES: Final = 4 << 20
LAG_EVERY_S: Final = 1.0
LAG_TIMEOUT_MS: Final = 250
CLOSE_MS: Final = 5000

FATAL: Final = (
    kafka_errors.AuthorizationError,
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.CorruptRecordError,
    kafka_errors.UnsupportedCodecError,
    kafka_errors.FencedInstanceIdError,
    kafka_errors.UnsupportedVersionError,
)
MOVED: Final = (
    kafka_errors.OffsetOutOfRangeError,
    kafka_errors.LogTruncationError,
    kafka_errors.NoOffsetForPartitionError,
)


class KafkaSource(Source):
    """Read one topic, or an entry topic and a label topic with the same number of partitions.

    Without `group` the partitions are assigned by hand; with it a consumer group shares them out, partition p of both
    topics to one member. Offsets are never taken from the broker: the owner says where to start. A broker that is away
    is waited for, at the start and later.

    Parameters
    ----------
    servers : str
        ``host:port``, several with commas.
    topic, label_topic : str, str or None
    group : str or None
        Consumer group; offsets are committed to it for monitoring only.
    partitions : sequence of int or None
        Without a group: which ones; None is all.
    start : str
        ``earliest`` or ``latest``: where to read if the owner names no offset.
    out_of_range : str
        ``error``, ``earliest`` or ``latest``: what to do if the topic no longer holds the position asked for.
    security : mapping or None
        TLS and SASL settings by kafka-python's names (``security_protocol``, ``ssl_*``, ``sasl_*``).
    session_timeout : str
        With a group: who says nothing for so long is thought dead, and others get its partitions.
    max_poll_records : int
        Most records a poll returns.
    fetch_bytes : int, bytes
        Fetched at once per partition, and twice that in all: what is held in memory. A larger record is delivered all
        the same.

    tombstones : str
        ``dead-letter`` or ``skip``: what becomes of records without a value.

    Raises
    ------
    ConfigError
        For a wrong setting.
    ConnectorError
        From `poll`, for what waiting cannot mend: a position out of range, wrong credentials, unlike partition counts.
    """

    def __init__(  # noqa: PLR0913 - flat, as the keys of [source] in a config file
        self,
        servers: str,
        topic: str,
        label_topic: str | None = None,
        group: str | None = None,
        *,
        partitions: Sequence[int] | None = None,
        start: str = "earliest",
        out_of_range: str = "error",
        security: Mapping[str, Any] | None = None,
        session_timeout: str = "45s",
        max_poll_records: int = 1000,
        fetch_bytes: int = FETCH_BYTES,
        tombstones: str = "dead-letter",
    ) -> None:
        if tombstones not in ("dead-letter", "skip"):
            raise ConfigError("source.tombstones", tombstones, "dead-letter or skip")
        self._skips_tombstones = tombstones == "skip"
        if label_topic == topic:
            raise ConfigError("source.label_topic", label_topic, "another topic than source.topic, or none")
        if group is not None and partitions is not None:
            raise ConfigError("source.partitions", list(partitions), "nothing where source.group shares them out")
        if not max_poll_records >= 1:
            raise ConfigError("source.max_poll_records", max_poll_records, "a whole number, at least 1")
        self._reach = Reach(servers, security)
        self._topics = (topic,) if label_topic is None else (topic, label_topic)
        self._group = group
        self._wanted = None if partitions is None else sorted(set(partitions))
        self._places = Places(start, out_of_range)
        self._assignor = CoPartitioned()
        self._configs = self._consumer_configs(fetch_bytes) | session_of(session_timeout)
        self._buffer = Buffer(max_poll_records)
        self._link = Link(f"source kafka {'+'.join(self._topics)} at {servers}")
        self._client = Client()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="streamadapt-kafka")
        self._handover = Handover(self._worker, self._client)
        self._setup = Setup(self._worker, self._link)
        self._owner: PartitionOwner | None = None
        self._consumer: KafkaConsumer | None = None
        self._starts: dict[TopicPartition, int | None] | None = None
        self._placed = False
        self._joined = False
        self._check_places = False
        self._closed = False
        self._paused: frozenset[TopicPartition] = frozenset()
        self._next: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._ends_at = 0.0

    def __repr__(self) -> str:
        return f"KafkaSource({self._reach!r}, {self._topics!r}, group={self._group!r})"

    @property
    def streams(self) -> Sequence[str]:
        """The entry topic, then, if there is one, the label topic."""
        return self._topics

    @property
    def shared(self) -> bool:
        """With a consumer group."""
        return self._group is not None

    @property
    def skips_tombstones(self) -> bool:
        """As told."""
        return self._skips_tombstones

    @property
    def state(self) -> str:
        """``connected`` or ``connecting``; a topic has no end."""
        return self._link.state

    def open(self, owner: PartitionOwner) -> None:
        """Start; connecting happens in `poll`."""
        if self._closed:
            raise ConnectorError(f"{self!r}: closed")
        self._owner = owner

    def poll(self, timeout_s: float) -> list[Record]:
        """Return the records that are there; connects, and places itself, as far as the time goes."""
        if self._owner is None or self._closed:
            raise ConnectorError(f"{self!r}: poll {'after close' if self._closed else 'before open'}")
        deadline = time.monotonic() + timeout_s
        try:
            if not self._placed and not self._place(deadline):
                return []
            if self._check_places and not self._place_again(deadline):
                return []
            records = self._buffer.take(self._paused)
            if not records:
                self._fetch(deadline)
                records = self._buffer.take(self._paused)
        except MOVED:
            self._check_places = True
        except FATAL as error:
            raise ConnectorError(scrubbed(f"{self!r}: {error!r}")) from error
        except (kafka_errors.KafkaError, OSError) as error:
            self._lost(error)
            self._link.sleep(deadline)
        else:
            for record in records:
                at = record.position
                self._next[TopicPartition(at.stream, at.partition)] = at.offset + 1
            return records
        return []

    def pause(self, partitions: Collection[StreamPartition]) -> None:
        """Hold back exactly these partitions."""
        self._paused = frozenset(TopicPartition(at.stream, at.partition) for at in partitions)
        self._apply_pause()

    def seek(self, starts: Mapping[StreamPartition, int | None]) -> None:
        """Go to other positions; placing itself there, and asking the topic what it holds, is the next poll's."""
        if self._starts is None:
            return  # the partitions are not known yet: the owner is asked for its starts then
        moved = {TopicPartition(*at): offset for at, offset in starts.items()}
        self._starts.update(moved)
        self._drop(moved)
        for at in moved:
            self._next.pop(at, None)
        self._check_places = True

    def lag(self) -> dict[StreamPartition, int]:
        """Records not yet delivered, from end offsets at most a second old (older while the broker is away)."""
        consumer = self._consumer
        if consumer is not None and self._next and self.state == "connected":
            self._refresh_ends(consumer)
        lags = {}
        for at in self._next:
            # Comes with each fetch; until the first one nothing exact is known of the end.
            highwater = None if consumer is None or not self._placed else consumer.highwater(at)
            if highwater is not None:
                end = self._ends[at] = max(highwater, self._ends.get(at, 0))
                lags[StreamPartition(at.topic, at.partition)] = max(0, end - self._position(at))
        return lags

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        """Tell the group, if there is one; a failure is of no consequence."""
        if self._group is None or self._consumer is None or not self._placed:
            return
        offsets = {TopicPartition(*at): OffsetAndMetadata(offset, "", -1) for at, offset in positions.items()}
        with suppress(kafka_errors.KafkaError):
            self._consumer.commit_async(offsets, callback=lambda *_: None)

    def close(self) -> None:
        """Leave the group and close the connections. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._handover.closing = True
        if self._consumer is not None:
            with suppress(kafka_errors.KafkaError, OSError, RuntimeError):
                self._consumer.close(autocommit=False, timeout_ms=CLOSE_MS)
            self._client.close()
        else:
            self._setup.finally_do(self._client.close)
        self._worker.shutdown(wait=False)

    def _consumer_configs(self, fetch_bytes: int) -> dict[str, Any]:
        return {
            "group_id": self._group,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",  # positions come from the owner; anything else is a loud error
            "allow_auto_create_topics": False,
            "isolation_level": "read_committed",  # what its producer took back was never said
            "partition_assignment_strategy": [self._assignor],
            "max_poll_records": TAKE_ALL,
            "max_partition_fetch_bytes": fetch_bytes,
            "fetch_max_bytes": 2 * fetch_bytes,
        }

    def _place(self, deadline: float) -> bool:
        """Connect, find the partitions, ask the owner and go there; True once done."""
        if self._consumer is None:
            found = self._setup.in_time(self._connect, deadline)
            if found is None:
                return False
            self._consumer = found
        if self._starts is None:
            consumer = self._consumer
            counts = self._setup.in_time(lambda: partition_counts(consumer, self._topics), deadline)
            if counts is None:
                return False
            check_partition_counts(counts)
            if self._group is not None:
                listener = RebalanceListener(self._handover, self._group_assigned, self._group_revoked)
                self._consumer.subscribe(list(self._topics), listener=listener)
                self._starts, self._placed = {}, True
                return True
            self._starts = self._ask_owner(self._own_partitions(counts[self._topics[0]]))
            self._consumer.assign(list(self._starts))
        consumer, starts = self._consumer, self._starts
        ranges = self._setup.in_time(lambda: self._ranges(consumer, starts), deadline)
        if ranges is None:
            return False
        self._seek(starts, ranges)
        self._placed = True
        self._link.up()
        return True

    def _ranges(
        self, consumer: KafkaConsumer, wanted: Mapping[TopicPartition, int | None]
    ) -> dict[TopicPartition, Range]:
        return ranges_of(consumer, wanted, self._places, self._spare, self._reached(wanted))

    @contextmanager
    def _spare(self) -> Iterator[KafkaConsumer]:
        client = Client()
        consumer = self._reach.consumer(client, **(self._configs | {"group_id": None}))
        try:
            yield consumer
        finally:
            consumer.close(autocommit=False, timeout_ms=CLOSE_MS)
            client.close()

    def _connect(self) -> KafkaConsumer:
        return self._reach.consumer(self._client, **self._configs)

    def _own_partitions(self, count: int) -> list[int]:
        own = list(range(count)) if self._wanted is None else self._wanted
        if not set(own) <= set(range(count)):
            raise ConnectorError(f"{self!r}: partitions {own} were asked for, the topic has {count}")
        return own

    def _ask_owner(self, partitions: Sequence[int]) -> dict[TopicPartition, int | None]:
        with owners_errors():
            starts = self._of_owner.partitions_assigned(partitions)
        return {TopicPartition(t, p): starts.get(StreamPartition(t, p)) for t in self._topics for p in partitions}

    @property
    def _of_owner(self) -> PartitionOwner:
        assert self._owner is not None, "poll checks it"
        return self._owner

    def _reached(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {at: self._of_owner.reached(StreamPartition(*at)) for at in places}

    def _seek(self, starts: Mapping[TopicPartition, int | None], ranges: Mapping[TopicPartition, Any]) -> None:
        assert self._consumer is not None, "connected first"
        placing = self._places.all(starts, ranges, self._reached(starts))
        for at, offset in placing.offsets.items():
            self._consumer.seek(at, offset)
        self._next.update(placing.offsets)
        self._drop(starts)
        if placing.told:
            with owners_errors():
                self._of_owner.partitions_placed(placing.told, anew=placing.anew)
        self._apply_pause()

    def _drop(self, places: Collection[TopicPartition]) -> None:
        """Forget what is held of these partitions and known of their ends."""
        for at in places:
            self._ends.pop(at, None)
        self._buffer.drop(places)

    def _place_again(self, deadline: float) -> bool:
        """Compare with the topic again: the broker was away, or says that a position is gone; True once done."""
        consumer = self._consumer
        here = {**(self._starts or {}), **{at: self._position(at) for at in self._next}}
        if consumer is not None and here:
            ranges = self._setup.in_time(lambda: self._ranges(consumer, here), deadline)
            if ranges is None:
                return False
            self._seek(here, ranges)
        self._check_places = False
        return True

    def _fetch(self, deadline: float) -> None:
        consumer: Any = self._consumer

        def poll() -> Any:
            return consumer.poll(max(0.0, 1000 * (deadline - time.monotonic())))

        found = poll() if self._group is None else self._handover.call(poll)
        if found or self._client.answers():
            if self._link.state == "connecting" and not found:
                self._check_places = True  # back after a while: is the topic still the one it was?
            if self._joined or self._group is None:
                self._link.up()
        else:
            self._client.check()
            self._lost(ConnectionError("no broker answers"))
        # What was fetched of a partition that went away during this very poll is its next owner's.
        self._buffer.put({at: batch for at, batch in found.items() if at in self._next})

    def _group_assigned(self, given: Collection[TopicPartition]) -> None:
        of = {topic: sorted(at.partition for at in given if at.topic == topic) for topic in self._topics}
        if len({tuple(partitions) for partitions in of.values()}) > 1:
            raise ConnectorError(f"{self!r}: the group gave out unlike partitions of the topics: {of}")
        assert self._consumer is not None, "subscribed first"
        self._joined = True
        if given:
            starts = self._ask_owner(of[self._topics[0]])
            self._starts = {**(self._starts or {}), **starts}
            self._check_places = True  # should the broker go away between these two lines
            self._seek(starts, self._ranges(self._consumer, starts))
            self._check_places = False

    def _group_revoked(self, taken: Collection[TopicPartition], lost: bool) -> None:
        if lost:
            self._assignor.forget()
        self._drop(taken)
        for known in (self._next, self._starts or {}):
            for at in taken:
                known.pop(at, None)
        with owners_errors():
            self._of_owner.partitions_revoked(sorted({at.partition for at in taken}), lost=lost)

    def _apply_pause(self) -> None:
        if self._consumer is None or not self._next:
            return
        own = set(self._next)
        self._consumer.pause(*(own & self._paused))
        self._consumer.resume(*(own - self._paused))

    def _refresh_ends(self, consumer: KafkaConsumer) -> None:
        if time.monotonic() - self._ends_at >= LAG_EVERY_S:
            self._ends_at = time.monotonic()
            with suppress(kafka_errors.KafkaError):
                for at, end in consumer.end_offsets(list(self._next), timeout_ms=LAG_TIMEOUT_MS).items():
                    self._ends[at] = max(end, self._ends.get(at, 0))

    def _position(self, at: TopicPartition) -> int:
        """Next offset wanted: without records held here the client's own, which has passed over transaction markers."""
        held = self._buffer.next_of(at)
        if held is not None:
            return held
        with suppress(kafka_errors.KafkaError):
            position: int | None = self._consumer.position(at, timeout_ms=0) if self._consumer is not None else None
            if position is not None:
                return max(position, self._next[at])
        return self._next[at]

    def _lost(self, error: Exception) -> None:
        self._link.down(str(error) or type(error).__name__)
