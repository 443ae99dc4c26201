"""What the engine needs from the world: a Source, a Sink for predictions, a Sink for dead letters,
a Clock.

Implementations live in ``streamadapt_connectors`` (Kafka, files) and in ``streamadapt.testing``
(memory). A third party adds one through the entry-point groups ``streamadapt.sources`` and
``streamadapt.sinks``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from streamadapt.engine.conditions import Conditions, Standing
from streamadapt.errors import ConnectorError
from streamadapt.records import DeadLetter, Prediction, Record, StreamPartition

__all__ = [
    "DeadLetterSink",
    "PartitionOwner",
    "RecallingSink",
    "Sink",
    "Source",
    "TransactionalSink",
]


class PartitionOwner(Protocol):
    """The side of the engine that a source talks to when partitions come and go."""

    def partitions_assigned(
        self, partitions: Sequence[int]
    ) -> Mapping[StreamPartition, int | None]:
        """Say where to start reading.

        Called from `Source.open` or from inside `Source.poll`. Returns, for every stream of the
        source and every one of `partitions`, the offset of the first record wanted, or None for
        the source's configured start.
        """
        ...

    def reached(self, at: StreamPartition) -> int:
        """Return one past the newest record of a partition that is known to have been there; 0 if
        nothing is known.

        Called after `partitions_assigned`: a stream that ends before it was made anew.
        """
        ...

    def identity(self, at: StreamPartition) -> str | None:
        """Return what `Source.identities` said of a stream when its position was saved; None if
        nothing is known."""
        ...

    def partitions_placed(
        self, starts: Mapping[StreamPartition, int], *, anew: Collection[StreamPartition]
    ) -> None:
        """Hear of starts that were not asked for.

        Called before the first record of them: `starts` begin at what was the end when the source
        looked, or where the source's own policy says since what was asked for is gone. `anew` are
        those of them whose stream was deleted and created again: its offsets have nothing to do
        with earlier ones.
        """
        ...

    def partitions_revoked(self, partitions: Sequence[int], *, lost: bool) -> None:
        """Let go of `partitions`.

        With ``lost=True`` somebody else may own them already: write nothing for them.
        """
        ...


class Source(ABC):
    """Where records come from.

    Used from one thread; only `poll` may block, and at most for its time-out.

    Attributes
    ----------
    has_keys, has_times : bool
        Of the class: whether its records have keys, and time stamps, besides their values.
    """

    has_keys: ClassVar[bool] = True
    has_times: ClassVar[bool] = True

    @classmethod
    def has_text_cells(cls, settings: Mapping[str, Any]) -> bool:
        """Whether the numbers of its records are text, as in CSV, by its table in a config."""
        del settings
        return False

    @property
    @abstractmethod
    def streams(self) -> Sequence[str]:
        """The streams it reads: the entries' first, then, if there is one, the labels'.

        Partition p of every stream belongs together: entries and their labels share a partition
        number.
        """

    def look(self, codec: object) -> list[dict[str, Any]]:
        """Look at what can be seen before it starts, and change nothing; what
        ``streamadapt check`` tells.

        Returns
        -------
        list of dict
            For each file ``path`` and ``columns``, or a ``problem``. Nothing where it would have
            to connect.

        Raises
        ------
        ConfigError
            If all of the records would be refused, with what to change.
        """
        del codec
        return []

    @abstractmethod
    def open(self, owner: PartitionOwner) -> None:
        """Start: find the partitions, ask `owner` where to begin, place itself there.

        Returns at once also when the other side cannot be reached: `poll` keeps trying, and
        `state` says so.
        """

    @abstractmethod
    def poll(self, timeout_s: float) -> list[Record]:
        """Return the records that are there, in order within each partition; empty after at most
        `timeout_s` seconds.

        Raises `ConnectorError` only for what waiting cannot mend (a position out of the topic's
        range, wrong credentials); what can be retried is retried inside, with back-off.
        """

    @abstractmethod
    def pause(self, partitions: Collection[StreamPartition]) -> None:
        """Deliver records of exactly these partitions no more, until called again without them
        (backpressure)."""

    def seek(self, starts: Mapping[StreamPartition, int | None]) -> None:
        """Go to other positions in partitions that it reads already: the next `poll` delivers from
        there.

        Parameters
        ----------
        starts : mapping of StreamPartition to int or None
            The offset of the first record wanted, as from `PartitionOwner.partitions_assigned`:
            None is the source's own start. Partitions that are not named are read on.

        Raises
        ------
        ConnectorError
            If the source cannot go back while it runs; the engine then ends, and a restart
            replays.
        """
        raise ConnectorError(
            f"{type(self).__name__} cannot go back to {', '.join(map(str, starts))} while it "
            f"runs; start the engine "
            "again: it replays from the last commit"
        )

    @abstractmethod
    def lag(self) -> dict[StreamPartition, int]:
        """Return how many records are not yet delivered, where the end is known.

        Never blocks for long.
        """

    def read_up_to(self) -> Mapping[StreamPartition, int]:
        """Return offsets that were passed without a record: behind the last one delivered, as far
        as it is known.

        Offsets may be taken by what is never delivered (a transaction's markers, records that its
        producer took back). Only a partition of which every record before that offset has been
        delivered may be named.
        """
        return {}

    def identities(self) -> Mapping[StreamPartition, str]:
        """Return what tells a stream from another one of the same name, created after it was
        deleted (a topic's id).

        Saved with the positions, and asked for with `PartitionOwner.identity`. Empty where there
        is no such thing.
        """
        return {}

    @property
    def partition_count(self) -> int | None:
        """How many partitions its streams have, also those that others read; None while that is
        not known."""
        return None

    @property
    def shared(self) -> bool:
        """Whether a partition may go to another process that does not know if this one still runs
        (a group)."""
        return False

    @property
    def skips_tombstones(self) -> bool:
        """Whether records without a value are passed over, instead of becoming dead letters."""
        return False

    @property
    def trouble(self) -> str:
        """Why nothing can be read for now, in words for an operator; empty if nothing is known.

        Called from any thread; never blocks.
        """
        return ""

    @property
    def standing(self) -> Standing:
        """How it does at this moment, for metrics. Called from any thread; never blocks."""
        return Standing(self.trouble)

    @property
    @abstractmethod
    def state(self) -> str:
        """``connected``, ``connecting`` or ``ended`` (a finite source that has delivered its last
        record)."""

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:  # noqa: B027 - optional by design
        """Tell the other side how far the checkpoints have come (next offset wanted); for
        monitoring only."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. Idempotent; not guaranteed to be called (a crash)."""


class Sink(ABC):
    """Where predictions go.

    Attributes
    ----------
    opens_when_made : bool
        Of the class: whether making one creates or mends something; a check then makes none.
    connection : tuple of str
        Of the class: settings that it takes from a source of the same kind, all of them, where its
        own table does not name the first.
    """

    opens_when_made: ClassVar[bool] = False
    connection: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def output_files(cls, settings: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the files that one of these settings writes to: setting -> path."""
        del settings
        return {}

    @classmethod
    def dead_letters_beside(cls, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the settings of a dead letter sink of the same kind, beside a sink of these.

        None where there is no such place: the config then has to name one.
        """
        del settings
        return None

    @property
    def trouble(self) -> str:
        """Why what is written cannot be delivered for now, in words for an operator; empty if
        nothing is known.

        Called from any thread; never blocks.
        """
        return ""

    @property
    def conditions(self) -> Conditions | None:
        """Where it keeps what an operator should know of it; None where it keeps nothing."""
        return None

    @property
    def standing(self) -> Standing:
        """How it does at this moment, for metrics. Called from any thread; never blocks."""
        return Standing(self.trouble)

    def expect_partitions(self, count: int) -> None:  # noqa: B027 - optional by design
        """Hear how many partitions the input has, before something is written of any: for an
        output yet to be made."""

    @abstractmethod
    def write(self, predictions: Sequence[Prediction]) -> None:
        """Accept predictions, in order within a partition.

        May buffer; blocks when its bounded buffer is full.
        """

    @abstractmethod
    def flush(self) -> None:
        """Return once every accepted prediction has been delivered, verified one by one.

        Raises `ConnectorError` if one cannot be: the engine then does not checkpoint past it.
        """

    def break_off_when(self, given_up: Callable[[], bool]) -> None:  # noqa: B027 - optional by design
        """Take what says, at any time, whether to wait no longer: `write` and `flush` then raise
        `ConnectorError`.

        An engine that was asked to stop gives up after a while. A sink that waits asks at least
        every few seconds; one that never waits needs nothing of this.
        """

    def refused(self) -> list[DeadLetter]:
        """Return, once each, the predictions that the other side will never take, as dead letters
        (too large)."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Flush and release everything. Idempotent."""


class RecallingSink(Sink):
    """A sink that can read back how far its output has come: what ``effectively-once`` needs."""

    @abstractmethod
    def newest(self, stream: str, partition: int) -> int | None:
        """Return the offset in the id of the newest prediction that the output holds for a
        partition of `stream`.

        None if there is none. Predictions of one partition must stay in order in the output.

        Raises
        ------
        ConnectorError
            If the output is not made so that its order could be kept.
        """

    def check_before_sending(self, check: Callable[[Collection[int]], None]) -> None:
        """Take what raises if one of some input partitions belongs to another engine by now; any
        thread may call it.

        A sink that sends what it has accepted later, or again, calls it with the partitions
        immediately before. If it raises, the sink sends nothing more, and raises the same from
        `write` and `flush`. One that writes at once needs nothing of this.
        """


class TransactionalSink(Sink):
    """A sink whose predictions become visible together with the positions they were made at:
    ``exactly-once``.

    A partition that `begin` was called for is written to in transactions, from the first write
    after it, or after the last `commit`, to the next `commit`.
    """

    @property
    def transaction_timeout_s(self) -> float | None:
        """For how long a transaction may be open, in seconds; None for any time."""
        return None

    def name_of(self, streams: Sequence[str], partition: int) -> str:
        """Return under which name a partition's positions are committed, for messages; empty if it
        has none."""
        del streams, partition
        return ""

    @abstractmethod
    def begin(self, streams: Sequence[str], partition: int) -> dict[StreamPartition, int]:
        """Become a partition's only writer: older ones can commit nothing more, and what they left
        open is void.

        Returns
        -------
        dict of StreamPartition to int
            The positions committed last, of all `streams`; empty if there never were any.

        Raises
        ------
        TransactionLostError
            From here, and from `write`, `flush` and `commit`: the transaction is void, since the
            other side did not answer in time or somebody else has begun with the partition.
            `begin` may be called again.
        """

    @abstractmethod
    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        """Make what was written for one partition visible, and the positions the committed ones,
        as one step.

        Raises
        ------
        ConnectorError
            If that cannot be, or if somebody else has begun with the partition: nothing of it is
            visible then.
        """

    @abstractmethod
    def end(self, partition: int) -> None:
        """Let go of a partition. What was not committed is void. Idempotent."""

    def abandon(self, partition: int) -> None:
        """Let go of a partition that is somebody else's now: say nothing more to the other side.

        Idempotent.
        """
        self.end(partition)


class DeadLetterSink(ABC):
    """Where refused records go; same rules as `Sink`."""

    opens_when_made: ClassVar[bool] = False
    connection: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def output_files(cls, settings: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the files that one of these settings writes to: setting -> path."""
        del settings
        return {}

    @property
    def trouble(self) -> str:
        """Why what is written cannot be delivered for now, in words for an operator; see
        `Sink.trouble`."""
        return ""

    @property
    def standing(self) -> Standing:
        """How it does at this moment, for metrics; see `Sink.standing`."""
        return Standing(self.trouble)

    def expect_partitions(self, count: int) -> None:  # noqa: B027 - optional by design
        """Hear how many partitions the input has; see `Sink`."""

    @abstractmethod
    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Accept refused records. May buffer; blocks when its bounded buffer is full."""

    @abstractmethod
    def flush(self) -> None:
        """Return once every accepted one has been delivered; raises `ConnectorError` if one cannot
        be."""

    def break_off_when(self, given_up: Callable[[], bool]) -> None:  # noqa: B027 - optional by design
        """Take what says, at any time, whether to wait no longer: `write` and `flush` then raise
        `ConnectorError`.

        See `Sink.break_off_when`.
        """

    @abstractmethod
    def close(self) -> None:
        """Flush and release everything. Idempotent."""
