"""Values that cannot be right: so far outside what a stream has shown that learning them would
undo much learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamadapt.records import Array, Mask
from streamadapt.tasks import Window

__all__ = ["Look", "Screen"]

FIRST = 10
"""Entries that the first description is made from, as medians: a wrong value among them is found
in hindsight."""
YOUNG = 3
"""Entries, or values of one channel, before anything is doubted."""
LIMIT = 60.0
"""An absurd value is away from the middle by more than so many usual distances ..."""
YOUNG_LIMIT = 100.0
"""... by more than so many, while a channel has shown fewer than `FIRST` values ..."""
BEYOND = 4.0
"""... by more than so many times the largest distance that was believed ..."""
LEVELS = 10.0
"""... and, in a channel that has hardly moved yet, by so many times its level or the other
channels' usual distance."""
COMMON = 2.0
"""It is also further away than so many of the other channels' largest distances, where these are
comparable."""
COMPARABLE = 1e-3
"""Channels are comparable whose usual distance is at least this share of the median channel's."""
MOVED = 10
"""A channel has moved enough to be known after so many changes of its value."""
RATE = 0.01
CLIP = 10.0
"""What is far off moves the description as if it were at most so many usual distances away."""
FADE = 0.9999
"""Per entry, of the largest believed distance."""
IN_A_ROW = 5
"""So many absurd values one after the other are no mistake, but a change."""
STRANGE = 2
"""In a channel of which no size is known at all, so many different values are doubted; the next is
believed."""
INNER = 0.7
"""Share of the first distances that are taken to be right."""

_FLOATS = ("middle", "usual", "largest", "last")
_COUNTS = ("count", "moves", "run", "strange")


@dataclass(frozen=True, slots=True)
class Look:
    """What the screen makes of one entry.

    Attributes
    ----------
    absurd : ndarray, (channels,), bool
        Which of its values are absurd.
    changed : ndarray, (channels,), bool
        Channels in which this value was the last of `IN_A_ROW`: it is believed, and so are those
        before it.
    flags : ndarray, (window, channels), bool, or None
        Which cells of the window hold an absurd value (or repeat one for want of a newer); None if
        none does.
    clean : Window or None
        The window with these cells as if they had been missing; None if there are none.
    hindsight : ndarray, (FIRST, channels), bool, or None
        At the `FIRST`-th entry: which of the values so far are absurd.
    """

    absurd: Mask
    changed: Mask
    flags: Mask | None = None
    clean: Window | None = None
    hindsight: Mask | None = None


