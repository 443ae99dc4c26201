"""Track the records that a topic has not acknowledged yet, and report them to the operator."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from kafka.errors import BrokerResponseError

from streamadapt.engine.conditions import Condition, Conditions
from streamadapt_connectors.kafka.answers import Silence, answered_or_none
from streamadapt_connectors.kafka.words import counted

__all__ = ["SINK_CONDITIONS", "Deliveries"]

LATE_S: Final = 5.0
"""A delivery that takes longer is reported."""
REASON_S: Final = 1.0
"""The additional delay of this report if there is no known reason."""
REFUSED_S: Final = 2.0
"""A broker that has just started refuses records for a moment."""
TOO_FEW: Final = ("NotEnoughReplicas", "NotEnoughReplicasAfterAppend")

SINK_CONDITIONS: Final = (
    Condition.NO_ANSWER,
    Condition.TOPIC_MISSING,
    Condition.TOO_FEW_REPLICAS,
    Condition.UNACKNOWLEDGED,
)


class Deliveries:
    """The unacknowledged records of a producer, and of its successor if it had to be abandoned.

    Parameters
    ----------
    conditions : Conditions
        The problems of the sink, which may have several producers.
    topic : str
    holder : str
        The name of this producer in `conditions`.
    clock : callable () -> float, optional
        Monotonic time in seconds.
    """

    def __init__(
        self,
        conditions: Conditions,
        topic: str,
        holder: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.conditions = conditions
        self.holder = holder
        self._topic = topic
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: deque[tuple[float, Any]] = deque()
        self._lost_since: float | None = None
        self._silence = Silence(clock)
        self._answered_at = float("-inf")

    def posted(self, future: Any) -> None:
        """Record that a record was sent; kafka-python's `future` is done when the record is
        acknowledged or refused."""
        with self._lock:
            self._drop_done()
            self._waiting.append((self._clock(), future))

    def given_up(self) -> None:
        """Record that the producer was abandoned with its records, which will be sent again."""
        with self._lock:
            self._drop_done()
            if self._waiting and self._lost_since is None:
                self._lost_since = self._waiting[0][0]
            self._waiting.clear()

    @property
    def waiting(self) -> int:
        """The number of unacknowledged records."""
        with self._lock:
            self._drop_done()
            return len(self._waiting)

    @property
    def age_s(self) -> float:
        """Seconds since the oldest unacknowledged record was first sent; 0 if there is no such
        record."""
        with self._lock:
            self._drop_done()
            since = self._lost_since
            if since is None and self._waiting:
                since = self._waiting[0][0]
            return 0.0 if since is None else self._clock() - since

    def _drop_done(self) -> None:
        while self._waiting and self._waiting[0][1].is_done:
            at, future = self._waiting.popleft()
            if not future.failed():
                self._lost_since = None
            elif not isinstance(future.exception, BrokerResponseError):
                # no broker has answered: the record is sent again, and waits since then
                self._lost_since = at if self._lost_since is None else self._lost_since

    def begun(self) -> None:
        """Record that a new producer is ready.

        The records of the old producer may be known to be stored; then they are not sent again. If
        the broker has refused them, they are sent again, and count as waiting until its answer.
        """
        with self._lock:
            if not self.conditions.holds(Condition.TOO_FEW_REPLICAS, self.holder):
                self._lost_since = None

    def answered_at(self, at: float = float("-inf")) -> float:
        """Note when a broker has answered the present client; return when one has answered this
        client or an earlier one last (``-inf``: never)."""
        self._answered_at = max(self._answered_at, at)
        return self._answered_at

    def look(self, *, quiet: str, refusal: tuple[int, str] | None, connected: bool = True) -> None:
        """Compare the sent with the acknowledged records, and report the reason for a delay.

        Parameters
        ----------
        quiet : str
            A message for the operator if no broker answers; empty if a broker answers.
        refusal : tuple of int and str, or None
            The partition that did not store the newest records, and the broker's error.
        connected : bool
            Whether the producer is connected.
        """
        age_s, waiting = self.age_s, self.waiting
        confirmed = self._silence.confirm(quiet)
        answered_at = self.answered_at()
        if not quiet and connected:
            self.conditions.end(Condition.NO_ANSWER, "connected again", self.holder, answered_at)
        if confirmed:
            self.conditions.begin(
                Condition.NO_ANSWER,
                quiet + self._behind(waiting, age_s),
                self.holder,
                answered_or_none(answered_at),
            )
        self._look_at_refusals(age_s, refusal)
        self._look_at_age(age_s, waiting, refusal, known=bool(quiet))

    def _look_at_refusals(self, age_s: float, refusal: tuple[int, str] | None) -> None:
        few = Condition.TOO_FEW_REPLICAS
        if age_s < REFUSED_S:
            self.conditions.end(
                few, f"topic {self._topic} has enough in-sync replicas again", self.holder
            )
        elif refusal is not None and refusal[1] in TOO_FEW:
            self.conditions.begin(
                few,
                f"topic {self._topic}, partition {refusal[0]} has fewer in-sync replicas than "
                f"its min.insync.replicas requires ({refusal[1]}): the broker stores nothing, "
                "and records wait; restart the brokers that have its replicas, or lower "
                "min.insync.replicas of the topic",
                self.holder,
                self._clock() - age_s,
            )

    def _look_at_age(
        self, age_s: float, waiting: int, refusal: tuple[int, str] | None, *, known: bool
    ) -> None:
        late = Condition.UNACKNOWLEDGED
        if age_s < LATE_S:
            self.conditions.end(
                late, f"topic {self._topic} has acknowledged everything that waited", self.holder
            )
        elif age_s >= LATE_S + REASON_S and not known and not self._says_why():
            why = (
                "the broker gives no reason"
                if refusal is None
                else f"partition {refusal[0]}: {refusal[1]}"
            )
            self.conditions.begin(
                late,
                f"topic {self._topic} has not acknowledged {counted(waiting, 'record')}, "
                f"the oldest for "
                f"{age_s:.0f} s ({why}); check the topic's leaders and the load of the brokers",
                self.holder,
                self._clock() - age_s,
            )

    def _says_why(self) -> bool:
        """Return whether an active condition explains why no record is acknowledged."""
        return any(self.conditions.holds(known, self.holder) for known in SINK_CONDITIONS)

    def _behind(self, waiting: int, age_s: float) -> str:
        return (
            f"; {counted(waiting, 'record')} {'is' if waiting == 1 else 'are'} not acknowledged, "
            f"the oldest for {age_s:.0f} s"
            if waiting
            else ""
        )
