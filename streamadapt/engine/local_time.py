"""Local times in the hour that is repeated in autumn, resolved by the order of the records."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from streamadapt.records import Entry, Label

__all__ = ["LocalClock"]

MINUTE_NS: Final = 60 * 10**9
JITTER_NS: Final = 20 * MINUTE_NS
"""If a local time goes back by more than this, the repeated hour has begun a second time. If it
goes back by less, the record is late, or its producer has another clock."""
HOUR_NS: Final = 60 * MINUTE_NS
AWAY_NS: Final = 2 * HOUR_NS
"""A record that is dated this long before the repeated hour belongs to another part of the
stream, such as another key's records in a file."""


class LocalClock:
    """Decides which of two possible times each record of one stream has.

    If a record's local time can mean two times, `time` is the earlier one and `or_time` the later
    one. The earlier time is chosen until the local times go back by more than 20 minutes within
    the hour; after that the later time is chosen. If the records are an hour or more apart, the
    local times never go back: then the time is chosen that is one usual step after the last
    record. If the first pass of the hour is missing, nothing can show which time is right; the
    earlier one is chosen.

    The decision depends only on the earlier records of the stream. The state after each record is
    kept until `passed` is called for the record: so `state` always belongs to the same position
    as a checkpoint.
    """

    def __init__(self) -> None:
        # Of the repeated hour: its first time, its newest time, and whether this is its second
        # pass. Then the last time of the stream and the last two steps. 0 means none yet.
        self._now = [0, 0, 0, 0, 0, 0]
        self._done = list(self._now)
        self._after: deque[tuple[int, list[int]]] = deque()

    def take(self, offset: int, item: Entry | Label) -> Entry | Label:
        """Return the record with its decided time; call it in the order of the offsets."""
        if item.or_time is None:
            return item
        time = self._resolved(item.time, item.or_time)
        if self._after and offset <= self._after[-1][0]:
            # the stream was created again, and its offsets start from 0
            self._after.clear()
        self._after.append((offset, list(self._now)))
        return replace(item, time=time, or_time=None)

    def passed(self, offset: int) -> None:
        """Take note that the records up to `offset` have been processed."""
        while self._after and self._after[0][0] <= offset:
            self._done = self._after.popleft()[1]

    def _resolved(self, early: int, late: int) -> int:
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
            # a later `early` is of a late record of the first pass
            if second and early <= newest + length - JITTER_NS:
                newest, time = max(newest, early), late
            elif not second:
                newest = max(newest, early)
        elif time < first - AWAY_NS:
            first = newest = second = 0
        self._now = [first, newest, second, time, max(time - last, 1) if last else 0, step]
        return time

    @property
    def state(self) -> list[int]:
        """The state after the last processed record, as numbers; empty for a stream without local
        times."""
        return list(self._done) if any(self._done) else []

    def load(self, state: Sequence[int]) -> None:
        """Continue from a saved `state`."""
        self._now = [int(number) for number in state] or [0, 0, 0, 0, 0, 0]
        self._done = list(self._now)
        self._after.clear()