class Screen:
    """Tells absurd values from what a stream shows, channel by channel.

    A channel is described by a middle, the usual distance from it (running means, clipped), and
    the largest distance that was believed, which fades slowly. A value is absurd if it is more
    than `LIMIT` usual distances and more than `BEYOND` largest distances away. A channel that has
    hardly moved is not known yet: there a value must be out of all proportion to the level and to
    the other channels. Where `IN_A_ROW` are absurd one after the other the stream has changed: the
    last is believed, the middle moves there, and the change counts as a distance that was
    believed.

    Costs some twenty numpy operations over the channels an entry. Memory: 8 numbers and `window`
    flags a channel, and a second window while an absurd value is in it.

    Parameters
    ----------
    window : int, >= 1, in entries
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.rows = 0  # entries seen, up to FIRST
        self.clean: Window | None = None
        self.flags: Mask | None = None

    def _allocate(self, channels: int) -> None:
        self.first = np.full((FIRST, channels), np.nan)
        self.suspected = np.zeros(
            (FIRST, channels), np.bool_
        )  # of `first`: what was called absurd when it came
        self.doubted = np.full(
            (IN_A_ROW, channels), np.nan
        )  # the newest absurd values, the newest last
        for name in _FLOATS:
            setattr(
                self,
                name,
                np.full(channels, np.nan) if name in ("middle", "last") else np.zeros(channels),
            )
        for name in _COUNTS:
            setattr(self, name, np.zeros(channels, np.int64))
        self.limit = np.full(channels, YOUNG_LIMIT)

    middle: Array
    usual: Array
    largest: Array
    last: Array
    count: Any
    moves: Any
    run: Any
    strange: Any

    # -- an entry is looked at first, which changes nothing

    def look(self, values: Any, raw: Window, before: Window | None) -> Look:
        """Judge an entry.

        Parameters
        ----------
        values : ndarray, (channels,)
            NaN where missing.
        raw, before : Window
            The stream's window with the entry, and without it (None before the first).
        """
        none = np.zeros(len(values), np.bool_)
        if self.rows == 0 or before is None:
            return Look(none, none)
        absurd = self._absurd(np.asarray(values, np.float64))
        changed = absurd & (self.run >= IN_A_ROW - 1)
        absurd = absurd & ~changed
        if self.rows == FIRST - 1:
            hindsight = self._in_hindsight(values)
            if hindsight is not None:
                absurd = hindsight[-1].copy()
                flags, clean = self._cleaned(hindsight, values, raw)
                return Look(absurd, none, flags, clean, hindsight)
        if self.clean is None and not absurd.any():
            return Look(absurd, changed)
        return self._with_window(np.asarray(values), absurd, changed, raw, before)

    def _absurd(self, values: Array) -> Mask:
        away = np.abs(values - self.middle)
        far: Mask = (away > self.limit * self.usual) & (self.count >= YOUNG)
        if not far.any():
            return far
        far &= away > BEYOND * self.largest
        moved = self.moves >= MOVED
        middling = _typical(self.usual) if len(values) > 1 else 0.0
        floor = LEVELS * np.maximum(np.abs(self.middle), middling)
        if not moved.all():
            far &= moved | (away > floor)
            unknown = ~moved & (floor == 0.0) & (self.usual == 0.0)
            far &= ~unknown | (self.strange < STRANGE)
        if len(values) > 1 and far.any():
            alike = self.usual >= COMPARABLE * middling
            far &= ~alike | (away > COMMON * _typical(self.largest))
        return far

    def _in_hindsight(self, values: Any) -> Mask | None:
        """Return which of the first values are absurd, (FIRST, channels); None where none is."""
        first = self.first.copy()
        first[-1] = values
        _, away, usual, inner, moves = _described(first)
        level = np.abs(np.where(np.isnan(first).all(axis=0), 0.0, _median(first)))
        middling = _typical(usual) if len(level) > 1 else 0.0
        floor = np.where(moves < FIRST - 3, LEVELS * np.maximum(level, middling), 0.0)
        far: Mask = (away > LIMIT * usual) & (away > BEYOND * inner) & (away > floor)
        far &= (~np.isnan(first)).sum(axis=0) > FIRST // 2
        return far if far.any() else None

    def _cleaned(
        self, hindsight: Mask, values: Any, raw: Window
    ) -> tuple[Mask | None, Window | None]:
        """Return flags and clean window where the first entries turn out to hold absurd values."""
        flags = np.zeros(raw.values.shape, np.bool_)
        rows = min(self.window, FIRST)
        held = hindsight.copy()
        for i in range(1, FIRST):  # what is missing repeats what was before it
            held[i] |= np.isnan(values if i == FIRST - 1 else self.first[i]) & held[i - 1]
        flags[-rows:] = held[-rows:]
        if not flags.any():
            return None, None
        clean = Window(*raw.values.shape)
        clean.load_state_dict(raw.state_dict())
        first = self.first.copy()
        first[-1] = values
        filled = _filled(np.where(hindsight, np.nan, first))[-rows:]
        clean.values[-rows:] = np.where(
            flags[-rows:] & ~np.isnan(filled), filled, clean.values[-rows:]
        )
        clean.last = clean.values[-1].copy()
        return flags, clean

    def _with_window(
        self, values: Any, absurd: Mask, changed: Mask, raw: Window, before: Window
    ) -> Look:
        held = np.zeros(raw.values.shape, np.bool_) if self.flags is None else self.flags
        newest = absurd | (np.isnan(values) & held[-1])
        flags: Mask = np.vstack([held[1:], newest[None]])
        flags[:, changed] = False
        clean = (self.clean or before).pushed(np.where(absurd, np.nan, values), int(raw.times[-1]))
        clean.values[:, changed] = raw.values[:, changed]
        clean.last[changed] = raw.last[changed]
        if not flags.any():
            return Look(absurd, changed)
        return Look(absurd, changed, flags, clean)

    # -- and taken in when it is accepted

    def take(self, values: Any, look: Look) -> int:
        """Follow what an entry has shown; `look` is what `look` said of it.

        Returns
        -------
        int
            How many absurd values were found: in this entry, or among the first ones.
        """
        found = int(
            (look.absurd if look.hindsight is None else look.hindsight & ~self.suspected).sum()
        )
        self._take(values, look)
        return found

    def _take(self, values: Any, look: Look) -> None:
        values = np.asarray(values, np.float64)
        if self.rows == 0:
            self._allocate(len(values))
        self.flags, self.clean = look.flags, look.clean
        if self.rows < FIRST:
            self.first[self.rows], self.suspected[self.rows] = values, look.absurd
            self.rows += 1
            self._start(look)
            return
        known = ~np.isnan(values)
        self._follow(values, known & ~look.absurd)
        if look.absurd.any() or look.changed.any() or self.run.any():
            self._count_absurd(values, known, look)

    def _start(self, look: Look) -> None:
        """Describe the first entries anew."""
        first = self.first[: self.rows]
        if look.hindsight is not None:
            first = np.where(look.hindsight, np.nan, first)
        known = ~np.isnan(first)
        self.middle, away, usual, inner, moves = _described(first)
        done = self.rows == FIRST
        with np.errstate(invalid="ignore"):
            self.usual = (
                np.where(known, away, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
                if done
                else usual
            )
            self.largest = np.where(known, away, 0.0).max(axis=0) if done else inner
        self.moves = moves
        self.count = known.sum(axis=0)
        self.last = _filled(first)[-1]
        if done:
            self.limit = np.where(self.count > FIRST // 2, LIMIT, YOUNG_LIMIT)
        absurd = look.absurd if look.hindsight is None else look.hindsight[-1]
        self.run = np.where(absurd, self.run + 1, 0)
        self.strange = self.strange + absurd
        self.doubted = np.vstack(
            [self.doubted[1:], np.where(absurd, self.first[self.rows - 1], np.nan)[None]]
        )

    def _follow(self, values: Array, believed: Mask) -> None:
        fresh = believed & np.isnan(self.middle)
        if fresh.any():
            self.middle = np.where(fresh, values, self.middle)
        if not believed.all():
            values = np.where(believed, values, self.middle)
        rate = believed * np.maximum(RATE, 1.0 / (self.count + 1.0))
        off = values - self.middle
        away = np.abs(off)
        bound = np.where(self.usual > 0.0, CLIP * self.usual, np.inf)
        self.middle = self.middle + rate * np.clip(off, -bound, bound)
        self.usual = self.usual + rate * (np.minimum(away, bound) - self.usual)
        self.largest = np.fmax(self.largest * FADE, np.where(believed, away, 0.0))
        self.moves = self.moves + (believed & (values != self.last))
        self.last = np.where(believed, values, self.last)
        self.count = self.count + believed
        if (self.limit > LIMIT).any():
            self.limit = np.where(self.count >= FIRST, LIMIT, self.limit)

    def _count_absurd(self, values: Array, known: Mask, look: Look) -> None:
        doubted = np.vstack([self.doubted[1:], values[None]])
        self.doubted = np.where(known, doubted, self.doubted)
        self.run = np.where(known, np.where(look.absurd, self.run + 1, 0), self.run)
        self.strange = self.strange + look.absurd
        if not look.changed.any():
            return
        c = look.changed
        middle = np.median(self.doubted[:, c], axis=0)
        spread = np.abs(self.doubted[:, c] - middle)
        # What is usual around the new level is not known yet, but hardly less than around the old
        # one. A channel whose first values were the wrong ones starts afresh.
        young = self.limit[c] > LIMIT
        self.largest[c] = np.where(
            young, spread.max(axis=0), np.maximum(self.largest[c], np.abs(middle - self.middle[c]))
        )
        self.usual[c] = np.where(
            young, spread.mean(axis=0), np.maximum(self.usual[c], spread.mean(axis=0))
        )
        self.middle[c] = middle

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return the description and the absurd values in the window, as copies."""
        if self.rows == 0:
            return {"rows": 0}
        names = (*_FLOATS, *_COUNTS, "limit", "first", "suspected", "doubted")
        arrays = {name: getattr(self, name).copy() for name in names}
        return {
            "rows": self.rows,
            **arrays,
            "flags": None if self.flags is None else self.flags.copy(),
            "clean": None if self.clean is None else self.clean.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.rows = int(state["rows"])
        self.clean = self.flags = None
        if self.rows == 0:
            return
        for name in (*_FLOATS, "limit", "first", "doubted"):
            setattr(self, name, np.array(state[name], np.float64))
        for name in _COUNTS:
            setattr(self, name, np.array(state[name], np.int64))
        self.suspected = np.array(state["suspected"], np.bool_)
        if state["flags"] is not None:
            self.flags = np.array(state["flags"], np.bool_)
            self.clean = Window(*self.flags.shape)
            self.clean.load_state_dict(state["clean"])


def _described(first: Array) -> tuple[Array, Array, Array, Array, Any]:
    """Return middle, distances, usual and largest right distance, and the number of changes,
    robustly."""
    middle = _median(first)
    away = np.abs(first - middle)
    ordered = np.sort(away, axis=0)  # NaN last
    known = (~np.isnan(first)).sum(axis=0)
    at = np.clip(np.ceil(INNER * known).astype(np.int64) - 1, 0, len(first) - 1)
    inner = np.nan_to_num(ordered[at, np.arange(first.shape[1])])
    usual = np.nan_to_num(_median(away))
    moves = (np.diff(_filled(first), axis=0) != 0.0).sum(axis=0)
    moves[known == 0] = 0
    return middle, away, usual, inner, moves


def _median(values: Array) -> Array:
    """Return the median of what is known in each column; NaN where nothing is."""
    ordered = np.sort(values, axis=0)
    known = (~np.isnan(values)).sum(axis=0)
    low, high = np.maximum(known - 1, 0) // 2, known // 2
    at = np.arange(values.shape[1])
    median: Array = 0.5 * ordered[low, at] + 0.5 * ordered[np.minimum(high, len(values) - 1), at]
    return median


def _filled(values: Array) -> Array:
    """Fill what is missing with the last known value of its column, or the first where there is
    none before."""
    known = ~np.isnan(values)
    at = np.where(known, np.arange(len(values))[:, None], known.argmax(axis=0))
    np.maximum.accumulate(at, axis=0, out=at)
    filled: Array = values[at, np.arange(values.shape[1])]
    return filled


def _typical(sizes: Array) -> float:
    """Return the median of the sizes that are not zero; 0 where all are."""
    known = sizes[sizes > 0.0]
    return float(np.median(known)) if len(known) else 0.0
