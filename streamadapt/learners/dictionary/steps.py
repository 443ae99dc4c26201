"""The steps of the dictionary, in kernels: denoise a window, then score and learn its newest
vector."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.learners.dictionary.atoms import (
    OrthogonalRoom,
    OrthogonalState,
    decode,
    encode,
    error,
    norm,
    rates,
    update,
)
from streamadapt.learners.dictionary.polar import polar
from streamadapt.records import Array

__all__ = ["DictionarySettings", "DictionaryState", "learn", "predict"]

LENGTHS_RATE: Final = 0.01
"""The rate of the running mean of the vectors' lengths."""
LENGTHS_CLIP: Final = 4.0
"""The multiple of that mean at which a length is clipped."""


class DictionarySettings(NamedTuple):
    """`threshold` in scaled units; `track`, the smallest rho and gamma."""

    threshold: float
    track: float


class DictionaryState(NamedTuple):
    """Per key, for vectors of n values.

    Attributes
    ----------
    dictionary : OrthogonalState
    pending : (batch, n)
        The vectors of the next update, of which the first `count` have come.
    count : (), int64
    usual : ()
        The running mean of the vectors' lengths.
    error : ()
        The score of the newest vector; not in checkpoints.
    """

    dictionary: OrthogonalState
    pending: Array
    count: Array  # type: ignore[assignment]  # not the method of tuples
    usual: Array
    error: Array


@compiled
def predict(c: Any, p: Any, s: Any, key: int, w: OrthogonalRoom, x: Any, out: Any) -> None:
    """``y <- D h(D^T y)`` for every vector of the window; the denoised window is ``out[0]``."""
    atoms, n = s.dictionary.atoms[key], w.y.shape[0]
    window, channels = x.window.shape
    for first in range(0, window * channels, n):
        scaled(c, x, first, w.y)
        encode(atoms, w.y, p.threshold, w.code)
        decode(atoms, w.code, w.y)
        for i in range(n):
            t, j = (first + i) // channels, (first + i) % channels
            scale = np.float64(c.input_scale[j])
            out[0, t, j] = np.float64(c.input_loc[j]) + w.y[i] * scale


@compiled
def learn(c: Any, p: Any, s: Any, key: int, w: OrthogonalRoom, x: Any, y: Any) -> None:
    """Score the newest vector, then learn it; what there is to learn is in the window, without a
    label. Every `batch` vectors D is updated. With the weight 0 nothing is learned: the atoms are
    brought up to date with D."""
    d, new = s.dictionary, y.weight == 0.0
    if y.weight > 0.0:
        take_in(c, s, key, w, x)
        new = s.count[key] == s.pending.shape[1]
        if new:
            s.count[key] = 0
            rho, gamma = rates(d.step[key], p.track, p.track, y.boost)
            update(d, key, s.pending[key], rho, gamma, True, w)
    if new:
        polar(d.dictionary[key], w.polar, d.atoms[key])


@compiled
def take_in(c: Any, s: Any, key: int, w: Any, x: Any) -> None:
    """Score the newest vector, and let it wait for the next update."""
    window, channels = x.window.shape
    newest = s.pending[key, s.count[key]]
    scaled(c, x, window * channels - newest.shape[0], newest)
    s.error[key] = error(s.dictionary.atoms[key], newest, s.usual[key], w.code)
    s.usual[key] = moved(s.usual[key], norm(newest))
    s.count[key] += 1


@compiled
def scaled(c: Any, x: Any, first: int, y: Any) -> None:
    """``y = (inputs - loc) / scale``, the window's values from `first` on."""
    channels = x.window.shape[1]
    for i in range(y.shape[0]):
        t, j = (first + i) // channels, (first + i) % channels
        left = np.float64(x.window[t, j]) - np.float64(c.input_loc[j])
        y[i] = left / np.float64(c.input_scale[j])


@compiled
def moved(usual: float, length: float) -> float:
    """Return the running mean of the lengths after one more."""
    if not usual > 0.0:
        return length
    return usual + LENGTHS_RATE * (min(length, LENGTHS_CLIP * usual) - usual)
