"""Local times in the hour that autumn repeats: told apart by the order of a stream's records."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from streamadapt.records import Entry, Label

__all__ = ["LocalClock"]

MINUTE_NS: Final = 60 * 10**9
JITTER_NS: Final = 20 * MINUTE_NS
"""A clock that is back by more has begun the hour a second time; by less it is late, or another
clock."""
HOUR_NS: Final = 60 * MINUTE_NS
AWAY_NS: Final = 2 * HOUR_NS
"""A record from so long before the hour belongs to another part of the stream, such as another
key's in a file."""


class LocalClock:
    """Decides which of two times each record of one stream means.

    A record's `or_time` is the later time, where its local time can mean two. The earlier one is
    taken until the clock goes back by more than 20 minutes within the hour; from then on it is the
    later one. Where records come an hour apart or more the clock does not go back at all: there
    the time is taken that is the usual step after the last record. With a gap instead of the first
    pass nothing can tell; the earlier one is taken.

    The decision depends on the records before it in the stream alone. What is known after each
    record is kept until `passed` says that the record is dealt with: `state` then belongs to the
    same place as a checkpoint's positions.
    """

    def __init__(self) -> None:
        # Of the repeated hour: its first time, its newest, whether it runs a second time; then the
        # last time of all and the last two steps. All early times; 0 is none yet.
        self._now = [0, 0, 0, 0, 0, 0]
        self._done = list(self._now)
        self._after: deque[tuple[int, list[int]]] = deque()

    def take(self, offset: int, item: Entry | Label) -> Entry | Label:
        """Return a record with the time that it means; records come in the order of their
        offsets."""
        if item.or_time is None:
            return item
        time = self._meant(item.time, item.or_time)
        if (
            self._after and offset <= self._after[-1][0]
        ):  # the stream was made new, and counts from 0 again
            self._after.clear()
        self._after.append((offset, list(self._now)))
        return replace(item, time=time, or_time=None)

    def passed(self, offset: int) -> None:
        """Take note that the records up to `offset` are dealt with."""
        while self._after and self._after[0][0] <= offset:
            self._done = self._after.popleft()[1]

    def _meant(self, early: int, late: int) -> int:
        first, newest, second, last, step, step_before = self._now
        time = early
        if late > early:
            length = late - early
            if not first or abs(early - first) >= length:  # another year's hour
                first, newest, second = early, early, 0
            if step >= HOUR_NS and (step_before == 0 or step_before >= HOUR_NS):
                second = int(abs(late - last - step) < abs(early - last - step))
            elif not second and early < newest - JITTER_NS:
                newest, second = early, 1
            if (
                second and early <= newest + length - JITTER_NS
            ):  # else a straggler of the first pass
                newest, time = max(newest, early), late
            elif not second:
                newest = max(newest, early)
        elif time < first - AWAY_NS:
            first = newest = second = 0
        self._now = [first, newest, second, time, max(time - last, 1) if last else 0, step]
        return time

    @property
    def state(self) -> list[int]:
        """What is known after the last record that has passed, as numbers; empty for a stream
        without local times."""
        return list(self._done) if any(self._done) else []

    def load(self, state: Sequence[int]) -> None:
        """Go on from a `state`."""
        self._now = [int(number) for number in state] or [0, 0, 0, 0, 0, 0]
        self._done = list(self._now)
        self._after.clear()
