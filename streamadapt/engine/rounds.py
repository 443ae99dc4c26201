"""The order and length of the partitions' turns: no turn and no batch of records lasts long."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator

from streamadapt.clock import Clock
from streamadapt.engine.merge import Arrived, Merge

__all__ = ["BATCH_SIZE", "ReleasedBatch", "Turns"]

BATCH_SIZE = 32
"""Largest number of records in one batch."""


class ReleasedBatch:
    """A batch of records that may be processed now, handed over one by one until the time is up;
    at least one is handed over.

    With a model that takes 2 s per entry, a full batch of 32 would last a minute. In this minute
    the engine could handle no signal, no checkpoint and no rebalance of a consumer group.

    Parameters
    ----------
    merge : Merge
        Where the records wait.
    now : float, s, monotonic
    until : float, s, monotonic
        No further record is handed over after this time.
    ended : bool
        See `Merge.release`.
    stopping : callable
        Returns whether the engine has been asked to stop.

    Attributes
    ----------
    handed : list of Arrived
        The records handed over so far.
    """

    def __init__(
        self,
        merge: Merge,
        clock: Clock,
        now: float,
        until: float,
        *,
        ended: bool,
        stopping: Callable[[], bool],
    ) -> None:
        self._merge = merge
        self._clock = clock
        self._now = now
        self._until = until
        self._ended = ended
        self._stopping = stopping
        self.handed: list[Arrived] = []
        self._first = merge.release(now, 1, ended=ended)

    def __bool__(self) -> bool:
        """Whether there is at least one record."""
        return bool(self._first)

    @property
    def count(self) -> int:
        """Number of records handed over so far."""
        return len(self.handed)

    def __iter__(self) -> Iterator[Arrived]:
        released, self._first = self._first, []
        while released:
            self.handed += released
            yield released[0]
            if (
                self.count == BATCH_SIZE
                or self._stopping()
                or self._clock.monotonic() >= self._until
            ):
                return
            released = self._merge.release(self._now, 1, ended=self._ended)


class Turns:
    """The order in which partitions are processed: the one that has waited longest goes first.

    A round lasts at most `round_s` plus one record. Its time is divided evenly among the
    partitions that have records to process. Partitions that got no time go first in the next
    round.

    Parameters
    ----------
    clock : Clock
    round_s : float, s
    """

    def __init__(self, clock: Clock, round_s: float) -> None:
        self._clock = clock
        self._round_s = round_s
        self._order: deque[int] = deque()

    def round(self, ready: Collection[int], work: Callable[[int, float], bool]) -> None:
        """Process the partitions of `ready` in turn, until none has records left or the time is
        up.

        Parameters
        ----------
        ready : collection of int
            Partitions that may have records to process.
        work : callable of partition and time (s, monotonic) to bool
            Processes a partition until that time, at least one record; returns whether it may
            have more records.
        """
        begin = self._clock.monotonic()
        self._order = deque(p for p in self._order if p in ready)
        self._order.extend(sorted(set(ready).difference(self._order)))
        busy = set(self._order)
        turn_s = self._round_s / max(1, len(busy))
        while busy:
            partition = self._order[0]
            self._order.rotate(-1)
            if partition not in busy:
                continue
            now = self._clock.monotonic()
            if not work(partition, min(now + turn_s, begin + self._round_s)):
                busy.discard(partition)
            if self._clock.monotonic() - begin >= self._round_s:
                return
