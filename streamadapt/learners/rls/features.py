"""What recursive least squares regresses on: the window, and what else it was asked to look at.

x is (groups, features): a group is a channel of a forecast, or all there is. First come the
features that the linear bases are fitted on (`streamadapt.models.features.linear_features`, the
constant last), so that their statistics are the leading block of ours; then, in this order:

* the base's probabilities, without the last class (classification): with them a wrong base is
  unlearned;
* ``level``, forecasts: the channel's own last value, which the plain features leave out;
* ``calendar``: sine and cosine of one and two turns a day (UTC) of the newest entry's event time;
* ``cross``, forecasts: of every channel the last value and its change over one and over three
  entries. From `MOST_CHANNELS` channels on: the mean of all channels times the square root of
  their number (their first principal component, where all move together), its change over three
  and over nine entries, and the channel's own last value. Changes over more entries than the
  window holds are left out;
* ``season``, forecasts: what the channel did one period ago, Z_{t-S+h} - Z_{t-S} for every step h
  of the horizon, and Z_{t-S} - Z_t; zeros where that was not seen. For windows shorter than a
  period.

All are computed as float32 numbers.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal, get_args

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.learners.float32 import scale_input, to_float32
from streamadapt.learners.season import cycle_is_known, cycle_slot, cycle_value
from streamadapt.models.contract import Spec
from streamadapt.models.features import feature_count

__all__ = [
    "EXTRAS",
    "EXTRA_SCALE",
    "Extra",
    "count_features",
    "fill_features",
    "lags_of",
    "season_features",
]

FEATURE_LIMIT: Final = 1e4
"""Scaled inputs are clipped here: beyond it one outlier would leave P no digits for the other
directions."""
DAY_NS: Final = 86_400_000_000_000
MOST_CHANNELS: Final = 50
"""A panel of at least so many channels is seen through its mean, a smaller one channel by
channel."""
EXTRA_SCALE: Final = 0.01
"""What is looked at beyond the window is scaled by this, so that the ridge weighs ten thousand
times more on it: no history is known for it, and a guess from the first entries would do harm."""
PANEL_LAGS, MEAN_LAGS = (1, 3), (3, 9)
"""How many entries ago the differences start: those of all channels, those of a large panel's
mean."""

Extra = Literal["level", "calendar", "cross", "season"]
EXTRAS: tuple[Extra, ...] = get_args(Extra)


def lags_of(spec: Spec) -> tuple[int, ...]:
    """Return the lags of ``cross`` that the window holds."""
    lags = MEAN_LAGS if spec.channels >= MOST_CHANNELS else PANEL_LAGS
    return tuple(lag for lag in lags if lag < spec.window)


def count_features(spec: Spec, extras: tuple[Extra, ...]) -> int:
    """Return the number of features."""
    plain = feature_count(spec.window, spec.channels, forecast=spec.kind == "forecast")
    return (
        plain
        + (spec.columns - 1) * (spec.kind == "classification")
        + sum(_width(spec, extras, extra) for extra in extras)
    )


def _width(spec: Spec, extras: tuple[Extra, ...], extra: Extra) -> int:
    if extra == "calendar":
        return 4
    if extra == "season":
        return spec.rows + 1
    if extra == "level":
        return 0 if "cross" in extras else 1  # which has it already
    changes = 1 + len(lags_of(spec))
    return changes + 1 if spec.channels >= MOST_CHANNELS else changes * spec.channels


@compiled
def fill_features(c: Any, p: Any, w: Any, x: Any) -> None:
    """Write the features of an `Input` to ``w.x``; ``w.season`` has those of its season."""
    scale_window(c, x.window, w.scaled)
    at = add_window(c, w.scaled, w.x)
    if c.classify:
        at = add_base(x.base, w.x, at)
    if p.level:
        at = add_level(w.scaled, w.x, at)
    if p.calendar:
        at = add_calendar(x.times, w.x, at)
    if p.cross:
        at = add_cross(p.lags, w.scaled, w.panel, w.x, at)
    if p.season:
        add_season(w.season, w.x, at)


@compiled
def scale_window(c: Any, window: Any, scaled: Any) -> None:
    """``(window - loc) / scale``, clipped at `FEATURE_LIMIT`."""
    for t in range(window.shape[0]):
        for i in range(window.shape[1]):
            value = scale_input(window[t, i], c.input_loc[i], c.input_scale[i])
            scaled[t, i] = np.float32(min(max(value, -FEATURE_LIMIT), FEATURE_LIMIT))


@compiled
def add_window(c: Any, scaled: Any, x: Any) -> Any:
    """Forecasts: each channel less its last value. Otherwise: all values, oldest first. And a
    1."""
    newest, channels = scaled.shape[0] - 1, scaled.shape[1]
    at = newest if c.forecast else scaled.size
    for g in range(x.shape[0]):
        if c.forecast:
            for t in range(newest):
                x[g, t] = scaled[t, g] - scaled[newest, g]
        else:
            for t in range(scaled.shape[0]):
                for i in range(channels):
                    x[g, t * channels + i] = scaled[t, i]
        x[g, at] = 1.0
    return at + 1


@compiled
def add_base(base: Any, x: Any, at: int) -> Any:
    """The base's probabilities, without the last class."""
    classes = base.shape[1] - 1
    for j in range(classes):
        x[0, at + j] = np.float32(base[0, j])
    return at + classes


