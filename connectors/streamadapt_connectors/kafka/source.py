"""Reads entries from Kafka, and labels if they have their own topic."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from streamadapt.config.secrets import scrubbed
from streamadapt.engine.conditions import Condition, Conditions, Standing
from streamadapt.engine.ports import PartitionOwner, Source
from streamadapt.errors import ConfigError, ConnectorError
from streamadapt.records import Record, StreamPartition
from streamadapt_connectors.kafka.answers import FETCH, Silence, answered_or_none
from streamadapt_connectors.kafka.assignor import CoPartitioned
from streamadapt_connectors.kafka.buffer import TAKE_ALL, Buffer
from streamadapt_connectors.kafka.client import Client, Link, Reach, Setup
from streamadapt_connectors.kafka.commits import Commits
from streamadapt_connectors.kafka.group import (
    Handover,
    RebalanceListener,
    keep_joins,
    leave,
    owners_errors,
    rebalancing,
    session_of,
    settled,
)
from streamadapt_connectors.kafka.group_offsets import moved_by_others, moved_text
from streamadapt_connectors.kafka.members import group_of
from streamadapt_connectors.kafka.open_transactions import OpenTransactions, transaction_holder
from streamadapt_connectors.kafka.places import (
    Places,
    Range,
    asked,
    check_partition_counts,
    partition_counts,
    ranges_of,
)
from streamadapt_connectors.kafka.refusals import Refusals, source_accesses
from streamadapt_connectors.kafka.security import Security
from streamadapt_connectors.kafka.topics import Topics, metadata_age_of
from streamadapt_connectors.kafka.words import counted, deleted

__all__ = ["KafkaSource"]

log = logging.getLogger("streamadapt.kafka")

FETCH_BYTES: Final = 4 << 20
SOURCE_CONDITIONS: Final = (
    Condition.NO_ANSWER,
    Condition.TOPIC_MISSING,
    Condition.OPEN_TRANSACTION,
    Condition.RECORDS_DELETED,
    Condition.GROUP_OFFSET,
)
GROUP_OFFSETS_MS: Final = 2000
LAG_EVERY_S: Final = 1.0
LAG_TIMEOUT_MS: Final = 250
CLOSE_MS: Final = 5000
TEND_S: Final = 0.1
"""The interval in which the group and the other partitions are served while there are buffered
records."""
REBALANCE_S: Final = 0.1
"""The time for this while the group rebalances."""
VERIFY_S: Final = 1.0
REFRESH_S: Final = 5.0
REFUSED_S: Final = 10.0
"""A refusal must last for this time: another application may be leaving the group just now."""
UNLIKE_S: Final = 10.0
"""The longest time between the additions of partitions to two topics."""

FATAL: Final = (
    kafka_errors.AuthorizationError,
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.CorruptRecordError,
    kafka_errors.UnsupportedCodecError,
    kafka_errors.FencedInstanceIdError,
    kafka_errors.UnsupportedVersionError,
    kafka_errors.InvalidSessionTimeoutError,
    kafka_errors.InvalidGroupIdError,
    kafka_errors.GroupMaxSizeReachedError,
    kafka_errors.InvalidTopicError,
)
MOVED: Final = (
    kafka_errors.OffsetOutOfRangeError,
    kafka_errors.LogTruncationError,
    kafka_errors.NoOffsetForPartitionError,
)


class KafkaSource(Source):
    """Reads one topic, or an entry topic and a label topic with the same number of partitions.

    Without `group` this process reads the partitions of `partitions`; with it the members of a
    consumer group share them, partition p of both topics in the same member. Offsets are never
    read from the broker: the owner decides where to start. The source waits for a broker that is
    unavailable, at the start and later.

    Parameters
    ----------
    servers : str
        ``host:port``, several with commas.
    topic : str
        The topic with the entries; it may also contain their labels.
    label_topic : str or None
        The topic with the labels, if they have their own topic.
    group : str or None
        Consumer group: its members share the partitions. Offsets are committed to it for
        monitoring only.
    partitions : sequence of int or None
        Without a group: the partitions to read. Default: all.
    start : {"earliest", "latest"}
        Where to start without a checkpoint.
    out_of_range : {"error", "earliest", "latest"}
        What to do if the topic no longer has the position of the checkpoint.
    security : mapping or None
        TLS and SASL settings: the keys of ``source.security``.
    session_timeout : duration
        With a group: a member that sends nothing for this time counts as dead, and other members
        get its partitions.
    max_poll_records : int
        The largest number of records that one poll returns.
    fetch_bytes : int, bytes
        The number of bytes that one fetch reads from a partition; a fetch of all partitions reads
        at most twice as much, which is held in memory. A larger record is delivered, too.
    isolation_level : {"read_committed", "read_uncommitted"}
        ``read_committed``: records of aborted transactions are left out, and records after the
        start of an open transaction are read when it ends. ``read_uncommitted``: every record is
        read as soon as it is written.
    metadata_max_age : duration
        The largest age of the topics' metadata: the delay until added partitions are found.
    check_topic_id : bool
        Whether a topic that was deleted and recreated counts as another topic. False trusts the
        offsets alone: for a copy of a topic, on another cluster, in which every record has its old
        offset.
    tombstones : {"dead-letter", "skip"}
        What to do with records without a value.

    Raises
    ------
    ConfigError
        If a setting is wrong.
    ConnectorError
        From `poll`, for errors that waiting cannot solve: a position out of range, wrong
        credentials, different numbers of partitions.
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
        security: Security | None = None,
        session_timeout: str = "45s",
        max_poll_records: int = 1000,
        fetch_bytes: int = FETCH_BYTES,
        tombstones: str = "dead-letter",
        isolation_level: str = "read_committed",
        metadata_max_age: str = "10s",
        check_topic_id: bool = True,
    ) -> None:
        _check_choice("tombstones", tombstones, "dead-letter", "skip")
        self._skips_tombstones = tombstones == "skip"
        _check_topics(topic, label_topic, group, partitions)
        if not max_poll_records >= 1:
            raise ConfigError(
                "source.max_poll_records", max_poll_records, "a whole number, at least 1"
            )
        _check_choice("isolation_level", isolation_level, "read_committed", "read_uncommitted")
        self._reach = Reach(servers, security)
        self._topics = (topic,) if label_topic is None else (topic, label_topic)
        self._group = group
        self._wanted = None if partitions is None else sorted(set(partitions))
        self._places = Places(start, out_of_range)
        self._assignor = CoPartitioned()
        self._configs = self._consumer_configs(fetch_bytes) | session_of(session_timeout)
        self._configs |= metadata_age_of(metadata_max_age) | {"isolation_level": isolation_level}
        self._most_bytes = 2 * fetch_bytes
        self._buffer = Buffer(max_poll_records)
        what = f"source kafka {'+'.join(self._topics)} at {servers}"
        self._conditions = Conditions(what, SOURCE_CONDITIONS, log)
        self._client = Client()
        self._link = Link(self._conditions, answered_at=lambda: self._client.answered_at)
        self._open = OpenTransactions(self._conditions, partial(transaction_holder, self._reach))
        self._refusals = Refusals(self._reach.servers, source_accesses(self._topics, group))
        self._topics_now = Topics(self._client, self._topics)
        self._check_ids = check_topic_id
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="streamadapt-kafka")
        self._handover = Handover(self._worker, self._client)
        self._setup = Setup(self._worker, self._link)
        self._reset()

    def _reset(self) -> None:
        """Set the initial state: positions, topics and the group are unknown."""
        self._owner: PartitionOwner | None = None
        self._consumer: KafkaConsumer | None = None
        self._starts: dict[TopicPartition, int | None] | None = None
        self._more: dict[TopicPartition, int | None] = {}
        self._commits = Commits()
        self._ids: dict[TopicPartition, str] = {}
        self._count = 0
        self._unlike_since: float | None = None
        self._refused_since: float | None = None
        self._verified = True
        self._tended_at = 0.0
        self._passed: dict[TopicPartition, int] = {}
        self._placed = False
        self._joined = False
        self._check_places = False
        self._closed = False
        self._paused: frozenset[TopicPartition] = frozenset()
        self._next: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._ends_at = 0.0
        self._silence = Silence()
        self._skipped: Counter[tuple[str, int]] = Counter()

    def __repr__(self) -> str:
        return f"KafkaSource({self._reach!r}, {self._topics!r}, group={self._group!r})"

    @property
    def streams(self) -> Sequence[str]:
        """The entry topic, then the label topic, if there is one."""
        return self._topics

    @property
    def shared(self) -> bool:
        """Whether there is a consumer group."""
        return self._group is not None

    @property
    def skips_tombstones(self) -> bool:
        """Whether records without a value are skipped."""
        return self._skips_tombstones

    @property
    def state(self) -> str:
        """``connected`` or ``connecting``; a topic has no end."""
        return self._link.state

    @property
    def trouble(self) -> str:
        """The reason why no record can be read; empty if records can be read."""
        # This is checked here, too, because the loop may wait for a sink for a long time.
        if self._placed and not self._closed and (quiet := self._quiet()):
            since = answered_or_none(self._client.answered_at)
            self._conditions.begin(Condition.NO_ANSWER, quiet, since=since)
        return self._conditions.trouble

    @property
    def standing(self) -> Standing:
        """See `streamadapt.engine.conditions.Standing`."""
        _ = self.trouble
        return self._conditions.standing(skipped=self._skipped)

    def _quiet(self) -> str:
        """Return a message if no broker has answered for more than a moment; else an empty
        text."""
        return self._silence.confirm(self._client.quiet(FETCH))

    def open(self, owner: PartitionOwner) -> None:
        """Set the owner; `poll` connects to the broker."""
        if self._closed:
            raise ConnectorError(f"{self!r}: closed")
        self._owner = owner

    def poll(self, timeout_s: float) -> list[Record]:
        """Return the available records; before that, connect and find the positions, as far as the
        time allows."""
        if self._owner is None or self._closed:
            raise ConnectorError(
                f"{self!r}: poll {'after close' if self._closed else 'before open'}"
            )
        deadline = time.monotonic() + timeout_s
        try:
            return self._poll(deadline)
        except MOVED:
            self._check_places = True
        except kafka_errors.InconsistentGroupProtocolError as error:
            self._refused()
            self._lost(error)
            self._link.sleep(deadline)
        except FATAL as error:
            self._client.check()
            why = self._refusals.explain(error, self._client.shown())
            raise ConnectorError(why or scrubbed(f"{self!r}: {error!r}")) from error
        except (kafka_errors.KafkaError, OSError) as error:
            self._lost(error)
            self._link.sleep(deadline)
        return []

    def _poll(self, deadline: float) -> list[Record]:
        if not self._placed and not self._place(deadline):
            return []
        if denied := self._topics_now.denied():
            raise kafka_errors.TopicAuthorizationFailedError(set(denied))
        gone = self._topics_now.gone()
        if gone:
            self._check_places = True
        else:
            self._look_at_counts()
            if self._more and not self._place_more(deadline):
                return []
            if self._check_places and not self._place_again(deadline):
                return []
        self._tend(deadline, gone)
        self._check_group()
        if not self._are_still_the_same(deadline):
            return []
        records = self._buffer.take(self._paused)
        for record in records:
            at = record.position
            self._next[TopicPartition(at.stream, at.partition)] = at.offset + 1
        self._pass_over()
        return records

    def pause(self, partitions: Collection[StreamPartition]) -> None:
        """Pause exactly these partitions, and resume all others."""
        self._paused = frozenset(TopicPartition(at.stream, at.partition) for at in partitions)
        self._apply_pause()

    def seek(self, starts: Mapping[StreamPartition, int | None]) -> None:
        """Move to other positions; the next poll checks them with the topic."""
        if self._starts is None:
            return  # the partitions are not known yet: the owner will be asked for its positions
        moved = {TopicPartition(*at): offset for at, offset in starts.items()}
        self._starts.update(moved)
        self._drop(moved)
        for at in moved:
            self._next.pop(at, None)
        self._check_places = True

    def lag(self) -> dict[StreamPartition, int]:
        """Return the number of records that were not delivered yet, from end offsets that are at
        most a second old (older while the broker is unavailable)."""
        consumer = self._consumer
        if consumer is not None and self._placed and self._next and self.state == "connected":
            self._refresh_ends(consumer)
        lags = {}
        for at in self._next:
            # Each fetch returns it; before the first fetch the exact end is unknown.
            highwater = None if consumer is None or not self._placed else consumer.highwater(at)
            if highwater is not None:
                end = self._ends[at] = max(highwater, self._ends.get(at, 0))
                lags[StreamPartition(at.topic, at.partition)] = max(0, end - self._position(at))
        return lags

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        """Commit positions to the group, if there is one; a failure has no consequences."""
        if self._group is None or self._consumer is None or not self._placed:
            return
        self._commits.want({TopicPartition(*at): offset for at, offset in positions.items()})
        self._commits.send(self._consumer)

    def read_up_to(self) -> dict[StreamPartition, int]:
        """Return for some partitions an offset after the last delivered record, if there are only
        transaction markers and aborted records between them."""
        return {
            StreamPartition(*at): end
            for at, end in self._passed.items()
            if self._next.get(at) == end
        }

    def identities(self) -> dict[StreamPartition, str]:
        """Return the topic ids, if the brokers have them (Kafka 2.8 or newer)."""
        if self._check_ids:
            return {StreamPartition(*at): known for at, known in self._ids.items()}
        now = {at: self._topics_now.identity(at.topic) for at in self._next}
        return {StreamPartition(*at): known for at, known in now.items() if known is not None}

    @property
    def partition_count(self) -> int | None:
        """The number of partitions of the topics; None before it is known."""
        return min(self._topics_now.counts().values()) or self._count or None

    def close(self) -> None:
        """Leave the group and close the connections. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._handover.closing = True
        if self._consumer is not None:
            with suppress(kafka_errors.KafkaError, OSError, RuntimeError):
                leave(self._consumer)
                self._consumer.close(autocommit=False, timeout_ms=CLOSE_MS)
            self._client.close()
        else:
            self._setup.finally_do(self._client.close)
        self._worker.shutdown(wait=False)

    def _consumer_configs(self, fetch_bytes: int) -> dict[str, Any]:
        return {
            "group_id": self._group,
            "client_id": "streamadapt",
            "enable_auto_commit": False,
            # Positions come from the owner; a missing position must be an error.
            "auto_offset_reset": "none",
            "allow_auto_create_topics": False,
            "partition_assignment_strategy": [self._assignor],
            "max_poll_records": TAKE_ALL,
            "max_partition_fetch_bytes": fetch_bytes,
            "fetch_max_bytes": 2 * fetch_bytes,
        }

    def _place(self, deadline: float) -> bool:
        """Connect, find the partitions, ask the owner for positions and seek there; return True
        when this is done."""
        if self._consumer is None:
            consumer = self._setup.in_time(self._connect, deadline)
            if consumer is None:
                return False
            self._consumer = consumer
        if self._starts is None:
            consumer = self._consumer
            counts = self._setup.in_time(
                lambda: partition_counts(consumer, self._topics), deadline
            )
            if counts is None:
                return False
            check_partition_counts(counts)
            self._count = counts[self._topics[0]]
            if self._group is not None:
                keep_joins(self._consumer)
                listener = RebalanceListener(
                    self._handover, self._group_assigned, self._group_revoked
                )
                self._consumer.subscribe(list(self._topics), listener=listener)
                self._starts, self._placed = {}, True
                return True
            self._starts = self._ask_owner(self._own_partitions(counts[self._topics[0]]))
            self._consumer.assign(list(self._starts))
        consumer, starts = self._consumer, self._starts
        ranges = self._setup.in_time(lambda: self._ranges(consumer, starts), deadline)
        if ranges is None:
            return False
        self._seek(starts, *ranges)
        self._placed = True
        self._link.up()
        return True

    def _ranges(
        self, consumer: KafkaConsumer, wanted: Mapping[TopicPartition, int | None]
    ) -> tuple[dict[TopicPartition, Range], dict[TopicPartition, str]]:
        """Ask the broker for the ids of the topics, then for their first and last offsets."""
        if not self._topics_now.refresh(REFRESH_S):
            raise kafka_errors.KafkaTimeoutError("the broker does not return its list of topics")
        ids = {
            at: topic_id
            for at in wanted
            if (topic_id := self._topics_now.identity(at.topic)) is not None
        }
        return ranges_of(consumer, wanted, self._places, self._spare, self._reached(wanted)), ids

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
            raise ConnectorError(
                f"{self!r}: source.partitions is {own}, but the topic has "
                f"{counted(count, 'partition')}"
            )
        return own

    def _ask_owner(self, partitions: Sequence[int]) -> dict[TopicPartition, int | None]:
        with owners_errors():
            starts = self._of_owner.partitions_assigned(partitions)
        return {
            TopicPartition(t, p): starts.get(StreamPartition(t, p))
            for t in self._topics
            for p in partitions
        }

    @property
    def _of_owner(self) -> PartitionOwner:
        assert self._owner is not None, "poll checks it"
        return self._owner

    def _reached(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {at: self._of_owner.known_end(StreamPartition(*at)) for at in places}

    def _seek(
        self,
        starts: Mapping[TopicPartition, int | None],
        ranges: Mapping[TopicPartition, Range],
        ids: Mapping[TopicPartition, str],
    ) -> None:
        assert self._consumer is not None, "connected first"
        replaced = self._replaced(starts, ids)
        added = [at for at in starts if at.partition >= self._count > 0]
        placing = self._places.all(
            starts, ranges, self._reached(starts), replaced=replaced, added=added
        )
        for at, offset in placing.offsets.items():
            self._consumer.seek(at, offset)
            if StreamPartition(*at) not in placing.recreated:
                self._note_skipped(at, starts[at], offset)
        # If nothing was delivered yet, this is the position to commit.
        fresh = {
            at: o for at, o in placing.offsets.items() if at not in self._next or at in replaced
        }
        self._commits.want(fresh if self._group is not None else {})
        self._next.update(placing.offsets)
        self._ids.update(ids)
        self._drop(starts)
        if placing.chosen:
            with owners_errors():
                self._of_owner.partitions_placed(placing.chosen, recreated=placing.recreated)
        self._apply_pause()

    def _note_skipped(self, at: TopicPartition, wanted: int | None, offset: int) -> None:
        if wanted is None or offset <= wanted:
            return
        self._skipped[at.topic, at.partition] += offset - wanted
        which, were, are = (
            (f"1 record, {wanted}, was", "it was", "is")
            if offset - wanted == 1
            else (f"{offset - wanted} records, {wanted} to {offset - 1}, were", "they were", "are")
        )
        self._conditions.happened(
            Condition.RECORDS_DELETED,
            f"{at.topic}[{at.partition}]: {which} deleted before {were} read, and {are} skipped "
            "(source.out_of_range); raise the topic's retention (retention.ms, retention.bytes), "
            "or add engines",
        )

    def _replaced(
        self, starts: Iterable[TopicPartition], ids: Mapping[TopicPartition, str]
    ) -> set[TopicPartition]:
        """Return the partitions whose topic was deleted and recreated since they were read."""
        if not self._check_ids:
            return set()
        known = {
            at: self._ids.get(at) or self._of_owner.identity(StreamPartition(*at)) for at in starts
        }
        return {
            at
            for at, before in known.items()
            if before is not None and ids.get(at, before) != before
        }

    def _drop(self, places: Collection[TopicPartition]) -> None:
        """Drop the buffered records of these partitions, and forget their ends."""
        for at in places:
            self._ends.pop(at, None)
            self._passed.pop(at, None)
        self._buffer.drop(places)

    def _place_again(self, deadline: float) -> bool:
        """Check the positions again, after the broker was unavailable or has reported that a
        position does not exist; return True when this is done."""
        consumer = self._consumer
        self._release_missing()
        # The position of the next delivery: buffered records are dropped, and fetched again.
        here = {**(self._starts or {}), **self._next}
        if consumer is not None and here:
            ranges = self._setup.in_time(lambda: self._ranges(consumer, here), deadline)
            if ranges is None:
                return False
            self._seek(here, *ranges)
        self._check_places = False
        self._verified = True
        return True

    def _release_missing(self) -> None:
        """Release partitions that no longer exist because a topic was recreated with fewer
        partitions."""
        count = min(self._topics_now.counts().values())
        missing = [at for at in self._starts or {} if at.partition >= count]
        if self._group is not None or self._wanted is not None or not count or not missing:
            return
        log.warning(
            "%r: partitions from %d on no longer exist: the topic was created again with fewer",
            self,
            count,
        )
        assert self._consumer is not None, "placed before"
        self._count = count
        self._forget(missing)
        self._consumer.assign(list(self._starts or {}))
        with owners_errors():
            self._of_owner.partitions_revoked(sorted({at.partition for at in missing}), lost=True)

    def _look_at_counts(self) -> None:
        """Detect added partitions; without a group this source reads them."""
        counts = self._topics_now.counts()
        if len(set(counts.values())) > 1:
            now = time.monotonic()
            if self._unlike_since is None:
                self._unlike_since = now
                listed = ", ".join(f"{topic} has {count}" for topic, count in counts.items())
                log.warning(
                    "%r: %s partitions; they must have the same number within %g s",
                    self,
                    listed,
                    UNLIKE_S,
                )
            elif now - self._unlike_since >= UNLIKE_S:
                check_partition_counts(counts)
            return
        self._unlike_since = None
        count = counts[self._topics[0]]
        if self._group is None and self._wanted is None and count > self._count and not self._more:
            log.info("%r: partitions %d to %d were added", self, self._count, count - 1)
            self._more = self._ask_owner(range(self._count, count))

    def _place_more(self, deadline: float) -> bool:
        """Seek to the beginning of added partitions; return True when this is done."""
        consumer, more = self._consumer, self._more
        assert consumer is not None, "placed before"
        ranges = self._setup.in_time(lambda: self._ranges(consumer, more), deadline)
        if ranges is None:
            return False
        self._starts = {**(self._starts or {}), **more}
        consumer.assign(list(self._starts))
        self._seek(more, *ranges)
        self._count += len({at.partition for at in more})
        self._more = {}
        return True

    def _tend(self, deadline: float, gone: Sequence[str]) -> None:
        """Fetch records and serve the group; while there are buffered records, do this only every
        `TEND_S`."""
        now = time.monotonic()
        at_hand = bool(self._buffer.places - self._paused)
        if at_hand and now - self._tended_at < TEND_S:
            return
        unsettled = rebalancing(self._consumer)
        if at_hand:
            deadline = now + (REBALANCE_S if unsettled else 0.0)
        self._apply_pause()
        self._fetch(deadline, gone)
        # Revoked partitions are assigned in a second round of the rebalance.
        if at_hand and unsettled and rebalancing(self._consumer):
            self._fetch(time.monotonic() + REBALANCE_S, gone)
        self._tended_at = time.monotonic()
        if self._group is not None:
            self._commits.send(self._consumer)

    def _are_still_the_same(self, deadline: float) -> bool:
        """Return whether the fetched records belong to the same topics as the positions; this asks
        the broker at most once per second.

        A fetch uses only the name of a topic. If the topic was recreated, the fetch returns
        records of the new topic from the old position on, and its earlier records would be
        skipped.
        """
        if not self._check_ids:
            return True
        if not self._verified:
            left = max(deadline - time.monotonic(), VERIFY_S)
            self._verified = self._topics_now.fresh or self._topics_now.refresh(left)
        now = {topic: self._topics_now.identity(topic) for topic in self._topics}
        if any(now[at.topic] not in (None, known) for at, known in self._ids.items()):
            self._check_places = True
        return self._verified and not self._check_places

    def _pass_over(self) -> None:
        """Move positions past transaction markers after the last delivered record."""
        for at, next_offset in self._next.items():
            if self._ends.get(at, 0) > next_offset and self._buffer.next_of(at) is None:
                position = self._position(at)
                if position > next_offset:
                    self._next[at] = self._passed[at] = position

    def _fetch(self, deadline: float, gone: Sequence[str]) -> None:
        consumer: Any = self._consumer

        def poll() -> Any:
            return consumer.poll(max(0.0, 1000 * (deadline - time.monotonic())))

        fetched = poll() if self._group is None else self._handover.call(poll)
        if fetched or not self._client.quiet(FETCH):
            self._silence.confirm("")
            if self._link.state == "connecting" and not fetched:
                self._check_places = True  # the topic may have been recreated meanwhile
            if gone:
                self._link.down(deleted(gone), Condition.TOPIC_MISSING)
            elif self._group is None or self._joined or settled(consumer):
                self._link.up()
        else:
            self._client.check()
            if quiet := self._quiet():
                self._link.down(quiet)
        # Records of a partition that was revoked during this poll belong to its next owner.
        self._buffer.put({at: batch for at, batch in fetched.items() if at in self._next})
        self._verified = self._verified and not fetched

    def _check_group(self) -> None:
        """Raise `ConnectorError` if another application assigned the group's partitions."""
        if self._assignor.refusal:
            raise ConnectorError(self._foreign_group(self._assignor.refusal))
        if not self._assignor.marked:
            group = group_of(self._reach, self._group or "")
            if group is not None and group.protocol not in ("", self._assignor.name):
                raise ConnectorError(
                    self._foreign_group(f"it assigns its partitions by {group.protocol!r}")
                )
            # Then an engine of an older version, without marks, has assigned the partitions.
            self._assignor.marked = group is not None

    def _refused(self) -> None:
        """Record that the broker does not let this member join the group; raise `ConnectorError`
        if this lasts for `REFUSED_S`."""
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        if now - self._refused_since >= REFUSED_S:
            raise ConnectorError(self._foreign_group("it assigns its partitions in another way"))

    def _foreign_group(self, why: str) -> str:
        group = group_of(self._reach, self._group or "")
        members = "the broker does not list them" if group is None else str(group)
        by = f", assignor {group.protocol!r}" if group is not None and group.protocol else ""
        return (
            f"{self!r}: another application uses the group {self._group!r}: {why}. Its "
            f"members{by}: {members}. Stop the other application, or give source.group a name "
            "that only engines with these topics use"
        )

    def _group_assigned(self, given: Collection[TopicPartition]) -> None:
        of = {
            topic: sorted(at.partition for at in given if at.topic == topic)
            for topic in self._topics
        }
        if len({tuple(partitions) for partitions in of.values()}) > 1:
            raise ConnectorError(
                f"{self!r}: the group assigned different partitions of the topics: {of}"
            )
        assert self._consumer is not None, "subscribed first"
        self._joined = True
        self._refused_since = None
        if given:
            starts = self._ask_owner(of[self._topics[0]])
            self._starts = {**(self._starts or {}), **starts}
            self._check_places = True  # in case the next line fails
            self._seek(starts, *self._ranges(self._consumer, starts))
            self._compare_with_group(starts)
            self._check_places = False

    def _compare_with_group(self, wanted: Mapping[TopicPartition, int | None]) -> None:
        """Report offsets of the group that differ from ours: somebody may have reset them, which
        has no effect."""
        consumer: Any = self._consumer
        with suppress(kafka_errors.KafkaError, OSError):
            committed = consumer._coordinator.fetch_committed_offsets(
                list(wanted), timeout_ms=GROUP_OFFSETS_MS
            )
            placed = {at: self._next[at] for at in wanted if at in self._next}
            if moved := moved_by_others(placed, committed):
                self._conditions.happened(
                    Condition.GROUP_OFFSET, moved_text(self._group or "", moved, placed, wanted)
                )

    def _group_revoked(self, taken: Collection[TopicPartition], lost: bool) -> None:
        if lost:
            self._assignor.forget()
        self._drop(taken)
        with owners_errors():
            self._of_owner.partitions_revoked(sorted({at.partition for at in taken}), lost=lost)
        self._forget(taken)

    def _forget(self, places: Collection[TopicPartition]) -> None:
        self._drop(places)
        self._commits.forget(places)
        for at in places:
            self._skipped.pop((at.topic, at.partition), None)
            for known in (self._next, self._starts or {}, self._ids):
                known.pop(at, None)

    def _apply_pause(self) -> None:
        if self._consumer is None or not self._next:
            return
        own = set(self._next) & self._consumer.assignment()
        full = (
            own
            if self._buffer.size >= self._most_bytes
            else own & (self._paused | self._buffer.places)
        )
        self._consumer.pause(*full)
        self._consumer.resume(*(own - full))

    def _refresh_ends(self, consumer: KafkaConsumer) -> None:
        if time.monotonic() - self._ends_at >= LAG_EVERY_S:
            self._ends_at = time.monotonic()
            with suppress(kafka_errors.KafkaError):
                ends = asked(consumer.end_offsets, self._next, LAG_TIMEOUT_MS)
                for at, end in ends.items():
                    self._ends[at] = max(end, self._ends.get(at, 0))
                # With this isolation level, these are the last stable offsets.
                if self._configs["isolation_level"] == "read_committed":
                    self._open.look(ends, {at: self._position(at) for at in ends}, self._ends)

    def _position(self, at: TopicPartition) -> int:
        """Return the next offset to read: that of the first buffered record, else the client's
        position, which is after transaction markers."""
        buffered = self._buffer.next_of(at)
        if buffered is not None:
            return buffered
        if self._ends.get(at, sys.maxsize) <= self._next[at]:
            return self._next[at]
        with suppress(kafka_errors.KafkaError):
            position: int | None = (
                self._consumer.position(at, timeout_ms=0) if self._consumer is not None else None
            )
            if position is not None:
                return max(position, self._next[at])
        return self._next[at]

    def _lost(self, error: Exception) -> None:
        missing = isinstance(error, kafka_errors.UnknownTopicOrPartitionError)
        what = Condition.TOPIC_MISSING if missing else Condition.NO_ANSWER
        self._link.down(self._client.explain(error), what)


def _check_choice(name: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise ConfigError(f"source.{name}", value, " or ".join(allowed))


def _check_topics(
    topic: str, label_topic: str | None, group: str | None, partitions: Sequence[int] | None
) -> None:
    """Raise `ConfigError` unless the topics differ, and either the group or the config chooses the
    partitions."""
    if label_topic == topic:
        raise ConfigError(
            "source.label_topic", label_topic, "another topic than source.topic, or none"
        )
    if group is not None and partitions is not None:
        raise ConfigError(
            "source.partitions", list(partitions), "nothing where source.group shares them out"
        )
