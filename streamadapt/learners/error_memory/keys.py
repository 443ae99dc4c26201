"""What an error memory looks entries up by: the base's embedding, the inputs, a channel's window,
the whole panel's.

Keys are (groups, features): a group is a channel, or all there is.

* `EMBEDDING`: the base's embedding, at length one; an embedding of zeros stays one.
* `INPUTS`: the scaled window and a 1, at length one. The 1 makes the angle between two keys tell
  the size of the inputs and not only their direction.
* `CHANNEL`: the recent window of each channel by itself. With Z the scaled values, t the newest
  step and m steps: ``w_i (Z_{t-i} - Z_t)`` for i = m-1..1, w rising evenly from `OLDEST` to 1 at
  i = 0; ``LEVEL Z_t``; sine and cosine of the time of day.
* `PANEL`: the newest values of all channels, their changes and the time of day. With g_t the
  scaled values in m directions, times ``sqrt(min(WORTH, channels) / m)``: g_t,
  ``CHANGE (g_t - g_{t-l})`` for each of `LAGS` that the window holds, and `CHANGE` times sine and
  cosine of the time of day. The directions are the channels themselves, and above
  `MOST_DIRECTIONS` channels as many random orthogonal ones: principal components would need a
  history, which no learner is given.

A 1 follows the last two where hyperplanes through the origin must be able to cut the other
features anywhere.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from streamadapt.compiled import compiled
from streamadapt.learners.float32 import scale_input, to_float32
from streamadapt.models.contract import Spec
from streamadapt.records import Array

__all__ = [
    "CHANNEL",
    "EMBEDDING",
    "INPUTS",
    "MOST_DIRECTIONS",
    "PANEL",
    "WORTH",
    "KeyRoom",
    "KeySettings",
    "KeyState",
    "channel_key",
    "fill_keys",
    "key_room",
    "key_size",
    "length_one_key",
    "new_key",
    "panel_key",
]

EMBEDDING: Final = 0
INPUTS: Final = 1
CHANNEL: Final = 2
PANEL: Final = 3

NS: Final = 1e9
LONGEST: Final = 2**62
"""The longest period, ns."""
SHORTEST: Final = 1e-100
OLDEST: Final = 0.3
"""Weight of the oldest step of a channel's window; it grows evenly to 1 at the newest."""
LEVEL: Final = 0.7
"""Weight of a channel's newest value beside the shape of its window."""
LAGS: Final = (1, 3, 6)
"""Steps over which a panel's changes are looked at."""
CHANGE: Final = 1.5
"""Weight of a panel's changes, and of the time of day, beside its values."""
MOST_DIRECTIONS: Final = 64
"""A panel of more channels is looked at in this many random directions."""
WORTH: Final = 8
"""A panel's values weigh as much as this many channels do, however many it has."""


class KeySettings(NamedTuple):
    """Where keys come from.

    Attributes
    ----------
    source : int
        `EMBEDDING`, `INPUTS`, `CHANNEL` or `PANEL`.
    steps : (m - 1,)
        `CHANNEL`: the weights of the steps before the newest.
    lags : int64
        `PANEL`: how many steps ago its values are looked at; 0 is the first.
    scale : float
        `PANEL`: the weight of the values.
    phase : float
        The weight of the time of day.
    period : int, ns
        A day, or what takes its place.
    one : bool
        Whether a 1 follows.
    """

    source: int
    steps: Array
    lags: Array
    scale: float
    phase: float
    period: int
    one: bool


class KeyState(NamedTuple):
    """`directions` is (channels, m) per key; empty if they are the channels themselves."""

    directions: Array


class KeyRoom(NamedTuple):
    """`scaled` is (window, channels); `panel` (lags, m); `keys` (groups, features)."""

    scaled: Array
    panel: Array
    keys: Array


def length_one_key(source: int) -> KeySettings:
    """Return the settings of `EMBEDDING` and `INPUTS`."""
    return KeySettings(source, np.zeros(0), np.zeros(0, np.int64), 1.0, 1.0, 1, False)


def channel_key(length: int, period: float, *, one: bool) -> KeySettings:
    """Return the settings of `CHANNEL` with a window of `length` steps; `period` is in seconds."""
    steps = np.linspace(OLDEST, 1.0, length)[:-1]
    return KeySettings(CHANNEL, steps, np.zeros(0, np.int64), 1.0, 1.0, _nanoseconds(period), one)


def panel_key(spec: Spec, period: float, *, one: bool) -> KeySettings:
    """Return the settings of `PANEL`."""
    return KeySettings(
        PANEL,
        np.zeros(0),
        np.array([0, *(lag for lag in LAGS if lag < spec.window)], np.int64),
        math.sqrt(min(WORTH, spec.channels) / _directions(spec)),
        CHANGE,
        _nanoseconds(period),
        one,
    )


def _nanoseconds(period: float) -> int:
    return max(1, round(min(period * NS, LONGEST)))


def _directions(spec: Spec) -> int:
    return min(spec.channels, MOST_DIRECTIONS)


