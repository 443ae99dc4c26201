"""Track the records that a topic has not acknowledged yet, and report them to the operator."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from streamadapt.engine.conditions import Condition, Conditions
from streamadapt_connectors.kafka.answers import Silence

__all__ = ["SINK_CONDITIONS", "Deliveries"]

LATE_S: Final = 5.0
"""A delivery that takes longer is reported."""
REASON_S: Final = 1.0
"""And so much later, if nothing says why."""
REFUSED_S: Final = 2.0
"""A broker that has just come up refuses records for a moment."""
TOO_FEW: Final = ("NotEnoughReplicas", "NotEnoughReplicasAfterAppend")

SINK_CONDITIONS: Final = (
    Condition.NO_ANSWER,
    Condition.TOPIC_MISSING,
    Condition.TOO_FEW_REPLICAS,
    Condition.UNACKNOWLEDGED,
)


class Deliveries:
    """What one producer has sent, and its successor, where it had to be given up.

    Parameters
    ----------
    conditions : Conditions
        Of the sink, which may have several producers.
    topic : str
    holder : str
        Which of them this is.
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

    def posted(self, future: Any) -> None:
        """A record was sent; `future` is kafka-python's, done once it is acknowledged or
        refused."""
        with self._lock:
            self._drop_done()
            self._waiting.append((self._clock(), future))

    def given_up(self) -> None:
        """The producer was given up with what it held; the same records will be sent again."""
        with self._lock:
            self._drop_done()
            if self._waiting and self._lost_since is None:
                self._lost_since = self._waiting[0][0]
            self._waiting.clear()

    @property
    def waiting(self) -> int:
        """How many records are not acknowledged."""
        with self._lock:
            self._drop_done()
            return len(self._waiting)

    @property
    def age_s(self) -> float:
        """Seconds since the oldest record that is not acknowledged was first sent; 0 where there
        is none."""
        with self._lock:
            self._drop_done()
            since = self._lost_since
            if since is None and self._waiting:
                since = self._waiting[0][0]
            return 0.0 if since is None else self._clock() - since

    def _drop_done(self) -> None:
        while self._waiting and self._waiting[0][1].is_done:
            _, future = self._waiting.popleft()
            if not future.failed():
                self._lost_since = None

    def begun(self) -> None:
        """A new producer is ready.

        What the old one held may be known to be stored, and is not sent again then.

        Not if the broker had refused it: it is sent again, and the new answer decides.
        """
        with self._lock:
            if not self.conditions.holds(Condition.TOO_FEW_REPLICAS, self.holder):
                self._lost_since = None

    def look(self, *, quiet: str, refusal: tuple[int, str] | None, connected: bool = True) -> None:
        """Compare what was sent with what was acknowledged, and say what stands in the way.

        Parameters
        ----------
        quiet : str
            That no broker answers, in words for an operator; empty if one does.
        refusal : tuple of int and str, or None
            The partition that did not store what was sent last, and the broker's error.
        connected : bool
            Whether the producer is not just trying to be.
        """
        age_s, waiting = self.age_s, self.waiting
        confirmed = self._silence.confirm(quiet)
        if not quiet and connected:
            self.conditions.end(Condition.NO_ANSWER, "connected again", self.holder)
        if confirmed:
            self.conditions.begin(
                Condition.NO_ANSWER, quiet + self._behind(waiting, age_s), self.holder
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
                f"its min.insync.replicas "
                f"asks for ({refusal[1]}): the broker stores nothing, and what is written "
                f"waits; bring the brokers "
                "that hold its replicas back, or lower min.insync.replicas of the topic",
                self.holder,
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
                "the broker says nothing of why"
                if refusal is None
                else f"partition {refusal[0]}: {refusal[1]}"
            )
            self.conditions.begin(
                late,
                f"topic {self._topic} has not acknowledged {waiting} records, the oldest for "
                f"{age_s:.0f} s ({why}); "
                "look at the topic's leaders and at how busy the brokers are",
                self.holder,
            )

    def _says_why(self) -> bool:
        """Return whether an active condition explains why no record is acknowledged."""
        return any(self.conditions.holds(known, self.holder) for known in SINK_CONDITIONS)

    def _behind(self, waiting: int, age_s: float) -> str:
        return (
            f"; {waiting} records are not acknowledged, the oldest for {age_s:.0f} s"
            if waiting
            else ""
        )
