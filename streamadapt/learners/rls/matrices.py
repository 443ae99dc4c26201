"""The arithmetic of recursive least squares, in kernels: covariances, gains, weights.

d is the number of features. A covariance P or an information matrix M = P^-1 is (d, d), weights
are (d, responses); all are changed in place. Matrices stay symmetric to the last bit: any
asymmetry would grow by 1 / forgetting every time.
"""

from __future__ import annotations

import math
from typing import Any

from streamadapt.compiled import compiled
from streamadapt.numbers import dot

__all__ = [
    "absorb",
    "correct",
    "correct_rows",
    "covariance_bound",
    "forget",
    "inflate",
    "inform",
    "multiply",
    "multiply_rows",
    "residuals",
    "shrink",
]


def covariance_bound(forgetting: float, features: int, ridge: float) -> float:
    """Return what no eigenvalue of P exceeds: a coordinate's leak is at most a round of `features`
    examples old."""
    return 1.0 / (ridge * forgetting ** (features - 1))


@compiled
def inverse_root(value: float) -> float:
    """``1 / sqrt(value)``; NaN where there is none."""
    return 1.0 / math.sqrt(value) if value > 0.0 else math.nan


@compiled
def forget(p: Any, forgetting: float, leak: float, i: int, column: Any) -> None:
    """``P^-1 <- forgetting P^-1 + leak e e^T``, e the unit vector of coordinate i; `column`, (d,),
    is room to work in."""
    d = p.shape[0]
    root = inverse_root(forgetting / leak + p[i, i]) if leak > 0.0 else 0.0
    for j in range(d):
        column[j] = p[i, j] * root
    growth = 1.0 / forgetting
    for k in range(d):
        for j in range(d):
            p[k, j] = (p[k, j] - column[k] * column[j]) * growth


@compiled
def absorb(p: Any, x: Any, gain: Any) -> None:
    """``P^-1 <- P^-1 + x x^T``, ``gain = P x`` with the new P."""
    d = p.shape[0]
    for j in range(d):
        gain[j] = 0.0
    for k in range(d):
        for j in range(d):
            gain[j] += p[k, j] * x[k]
    size = 1.0
    for j in range(d):
        size += x[j] * gain[j]
    root = inverse_root(size)
    for j in range(d):
        gain[j] *= root
    for k in range(d):
        for j in range(d):
            p[k, j] -= gain[k] * gain[j]
    for j in range(d):
        gain[j] *= root


@compiled
def inflate(p: Any, keep: float, ridge: float, column: Any) -> None:
    """``P^-1 <- keep P^-1 + (1 - keep) ridge I``, one coordinate at a time; ``I / ridge`` where
    nothing is kept, or P is no covariance."""
    d = p.shape[0]
    sound = keep > 0.0
    if sound:
        for i in range(d):
            forget(p, keep if i == 0 else 1.0, (1.0 - keep) * ridge, i, column)
        for i in range(d):
            sound = sound and 0.0 <= p[i, i] < math.inf
    if not sound:
        for i in range(d):
            for j in range(d):
                p[i, j] = 1.0 / ridge if i == j else 0.0


@compiled
def inform(m: Any, forgetting: float, leak: float, x: Any) -> None:
    """``M <- forgetting M + X^T X + leak I``; x is (groups, d)."""
    shrink(m, forgetting, leak)
    for g in range(x.shape[0]):
        for i in range(m.shape[0]):
            for j in range(m.shape[0]):
                m[i, j] += x[g, i] * x[g, j]


@compiled
def shrink(m: Any, keep: float, ridge: float) -> None:
    """``M <- keep M + ridge I``."""
    for i in range(m.shape[0]):
        for j in range(m.shape[0]):
            m[i, j] *= keep
        m[i, i] += ridge


@compiled
def multiply(x: Any, v: Any, out: Any) -> None:
    """``out_h = x^T v_h``; x is (d,)."""
    if v.shape[1] == 1:
        out[0] = dot(x, v[:, 0])
        return
    for h in range(v.shape[1]):
        out[h] = 0.0
    for i in range(v.shape[0]):
        for h in range(v.shape[1]):
            out[h] += x[i] * v[i, h]


@compiled
def multiply_rows(xs: Any, head: int, v: Any, out: Any) -> None:
    """``out_h = x_h^T v_h``; x_h is ``xs[:, head + h]``."""
    for h in range(v.shape[1]):
        out[h] = 0.0
    for i in range(v.shape[0]):
        for h in range(v.shape[1]):
            out[h] += xs[i, head + h] * v[i, h]


@compiled
def residuals(left: Any, known: Any, error: Any) -> None:
    """``error_h <- left_h - error_h``, 0 where it is not known."""
    for h in range(error.shape[0]):
        error[h] = left[h] - error[h] if known[h] else 0.0


@compiled
def correct(v: Any, gain: Any, error: Any) -> None:
    """``v_h <- v_h + gain error_h``; gain is (d,)."""
    for i in range(v.shape[0]):
        for h in range(v.shape[1]):
            v[i, h] += gain[i] * error[h]


@compiled
def correct_rows(v: Any, gains: Any, head: int, error: Any) -> None:
    """``v_h <- v_h + gain_h error_h``; gain_h is ``gains[:, head + h]``."""
    for i in range(v.shape[0]):
        for h in range(v.shape[1]):
            v[i, h] += gains[i, head + h] * error[h]
