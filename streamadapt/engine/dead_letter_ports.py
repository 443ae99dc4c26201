"""What the way back for dead letters needs: a reader of them, and a writer to the streams they
came from.

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
"""The reason of what stands among the dead letters and is none."""


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter, read back.

    Attributes
    ----------
    letter : DeadLetter
        As it was refused; of a record that is none of streamadapt's, itself with the reason
        `FOREIGN`.
    place : Position
        Where it stands among the dead letters.
    truncated : int or None, bytes
        The value's size, where only its beginning was kept.
    foreign : bool
        Whether it is somebody else's: where it came from is not known.
    """

    letter: DeadLetter
    place: Position
    truncated: int | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class ReplayMark:
    """A note among the dead letters: what is being fed back, and what became of it.

    Attributes
    ----------
    state : str
        ``sending`` before the first is sent, then ``sent`` or ``not-sent``. What stays at
        ``sending`` may have been.
    time : int, ns since the Unix epoch
    positions : tuple of Position
        Of the refused records, where they stood in their source.
    """

    state: str
    time: int
    positions: tuple[Position, ...]


class DeadLetterReader(ABC):
    """Reads what a `DeadLetterSink` of the same settings wrote, and keeps notes.

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
        """What it is, for a person; no secrets."""

    @property
    @abstractmethod
    def missing(self) -> bool:
        """Whether the last `read` found that the place does not exist (yet)."""

    @abstractmethod
    def read(
        self, on_progress: Callable[[int, int], None] | None = None
    ) -> Iterator[StoredLetter | ReplayMark]:
        """Yield everything from the beginning to the end as it is now, in order within a
        partition.

        Parameters
        ----------
        on_progress : callable of two int, optional
            Called now and then with how much is read, and of how much.

        Raises
        ------
        ConnectorError
            If it cannot be read. Whatever the letters hold is never a reason.
        """

    @abstractmethod
    def mark(self, mark: ReplayMark) -> None:
        """Keep a note; when this returns it is stored, and every later `read` yields it after
        those before it.

        Raises
        ------
        ConnectorError
            If it cannot be.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything. Idempotent."""


@dataclass(frozen=True, slots=True)
class Returning:
    """A repaired record on its way back.

    Attributes
    ----------
    record : Record
        Its position is the refused one's.
    timed : bool
        Whether the record's own time stamp counts, and so is to be kept.
    """

    record: Record
    timed: bool


class Returned(NamedTuple):
    """What became of one `Returning`.

    Attributes
    ----------
    state : str
        ``sent``, ``not-sent``, or ``unknown``.
    detail : str
        Where it stands now, or why it does not.
    """

    state: str
    detail: str


class StreamWriter(ABC):
    """Puts records at the end of the streams that a `Source` of the same settings reads."""

    @abstractmethod
    def check(self, places: Collection[StreamPartition]) -> None:
        """Raise `ConnectorError` if one of these cannot be written to; changes nothing."""

    @abstractmethod
    def write(self, records: Sequence[Returning]) -> list[Returned]:
        """Write them in order, and say of each what became of it; returns within a minute,
        whatever happens."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. Idempotent."""
