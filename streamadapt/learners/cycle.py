"""The last period of a panel by the clock, in kernels: the newest values of every slot, and when
they were seen.

A state is three arrays per key: ``values``, (slots, channels), float32; ``seen``, (slots,), the
event times of the values, ns; ``last``, (), the event time of the newest entry. What was seen one
period before a time counts if it was at most a slot, or one step of the entries, away from it: a
gap in the entries costs the forecasts that would need it, and nothing else.
"""

from __future__ import annotations

from typing import Any, Final

from streamadapt.compiled import compiled

__all__ = ["NEVER_SEEN", "one_period_ago", "put_in", "slot_of"]

NEVER_SEEN: Final = -(2**62)
"""The time of a slot without values."""


@compiled
def slot_of(time: int, period: int, slots: int) -> int:
    """Return the slot of an event time; an entry replaces the one before it in its slot."""
    return time % period // -(-period // slots)


@compiled
def one_period_ago(period: int, values: Any, seen: Any, last: int, x: Any, ago: Any) -> bool:
    """Write what was seen one period before t, t + d, t + 2 d, ... (d the newest step) to `ago`,
    (1 + rows, channels); return False, with `ago` undefined, if one of them was not seen.

    `x` is the `Input` of an entry t that was not put in yet. Steps beyond the period repeat it.
    """
    n, newest = x.times.shape[0], x.window.shape[0] - 1
    if n == 0 or (n == 1 and last == NEVER_SEEN):
        return False
    now = x.times[n - 1]
    step = now - (x.times[n - 2] if n > 1 else last)
    if step <= 0:
        return False
    reach = max(step, period // seen.shape[0])
    for h in range(ago.shape[0]):
        # As many whole periods back as it takes not to lie after t.
        back = -h * (step % period) % period if h > 0 else period
        slot = slot_of(now - back, period, seen.shape[0])
        if back > 0 and (seen[slot] == NEVER_SEEN or abs(seen[slot] - (now - back)) > reach):
            return False
        for i in range(ago.shape[1]):
            ago[h, i] = values[slot, i] if back > 0 else x.window[newest, i]
    return True


@compiled
def put_in(period: int, values: Any, seen: Any, x: Any) -> Any:
    """Put the newest entry of an `Input` with times into its slot; return its event time, the new
    ``last``."""
    now, newest = x.times[x.times.shape[0] - 1], x.window.shape[0] - 1
    slot = slot_of(now, period, seen.shape[0])
    for i in range(values.shape[1]):
        values[slot, i] = x.window[newest, i]
    seen[slot] = now
    return now
