"""The last period of a panel, in kernels: kept entry by entry, or by the clock.

Both forms have the same three functions: whether all of a path one period ago is known, a value of
it, and taking an entry in.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.learners.lots import NEVER
from streamadapt.records import Array

__all__ = [
    "CycleState",
    "PeriodState",
    "cycle_ago",
    "cycle_is_known",
    "cycle_slot",
    "cycle_value",
    "new_cycle",
    "new_period",
    "period_ago",
    "period_is_known",
    "put_in_cycle",
    "put_in_period",
]

NEVER_SEEN: Final = -(2**62)


class PeriodState(NamedTuple):
    """The values of the last `period` entries, and whether they follow each other without a gap.

    A gap is seen where the entry before the newest one, as the window tells its time, is not the
    entry that was put in last: after a restore, say. What is held then is no longer one period
    ago, and is not used. Costs O(channels) a push and period x channels float32 numbers.

    Attributes
    ----------
    values : ndarray, (period, channels), float32
        Entry i lies at ``i % period``.
    count : ndarray, (), int64
        Entries put in since the last gap.
    last : ndarray, (), int64, ns
        Event time of the entry put in last.
    """

    values: Array
    count: Array  # type: ignore[assignment]  # hides a method of tuples
    last: Array


def new_period(period: int, channels: int) -> PeriodState:
    """Return a period of which nothing is known."""
    return PeriodState(
        np.zeros((period, channels), np.float32), np.zeros((), np.int64), np.array(NEVER)
    )


@compiled
def continues(past: Any, key: int, times: Any) -> bool:
    """Return whether no entry is missing before the newest one."""
    if times.shape[0] < 2:  # nothing to see a gap by
        return True
    same: bool = times[times.shape[0] - 2] == past.last[key]
    return same


@compiled
def period_is_known(past: Any, key: int, x: Any) -> bool:
    """Return whether a whole period before the newest entry is known."""
    whole: bool = past.count[key] >= past.values.shape[1]
    return whole and continues(past, key, x.times)


@compiled
def period_ago(past: Any, key: int, x: Any, h: int, j: int) -> float:
    """Return ``Z_{t+h-S}`` of channel j, t the newest entry, not put in yet; h beyond the period
    repeats it."""
    period = past.values.shape[1]
    if h > 0 and h % period == 0:  # one period before t + S is t itself
        return np.float64(x.window[x.window.shape[0] - 1, j])
    return np.float64(past.values[key, (past.count[key] + h) % period, j])


@compiled
def put_in_period(past: Any, key: int, x: Any) -> None:
    """Take the newest entry in."""
    if not continues(past, key, x.times):
        past.count[key] = 0
    place, newest = past.count[key] % past.values.shape[1], x.window.shape[0] - 1
    for j in range(past.values.shape[2]):
        past.values[key, place, j] = x.window[newest, j]
    past.count[key] += 1
    if x.times.shape[0] > 0:
        past.last[key] = x.times[x.times.shape[0] - 1]


class CycleState(NamedTuple):
    """The newest values seen in every slot of a period of event time, and when.

    What was seen one period before a time counts if it was at most a slot, or one step of the
    entries, away from it: a gap in the entries costs the forecasts that would need it, and nothing
    else. An entry replaces the one before it in the same slot: more slots than entries in a period
    lose nothing. Costs O(channels) a push and slots x (channels + 2) numbers.

    Attributes
    ----------
    values : ndarray, (slots, channels), float32
    seen : ndarray, (slots,), int64, ns
        Event times of the values.
    last : ndarray, (), int64, ns
        Event time of the entry put in last.
    """

    values: Array
    seen: Array
    last: Array


def new_cycle(slots: int, channels: int) -> CycleState:
    """Return a cycle in which nothing was seen."""
    return CycleState(
        np.zeros((slots, channels), np.float32), np.full(slots, NEVER_SEEN), np.array(NEVER_SEEN)
    )


@compiled
def slot_of(past: Any, period: int, time: int) -> int:
    """Return the slot of an event time."""
    length = -(-period // past.seen.shape[1])
    slot: int = time % period // length
    return slot


@compiled
def step_of(past: Any, key: int, times: Any) -> int:
    """Return d, the time from the entry before to the newest one; 0 where there was none."""
    now = times[times.shape[0] - 1]
    before = times[times.shape[0] - 2] if times.shape[0] > 1 else past.last[key]
    step: int = 0 if before == NEVER_SEEN else now - before
    return step


@compiled
def time_back(period: int, step: int, h: int) -> int:
    """Return how long before the newest time t the time lies that is a whole number of periods
    before ``t + h d``, and not after t; in ns, at most a period."""
    if h == 0:
        return period
    back: int = -(h * (step % period)) % period
    return back


@compiled
def cycle_is_known(past: Any, key: int, period: int, x: Any, rows: int) -> bool:
    """Return whether something was seen one period before t, t + d, ... t + rows d."""
    if x.times.shape[0] == 0:
        return False
    now, step = x.times[x.times.shape[0] - 1], step_of(past, key, x.times)
    if step <= 0:
        return False
    near = max(step, period // past.seen.shape[1])
    for h in range(rows + 1):
        back = time_back(period, step, h)
        seen = past.seen[key, slot_of(past, period, now - back)]
        if back > 0 and abs(seen - (now - back)) > near:
            return False
    return True


@compiled
def cycle_slot(past: Any, key: int, period: int, x: Any, h: int) -> int:
    """Return the slot of ``t + h d`` one period ago, t the newest entry, not put in yet; h d
    beyond the period repeats it. -1 where that is t itself."""
    back = time_back(period, step_of(past, key, x.times), h)
    return slot_of(past, period, x.times[x.times.shape[0] - 1] - back) if back > 0 else -1


@compiled
def cycle_value(past: Any, key: int, x: Any, slot: int, j: int) -> float:
    """Return the value of channel j in a slot, of the newest entry for -1."""
    if slot < 0:
        return np.float64(x.window[x.window.shape[0] - 1, j])
    return np.float64(past.values[key, slot, j])


@compiled
def cycle_ago(past: Any, key: int, period: int, x: Any, h: int, j: int) -> float:
    """Return what channel j was one period before ``t + h d``."""
    return cycle_value(past, key, x, cycle_slot(past, key, period, x, h), j)


@compiled
def put_in_cycle(past: Any, key: int, period: int, x: Any) -> None:
    """Take the newest entry in, if its time is known."""
    if x.times.shape[0] > 0:
        now, newest = x.times[x.times.shape[0] - 1], x.window.shape[0] - 1
        slot = slot_of(past, period, now)
        for j in range(past.values.shape[2]):
            past.values[key, slot, j] = x.window[newest, j]
        past.seen[key, slot] = now
        past.last[key] = now
