"""Refusing a record whose time is far ahead of those that follow it, before it can hold up the whole stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from streamadapt.entry import Entry, Label
from streamadapt.errors import Reason
from streamadapt.ports import DeadLetter, Record

__all__ = ["FOLLOWERS", "Lookahead"]

FOLLOWERS = 16
"""Records that a time is compared with, where so many are to be had."""
FEWEST = 3
"""With fewer followers nothing is said: which of two records has the wrong clock cannot be told."""


class Lookahead:
    """One stream's newest records, each held until the `FOLLOWERS` after it are there.

    A single record dated next century would make every entry after it "go back in time", and would hold every label
    behind it until next century. If a record's time is more than `most_ahead_ns` after that of all its followers, it is
    refused instead. At the end of a stream nothing is held: a record there is judged by the followers it has, and the
    newest by none.

    Parameters
    ----------
    most_ahead_ns : int, ns of event time
    """

    def __init__(self, most_ahead_ns: int) -> None:
        self.most_ahead_ns = most_ahead_ns
        self._held: deque[tuple[Record, Entry | Label | DeadLetter]] = deque()

    def __len__(self) -> int:
        return len(self._held)

    def forget(self) -> None:
        """Drop what is held."""
        self._held.clear()

    def push(self, record: Record, item: Entry | Label | DeadLetter) -> None:
        """Take one record of the stream, in its order."""
        self._held.append((record, item))

    def release(self, *, behind: bool) -> Iterator[tuple[Record, Entry | Label | DeadLetter]]:
        """Yield what need not be held any longer; `behind` tells whether more records wait to be read."""
        while len(self._held) > (FOLLOWERS if behind else 0):
            record, item = self._held.popleft()
            yield record, self._judged(record, item)

    def _judged(self, record: Record, item: Entry | Label | DeadLetter) -> Entry | Label | DeadLetter:
        if isinstance(item, DeadLetter) or not self._held:
            return item
        latest, count = item.time - self.most_ahead_ns, 0
        for _, follower in self._followers():
            if isinstance(follower, DeadLetter):
                continue
            if follower.time >= latest:
                return item
            count += 1
        if count < FEWEST:
            return item
        ahead = self.most_ahead_ns / 1e9
        detail = f"time is more than {ahead:g} s ahead of the {count} records that follow (limits.max_ahead)"
        return DeadLetter(record, Reason.BAD_TIME.value, "process", detail)

    def _followers(self) -> Iterator[tuple[Record, Entry | Label | DeadLetter]]:
        for i, held in enumerate(self._held):
            if i == FOLLOWERS:
                return
            yield held
