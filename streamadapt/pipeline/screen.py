"""Detects outliers: values so far from the stream's earlier values that learning them would
destroy what was learned before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamadapt.pipeline.taking import (
    FIRST,
    LIMIT,
    YOUNG,
    Channels,
    follow,
)
from streamadapt.records import Array, Mask
from streamadapt.tasks import Window

__all__ = ["Screen", "ScreenResult"]

YOUNG_LIMIT = 100.0
"""... more than this number, while a channel has had fewer than `FIRST` values ..."""
BEYOND = 4.0
"""... more than this many times the largest accepted distance ..."""
LEVELS = 10.0
"""... and, in a channel that has hardly changed yet, more than this many times its level and the
other channels' usual distance."""
COMMON = 2.0
"""It is also more than this many times the largest distance of the other channels, if these are
comparable."""
COMPARABLE = 1e-3
"""A channel is comparable if its usual distance is at least this share of the median channel's."""
MOVED = 10
"""The scale of a channel is known after this number of changes of its value."""
IN_A_ROW = 5
"""This number of outliers in a row is not a mistake, but a change of the stream."""
STRANGE = 2
"""In a channel without a known scale, this number of different values is doubted; the next
different value is accepted."""
INNER = 0.7
"""The share of the first distances that is assumed to be right."""

_FLOATS = ("middle", "usual", "largest", "last")
_COUNTS = ("count", "moves", "run", "strange")


@dataclass(frozen=True, slots=True)
class ScreenResult:
    """The screen's result for one entry.

    Attributes
    ----------
    absurd : ndarray, (channels,), bool
        The values of the entry that are outliers.
    changed : ndarray, (channels,), bool
        Channels in which this value is the last of `IN_A_ROW` outliers: all of these are then
        accepted.
    flags : ndarray, (window, channels), bool, or None
        The cells of the window that have an outlier (or repeat one because the next value is
        missing); None if there are none.
    clean : Window or None
        The window with these cells treated as missing; None if there are none.
    hindsight : ndarray, (FIRST, channels), bool, or None
        At the `FIRST`-th entry: the values so far that are outliers.
    """

    absurd: Mask
    changed: Mask
    flags: Mask | None = None
    clean: Window | None = None
    hindsight: Mask | None = None


