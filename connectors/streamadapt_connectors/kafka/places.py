"""Where to start reading: positions against what the topic still holds."""

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
    """Topics that the engine reads are not there.

    Parameters
    ----------
    topics : sequence of str
    """

    def __init__(self, topics: Sequence[str]) -> None:
        super().__init__(*topics)
        self.topics = tuple(topics)

    def __str__(self) -> str:
        return (
            f"topic {', '.join(self.topics)} does not exist: an engine does not create what it "
            f"reads; create it, or "
            "correct source.topic or source.label_topic"
        )


@dataclass(frozen=True)
class Range:
    """What a partition holds.

    Attributes
    ----------
    begin, end : int
        First offset held; offset of the next record to be written.
    """

    begin: int
    end: int


@dataclass(frozen=True)
class Placing:
    """Where partitions are read first.

    Attributes
    ----------
    offsets : dict of TopicPartition to int
    told : dict of StreamPartition to int
        Those of them that the owner did not ask for.
    anew : list of StreamPartition
        Those whose topic was deleted and created again.
    """

    offsets: dict[TopicPartition, int]
    told: dict[StreamPartition, int]
    anew: list[StreamPartition]


@dataclass(frozen=True)
class Places:
    """The two policies of a start.

    Attributes
    ----------
    start : str
        ``earliest`` or ``latest``, where no position is asked for.
    out_of_range : str
        ``error``, ``earliest`` or ``latest``, where the asked one is gone.
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
            One past the newest record that is known to have been there.
        replaced : bool
            Whether the topic is known to be another than the one that `wanted` and `reached` are
            about.

        Raises
        ------
        ConnectorError
            If `wanted` is outside of `held`, or `reached` beyond it, or something was read of the
            topic that was replaced, and the policy is ``error``.
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
                    f"{max(wanted or 0, reached)}: that one was "
                    "deleted, and this one was created under its name (its topic id is "
                    "another); set "
                    "source.out_of_range to 'earliest' or 'latest' to go on with the new topic, "
                    "start without the "
                    "checkpoint, or, if it is a copy in which every record has its old offset, "
                    "set "
                    "source.check_topic_id to false"
                )
            if reached > held.end:
                raise ConnectorError(
                    f"{place}the output knows of its records up to {reached - 1}, but the topic "
                    f"ends at {held.end}: it "
                    "was deleted and created again; set source.out_of_range to 'earliest' or "
                    "'latest' to go on with "
                    "it, or name another sink.topic"
                )
            raise ConnectorError(
                f"{place}position {wanted} is outside of the topic's {held.begin} to "
                f"{held.end}: its records are gone "
                "or the topic was deleted and created again; start without the checkpoint, or set "
                "source.out_of_range to 'earliest' or 'latest' to accept the gap"
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
        """Resolve every one of `starts`; see `resolve`.

        Parameters
        ----------
        added : collection of TopicPartition
            Those that the topic did not have at first: all of their records are new, whatever
            `start` says.
        """
        found = Placing({}, {}, [])
        for at, wanted in starts.items():
            if wanted is None and at in added:
                offset = held[at].begin
            else:
                offset = self.resolve(at, wanted, held[at], reached[at], replaced=at in replaced)
            found.offsets[at] = offset
            fresh = at in replaced or max(reached[at], wanted or 0) > held[at].end
            if fresh or self.starts_at_the_end(wanted) or wanted not in (None, offset):
                found.told[StreamPartition(*at)] = offset
            if fresh:
                found.anew.append(StreamPartition(*at))
        return found

    def starts_at_the_end(self, wanted: int | None) -> bool:
        """Whether a start is where the topic happens to end: looked up again it is another."""
        return wanted is None and self.start == "latest"


def ranges_of(
    consumer: KafkaConsumer,
    wanted: Mapping[TopicPartition, int | None],
    places: Places,
    spare: Callable[[], Any],
    reached: Mapping[TopicPartition, int],
) -> dict[TopicPartition, Range]:
    """Ask the broker what the partitions of `wanted` hold.

    Some brokers name the start of the last batch when asked for a partition's end. So, where
    something hangs on the end (a position beyond it, a start at it), the last batch is fetched,
    whose answer carries the true one.

    Parameters
    ----------
    consumer : KafkaConsumer
    wanted : mapping of TopicPartition to int or None
        The offsets asked for.
    places : Places
    spare : callable
        Returns a context manager of a second consumer, without a group; only called where
        something hangs on an end.
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
    """Call one of kafka-python's two functions for offsets; a partition that is not there is a
    `KafkaError`, too."""
    wanted = list(places)
    try:
        return offsets(wanted, timeout_ms=OFFSETS_TIMEOUT_MS if timeout_ms is None else timeout_ms)
    except KeyError as error:
        raise kafka_errors.UnknownTopicOrPartitionError(
            f"partition {error} is not there"
        ) from error


def fetched_ends(
    consumer: KafkaConsumer, ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Return the high watermarks that come with the records before `ends`."""
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
    """Return the partitions of a topic, none if it does not exist.

    `KafkaConsumer.partitions_for_topic` asks for all topics, which are only those that the user
    may describe, and waits for the brokers without a limit.

    Raises
    ------
    KafkaError
        After `METADATA_TIMEOUT_MS` at the latest; `TopicAuthorizationFailedError` if the user may
        not describe it.
    """
    cluster, manager = consumer._cluster, consumer._manager
    if cluster.partitions_for_topic(topic) is None:
        # It may have been asked for before the topic was of interest.
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
    """Return how many partitions the topics have; raises `KafkaError` if one is not there."""
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
            f"kafka: entries and labels need the same number of partitions, so that partition p "
            f"of both belongs "
            f"together, but {counted}"
        )
