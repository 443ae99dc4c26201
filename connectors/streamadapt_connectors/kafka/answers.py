"""Tracks the unanswered requests of a client, and the records that brokers have refused to
store."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kafka import errors as kafka_errors

from streamadapt_connectors.kafka.words import request_name

__all__ = ["FETCH", "PRODUCE", "Answers", "Overdue", "Silence", "answered_or_none"]

SILENT_S: Final = 5.0
"""A broker that answers later than this after the allowed time is paused, frozen or overloaded."""
HOLD_S: Final = 0.5
"""A missing answer must be seen for this time: this process itself may have been stopped, with the
answer still unread."""
FORGET_S: Final = 600.0
"""Longer than the timeout of any request: kafka-python has lost an older request."""
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
        ``fetch``, ``produce``, ``end transaction`` and so on.
    age_s : float, s
        The time since it was sent.
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
    """The unanswered requests of one client; kafka-python limits their number.

    Parameters
    ----------
    clock : callable () -> float, optional
        Monotonic time in seconds.

    Attributes
    ----------
    forgotten : bool
        Whether a broker has reported that it no longer knows the producer's transactional id.
    answered_at : float, s
        When a broker has answered last, monotonic; ``-inf`` if none has.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.forgotten = False
        self._clock = clock
        self._asked: dict[int, _Asked] = {}
        self._numbers = itertools.count()
        self.answered_at = float("-inf")
        # by broker, and by kind of request
        self._answered: dict[Any, float] = {}
        # the newest overdue request, and when it was last seen to be overdue
        self._late: tuple[_Asked, float] | None = None
        self._refused: dict[tuple[str, int], str] = {}

    def sent(self, request: Any, node: Any, future: Any) -> None:
        """Record a request and the future of its answer."""
        if future.is_done:
            return
        kind = request_name(type(request))
        number = next(self._numbers)
        self._asked[number] = _Asked(node, kind, self._clock(), _allowed_s(request))

        def answered(response: Any) -> None:
            self._asked.pop(number, None)
            self.greeted(node)
            self._answered[kind] = self.answered_at
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

    def greeted(self, node: Any) -> None:
        """Record that a broker has answered: a request, or the first one of a new connection."""
        self.answered_at = self._answered[node] = self._clock()

    def overdue(
        self, kind: str, known: Callable[[Any], bool] = lambda node: True
    ) -> Overdue | None:
        """Return the oldest request that should have been answered `SILENT_S` ago, if it shows
        that no work is done.

        A request of this kind shows it. A request of another kind shows it only if no broker has
        answered any request since: with several brokers the client asks another broker next time.
        A request that the client has given up counts until there is an answer.

        Parameters
        ----------
        known : callable (node) -> bool
            Whether a broker still belongs to the cluster.
        """
        now = self._clock()
        for number, asked in list(self._asked.items()):
            if now - asked.at >= FORGET_S:
                self._asked.pop(number, None)
        late = [
            asked
            for asked in list(self._asked.values())
            if now - asked.at >= asked.allowed_s + SILENT_S
            and (asked.kind == kind or self.answered_at < asked.at)
        ]
        if late:
            self._late = min(late, key=lambda asked: asked.at), now
        elif self._late is not None and self._is_over(*self._late, kind, known):
            self._late = None
        if self._late is None:
            return None
        oldest = self._late[0]
        return Overdue(oldest.node, oldest.kind, now - oldest.at)

    def _is_over(self, late: _Asked, seen: float, kind: str, known: Callable[[Any], bool]) -> bool:
        """Return whether an answer came after a request was last seen to be overdue."""
        if late.kind != kind or not known(late.node):
            return self.answered_at >= seen
        return max(self._answered.get(one, 0.0) for one in (late.node, kind)) >= seen

    def refusal(self, topic: str) -> tuple[int, str] | None:
        """Return a partition of a topic that did not store the newest records, and the broker's
        error; None if there is no such partition."""
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
    """Confirms that no broker answers, after this has been true for `HOLD_S`.

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
            A message for the operator if no broker answers; empty if a broker answers.
        """
        if not quiet:
            self._since = None
        elif self._since is None:
            self._since = self._clock()
        elif self._clock() - self._since >= HOLD_S:
            return quiet
        return ""


def answered_or_none(at: float) -> float | None:
    """Return the moment of the last answer as `Conditions.begin` takes it; None if there was
    none."""
    return None if at == float("-inf") else at


def _allowed_s(request: Any) -> float:
    """Return how long a broker may wait before it answers: to a fetch until there are records, to
    a join until all members of the group have joined.

    For a produce request this is 0: if a broker waits for its followers, the operator must know
    that it does not acknowledge.
    """
    if type(request).__name__ == "FetchRequest":
        return float(getattr(request, "max_wait_ms", 0) or 0) / 1000
    if type(request).__name__ in ("JoinGroupRequest", "SyncGroupRequest"):
        return float("inf")  # a busy member delays all other members
    return 0.0