def key_size(p: KeySettings, spec: Spec) -> tuple[int, int]:
    """Return the numbers of groups and of features."""
    if p.source == EMBEDDING:
        return 1, spec.embedding or 0
    if p.source == INPUTS:
        return 1, spec.window * spec.channels + 1
    if p.source == CHANNEL:
        return spec.channels, len(p.steps) + 3 + p.one
    return 1, _directions(spec) * len(p.lags) + 2 + p.one


def new_key(p: KeySettings, spec: Spec) -> KeyState:
    """Return the directions, drawn with the spec's seed."""
    m = _directions(spec)
    if p.source != PANEL or spec.channels == m:
        return KeyState(np.zeros((0, 0)))
    drawn = torch.randn(spec.channels, m, generator=spec.generator(), dtype=torch.float64)
    return KeyState(torch.linalg.qr(drawn).Q.numpy())


def key_room(p: KeySettings, spec: Spec) -> KeyRoom:
    """Return room for the keys of one entry."""
    return KeyRoom(
        np.zeros((spec.window, spec.channels), np.float32),
        np.zeros((len(p.lags), _directions(spec))),
        np.zeros(key_size(p, spec)),
    )


@compiled
def fill_keys(c: Any, p: Any, s: Any, key: int, w: Any, x: Any) -> None:
    """Write the keys of an `Input` to ``w.keys``."""
    if p.source == EMBEDDING:
        embedding_key(x.embedding, w.keys[0])
        return
    scale_window(c, x.window, w.scaled)
    if p.source == INPUTS:
        inputs_key(w.scaled, w.keys[0])
    elif p.source == CHANNEL:
        for g in range(w.keys.shape[0]):
            at = add_shape(p.steps, w.scaled, g, w.keys[g])
            add_time(p, x.times, w.keys[g], at)
    else:
        see_panel(p, s.directions[key], w.scaled, w.panel)
        at = add_panel(w.panel, w.keys[0])
        add_time(p, x.times, w.keys[0], at)


@compiled
def scale_window(c: Any, window: Any, out: Any) -> None:
    """``(window - loc) / scale``, as float32 numbers."""
    for t in range(window.shape[0]):
        for i in range(window.shape[1]):
            out[t, i] = to_float32(scale_input(window[t, i], c.input_loc[i], c.input_scale[i]))


@compiled
def embedding_key(embedding: Any, h: Any) -> None:
    """The embedding at length one."""
    for i in range(h.shape[0]):
        h[i] = embedding[i]
    normalise(h)


@compiled
def inputs_key(window: Any, h: Any) -> None:
    """The window, oldest step first, and a 1, at length one."""
    channels = window.shape[1]
    for t in range(window.shape[0]):
        for i in range(channels):
            h[t * channels + i] = window[t, i]
    h[h.shape[0] - 1] = 1.0
    normalise(h)


@compiled
def normalise(h: Any) -> None:
    """Bring a key to length one; zeros stay zeros."""
    total = 0.0
    for i in range(h.shape[0]):
        total += h[i] * h[i]
    length = max(math.sqrt(total), SHORTEST)
    for i in range(h.shape[0]):
        h[i] /= length


@compiled
def add_shape(steps: Any, window: Any, g: int, h: Any) -> Any:
    """The weighted steps of channel g less its newest value, and that; return where they end."""
    newest, length = window.shape[0] - 1, steps.shape[0]
    last = np.float64(window[newest, g])
    for i in range(length):
        h[i] = steps[i] * (np.float64(window[newest - length + i, g]) - last)
    h[length] = LEVEL * last
    return length + 1


@compiled
def see_panel(p: Any, directions: Any, window: Any, panel: Any) -> None:
    """Write the scaled values of each of the lags, in their directions."""
    newest, channels = window.shape[0] - 1, window.shape[1]
    for k in range(panel.shape[0]):
        for j in range(panel.shape[1]):
            panel[k, j] = 0.0
        for i in range(channels):
            value = p.scale * np.float64(window[newest - p.lags[k], i])
            if directions.shape[0] == 0:
                panel[k, i] = value
            else:
                for j in range(panel.shape[1]):
                    panel[k, j] += value * directions[i, j]


@compiled
def add_panel(panel: Any, h: Any) -> Any:
    """The newest values and their changes; return where they end."""
    lags, m = panel.shape
    for j in range(m):
        h[j] = panel[0, j]
        for k in range(1, lags):
            h[k * m + j] = CHANGE * (panel[0, j] - panel[k, j])
    return lags * m


@compiled
def add_time(p: Any, times: Any, h: Any, at: int) -> None:
    """Sine and cosine of the newest event time within its period, 0 where there are no times; and
    a 1."""
    h[at] = 0.0
    h[at + 1] = 0.0
    if times.shape[0] > 0:
        turn = np.float64(times[times.shape[0] - 1] % p.period) * (2.0 * math.pi / p.period)
        h[at] = p.phase * math.sin(turn)
        h[at + 1] = p.phase * math.cos(turn)
    if p.one:
        h[at + 2] = 1.0
