"""The event time of a stream; a single record with a wrong clock cannot change it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum
from typing import Any

__all__ = ["DAY_NS", "MAX_BEHIND_NS", "EventClock", "Verdict", "ahead_of", "behind_of"]

MAX_BEHIND_NS = 5 * 10**9
"""The default of `max_behind_ns`. Producers' clocks differ by milliseconds to a few seconds, and
their batches overtake each other by the same amount."""
DAY_NS = 86_400 * 10**9

AGREE = 5
"""A leap ahead is accepted at the fifth record that agrees on it, if no record in between
contradicts it."""
UNDO = 3
"""A time that few records agreed on is given up after this number of older records in a row; for
other times see `MOST`."""
SURE = 16
"""Records that are older by less than a leap do not undo a move that this number of records agreed
on."""
MOST = 100
"""The clock goes back by more than a leap after as many records in a row as had agreed on the
time, but after no more than this number."""
USUAL = 4
"""A move of up to this many times the stream's longest pause so far is no leap; a move of up to
this many times its typical step is usual."""
FADING = 16
"""The typical step is about the longest step of this many records; one record at most doubles
it."""

Doubt = tuple[int, int]


class Verdict(Enum):
    """The meaning of a record's event time for the clock.

    `TAKEN`: the time fits. `LEAP`: it is far ahead, and accepted. `BACK`: the clock was wrong and
    goes back to this time. `AHEAD`: it is far ahead, and doubted. `BEHIND`: it is too old.
    """

    TAKEN = "taken"
    LEAP = "leap"
    BACK = "back"
    AHEAD = "ahead"
    BEHIND = "behind"


class EventClock:
    """The newest event time of a stream that records agree on.

    A record that is older than the newest by at most `max_behind_ns` is accepted, with the newest
    time. An older record is refused. A record further ahead of the newest than `max_ahead_ns`, and
    than `USUAL` times the longest pause of the stream so far, is doubted: it is refused until
    `AGREE` records in a row agree on such a leap (fewer, while the stream has had fewer records).
    One record that fits ends the doubt.

    The clock can also go back, so that a wrong time that was accepted does not stop the stream. If
    that time is far ahead (`max_ahead_ns`), the clock goes back after as many records in a row as
    had agreed on it, from `UNDO` to `MOST`. If it is nearer, the clock goes back only if fewer
    than `SURE` records had agreed since a move that was unusual for the stream. After the stream
    was deleted and created again (`begin_again`), the next accepted record sets the clock back,
    however old it is.

    `judge` changes nothing; `take` and `refuse` record the decision. Memory: a few numbers.

    Parameters
    ----------
    max_behind_ns : int, >= 0, ns of event time
    max_ahead_ns : int, >= 0, ns of event time

    Attributes
    ----------
    newest : int or None
        The newest accepted time, ns; None before the first record.
    doubts : bool
        Whether this clock doubts leaps. False if another part has judged them before (the engine,
        a panel).
    others : int or None
        A time, ns, that other streams have reached: a record that is not far ahead of it is no
        leap. Not part of the state.
    restarts : int
        How often the stream was created again.
    counts : Counter of str
        ``raised``: records accepted with the newest time; ``leap``: accepted leaps; ``back``: how
        often the clock went back.
    """

    def __init__(self, max_behind_ns: int = MAX_BEHIND_NS, max_ahead_ns: int = DAY_NS) -> None:
        self.max_behind_ns = max_behind_ns
        self.max_ahead_ns = max_ahead_ns
        self.doubts = True
        self.others: int | None = None
        self.counts: Counter[str] = Counter()
        self.newest: int | None = None
        self.restarts = 0
        self._any_time = False  # whether the next record may have any older time
        self._seen = 0  # records that agreed since the clock last leapt or went back, up to MOST
        self._sure = 0  # since it last moved by an unusual step, up to SURE
        self._step = 0  # by how much the newest record moved it
        self._typical = 0  # the typical step; see FADING
        self._pause = 0  # the longest step that a later record did not contradict
        self._pause_before = 0  # the same before the last unusual step, which may have been wrong
        self._ahead: Doubt | None = None  # the earliest time in doubt, and how many agree on it
        self._behind: Doubt | None = None  # the same of records that are too old

    @property
    def reach_ns(self) -> int:
        """The largest step ahead, ns, that is not doubted."""
        return max(self.max_ahead_ns, USUAL * max(self._pause, self._step))

    @property
    def young(self) -> bool:
        """Whether fewer than `AGREE` records have confirmed the time so far."""
        return self._seen < AGREE

    def judge(self, time: int) -> Verdict:
        """Return the verdict on the next record's time, ns; changes nothing."""
        known = [at for at in (self.newest, self.others) if at is not None]
        if not known:
            return Verdict.TAKEN
        if time > max(known) + self.reach_ns:
            needed = AGREE if self.others is not None else min(self._seen, AGREE)
            believed = not self.doubts or self._agreeing(self._ahead, time) >= needed
            return Verdict.LEAP if believed else Verdict.AHEAD
        if self.newest is None or time >= self.newest - self.max_behind_ns:
            return Verdict.TAKEN
        needed = self._needed_to_go_back(time)
        return Verdict.BACK if 0 < needed <= self._agreeing(self._behind, time) else Verdict.BEHIND

    def time_of(self, time: int) -> int:
        """Return the time, ns, that a record of `time` gets if it is accepted; changes nothing."""
        if self.newest is None or self.judge(time) is Verdict.BACK:
            return time
        return max(time, self.newest)

    def begin_again(self, restarts: int | None = None) -> None:
        """Accept any older time from the next record: the stream was deleted and created again.

        Parameters
        ----------
        restarts : int, optional
            How often the stream was created again, in all. Default: one time more.
        """
        self.restarts = self.restarts + 1 if restarts is None else restarts
        self._any_time = True
        self._behind = None

    def _needed_to_go_back(self, time: int) -> int:
        """Return the number of old records in a row that set the clock back; 0 if none do."""
        assert self.newest is not None
        if self._any_time:
            return 1
        if self._sure < SURE:
            return max(UNDO, self._sure)
        return max(UNDO, self._seen) if time < self.newest - self.max_ahead_ns else 0

    def _agreeing(self, doubt: Doubt | None, time: int) -> int:
        """Return the number of records that agree with a doubt, a record of `time` included.

        Their times may be out of order by less than a leap.
        """
        return 1 if doubt is None or time < doubt[0] - self.max_ahead_ns else doubt[1] + 1

    def foresee(self, time: int, following: Iterable[int]) -> bool | None:
        """Return whether the records that follow confirm a time that is far ahead, or the first
        time.

        Returns
        -------
        bool or None
            None if they do not decide it.
        """
        agree, against = self._agreeing(self._ahead, time), 0
        for other in following:
            if other >= time - self.max_ahead_ns:
                agree += 1
                if agree >= AGREE:
                    return True
            elif self.newest is None or other >= self.newest - self.max_ahead_ns:
                against += 1
                if against >= (UNDO if self.newest is None else 1):
                    return False
        return None

    @property
    def plain(self) -> bool:
        """Whether nothing is in doubt: `numbers` is all that the next record is judged by."""
        doubts = (self.others, self._ahead, self._behind)
        return self.newest is not None and doubts == (None, None, None) and not self._any_time

    @property
    def numbers(self) -> list[int]:
        """The newest time, ns, and what else kernels take on; see `pipeline.taking.Clock`."""
        assert self.newest is not None
        counts = [self._seen, self._sure, self._step, self._typical]
        return [self.newest, *counts, self._pause, self._pause_before]

    @numbers.setter
    def numbers(self, numbers: list[int]) -> None:
        self.newest, self._seen, self._sure, self._step, self._typical = numbers[:5]
        self._pause, self._pause_before = numbers[5:]

    def take(self, time: int) -> int:
        """Accept a record of `time`; return the time that it has from now on."""
        verdict = self.judge(time)
        self._any_time = False
        if verdict is Verdict.BACK:
            return self._go_back(time)
        step = 0 if self.newest is None else time - self.newest
        if verdict in (Verdict.LEAP, Verdict.AHEAD):
            self.counts["leap"] += 1
            self._seen = min(self._seen, AGREE - 1)
        elif step < 0:
            self.counts["raised"] += 1
        self._pause = max(self._pause, self._step)
        if step > max(USUAL * self._typical, self.max_behind_ns):
            self._sure = self._seen if verdict is Verdict.LEAP else 0
            self._pause_before = self._pause
        self._typical = self._typical_after(max(step, 0))
        self._seen, self._sure = min(self._seen + 1, MOST), min(self._sure + 1, SURE)
        self._step = min(max(step, 0), 2**62)
        self._ahead = self._behind = None
        self.newest = time if self.newest is None else max(time, self.newest)
        return self.newest

    def _typical_after(self, step: int) -> int:
        known = max(self._typical, self.max_behind_ns)
        return max(min(step, 2 * known), known - known // FADING)

    def _go_back(self, time: int) -> int:
        self.counts["back"] += 1
        self._seen, self._sure = self._agreeing(self._behind, time), 1
        self._step, self._pause = 0, self._pause_before
        self._ahead = self._behind = None
        self.newest = time
        return time

    def refuse(self, time: int) -> None:
        """Record that a record was refused for its time, so that later records can agree with
        it."""
        verdict = self.judge(time)
        if verdict is Verdict.AHEAD:
            self._ahead = self._with(self._ahead, time)
        elif verdict is Verdict.BEHIND and self._needed_to_go_back(time):
            self._behind = self._with(self._behind, time)

    def _with(self, doubt: Doubt | None, time: int) -> Doubt:
        agreeing = self._agreeing(doubt, time)
        return (time if doubt is None or agreeing == 1 else min(time, doubt[0])), agreeing

    def state_dict(self) -> dict[str, Any]:
        """Return the time and the doubts."""
        state: dict[str, Any] = {
            "newest": self.newest,
            "typical": self._typical,
            "numbers": [self._seen, self._sure, self._step, self._pause, self._pause_before],
            "ahead": None if self._ahead is None else list(self._ahead),
            "behind": None if self._behind is None else list(self._behind),
        }
        if self.restarts:
            state |= {"restarts": self.restarts, "any_time": self._any_time}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.newest = None if state["newest"] is None else int(state["newest"])
        numbers = (int(number) for number in state["numbers"])
        self._seen, self._sure, self._step, self._pause, self._pause_before = numbers
        self._typical = int(state.get("typical", self._pause))
        self.restarts, self._any_time = (
            int(state.get("restarts", 0)),
            bool(state.get("any_time", False)),
        )
        self._ahead = _doubt(state["ahead"])
        self._behind = _doubt(state["behind"])

    def start_from(self, newest: int, steps: Iterable[int] = ()) -> None:
        """Continue from a time without any other state, as in checkpoints of earlier versions.

        Parameters
        ----------
        newest : int, ns
        steps : iterable of int, ns
            Steps of the stream before its newest record.
        """
        self.newest = newest
        self._seen = self._sure = AGREE
        self._pause = self._pause_before = self._typical = max((0, *steps))


def ahead_of(time: int, newest: int | None) -> str:
    """Return the reason to refuse a record that is too far ahead of the newest accepted time,
    ns."""
    if newest is None:
        return "time is far ahead of that of the records that follow (limits.max_ahead)"
    return (
        f"time is {_span(time - newest)} ahead of the newest entry's, and no others agree on "
        f"it (limits.max_ahead)"
    )


def behind_of(time: int, newest: int) -> str:
    """Return the reason to refuse a record that is too much older than the newest time, ns."""
    return f"time is {_span(newest - time)} before the newest entry's (limits.max_behind)"


def _span(nanoseconds: int) -> str:
    seconds = nanoseconds / 1e9
    return f"{seconds:g} s" if seconds < 2 * 86_400 else f"{seconds / 86_400:.0f} days"


def _doubt(saved: Any) -> Doubt | None:
    return None if saved is None else (int(saved[0]), int(saved[1]))
