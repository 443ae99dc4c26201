"""The interfaces that the engine needs: a Source, a Sink for predictions, a Sink for dead letters.

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
        """Return where to start reading.

        Called from `Source.open` or from inside `Source.poll`. Returns, for every stream of the
        source and each of `partitions`, the offset of the first record to read, or None for
        the source's configured start.
        """
        ...

    def known_end(self, at: StreamPartition) -> int:
        """Return the offset after the newest record of a partition that is known to have existed;
        0 if nothing is known.

        Called after `partitions_assigned`. If the stream ends before this offset, the stream was
        deleted and created again.
        """
        ...

    def identity(self, at: StreamPartition) -> str | None:
        """Return what `Source.identities` returned for a stream when its position was saved; None
        if nothing is known."""
        ...

    def partitions_placed(
        self, starts: Mapping[StreamPartition, int], *, recreated: Collection[StreamPartition]
    ) -> None:
        """Take note of start positions that the source chose itself.

        Called before the first record from these positions. The source chose them in one of two
        cases: no position was requested, and it starts at the end that it found; or the requested
        offset no longer exists, and its own policy decides. `recreated` names the partitions
        whose stream was deleted and created again: their offsets have nothing to do with earlier
        ones.
        """
        ...

    def partitions_revoked(self, partitions: Sequence[int], *, lost: bool) -> None:
        """Give up `partitions`.

        With ``lost=True`` another process may own them already: write nothing for them.
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
        """Inspect the input before the source starts, for ``streamadapt check``; changes nothing.

        Returns
        -------
        list of dict
            For each file ``path`` and ``columns``, or a ``problem``. Empty for a source that
            would have to connect.

        Raises
        ------
        ConfigError
            If all of the records would be refused, with what to change.
        """
        del codec
        return []

    @abstractmethod
    def open(self, owner: PartitionOwner) -> None:
        """Start: find the partitions, ask `owner` where to begin, and move to these positions.

        Returns at once, even if the other side cannot be reached: then `poll` keeps trying, and
        `state` shows it.
        """

    @abstractmethod
    def poll(self, timeout_s: float) -> list[Record]:
        """Return the available records, in order within each partition; an empty list after at
        most `timeout_s` seconds.

        Raises `ConnectorError` only for faults that waiting cannot fix (a position out of the
        topic's range, wrong credentials). All other faults are retried inside, with back-off.
        """

    @abstractmethod
    def pause(self, partitions: Collection[StreamPartition]) -> None:
        """Stop delivering records of exactly these partitions until a later call leaves them out
        (backpressure)."""

    def seek(self, starts: Mapping[StreamPartition, int | None]) -> None:
        """Move to other positions in partitions that are already being read; the next `poll`
        delivers from there.

        Parameters
        ----------
        starts : mapping of StreamPartition to int or None
            The offset of the first record to read, as `PartitionOwner.partitions_assigned`
            returns it: None is the source's own start. All other partitions are read on.

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
        """Return, for each partition, the offset up to which there is no undelivered record.

        Some offsets never become records (a transaction's markers, records of an aborted
        transaction). The returned offset skips those after the last delivered record. A partition
        is named only if every record before its offset has been delivered.
        """
        return {}

    def identities(self) -> Mapping[StreamPartition, str]:
        """Return an identity of each stream, which changes if the stream is deleted and created
        again under the same name (a topic's id).

        It is saved with the positions; `PartitionOwner.identity` returns the saved one. Empty for
        sources without identities.
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
        """Whether records without a value are skipped instead of becoming dead letters."""
        return False

    @property
    def trouble(self) -> str:
        """Why nothing can be read for now, in words for an operator; empty if nothing is known.

        Called from any thread; never blocks.
        """
        return ""

    @property
    def standing(self) -> Standing:
        """The source's condition at this moment, for metrics. Called from any thread; never
        blocks."""
        return Standing(self.trouble)

    @property
    @abstractmethod
    def state(self) -> str:
        """``connected``, ``connecting`` or ``ended`` (a finite source that has delivered its last
        record)."""

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:  # noqa: B027 - optional by design
        """Report the checkpointed positions to the other side (the next offset to read); for
        monitoring only."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources. Idempotent; not guaranteed to be called (a crash)."""


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
        """Why predictions cannot be delivered for now, in words for an operator; empty if no
        fault is known.

        Called from any thread; never blocks.
        """
        return ""

    @property
    def conditions(self) -> Conditions | None:
        """The faults that this sink reports to an operator; None for a sink that reports none."""
        return None

    @property
    def standing(self) -> Standing:
        """The sink's condition at this moment, for metrics. Called from any thread; never
        blocks."""
        return Standing(self.trouble)

    def expect_partitions(self, count: int) -> None:  # noqa: B027 - optional by design
        """Take note of the input's number of partitions, before anything is written; for a sink
        that creates its output."""

    @abstractmethod
    def write(self, predictions: Sequence[Prediction]) -> None:
        """Accept predictions, in order within a partition.

        May buffer; blocks when its bounded buffer is full.
        """

    @abstractmethod
    def flush(self) -> None:
        """Return once the delivery of every accepted prediction has been verified.

        Raises `ConnectorError` if one cannot be delivered: the engine then does not checkpoint
        past it.
        """

    def break_off_when(self, given_up: Callable[[], bool]) -> None:  # noqa: B027 - optional by design
        """Store a function that returns whether to stop waiting: once it returns True, `write`
        and `flush` raise `ConnectorError`.

        An engine that was asked to stop gives up after a while. A sink that waits calls the
        function at least every few seconds; a sink that never waits can ignore it.
        """

    def refused(self) -> list[DeadLetter]:
        """Return the predictions that the other side will never accept (too large), as dead
        letters; each one is returned once."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Flush, and release all resources. Idempotent."""


class RecallingSink(Sink):
    """A sink that can read back the newest prediction in its output; ``effectively-once`` needs
    it."""

    @abstractmethod
    def newest(self, stream: str, partition: int) -> int | None:
        """Return the offset in the id of the newest prediction that the output holds for a
        partition of `stream`.

        None if it holds none. Predictions of one partition must stay in order in the output.

        Raises
        ------
        ConnectorError
            If the output's settings cannot keep that order.
        """

    def check_before_sending(self, check: Callable[[Collection[int]], None]) -> None:
        """Take what raises if one of some input partitions belongs to another engine by now; any
        thread may call it.

        A sink that sends what it has accepted later, or again, calls it with the partitions
        immediately before. If it raises, the sink sends nothing more, and raises the same from
        `write` and `flush`. One that writes at once needs nothing of this.
        """


class TransactionalSink(Sink):
    """A sink that makes predictions visible together with the input positions they were made at;
    ``exactly-once`` needs it.

    After `begin`, a partition is written in transactions. A transaction starts with the first
    write after `begin` or after a `commit`, and ends with the next `commit`.
    """

    @property
    def transaction_timeout_s(self) -> float | None:
        """Longest time that a transaction may be open, in seconds; None for no limit."""
        return None

    def name_of(self, streams: Sequence[str], partition: int) -> str:
        """Return the name under which a partition's positions are committed, for messages; empty
        if it has none."""
        del streams, partition
        return ""

    @abstractmethod
    def begin(self, streams: Sequence[str], partition: int) -> dict[StreamPartition, int]:
        """Become a partition's only writer: older writers can commit nothing more, and their open
        transactions are aborted.

        Returns
        -------
        dict of StreamPartition to int
            The positions committed last, of all `streams`; empty if nothing was ever committed.

        Raises
        ------
        TransactionLostError
            Raised here and by `write`, `flush` and `commit`: the transaction is void, because the
            other side did not answer in time or another writer called `begin` for the partition.
            `begin` may be called again.
        """

    @abstractmethod
    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        """Make one partition's predictions visible and commit its positions, in one step.

        Raises
        ------
        ConnectorError
            If this fails, or if another writer called `begin` for the partition. Then none of the
            predictions are visible.
        """

    @abstractmethod
    def end(self, partition: int) -> None:
        """Give up a partition. Everything uncommitted is void. Idempotent."""

    def abandon(self, partition: int) -> None:
        """Give up a partition that another writer owns now, without a message to the other side.

        Idempotent.
        """
        self.end(partition)


class DeadLetterSink(ABC):
    """Where refused records go; the same rules as for `Sink`."""

    opens_when_made: ClassVar[bool] = False
    connection: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def output_files(cls, settings: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the files that one of these settings writes to: setting -> path."""
        del settings
        return {}

    @property
    def trouble(self) -> str:
        """Why dead letters cannot be delivered for now, in words for an operator; see
        `Sink.trouble`."""
        return ""

    @property
    def standing(self) -> Standing:
        """The sink's condition at this moment, for metrics; see `Sink.standing`."""
        return Standing(self.trouble)

    def expect_partitions(self, count: int) -> None:  # noqa: B027 - optional by design
        """Take note of the input's number of partitions; see `Sink`."""

    @abstractmethod
    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Accept refused records. May buffer; blocks when its bounded buffer is full."""

    @abstractmethod
    def flush(self) -> None:
        """Return once every accepted record has been delivered; raises `ConnectorError` if one
        cannot be delivered."""

    def break_off_when(self, given_up: Callable[[], bool]) -> None:  # noqa: B027 - optional by design
        """Store a function that returns whether to stop waiting.

        See `Sink.break_off_when`.
        """

    @abstractmethod
    def close(self) -> None:
        """Flush, and release all resources. Idempotent."""
