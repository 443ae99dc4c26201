"""Plain entries in kernels: those whose time is in order, and of which no value is an outlier.

The first entry that is not plain ends a lot; the pipeline then looks at that one alone.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from streamadapt.compiled import Kernel, compiled
from streamadapt.models.origin import FLOAT32_MAX, less_one
from streamadapt.records import Array
from streamadapt.tasks.event_clock import FADING, MOST, SURE, USUAL

__all__ = ["CLIP", "FADE", "FIRST", "LIMIT", "RATE", "YOUNG", "Arriving", "Channels", "Clock",
           "take_entries", "take_values"]  # fmt: skip

FIRST: Final = 10
"""The first statistics are medians over this number of entries; outliers among these entries are
found afterwards."""
YOUNG: Final = 3
"""The number of entries, or of values of one channel, before any value is doubted."""
LIMIT: Final = 60.0
"""The distance of an outlier from the centre is more than this number of usual distances."""
RATE: Final = 0.01
"""How fast the centre and the usual distance follow the values, per entry."""
CLIP: Final = 10.0
"""A larger distance counts as this many usual distances when these are updated."""
FADE: Final = 0.9999
"""The factor by which the largest accepted distance decays, per entry."""
LARGEST_TIME: Final = 2**62


class Channels(NamedTuple):
    """What the screen knows of each channel, (channels,); see `streamadapt.pipeline.screen`."""

    middle: Array
    usual: Array
    largest: Array
    last: Array
    count: Any
    moves: Any
    limit: Array


class Clock(NamedTuple):
    """The numbers of an `EventClock`, int64.

    Attributes
    ----------
    numbers : ndarray, (7,)
        The newest time; how many records agreed; the same since an unusual step; the newest step;
        the typical step; the longest pause; and the same before the last unusual step.
    limits : ndarray, (2,)
        How far behind and ahead a record may be, ns.
    """

    numbers: Any
    limits: Any


@compiled
def is_plain_time(c: Any, time: int) -> Any:
    """Return whether a time needs no doubt: it is neither far ahead nor too old."""
    newest, step, pause = c.numbers[0], c.numbers[3], c.numbers[5]
    longest = max(pause, step, c.numbers[4], c.limits[0], c.limits[1])
    if abs(time) > LARGEST_TIME or abs(newest) > LARGEST_TIME or longest > LARGEST_TIME // USUAL:
        return False
    reach = max(c.limits[1], USUAL * max(pause, step))
    return newest - c.limits[0] <= time <= newest + reach


@compiled
def take_time(c: Any, time: int) -> Any:
    """Accept a plain time; return whether it is out of order."""
    m = c.numbers
    step, typical = time - m[0], m[4]
    m[5] = max(m[5], m[3])
    if step > max(USUAL * typical, c.limits[0]):
        m[2], m[6] = 0, m[5]
    early, step = step < 0, max(step, 0)
    known = max(typical, c.limits[0])
    m[0] += step
    m[1] = min(m[1] + 1, MOST)
    m[2] = min(m[2] + 1, SURE)
    m[3] = step
    m[4] = max(min(step, 2 * known), known - known // FADING)
    return early


@compiled
def are_plain_values(s: Any, values: Any) -> Any:
    """Return whether no value is too large, or a possible outlier; NaN is missing."""
    for j in range(values.shape[0]):
        v = values[j]
        if abs(v) > FLOAT32_MAX:
            return False
        if abs(v - s.middle[j]) > s.limit[j] * s.usual[j] and s.count[j] >= YOUNG:
            return False
    return True


@compiled
def take_values(s: Any, values: Any, believed: Any) -> None:
    """Update what is known of each channel with the believed values of an entry.

    ``middle <- middle + r clip(v - middle)`` and ``usual <- usual + r (|v - middle| - usual)``,
    with distances clipped at `CLIP` usual ones and r at least `RATE`.
    """
    young = False
    for j in range(values.shape[0]):
        s.largest[j] *= FADE
        if believed[j]:
            v = values[j]
            if s.middle[j] != s.middle[j]:
                s.middle[j] = v
            rate = max(RATE, 1.0 / (s.count[j] + 1.0))
            off = v - s.middle[j]
            away = abs(off)
            if s.usual[j] > 0.0:
                bound = CLIP * s.usual[j]
                off, near = min(max(off, -bound), bound), min(away, bound)
            else:
                near = away
            s.middle[j] += rate * off
            s.usual[j] += rate * (near - s.usual[j])
            s.largest[j] = max(s.largest[j], away)
            if v != s.last[j]:
                s.moves[j] += 1
            s.last[j] = v
            s.count[j] += 1
        young = young or s.limit[j] > LIMIT
    if young:
        for j in range(values.shape[0]):
            if s.count[j] >= FIRST:
                s.limit[j] = LIMIT


class Arriving(NamedTuple):
    """Entries that follow a window.

    Attributes
    ----------
    values : ndarray, (entries, channels)
    times : ndarray, (entries,), int64, ns
    history : ndarray, (window + entries, channels), float64
        First the window; the entries' values are written behind it, missing ones replaced.
    history_times : ndarray, (window + entries,), int64, ns
    last : ndarray, (channels,)
        The last known values.
    known : ndarray, (channels,), bool
        Room.
    raised : ndarray, (1,), int64
        The number of entries that got the newest time instead of their own.
    rows : ndarray, (entries,), int64
        The place of each entry's prediction.
    windows : ndarray, (places, window, channels), float32
        The windows of the entries are written here, less the origin.
    window_times : ndarray, (places, window), int64, ns
    origin : ndarray, (channels,), float64
    """

    values: Array
    times: Any
    history: Array
    history_times: Any
    last: Array
    known: Any
    raised: Any
    rows: Any
    windows: Any
    window_times: Any
    origin: Array


@compiled
def write_window(a: Any, n: int) -> None:
    """Write the window of entry n to its place."""
    at = a.rows[n]
    _, window, channels = a.windows.shape
    for i in range(window):
        a.window_times[at, i] = a.history_times[n + 1 + i]
        for j in range(channels):
            a.windows[at, i, j] = less_one(a.history[n + 1 + i, j], a.origin[j])


def _take_entries(c: Any, s: Any, a: Any) -> Any:
    """Take plain entries in; return how many there are before the first that is not plain.

    Parameters
    ----------
    c : Clock
    s : Channels
    a : Arriving
    """
    entries, channels = a.values.shape
    window = a.windows.shape[1]
    for n in range(entries):
        values = a.values[n]
        if not (is_plain_time(c, a.times[n]) and are_plain_values(s, values)):
            return n
        if take_time(c, a.times[n]):
            a.raised[0] += 1
        a.history_times[window + n] = c.numbers[0]
        for j in range(channels):
            a.known[j] = values[j] == values[j]
            if a.known[j]:
                a.last[j] = values[j]
            a.history[window + n, j] = a.last[j]
        take_values(s, values, a.known)
        write_window(a, n)
    return entries


take_entries: Final = Kernel(_take_entries, "plain entries")


def _follow(s: Any, values: Any, believed: Any) -> None:
    take_values(s, values, believed)


follow: Final = Kernel(_follow, "values of an entry")
