"""Merges entries and labels of one partition into one order, which is the same in every replay."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from streamadapt.errors import Reason
from streamadapt.records import DeadLetter, Entry, Label, Record
from streamadapt.tasks.event_clock import DAY_NS, MAX_BEHIND_NS, EventClock, Verdict, ahead_of

__all__ = ["Arrived", "Merge"]

BEFORE_ALL = -(2**63)
HELD = 64
"""Largest number of records that wait behind a held-back record: then it is judged at once."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """One record in its queue: decoded, or refused.

    Attributes
    ----------
    at : float, s, monotonic
        When the record was polled.
    time : int, ns
        The record's place in the order: its event time, or the newest time of its stream if that
        is later. A refused record gets the time of the record before it, so that it never waits.
    """

    record: Record
    item: Entry | Label | DeadLetter
    at: float
    time: int


@dataclass(frozen=True, slots=True)
class _Head:
    """The first record of a queue, judged; `noted` names the method of its stream's clock that is
    called on release: ``take``, ``refuse`` or none."""

    arrived: Arrived
    noted: str = ""


class Merge:
    """Releases records in event-time order; a label goes before an entry of the same time.

    The head is the first record of a stream's queue. With one stream the order is the stream's
    own. With two, the earlier head is released once both streams have a head. If one stream has
    none, the other stream's head waits. It is released when the empty stream delivers, when that
    stream has been at its end for `wait_s` since the head arrived, or when it will never deliver
    again. A stream that still has unread records is always waited for; so only a record that
    reaches its topic after `wait_s` can come late.

    A record that is dated far ahead (see `EventClock`) would block the other stream until its own
    time. It is held back until the later records of its stream confirm or contradict its time. It
    is refused (``bad_time``) if they contradict it, or if the stream ends first. So the decision
    does not depend on how far behind the reader is, with one exception: the very first records of
    a stream do not wait, and are judged only by records that have already arrived.

    Parameters
    ----------
    streams : int
        1 or 2: entries, labels.
    wait_s : float, s
    max_behind_ns, max_ahead_ns : int, ns of event time
        See `EventClock`.
    refuses : bool
        False: a record that is dated far ahead is released, and counts as if it had the time of
        the record before it. Used where each key has a clock of its own.
    max_held : int, records
        A record is held back only while its queue holds fewer records than this.

    Attributes
    ----------
    held : Record or None
        The record that was held back last; it may have been released since.
    """

    def __init__(
        self,
        streams: int,
        wait_s: float,
        max_behind_ns: int = MAX_BEHIND_NS,
        max_ahead_ns: int = DAY_NS,
        *,
        refuses: bool = True,
        max_held: int = HELD,
    ) -> None:
        self.queues: tuple[deque[Arrived], ...] = tuple(deque() for _ in range(streams))
        self.wait_s = wait_s
        self.refuses = refuses
        self.max_held = min(HELD, max_held)
        self.clocks = [EventClock(max_behind_ns, max_ahead_ns) for _ in range(streams)]
        self.late_labels = 0
        self.held: Record | None = None
        self._heads: list[_Head | None] = [None] * streams
        # when a stream was last seen to have records to be read
        self._behind_until = [0.0] * streams

    def offer(
        self, stream: int, record: Record, item: Entry | Label | DeadLetter, now: float
    ) -> None:
        """Append one record of a stream."""
        self.queues[stream].append(Arrived(record, item, now, BEFORE_ALL))

    def note_lag(self, stream: int, lag: int | None, now: float) -> None:
        """Take note of how many records of a stream are still unread; None (unknown) changes
        nothing."""
        if lag is not None and lag > 0:
            self._behind_until[stream] = now

    def forget(self, stream: int) -> None:
        """Drop the waiting records and the clock of a stream that was created again."""
        if self.held is not None and any(
            arrived.record is self.held for arrived in self.queues[stream]
        ):
            self.held = None
        self.queues[stream].clear()
        self._heads[stream] = None
        self._behind_until[stream] = 0.0
        clock = self.clocks[stream]
        self.clocks[stream] = EventClock(clock.max_behind_ns, clock.max_ahead_ns)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self.queues)

    @property
    def ready(self) -> bool:
        """Whether something can be released without waiting for the clock."""
        return all(self._head(i, ended=False) is not None for i in range(len(self.queues)))

    def release(self, now: float, limit: int, *, ended: bool = False) -> list[Arrived]:
        """Return the records that may be processed now, in order; at most `limit`."""
        released: list[Arrived] = []
        while len(released) < limit:
            first = self._next(now, ended)
            if first is None:
                break
            arrived = self._pop(first)
            newest = self.clocks[0].newest
            if first == 1 and isinstance(arrived.item, Label) and newest is not None:
                self.late_labels += arrived.item.time < newest
            released.append(arrived)
        return released

    def _next(self, now: float, ended: bool) -> int | None:
        """Return the stream whose head goes next; None if there is none yet."""
        heads = [self._head(i, ended) for i in range(len(self.queues))]
        if len(heads) == 1:
            return None if heads[0] is None else 0
        entry, label = heads
        if entry is not None and label is not None:
            return 1 if label.time <= entry.time else 0
        head = label if entry is None else entry
        if head is None:
            return None
        first = 1 if entry is None else 0
        waits_since = max(head.at, self._behind_until[1 - first])
        return first if ended or now - waits_since >= self.wait_s else None

    # -- heads: a head is judged when all earlier records of its stream have been released

    def _head(self, stream: int, ended: bool) -> Arrived | None:
        """Return the stream's next record; None if there is none, or it is held back."""
        head = self._heads[stream]
        if head is None and self.queues[stream]:
            head = self._heads[stream] = self._judged(stream, ended)
        return None if head is None else head.arrived

    def _judged(self, stream: int, ended: bool) -> _Head | None:
        head, clock = self.queues[stream][0], self.clocks[stream]
        newest = BEFORE_ALL if clock.newest is None else clock.newest
        if not isinstance(head.item, _kind(stream)):
            return _Head(replace(head, time=newest))
        if stream == 1:
            # labels may continue from the entries' newest time after a pause
            clock.others = self.clocks[0].newest
        time, verdict = head.item.time, clock.judge(head.item.time)
        too_far_ahead = verdict is Verdict.AHEAD
        if too_far_ahead or (clock.young and (verdict is Verdict.LEAP or clock.newest is None)):
            confirmed = clock.foresee(time, self._following(stream))
            if (
                confirmed is None
                and too_far_ahead
                and self.refuses
                and not ended
                and len(self.queues[stream]) < self.max_held
            ):
                self.held = head.record
                return None
            too_far_ahead = not confirmed if confirmed is not None else too_far_ahead
        if too_far_ahead:
            item = self._refused(head, newest) if self.refuses else head.item
            return _Head(replace(head, time=newest, item=item), "refuse")
        if verdict is Verdict.BEHIND:
            return _Head(replace(head, time=newest), "refuse")
        return _Head(
            replace(head, time=time if verdict is Verdict.BACK else max(time, newest)), "take"
        )

    def _following(self, stream: int) -> Iterator[int]:
        for arrived in islice(self.queues[stream], 1, HELD):
            if isinstance(arrived.item, _kind(stream)):
                yield arrived.item.time

    def _refused(self, head: Arrived, newest: int) -> DeadLetter:
        assert isinstance(head.item, Entry | Label)
        detail = ahead_of(head.item.time, None if newest == BEFORE_ALL else newest)
        return DeadLetter(head.record, Reason.BAD_TIME.value, "process", detail)

    def _pop(self, stream: int) -> Arrived:
        head = self._heads[stream]
        assert head is not None, "judged before it is released"
        item = self.queues[stream].popleft().item
        self._heads[stream] = None
        if head.noted == "take" and isinstance(item, Entry | Label):
            self.clocks[stream].take(item.time)
        elif head.noted == "refuse" and isinstance(item, Entry | Label):
            self.clocks[stream].refuse(item.time)
        return head.arrived

    def start_from(self, clock: EventClock) -> None:
        """Continue from the event clock of a restored checkpoint."""
        self.clocks[0].load_state_dict(clock.state_dict())


def _kind(stream: int) -> type[Entry] | type[Label]:
    """Return the type of the items that move a stream's clock; labels in the entries' stream may
    have any age and do not move it."""
    return Entry if stream == 0 else Label
