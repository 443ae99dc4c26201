"""Merging entries and labels of one partition into one order that every replay sees again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from streamadapt.entry import Entry, Label
from streamadapt.ports import DeadLetter, Record

__all__ = ["Arrived", "Merge"]


@dataclass(frozen=True, slots=True)
class Arrived:
    """One record in its queue: decoded, or refused.

    Attributes
    ----------
    at : float, s, monotonic
        When it was polled.
    time : int, ns
        Event time; of a refused record, that of the one before it, so that it waits for nothing.
    """

    record: Record
    item: Entry | Label | DeadLetter
    at: float
    time: int


class Merge:
    """Releases records in event-time order; a label goes before an entry of the same time.

    With one stream the order is the stream's own. With two, the earlier head is released once both streams have one;
    where one stream has none, the other's head waits until that stream delivers, has been at its end for `wait_s`
    since the head arrived, or will never deliver again. While a stream still has records to be read, its records are
    worth waiting for: only what its topic does not hold after `wait_s` can come late.

    Parameters
    ----------
    streams : int
        1 or 2: entries, labels.
    wait_s : float, s
    """

    def __init__(self, streams: int, wait_s: float) -> None:
        self.queues: tuple[deque[Arrived], ...] = tuple(deque() for _ in range(streams))
        self.wait_s = wait_s
        self.late_labels = 0
        self._newest = [-(2**63)] * streams  # event time of the newest record offered, per stream
        self._released = -(2**63)  # event time of the newest entry released
        self._behind_until = [0.0] * streams  # when a stream was last seen to have records to be read

    def offer(self, stream: int, record: Record, item: Entry | Label | DeadLetter, now: float) -> None:
        """Append one record of a stream."""
        time = self._newest[stream] if isinstance(item, DeadLetter) else max(item.time, self._newest[stream])
        self._newest[stream] = time
        self.queues[stream].append(Arrived(record, item, now, time))

    def note_lag(self, stream: int, lag: int | None, now: float) -> None:
        """Say how many records of a stream are still to be read; None, where that is not known, changes nothing."""
        if lag is not None and lag > 0:
            self._behind_until[stream] = now

    def forget(self, stream: int) -> None:
        """Drop what waits of a stream, and how far its times had come: it begins again."""
        self.queues[stream].clear()
        self._newest[stream] = -(2**63)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self.queues)

    @property
    def ready(self) -> bool:
        """Whether something can be released without waiting for the clock."""
        return all(self.queues)

    def release(self, now: float, limit: int, *, ended: bool = False) -> list[Arrived]:
        """Return what may be processed now, in order; at most `limit` records."""
        released: list[Arrived] = []
        while len(released) < limit:
            first = self._next(now, ended)
            if first is None:
                break
            arrived = self.queues[first].popleft()
            if first == 0:
                self._released = max(self._released, arrived.time)
            elif isinstance(arrived.item, Label) and arrived.item.time < self._released:
                self.late_labels += 1
            released.append(arrived)
        return released

    def _next(self, now: float, ended: bool) -> int | None:
        """Return the stream whose head goes next; None if there is none yet."""
        if len(self.queues) == 1:
            return 0 if self.queues[0] else None
        entries, labels = self.queues
        if entries and labels:
            return 1 if labels[0].time <= entries[0].time else 0
        if not entries and not labels:
            return None
        first = 0 if entries else 1
        waits_since = max(self.queues[first][0].at, self._behind_until[1 - first])
        return first if ended or now - waits_since >= self.wait_s else None
