"""The arithmetic of an orthogonal dictionary, in kernels: learn, encode, decode, score."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.learners.dictionary.polar import PolarRoom, length_of, polar, polar_room
from streamadapt.records import Array

__all__ = [
    "ANCHOR",
    "OrthogonalRoom",
    "OrthogonalState",
    "decode",
    "encode",
    "error",
    "norm",
    "orthogonal_room",
    "rates",
    "update",
]

ANCHOR: Final = 0.01
"""The share of the dictionary that is added to the gradient, in units of the root mean square of
the gradient's singular values."""
TINY: Final = 1e-150
"""A shorter vector counts as zero; the cube of this length is still a floating-point number."""


class OrthogonalState(NamedTuple):
    """Per key, for n values; formulas: `OrthogonalDictionary`.

    Attributes
    ----------
    dictionary, gradient, factor : (n, n)
        D, G and S. Column j of D is atom j.
    step : (), int64
        t, the number of updates.
    atoms : (n, n)
        The orthogonal matrix nearest to D, which at first is D. Computed from D alone, not from
        earlier results, so that a restored dictionary has the same bits; not in checkpoints.
    """

    dictionary: Array
    gradient: Array
    factor: Array
    step: Array
    atoms: Array


class OrthogonalRoom(NamedTuple):
    """An entry `y` and its code `code`, (n,), and room for a polar factor."""

    y: Array
    code: Array
    polar: PolarRoom


def orthogonal_room(size: int) -> OrthogonalRoom:
    """Return room for entries of `size` values."""
    return OrthogonalRoom(np.zeros(size), np.zeros(size), polar_room(size))


@compiled
def rates(step: int, floor: float, other_floor: float, boost: float) -> Any:
    """Return rho and gamma of update `step`, counted from 0, each at least its floor, multiplied
    by `boost`, at most 1."""
    later = math.sqrt(step + 2.0)
    rho = max(floor, 4.0 / math.sqrt(step + 1.0))
    gamma = max(other_floor, 2.0 / (later * math.sqrt(later)))
    return min(1.0, boost * rho), min(1.0, boost * gamma)


@compiled
def update(s: Any, key: int, entries: Any, rho: float, gamma: float, normalise: bool,
           w: Any) -> None:  # fmt: skip
    """Learn from the rows of `entries` in one update: the formulas of `OrthogonalDictionary`."""
    d, g, factor = s.dictionary[key], s.gradient[key], s.factor[key]
    n = d.shape[0]
    shrink(g, 1.0 - rho)
    for b in range(entries.shape[0]):
        length = max(norm(entries[b]), TINY) if normalise else 1.0
        for i in range(n):
            w.y[i] = entries[b, i] / length
        project(d, w.y, w.code)
        for i in range(n):
            share = rho * w.y[i] / entries.shape[0]
            for j in range(n):
                g[i, j] += share * (w.code[j] * abs(w.code[j]))
    s.step[key] += 1
    size = length_of(g)
    if size > 0.0 or size != size:  # NaN is noticed by the pipeline, which restores the learner
        add_anchor(g, d, ANCHOR * size / math.sqrt(n), factor)
        polar(factor, w.polar, factor)
        move(d, gamma, factor)


@compiled
def shrink(g: Any, keep: float) -> None:
    """``G <- keep G``."""
    for i in range(g.shape[0]):
        for j in range(g.shape[0]):
            g[i, j] *= keep


@compiled
def add_anchor(g: Any, d: Any, share: float, out: Any) -> None:
    """``out = G + share D``."""
    for i in range(g.shape[0]):
        for j in range(g.shape[0]):
            out[i, j] = g[i, j] + share * d[i, j]


@compiled
def move(d: Any, gamma: float, factor: Any) -> None:
    """``D <- D + gamma (S - D)``; exactly S if gamma is 1."""
    for i in range(d.shape[0]):
        for j in range(d.shape[0]):
            d[i, j] = (1.0 - gamma) * d[i, j] + gamma * factor[i, j]


@compiled
def project(d: Any, y: Any, code: Any) -> None:
    """``code = d^T y``."""
    for j in range(code.shape[0]):
        code[j] = 0.0
    for i in range(y.shape[0]):
        for j in range(code.shape[0]):
            code[j] += y[i] * d[i, j]


@compiled
def encode(atoms: Any, y: Any, threshold: float, code: Any) -> None:
    """``code = atoms^T y``; what is smaller than `threshold` becomes zero."""
    project(atoms, y, code)
    for j in range(code.shape[0]):
        if not abs(code[j]) >= threshold:
            code[j] = 0.0


@compiled
def decode(atoms: Any, code: Any, y: Any) -> None:
    """``y = atoms code``."""
    for i in range(y.shape[0]):
        y[i] = dot(atoms[i], code)


@compiled
def error(atoms: Any, y: Any, least: float, code: Any) -> float:
    """Return the distance of y from its sparse code, divided by its length, or by `least` if that
    is more: `OrthogonalDictionary.error`."""
    project(atoms, y, code)
    length = norm(code)
    if not length > 0.0:
        return 0.0
    # Slightly less than the root mean square: if all coefficients are equal, all are kept.
    small = length * ((1.0 - 1e-9) / math.sqrt(code.shape[0]))
    for j in range(code.shape[0]):
        if abs(code[j]) >= small:
            code[j] = 0.0
    return norm(code) / max(length, least)


@compiled
def norm(x: Any) -> float:
    """Return the length of a vector."""
    return math.sqrt(dot(x, x))


@compiled
def dot(x: Any, y: Any) -> float:
    """Return the sum of ``x y``, added up in eight parts: one sum would wait for each addition."""
    a = b = c = d = e = f = g = h = 0.0
    n = x.shape[0]
    for k in range(0, n - 7, 8):
        a += x[k] * y[k]
        b += x[k + 1] * y[k + 1]
        c += x[k + 2] * y[k + 2]
        d += x[k + 3] * y[k + 3]
        e += x[k + 4] * y[k + 4]
        f += x[k + 5] * y[k + 5]
        g += x[k + 6] * y[k + 6]
        h += x[k + 7] * y[k + 7]
    for k in range(n - n % 8, n):
        a += x[k] * y[k]
    return ((a + b) + (c + d)) + ((e + f) + (g + h))
