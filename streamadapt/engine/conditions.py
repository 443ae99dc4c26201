"""Conditions that keep a source or a sink from working: one log line when a condition begins, one
when it ends, and counts."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from streamadapt.config.secrets import scrubbed

__all__ = ["BLOCKING", "NOTHING", "Condition", "Conditions", "Standing"]


class Condition(StrEnum):
    """Conditions that an operator should know; the values are metric labels, so they never change.

    The last three are events: they have no end.
    """

    NO_ANSWER = "no_answer"
    TOPIC_MISSING = "topic_missing"
    TOO_FEW_REPLICAS = "too_few_replicas"
    UNACKNOWLEDGED = "unacknowledged"
    OPEN_TRANSACTION = "open_transaction"
    RECORDS_DELETED = "records_deleted"
    GROUP_OFFSET = "group_offset"
    OFFSETS_EXPIRED = "offsets_expired"


BLOCKING: Final = frozenset(
    (
        Condition.NO_ANSWER,
        Condition.TOPIC_MISSING,
        Condition.TOO_FEW_REPLICAS,
        Condition.UNACKNOWLEDGED,
    )
)
"""While one of these holds, no work can be done."""
EVENTS: Final = (Condition.RECORDS_DELETED, Condition.GROUP_OFFSET, Condition.OFFSETS_EXPIRED)


AGAIN_S: Final = 10.0
"""A condition that returns within this time after its end is the same outage: brokers that start
up may fail again at first."""


@dataclass(frozen=True)
class Standing:
    """The condition of one side (the source, the sink or the dead letters) at this moment.

    Attributes
    ----------
    trouble : str
        Why no work can be done; empty if no fault is known.
    holds : mapping of Condition to bool
        Whether each condition holds now; only conditions that the side can detect.
    began : mapping of Condition to int
        How often each condition has begun.
    unacknowledged_s : float or None, s
        Age of the oldest delivery that is not acknowledged; None for a side without
        acknowledgements.
    skipped : mapping of (str, int) to int
        Stream and partition -> number of offsets that were skipped, since their records were
        deleted before they were read.
    """

    trouble: str = ""
    holds: Mapping[Condition, bool] = field(default_factory=dict)
    began: Mapping[Condition, int] = field(default_factory=dict)
    unacknowledged_s: float | None = None
    skipped: Mapping[tuple[str, int], int] = field(default_factory=dict)


NOTHING: Final = Standing()
"""The standing of a side that reports nothing."""


@dataclass
class _Held:
    text: str
    since: float
    noticed: float
    holders: set[str]


class Conditions:
    """The conditions of one side. Any thread may call any method.

    Parameters
    ----------
    what : str
        The side's name in the log lines, e.g. ``source kafka speeds at localhost:9092``. Never
        contains a secret.
    known : collection of Condition
        The conditions that this side can detect.
    log : logging.Logger, optional
    clock : callable () -> float, optional
        Monotonic time in seconds.

    Attributes
    ----------
    what : str
    answered : bool
        Whether the other side has ever answered.
    """

    def __init__(
        self,
        what: str,
        known: tuple[Condition, ...],
        log: logging.Logger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = what
        self._known = known
        self._log = log or logging.getLogger("streamadapt")
        self._clock = clock
        self._lock = threading.RLock()
        self._held: dict[Condition, _Held] = {}
        # when it ended, and since when it had held
        self._ended: dict[Condition, tuple[float, float]] = {}
        self._began: Counter[Condition] = Counter()
        self.answered = False

    def begin(
        self, condition: Condition, text: str, holder: str = "", since: float | None = None
    ) -> None:
        """Begin a condition; log one line, unless the condition already holds or ended within the
        last `AGAIN_S`.

        Parameters
        ----------
        text : str
            What is wrong, with which topic, partition, group or broker, and what to do.
        holder : str
            The part of the side that has the condition. The side's condition ends when it has
            ended for all parts.
        since : float, s, optional
            When it really began, by the clock of this object: a silence begins with the last
            answer, and is noticed later. Default: now.
        """
        with self._lock:
            held = self._held.get(condition)
            if held is not None:
                held.holders.add(holder)
                return
            now, text = self._clock(), scrubbed(text)
            since = now if since is None else min(now, since)
            ended_at, earlier = self._ended.pop(condition, (float("-inf"), now))
            if now - ended_at < AGAIN_S:
                self._held[condition] = _Held(text, earlier, now, {holder})
                return
            self._held[condition] = _Held(text, since, now, {holder})
            self._began[condition] += 1
        self._log.warning("%s: %s", self.what, text)

    def end(
        self, condition: Condition, text: str, holder: str = "", at: float | None = None
    ) -> None:
        """End a condition for a part; if it was the last part, log one line with the duration.

        Parameters
        ----------
        text : str
            What works again.
        at : float, s, optional
            When that was seen, by the clock of this object. What was seen before the condition
            was noticed does not end it. Default: now.
        """
        with self._lock:
            held = self._held.get(condition)
            if held is None or holder not in held.holders:
                return
            if at is not None and at <= held.noticed:
                return
            held.holders.discard(holder)
            if held.holders:
                return
            del self._held[condition]
            now = self._clock()
            self._ended[condition] = (now, held.since)
            took_s = now - held.since
        self._log.info("%s: %s after %.0f s", self.what, text, took_s)

    def holds(self, condition: Condition, holder: str | None = None) -> bool:
        """Whether a condition holds; if `holder` is given, for this part."""
        with self._lock:
            held = self._held.get(condition)
            return held is not None and (holder is None or holder in held.holders)

    def release(self, holder: str) -> None:
        """Remove a part that this side no longer has; its conditions end without a log line."""
        with self._lock:
            for condition, held in list(self._held.items()):
                held.holders.discard(holder)
                if not held.holders:
                    del self._held[condition]

    def happened(self, condition: Condition, text: str) -> None:
        """Count and log an event, which has no end."""
        with self._lock:
            self._began[condition] += 1
        self._log.warning("%s: %s", self.what, scrubbed(text))

    @property
    def trouble(self) -> str:
        """Why no work can be done: the text of the blocking condition that has held longest; empty
        if there is none.

        The condition that deliveries are not acknowledged comes after those that explain it.
        """
        with self._lock:
            blocking = [
                (condition is Condition.UNACKNOWLEDGED, held.since, held.text)
                for condition, held in self._held.items()
                if condition in BLOCKING
            ]
            return min(blocking)[2] if blocking else ""

    def standing(
        self,
        unacknowledged_s: float | None = None,
        skipped: Mapping[tuple[str, int], int] | None = None,
    ) -> Standing:
        """Return the side's conditions as they are now; see `Standing`."""
        with self._lock:
            holds: dict[Condition, bool] = {
                one: one in self._held for one in self._known if one not in EVENTS
            }
            began = {condition: self._began[condition] for condition in self._known}
            return Standing(self.trouble, holds, began, unacknowledged_s, dict(skipped or {}))