@compiled
def add_level(scaled: Any, x: Any, at: int) -> int:
    """The channel's own last value."""
    for g in range(x.shape[0]):
        x[g, at] = scaled[scaled.shape[0] - 1, g] * np.float32(EXTRA_SCALE)
    return at + 1


@compiled
def add_calendar(times: Any, x: Any, at: int) -> int:
    """Sine and cosine of one turn a day, and of two."""
    time = times[times.shape[0] - 1] if times.shape[0] > 0 else 0
    turn = 2.0 * math.pi * (time % DAY_NS) / DAY_NS
    for g in range(x.shape[0]):
        x[g, at] = np.float32(math.sin(turn) * EXTRA_SCALE)
        x[g, at + 1] = np.float32(math.cos(turn) * EXTRA_SCALE)
        x[g, at + 2] = np.float32(math.sin(2.0 * turn) * EXTRA_SCALE)
        x[g, at + 3] = np.float32(math.cos(2.0 * turn) * EXTRA_SCALE)
    return at + 4


@compiled
def add_cross(lags: Any, scaled: Any, panel: Any, x: Any, at: int) -> int:
    """The panel's last values and their changes; of a large panel its mean's, and the channel's
    own last value."""
    see_panel(scaled, panel)
    newest, seen = panel.shape[0] - 1, panel.shape[1]
    for g in range(x.shape[0]):
        for i in range(seen):
            x[g, at + i] = panel[newest, i]
        for k in range(lags.shape[0]):
            for i in range(seen):
                change = panel[newest, i] - panel[newest - lags[k], i]
                x[g, at + (k + 1) * seen + i] = change
    at += (1 + lags.shape[0]) * seen
    return at if seen == scaled.shape[1] else add_level(scaled, x, at)


@compiled
def see_panel(scaled: Any, panel: Any) -> None:
    """``panel`` is (window, channels): all values; or (window, 1): their mean times the square
    root of their number."""
    channels = scaled.shape[1]
    for t in range(scaled.shape[0]):
        if panel.shape[1] == channels:
            for i in range(channels):
                panel[t, i] = scaled[t, i] * np.float32(EXTRA_SCALE)
        else:
            total = 0.0
            for i in range(channels):
                total += np.float64(scaled[t, i] * np.float32(EXTRA_SCALE))
            panel[t, 0] = np.float32(total / channels) * np.float32(math.sqrt(channels))


@compiled
def add_season(season: Any, x: Any, at: int) -> None:
    """What `season_features` wrote."""
    for g in range(x.shape[0]):
        for h in range(season.shape[1]):
            x[g, at + h] = season[g, h]


@compiled
def season_features(c: Any, past: Any, key: int, period: int, x: Any, season: Any) -> None:
    """Write what each channel did one period ago to `season`, (channels, rows + 1); `past` is a
    `CycleState`."""
    rows = season.shape[1] - 1
    known = cycle_is_known(past, key, period, x, rows)
    first = cycle_slot(past, key, period, x, 0) if known else 0
    for h in range(rows + 1):
        # Z_{t-S+h} - Z_{t-S}, and last Z_{t-S} - Z_t.
        start, end = (first, 0) if h < rows else (-1, first)
        if known and h < rows:
            end = cycle_slot(past, key, period, x, h + 1)
        for i in range(season.shape[0]):
            season[i, h] = 0.0
            if known:
                change = cycle_value(past, key, x, end, i) - cycle_value(past, key, x, start, i)
                season[i, h] = scaled_change(change, c.input_scale[i])


@compiled
def scaled_change(change: float, scale: Any) -> Any:
    """``change / scale``, clipped at `FEATURE_LIMIT`, times `EXTRA_SCALE`."""
    scaled = np.float64(to_float32(change)) / np.float64(scale)
    return np.float32(min(max(scaled, -FEATURE_LIMIT), FEATURE_LIMIT)) * np.float32(EXTRA_SCALE)