class Screen:
    """Detects outliers among the values of a stream, for each channel separately.

    The statistics of a channel are its centre, the usual distance from the centre (clipped running
    means), and the largest accepted distance, which decays slowly. A value is an outlier if its
    distance is more than `LIMIT` usual distances and more than `BEYOND` largest distances. The
    scale of a channel that has hardly changed is not known yet: an outlier must then also be far
    beyond its level and beyond the other channels. `IN_A_ROW` outliers in a row show that the
    stream has changed: the last one is accepted, the centre moves there, and the change counts as
    an accepted distance.

    Costs about twenty numpy operations over the channels per entry. Memory per channel: 8 numbers
    and `window` flags, and a second window while the window has an outlier.

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
        # Which values of `first` were judged to be outliers when they arrived.
        self.suspected = np.zeros((FIRST, channels), np.bool_)
        # The newest outliers; the newest is the last row.
        self.doubted = np.full((IN_A_ROW, channels), np.nan)
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

    # -- judge an entry, without changing the statistics

    def judge(self, values: Any, raw: Window, before: Window | None) -> ScreenResult:
        """Judge an entry.

        Parameters
        ----------
        values : ndarray, (channels,)
            NaN if missing.
        raw, before : Window
            The stream's window with the entry and without it (None before the first entry).
        """
        none = np.zeros(len(values), np.bool_)
        if self.rows == 0 or before is None:
            return ScreenResult(none, none)
        absurd = self._absurd(np.asarray(values, np.float64))
        changed = absurd & (self.run >= IN_A_ROW - 1)
        absurd = absurd & ~changed
        if self.rows == FIRST - 1:
            hindsight = self._in_hindsight(values)
            if hindsight is not None:
                absurd = hindsight[-1].copy()
                flags, clean = self._cleaned(hindsight, values, raw)
                return ScreenResult(absurd, none, flags, clean, hindsight)
        if self.clean is None and not absurd.any():
            return ScreenResult(absurd, changed)
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
        """Return which of the first values are outliers, (FIRST, channels); None if there are
        none."""
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
        """Return flags and clean window after outliers were found among the first entries."""
        flags = np.zeros(raw.values.shape, np.bool_)
        rows = min(self.window, FIRST)
        held = hindsight.copy()
        for i in range(1, FIRST):  # a missing value repeats the value before it
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
    ) -> ScreenResult:
        held = np.zeros(raw.values.shape, np.bool_) if self.flags is None else self.flags
        newest = absurd | (np.isnan(values) & held[-1])
        flags: Mask = np.vstack([held[1:], newest[None]])
        flags[:, changed] = False
        clean = (self.clean or before).pushed(np.where(absurd, np.nan, values), int(raw.times[-1]))
        clean.values[:, changed] = raw.values[:, changed]
        clean.last[changed] = raw.last[changed]
        if not flags.any():
            return ScreenResult(absurd, changed)
        return ScreenResult(absurd, changed, flags, clean)

    # -- update the statistics with an accepted entry

    def take(self, values: Any, result: ScreenResult) -> int:
        """Update the statistics with an entry; `result` is what `judge` returned for it.

        Returns
        -------
        int
            The number of new outliers: in this entry, or among the first entries.
        """
        count = int(
            (
                result.absurd if result.hindsight is None else result.hindsight & ~self.suspected
            ).sum()
        )
        self._take(values, result)
        return count

    def _take(self, values: Any, result: ScreenResult) -> None:
        values = np.array(values, np.float64)  # contiguous and writable, as the kernel takes it
        if self.rows == 0:
            self._allocate(len(values))
        self.flags, self.clean = result.flags, result.clean
        if self.rows < FIRST:
            self.first[self.rows], self.suspected[self.rows] = values, result.absurd
            self.rows += 1
            self._start(result)
            return
        known = ~np.isnan(values)
        follow(self.channels, values, known & ~result.absurd)
        if result.absurd.any() or result.changed.any() or self.run.any():
            self._count_absurd(values, known, result)

    def _start(self, result: ScreenResult) -> None:
        """Recompute the statistics of the first entries."""
        first = self.first[: self.rows]
        if result.hindsight is not None:
            first = np.where(result.hindsight, np.nan, first)
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
        absurd = result.absurd if result.hindsight is None else result.hindsight[-1]
        self.run = np.where(absurd, self.run + 1, 0)
        self.strange = self.strange + absurd
        self.doubted = np.vstack(
            [self.doubted[1:], np.where(absurd, self.first[self.rows - 1], np.nan)[None]]
        )

    @property
    def channels(self) -> Channels:
        """Views of the statistics."""
        return Channels(
            self.middle, self.usual, self.largest, self.last, self.count, self.moves, self.limit
        )

    @property
    def plain(self) -> bool:
        """Whether the window and the newest values have no outliers, and all statistics are
        known."""
        return self.rows == FIRST and self.clean is None and not self.run.any()

    def _count_absurd(self, values: Array, known: Mask, result: ScreenResult) -> None:
        doubted = np.vstack([self.doubted[1:], values[None]])
        self.doubted = np.where(known, doubted, self.doubted)
        self.run = np.where(known, np.where(result.absurd, self.run + 1, 0), self.run)
        self.strange = self.strange + result.absurd
        if not result.changed.any():
            return
        c = result.changed
        middle = np.median(self.doubted[:, c], axis=0)
        spread = np.abs(self.doubted[:, c] - middle)
        # The usual distance at the new level is not known yet, but is probably not smaller than at
        # the old level. A channel whose first values were the outliers restarts.
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
        """Return the statistics and the outliers in the window, as copies."""
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
        """Restore a state from `state_dict`."""
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
    """Return robust estimates: centre, distances, usual distance, largest right distance, and the
    number of changes."""
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
    """Return the median of the known values of each column; NaN if none is known."""
    ordered = np.sort(values, axis=0)
    known = (~np.isnan(values)).sum(axis=0)
    low, high = np.maximum(known - 1, 0) // 2, known // 2
    at = np.arange(values.shape[1])
    median: Array = 0.5 * ordered[low, at] + 0.5 * ordered[np.minimum(high, len(values) - 1), at]
    return median


def _filled(values: Array) -> Array:
    """Replace a missing value by the last known value of its column, or by the first known value
    if there is none before."""
    known = ~np.isnan(values)
    at = np.where(known, np.arange(len(values))[:, None], known.argmax(axis=0))
    np.maximum.accumulate(at, axis=0, out=at)
    filled: Array = values[at, np.arange(values.shape[1])]
    return filled


def _typical(sizes: Array) -> float:
    """Return the median of the sizes that are not zero; 0 if all are zero."""
    known = sizes[sizes > 0.0]
    return float(np.median(known)) if len(known) else 0.0
