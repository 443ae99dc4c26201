"""The interfaces for replaying dead letters: a reader of dead letters, and a writer to the
streams that they came from.

Implementations live in ``streamadapt_connectors``; a third party adds one through the entry-point
groups ``streamadapt.dead_letter_readers`` and ``streamadapt.stream_writers``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from streamadapt.records import DeadLetter, Position, Record, StreamPartition

__all__ = [
    "FOREIGN",
    "DeadLetterReader",
    "ReplayMark",
    "Returned",
    "Returning",
    "StoredLetter",
    "StreamWriter",
]

FOREIGN = "foreign"
"""The reason for a record among the dead letters that streamadapt did not write."""


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter, read back.

    Attributes
    ----------
    letter : DeadLetter
        The refused record with its reason; for a record that streamadapt did not write, the record
        itself with the reason `FOREIGN`.
    place : Position
        Its position among the dead letters.
    truncated : int or None, bytes
        The full size of the value, if only its beginning was kept.
    foreign : bool
        Whether streamadapt did not write it: then its origin is not known.
    """

    letter: DeadLetter
    place: Position
    truncated: int | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class ReplayMark:
    """A mark among the dead letters: which records are being replayed, and with what result.

    Attributes
    ----------
    state : str
        ``sending`` before the first record is sent, then ``sent`` or ``not-sent``. Records that
        stay at ``sending`` may or may not have been sent.
    time : int, ns since the Unix epoch
    positions : tuple of Position
        The positions of the refused records in their source.
    """

    state: str
    time: int
    positions: tuple[Position, ...]


class DeadLetterReader(ABC):
    """Reads what a `DeadLetterSink` with the same settings wrote, and stores replay marks.

    Commits and locks nothing.

    Attributes
    ----------
    connection : tuple of str
        See `streamadapt.engine.ports.Sink`.
    made_beforehand : bool
        Of the class: whether the place is there before its first letter, so that a missing one is
        worth a word.
    """

    connection: ClassVar[tuple[str, ...]] = ()
    made_beforehand: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """The reader's name for a person; contains no secrets."""

    @property
    @abstractmethod
    def missing(self) -> bool:
        """Whether the last `read` found that the place does not exist (yet)."""

    @abstractmethod
    def read(
        self, on_progress: Callable[[int, int], None] | None = None
    ) -> Iterator[StoredLetter | ReplayMark]:
        """Yield everything from the beginning to the current end, in order within a partition.

        Parameters
        ----------
        on_progress : callable of two int, optional
            Called from time to time with the amount that was read and the total.

        Raises
        ------
        ConnectorError
            If the dead letters cannot be read. Their content never causes it.
        """

    @abstractmethod
    def mark(self, mark: ReplayMark) -> None:
        """Store a mark durably; every later `read` yields the marks in the order of these calls.

        Raises
        ------
        ConnectorError
            If it cannot be stored.
        """

    @abstractmethod
    def close(self) -> None:
        """Release all resources. Idempotent."""


@dataclass(frozen=True, slots=True)
class Returning:
    """A repaired record that is to be written back to its stream.

    Attributes
    ----------
    record : Record
        The repaired record, with the position of the refused one.
    timed : bool
        Whether the record's own time stamp is used as event time and so must be kept.
    """

    record: Record
    timed: bool


class Returned(NamedTuple):
    """The result of writing one `Returning`.

    Attributes
    ----------
    state : str
        ``sent``, ``not-sent``, or ``unknown``.
    detail : str
        The record's new position, or why it was not written.
    """

    state: str
    detail: str


class StreamWriter(ABC):
    """Appends records to the streams that a `Source` with the same settings reads."""

    @abstractmethod
    def check(self, places: Collection[StreamPartition]) -> None:
        """Raise `ConnectorError` if one of `places` cannot be written; changes nothing."""

    @abstractmethod
    def write(self, records: Sequence[Returning]) -> list[Returned]:
        """Write the records in order and return the result of each; returns within a minute in
        every case."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources. Idempotent."""
