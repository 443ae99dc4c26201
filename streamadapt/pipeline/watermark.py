"""The watermark of event time, from records that may be out of order or have wrong clocks."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["ALONE", "TOGETHER", "Reading", "Watermark"]

TOGETHER = 3
"""A leap in time is accepted after this number of votes for it more than against it, if the votes
come from two or more sensors."""
ALONE = 16
"""The same number if all votes come from one sensor. At most twice as many records are held in
doubt."""


class Reading(NamedTuple):
    """One sensor's value at one event time (ns)."""

    time: int
    sensor: str
    value: float


class Watermark:
    """The newest event time less the allowed lateness: older records are not waited for.

    One record dated in the next century would close every row until then. Therefore a record more
    than `max_ahead_ns` after the newest time is held in doubt. A later record that is not ahead is
    a vote against the records in doubt; another record ahead is a vote for them. They are
    accepted, oldest first, or dropped. A record within the allowed lateness of another is never a
    vote against it: records that are only out of order are not dropped. At the start a time is
    accepted once two sensors, or `TOGETHER` records of one sensor, agree on it within
    `max_ahead_ns`.

    Parameters
    ----------
    lateness_ns : int, >= 0, ns of event time
    max_ahead_ns : int, >= lateness_ns, ns of event time
    """

    def __init__(self, lateness_ns: int, max_ahead_ns: int) -> None:
        self.lateness_ns = lateness_ns
        self.max_ahead_ns = max_ahead_ns
        self.newest: int | None = None
        self.doubted: list[Reading] = []
        self.votes = 0
        self.dropped = 0  # since the caller last set it to 0

    @property
    def passed(self) -> int | None:
        """The watermark, ns; None before the first record."""
        return None if self.newest is None else self.newest - self.lateness_ns

    def admit(self, reading: Reading) -> list[Reading]:
        """Add one reading; return the readings that are accepted now, in order: this one, several,
        or none yet."""
        if self.newest is None:
            return self._first(reading)
        if self._too_far(reading):
            self.doubted.append(reading)
            self.votes += 1
            return self._judged()
        admitted = [reading, *self._advance(reading.time)]
        if self.doubted:
            self.votes -= 1
            if self.votes <= 0 or len(self.doubted) > 2 * ALONE:
                self._drop()
        return admitted

    def _first(self, reading: Reading) -> list[Reading]:
        """Return the readings that start the stream, oldest first; none if no readings agree
        yet."""
        held = sorted([*self.doubted, reading])
        count = self._agreeing(held)
        if count == 0 and len(held) > 2 * ALONE:
            count = 1  # too many: start at the oldest
        admitted, self.doubted = held[:count], held[count:]
        self.votes = len(self.doubted)
        return admitted + self._advance(admitted[-1].time) if admitted else []

    def _agreeing(self, held: list[Reading]) -> int:
        """Return how many of the oldest readings there are up to the first on whose time several
        agree; 0 if they agree on none."""
        for count, last in enumerate(held, 1):
            agree = [one for one in held[:count] if one.time >= last.time - self.max_ahead_ns]
            if len({one.sensor for one in agree}) > 1 or len(agree) >= TOGETHER:
                return count
        return 0

    def finish(self) -> list[Reading]:
        """End the stream: return the readings in doubt if there were no votes against them, else
        drop them."""
        if self.votes < len(self.doubted):
            self._drop()
        left, self.doubted, self.votes = sorted(self.doubted), [], 0
        if left:
            self.newest = max(self.newest or left[-1].time, left[-1].time)
        return left

    def _too_far(self, reading: Reading) -> bool:
        return self.newest is not None and reading.time > self.newest + self.max_ahead_ns

    def _advance(self, time: int) -> list[Reading]:
        """Move to `time`; return the readings that are no longer in doubt."""
        self.newest = time if self.newest is None else max(self.newest, time)
        freed: list[Reading] = []
        for reading in sorted(self.doubted):
            if self._too_far(reading):
                break
            self.newest = max(self.newest, reading.time)
            freed.append(reading)
        if freed:
            self.doubted = sorted(self.doubted)[len(freed) :]
            self.votes = min(self.votes, len(self.doubted))
        return freed

    def _judged(self) -> list[Reading]:
        sensors = len({reading.sensor for reading in self.doubted})
        if self.votes < (TOGETHER if sensors > 1 else ALONE):
            return []
        first = min(self.doubted)
        self.doubted.remove(first)
        self.votes -= 1
        return [first, *self._advance(first.time)]

    def _drop(self) -> None:
        self.dropped += len(self.doubted)
        self.doubted, self.votes = [], 0

    def state_dict(self) -> dict[str, Any]:
        """Return the newest time and the readings in doubt."""
        return {
            "newest": self.newest,
            "votes": self.votes,
            "doubted": [list(reading) for reading in self.doubted],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.newest = None if state["newest"] is None else int(state["newest"])
        self.votes = int(state["votes"])
        self.doubted = [
            Reading(int(time), sensor, float(value)) for time, sensor, value in state["doubted"]
        ]
