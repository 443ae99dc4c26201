"""Who is processed next, and for how long: partitions take turns, and no lot of records lasts
long."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator

from streamadapt.clock import Clock
from streamadapt.engine.merge import Arrived, Merge

__all__ = ["LOT", "Lot", "Turns"]

LOT = 32
"""Most records that are processed as one lot."""


class Lot:
    """Records that may be processed now, handed over one by one until the time is up; at least
    one.

    With a model of 2 s an entry a lot of 32 would last a minute, in which no signal, no checkpoint
    and no rebalance of a consumer group is looked at.

    Parameters
    ----------
    merge : Merge
        Where the records wait.
    now : float, s, monotonic
    until : float, s, monotonic
        No further record is begun after it.
    ended : bool
        See `Merge.release`.
    stopping : callable
        Whether the engine has been asked to stop.

    Attributes
    ----------
    handed : list of Arrived
        What was handed over.
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
        """Whether there is any record."""
        return bool(self._first)

    @property
    def count(self) -> int:
        """Records handed over."""
        return len(self.handed)

    def __iter__(self) -> Iterator[Arrived]:
        released, self._first = self._first, []
        while released:
            self.handed += released
            yield released[0]
            if self.count == LOT or self._stopping() or self._clock.monotonic() >= self._until:
                return
            released = self._merge.release(self._now, 1, ended=self._ended)


class Turns:
    """The order in which partitions are processed: the one that has waited longest goes first.

    A round lasts `round_s` at most, and one record more. It is divided evenly among the partitions
    that have something to do. Those that it had no time for go first in the next one.

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
        """Let the partitions of `ready` work in turn, until none has anything to do or the time is
        up.

        Parameters
        ----------
        ready : collection of int
            Partitions that may have something to do.
        work : callable of partition and time (s, monotonic) to bool
            Processes a partition until that time, at least one record; returns whether there may
            be more to do.
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
