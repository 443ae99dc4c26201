"""What a client has asked the brokers and got no answer to, and what they last refused to
store."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kafka import errors as kafka_errors

__all__ = ["FETCH", "PRODUCE", "Answers", "Overdue", "Silence"]

SILENT_S: Final = 5.0
"""A broker that takes so much longer than it was allowed to is paused, frozen, or far too busy."""
HOLD_S: Final = 0.5
"""If no answer was seen only once, this process itself may have been stopped, with the answer
waiting to be read."""
FORGET_S: Final = 600.0
"""Longer than any request takes before kafka-python gives it up: it has lost this one."""
FETCH: Final = "fetch"
PRODUCE: Final = "produce"


@dataclass(frozen=True)
class Overdue:
    """A request that was not answered in time.

    Attributes
    ----------
    node : object
        kafka-python's id of the broker.
    kind : str
        ``fetch``, ``produce``, ``metadata`` and so on.
    age_s : float, s
        Since it was sent.
    """

    node: Any
    kind: str
    age_s: float


@dataclass(frozen=True)
class _Asked:
    node: Any
    kind: str
    at: float
    allowed_s: float


class Answers:
    """The requests of one client that are under way. Bounded by what kafka-python has under way.

    Parameters
    ----------
    clock : callable () -> float, optional
        Monotonic time in seconds.

    Attributes
    ----------
    forgotten : bool
        Whether a broker has reported that it no longer knows the producer's transactional id.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.forgotten = False
        self._clock = clock
        self._asked: dict[int, _Asked] = {}
        self._numbers = itertools.count()
        self._answered_at = float("-inf")
        self._refused: dict[tuple[str, int], str] = {}

    def sent(self, request: Any, node: Any, future: Any) -> None:
        """Take note of a request, and of the future of its answer."""
        if future.is_done:
            return
        kind = type(request).__name__.removesuffix("Request").lower()
        number = next(self._numbers)
        self._asked[number] = _Asked(node, kind, self._clock(), _allowed_s(request))

        def answered(response: Any) -> None:
            self._asked.pop(number, None)
            self._answered_at = self._clock()
            if (
                getattr(response, "error_code", 0)
                == kafka_errors.InvalidProducerIdMappingError.errno
            ):
                self.forgotten = True
            if kind == PRODUCE:
                self._note_refusals(response)

        def failed(error: BaseException) -> None:
            self._asked.pop(number, None)

        future.add_callback(answered)
        future.add_errback(failed)

    def overdue(self, kind: str) -> Overdue | None:
        """Return the oldest request that should have been answered `SILENT_S` ago, if it tells
        that no work is done.

        One of this kind does. One of another kind does if no broker has answered anything since:
        with several brokers the client asks another one next time.
        """
        now = self._clock()
        for number, asked in list(self._asked.items()):
            if now - asked.at >= FORGET_S:
                self._asked.pop(number, None)
        late = [
            asked
            for asked in list(self._asked.values())
            if now - asked.at >= asked.allowed_s + SILENT_S
            and (asked.kind == kind or self._answered_at < asked.at)
        ]
        if not late:
            return None
        oldest = min(late, key=lambda asked: asked.at)
        return Overdue(oldest.node, oldest.kind, now - oldest.at)

    def refusal(self, topic: str) -> tuple[int, str] | None:
        """Return a partition of a topic that did not store what was sent last, and the broker's
        error."""
        for (name, partition), error in list(self._refused.items()):
            if name == topic:
                return partition, error
        return None

    def _note_refusals(self, response: Any) -> None:
        for topic in getattr(response, "responses", ()):
            for partition in topic.partition_responses:
                at = (topic.name, partition.index)
                if partition.error_code:
                    self._refused[at] = kafka_errors.for_code(
                        partition.error_code
                    ).__name__.removesuffix("Error")
                else:
                    self._refused.pop(at, None)


class Silence:
    """Confirms that no broker answers, once this has been seen for `HOLD_S`.

    Parameters
    ----------
    clock : callable () -> float, optional
        Monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None

    def confirm(self, quiet: str) -> str:
        """Return `quiet` if it has lasted, else an empty text.

        Parameters
        ----------
        quiet : str
            That no broker answers, in words for an operator; empty if one does.
        """
        if not quiet:
            self._since = None
        elif self._since is None:
            self._since = self._clock()
        elif self._clock() - self._since >= HOLD_S:
            return quiet
        return ""


def _allowed_s(request: Any) -> float:
    """Return how long a broker may wait before it answers: a fetch for records, a join for the
    group's members.

    Not so what is written: a broker that waits for its followers does not acknowledge, which is
    what is to be known.
    """
    if type(request).__name__ == "FetchRequest":
        return float(getattr(request, "max_wait_ms", 0) or 0) / 1000
    if type(request).__name__ in ("JoinGroupRequest", "SyncGroupRequest"):
        return float("inf")  # a member that is busy holds up all others
    return 0.0
