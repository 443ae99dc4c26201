"""Log lines about wrong clocks and entries out of order; not one line for each record."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from streamadapt.errors import Reason
from streamadapt.pipeline.stats import Stats
from streamadapt.records import DeadLetter, Position, Record

__all__ = ["TimeWatch", "order_warning"]

_LOG = logging.getLogger("streamadapt")

LOUD = 0.02
"""A larger share of entries out of order causes a warning."""
ENOUGH = 100
"""Smallest number of entries in a running stream from which the share is computed."""


class TimeWatch:
    """Logs faults of one partition's event times in this run.

    Records that are dated too far ahead are logged at the first, the second, the fourth and so
    on. A jump of event time, and the correction of a wrong time, are logged each time. Entries
    out of order are logged once.

    Parameters
    ----------
    partition : int
    stats : Stats
        The statistics at the start: counts of an earlier run are not logged again.

    Attributes
    ----------
    example : str
        The position of an entry out of order, and the reason if it was refused; empty if there
        was none.
    """

    def __init__(self, partition: int, stats: Stats) -> None:
        self.partition = partition
        self.example = ""
        self._wrong = self._held = 0
        self._held_at: Position | None = None
        self._logged = stats.times.copy()
        self._start = _counts(stats)
        self._order_logged = False

    def look(self, stats: Stats, letters: Sequence[DeadLetter], raised: str) -> None:
        """Log new faults; `raised` is the position of an entry that was processed out of order, or
        empty."""
        for letter in letters:
            if letter.reason == Reason.BAD_TIME.value and letter.stage == "process":
                self._log_wrong(letter)
            elif letter.reason == Reason.TIME_BACKWARDS.value:
                self.example = f"{letter.record.position}: {letter.detail}"
        self.example = self.example or raised
        for what, words in (("leap", "leapt ahead to"), ("back", "was wrong, and goes back to")):
            if stats.times[what] > self._logged[what]:
                self._logged[what] = stats.times[what]
                _LOG.warning(
                    "partition %d: event time %s %s", self.partition, words, _date(stats.last_time)
                )
        if not self._order_logged:
            entries, refused, raised_count = (
                now - then for now, then in zip(_counts(stats), self._start, strict=True)
            )
            warning = (
                order_warning(entries, refused, raised_count, self.example)
                if entries >= ENOUGH
                else ""
            )
            if warning:
                self._order_logged = True
                _LOG.warning("partition %d: %s", self.partition, warning)

    def look_held(self, record: Record | None) -> None:
        """Log that a record is held back, once for each record."""
        if record is None or record.position == self._held_at:
            return
        self._held_at = record.position
        self._held += 1
        if _is_power_of_two(self._held):
            _LOG.warning(
                "partition %d: %s is dated far ahead (limits.max_ahead): held back until the "
                "next records show whether "
                "event time has leapt; %d so far",
                self.partition,
                record.position,
                self._held,
            )

    def _log_wrong(self, letter: DeadLetter) -> None:
        self._wrong += 1
        if _is_power_of_two(self._wrong):
            _LOG.warning(
                "partition %d: refused as bad_time, %d so far; look at the producer's clock. "
                "%s: %s",
                self.partition,
                self._wrong,
                letter.record.position,
                letter.detail,
            )


def order_warning(entries: int, refused: int, raised: int, example: str) -> str:
    """Return a warning if many entries came out of order, else an empty string.

    Parameters
    ----------
    entries : int
        Number of all entries, including those that were refused for their time.
    refused, raised : int
        How many of them were too old and were refused, and how many were processed with the
        newest time instead of their own.
    example : str
        An entry out of order; may be empty.
    """
    if refused + raised <= LOUD * entries:
        return ""
    such_as = f", for example {example}" if example else ""
    if refused > LOUD * entries:
        return (
            f"{refused:,} of {entries:,} entries ({refused / entries:.1%}) came out of order by "
            f"more than "
            f"limits.max_behind and were refused as time_backwards{such_as}. Raise "
            f"limits.max_behind to take them in "
            "the order of arrival, or use [panel], which puts records of many sensors in order"
        )
    return (
        f"{raised + refused:,} of {entries:,} entries ({(raised + refused) / entries:.1%}) came "
        f"out of order{such_as}: "
        f"{raised:,} were taken with the newest time (limits.max_behind), {refused:,} refused "
        f"as time_backwards. "
        "Their producers' clocks may differ; [panel] puts records of many sensors in order"
    )


def _is_power_of_two(count: int) -> bool:
    return count & (count - 1) == 0


def _counts(stats: Stats) -> tuple[int, int, int]:
    refused = stats.rejected[Reason.TIME_BACKWARDS.value]
    return stats.entries + refused, refused, stats.times["raised"]


def _date(time: int) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time // 1000)).isoformat()
