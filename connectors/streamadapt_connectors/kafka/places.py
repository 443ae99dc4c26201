"""Decides where to start reading: compares positions with the offsets that the topic still has."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from streamadapt.errors import ConfigError, ConnectorError
from streamadapt.records import StreamPartition
from streamadapt_connectors.kafka.words import absent

__all__ = [
    "MissingTopicError",
    "Places",
    "Range",
    "asked",
    "check_partition_counts",
    "fetched_ends",
    "partition_counts",
    "ranges_of",
    "topic_partitions",
]

OFFSETS_TIMEOUT_MS: Final = 5000
METADATA_TIMEOUT_MS: Final = 10_000


class MissingTopicError(kafka_errors.UnknownTopicOrPartitionError):  # type: ignore[misc]
    """Raised if topics that the engine reads do not exist.

    Parameters
    ----------
    topics : sequence of str
    """

    def __init__(self, topics: Sequence[str]) -> None:
        super().__init__(*topics)
        self.topics = tuple(topics)

    def __str__(self) -> str:
        return (
            f"{absent(self.topics)}, and an engine does not create the topics that it reads: "
            f"create {'it' if len(self.topics) == 1 else 'them'}, or correct source.topic or "
            "source.label_topic"
        )


@dataclass(frozen=True)
class Range:
    """The offsets of a partition's records.

    Attributes
    ----------
    begin, end : int
        The first offset; the offset of the next record that will be written.
    """

    begin: int
    end: int


@dataclass(frozen=True)
class Placing:
    """The first offsets to read.

    Attributes
    ----------
    offsets : dict of TopicPartition to int
    chosen : dict of StreamPartition to int
        The offsets that differ from those that the owner has asked for.
    recreated : list of StreamPartition
        The partitions whose topic was deleted and recreated.
    """

    offsets: dict[TopicPartition, int]
    chosen: dict[StreamPartition, int]
    recreated: list[StreamPartition]


@dataclass(frozen=True)
class Places:
    """The two policies for the start of reading.

    Attributes
    ----------
    start : str
        ``earliest`` or ``latest``: where to start without a position.
    out_of_range : str
        ``error``, ``earliest`` or ``latest``: what to do if the position no longer exists.
    """

    start: str = "earliest"
    out_of_range: str = "error"

    def __post_init__(self) -> None:
        if self.start not in ("earliest", "latest"):
            raise ConfigError("source.start", self.start, "earliest or latest")
        if self.out_of_range not in ("error", "earliest", "latest"):
            raise ConfigError(
                "source.out_of_range", self.out_of_range, "error, earliest or latest"
            )

    def resolve(
        self,
        at: TopicPartition,
        wanted: int | None,
        held: Range,
        reached: int = 0,
        *,
        replaced: bool = False,
    ) -> int:
        """Return the offset to read first.

        Parameters
        ----------
        reached : int
            The offset after the newest record that the topic is known to have had.
        replaced : bool
            Whether `wanted` and `reached` are offsets of another topic that had the same name.

        Raises
        ------
        ConnectorError
            If the policy is ``error``, and `wanted` is outside of `held`, or `reached` is beyond
            its end, or records were read from a topic that was replaced.
        """
        lost = replaced and max(wanted or 0, reached) > 0
        if not lost and reached <= held.end:
            if wanted is None:
                return held.begin if self.start == "earliest" else held.end
            if held.begin <= wanted <= held.end:
                return wanted
        if self.out_of_range == "error":
            place = f"kafka {at.topic}[{at.partition}]: "
            if lost:
                raise ConnectorError(
                    f"{place}this is not the topic that was read up to "
                    f"{max(wanted or 0, reached)}: that topic was deleted, and a new topic was "
                    "created with its name (it has another topic id); set source.out_of_range to "
                    "'earliest' or 'latest' to continue with the new topic, start without the "
                    "checkpoint, or, if it is a copy in which every record has its old offset, "
                    "set source.check_topic_id to false"
                )
            if reached > held.end:
                raise ConnectorError(
                    f"{place}the output has predictions for its records up to {reached - 1}, but "
                    f"the topic ends at {held.end}: it was deleted and created again; set "
                    "source.out_of_range to 'earliest' or 'latest' to continue with it, or use "
                    "another sink.topic"
                )
            raise ConnectorError(
                f"{place}position {wanted} is outside of the topic's {held.begin} to "
                f"{held.end}: its records were deleted, or the topic was deleted and created "
                "again; start without the checkpoint, or set source.out_of_range to 'earliest' "
                "or 'latest' to accept the gap"
            )
        return held.begin if self.out_of_range == "earliest" else held.end

    def all(
        self,
        starts: Mapping[TopicPartition, int | None],
        held: Mapping[TopicPartition, Range],
        reached: Mapping[TopicPartition, int],
        *,
        replaced: Collection[TopicPartition] = (),
        added: Collection[TopicPartition] = (),
    ) -> Placing:
        """Resolve all of `starts`; see `resolve`.

        Parameters
        ----------
        added : collection of TopicPartition
            The partitions that the topic did not have at first: they are read from their
            beginning, also with ``start = "latest"``.
        """
        placing = Placing({}, {}, [])
        for at, wanted in starts.items():
            if wanted is None and at in added:
                offset = held[at].begin
            else:
                offset = self.resolve(at, wanted, held[at], reached[at], replaced=at in replaced)
            placing.offsets[at] = offset
            fresh = at in replaced or max(reached[at], wanted or 0) > held[at].end
            if fresh or self.starts_at_the_end(wanted) or wanted not in (None, offset):
                placing.chosen[StreamPartition(*at)] = offset
            if fresh:
                placing.recreated.append(StreamPartition(*at))
        return placing

    def starts_at_the_end(self, wanted: int | None) -> bool:
        """Return whether reading starts at the present end of the topic, which changes all the
        time."""
        return wanted is None and self.start == "latest"


def ranges_of(
    consumer: KafkaConsumer,
    wanted: Mapping[TopicPartition, int | None],
    places: Places,
    spare: Callable[[], Any],
    reached: Mapping[TopicPartition, int],
) -> dict[TopicPartition, Range]:
    """Ask the broker for the first and last offsets of the partitions of `wanted`.

    Some brokers return the start of the last batch as a partition's end. So, if the true end
    matters (a position is beyond it, or reading starts at it), the last batch is fetched: the
    answer contains the true end.

    Parameters
    ----------
    consumer : KafkaConsumer
    wanted : mapping of TopicPartition to int or None
        The requested offsets.
    places : Places
    spare : callable
        Returns a context manager of a second consumer without a group; called only if the true end
        matters.
    reached : mapping of TopicPartition to int
        See `Places.resolve`.

    Raises
    ------
    KafkaError
        After 20 seconds at the latest.
    """
    begins = asked(consumer.beginning_offsets, wanted)
    ends = asked(consumer.end_offsets, wanted)
    doubtful = [
        at
        for at, offset in wanted.items()
        if ends[at] > begins[at]
        and (places.starts_at_the_end(offset) or max(offset or 0, reached.get(at, 0)) > ends[at])
    ]
    if doubtful:
        with spare() as second:
            ends.update(fetched_ends(second, {at: ends[at] for at in doubtful}))
    return {at: Range(begins[at], ends[at]) for at in wanted}


def asked(
    offsets: Callable[..., dict[TopicPartition, int]],
    places: Iterable[TopicPartition],
    timeout_ms: int | None = None,
) -> dict[TopicPartition, int]:
    """Call one of kafka-python's two functions for offsets; for a partition that does not exist,
    raise a `KafkaError`, too."""
    wanted = list(places)
    try:
        return offsets(wanted, timeout_ms=OFFSETS_TIMEOUT_MS if timeout_ms is None else timeout_ms)
    except KeyError as error:
        raise kafka_errors.UnknownTopicOrPartitionError(
            f"partition {error} does not exist"
        ) from error


def fetched_ends(
    consumer: KafkaConsumer, ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Return the high watermarks, which the broker sends with the records before `ends`."""
    consumer.assign(list(ends))
    for at, end in ends.items():
        consumer.seek(at, end - 1)
    left = set(ends)
    deadline = time.monotonic() + OFFSETS_TIMEOUT_MS / 1000
    while left and time.monotonic() < deadline:
        consumer.poll(100)
        left = {at for at in left if consumer.highwater(at) is None}
    return {at: max(end, consumer.highwater(at) or 0) for at, end in ends.items()}


def topic_partitions(consumer: Any, topic: str) -> list[int]:
    """Return the partitions of a topic; an empty list if it does not exist.

    `KafkaConsumer.partitions_for_topic` is not used: it asks for all topics, gets only those that
    the user may describe, and waits for the brokers without a limit.

    Raises
    ------
    KafkaError
        After `METADATA_TIMEOUT_MS` at the latest; `TopicAuthorizationFailedError` if the user may
        not describe the topic.
    """
    cluster, manager = consumer._cluster, consumer._manager
    if cluster.partitions_for_topic(topic) is None:
        # A request that is under way may have been sent before the topic was added.
        if cluster.metadata_refresh_in_progress:
            with suppress(kafka_errors.BrokerResponseError):
                consumer._net.run(manager.wait_for, cluster.request_update(), METADATA_TIMEOUT_MS)
        try:
            consumer._net.run(manager.wait_for, _asked_for(cluster, topic), METADATA_TIMEOUT_MS)
        except kafka_errors.UnknownTopicOrPartitionError:
            return []
        if topic in cluster.unauthorized_topics:
            raise kafka_errors.TopicAuthorizationFailedError({topic})
    return sorted(cluster.partitions_for_topic(topic) or ())


def _asked_for(cluster: Any, topic: str) -> Any:
    try:
        added = cluster.add_topic(topic)
    except (TypeError, ValueError) as error:
        raise kafka_errors.InvalidTopicError(topic) from error
    return cluster.request_update() if added.is_done else added


def partition_counts(consumer: KafkaConsumer, topics: Sequence[str]) -> dict[str, int]:
    """Return the number of partitions of each topic; raise `MissingTopicError` if a topic does not
    exist."""
    counts = {topic: len(topic_partitions(consumer, topic)) for topic in topics}
    missing = [topic for topic, count in counts.items() if not count]
    if missing:
        raise MissingTopicError(missing)
    return counts


def check_partition_counts(counts: Mapping[str, int]) -> None:
    """Raise `ConnectorError` unless all topics have the same number of partitions."""
    if len(set(counts.values())) > 1:
        counted = ", ".join(f"{topic!r} has {count}" for topic, count in counts.items())
        raise ConnectorError(
            "kafka: entries and labels need the same number of partitions, since partition p of "
            f"one topic belongs to partition p of the other, but {counted}"
        )
