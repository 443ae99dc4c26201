"""The orthogonal matrix nearest to a matrix, in kernels, by Halley's iteration with the best
weights [1]_.

References
----------
.. [1] Nakatsukasa, Bai & Gygi (2010), Optimizing Halley's iteration for computing the matrix polar
   decomposition, SIAM Journal on Matrix Analysis and Applications 31.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.learners.dictionary.blocks import (
    factorise,
    minus_square,
    padded,
    solve,
    transpose,
)
from streamadapt.records import Array

__all__ = ["PolarRoom", "length_of", "polar", "polar_room"]

LEAST: Final = 3e-4
"""The smallest singular value that the first weights are the best for, in units of the largest.
Smaller ones take more iterations: the weights for them would cost digits."""
CLOSE: Final = 1e-3
"""If all squared singular values differ by at most this share, one more iteration leaves only
rounding errors."""
DONE: Final = 1e-6
"""If the weights have brought all singular values of `LEAST` or more within this of one, and some
are not there, they were smaller."""
MOST: Final = 40
"""Iterations; a singular value of 1e-18 takes about 25."""
NUDGE: Final = 1e-9
"""The size of what is added to a singular matrix."""


class PolarRoom(NamedTuple):
    """Each (N, N), N the next multiple of `blocks.ROWS`: `x`, which becomes orthogonal, and
    `other` and `square`, to work in."""

    x: Array
    other: Array
    square: Array


def polar_room(size: int) -> PolarRoom:
    """Return room for a matrix of `size` rows."""
    shape = (padded(size), padded(size))
    return PolarRoom(np.zeros(shape), np.zeros(shape), np.zeros(shape))


@compiled
def polar(matrix: Any, w: Any, out: Any) -> None:
    """``out = U V^T`` of the singular value decomposition ``U S V^T`` of `matrix`, (n, n).

    It is the orthogonal matrix nearest to `matrix`. If that is singular, one of its many factors;
    if it is not finite, NaN. `out` may be `matrix`.
    """
    n = matrix.shape[0]
    size = length_of(matrix) / math.sqrt(n)
    found = size < math.inf
    if found:
        scaled(matrix, size, w.x)
        found = orthogonalise(w)
        if not found:  # directions are missing
            nudge(w.x)
            found = orthogonalise(w)
    for i in range(n):
        for j in range(n):
            out[i, j] = w.x[i, j] if found else math.nan


@compiled
def length_of(matrix: Any) -> float:
    """Return the Frobenius norm; infinite or NaN if `matrix` is not finite."""
    n = matrix.shape[0]
    largest = 0.0
    for i in range(n):
        for j in range(n):
            size = abs(matrix[i, j])
            if not size <= largest:  # NaN too, which then stays
                largest = size
    if not 0.0 < largest < math.inf:
        return largest
    total = 0.0
    for i in range(n):
        for j in range(n):
            share = matrix[i, j] / largest
            total += share * share
    return largest * math.sqrt(total)


@compiled
def scaled(matrix: Any, size: float, x: Any) -> None:
    """``x = matrix / size``, with ones on the diagonal where x is larger; the identity if `size`
    is 0."""
    n = matrix.shape[0] if size > 0.0 else 0
    for i in range(x.shape[0]):
        for j in range(x.shape[0]):
            if i < n and j < n:
                x[i, j] = matrix[i, j] / size
            else:
                x[i, j] = 1.0 if i == j else 0.0


@compiled
def orthogonalise(w: Any) -> bool:
    """Bring all singular values of ``w.x`` to one; return False if some stay zero.

    ``X <- (b / c) X + (a - b / c) (I + c X X^T)^-1 X`` takes each singular value s to
    ``s (a + b s^2) / (1 + c s^2)``, and keeps the singular vectors.
    """
    # Bounds of the squared singular values.
    low, top = 0.0, math.inf
    for _ in range(MOST):
        transpose(w.x, w.other)
        minus_square(w.square, w.x, w.other)
        mean, reach = spread(w.square)
        close = reach <= CLOSE * mean
        top = min(top, mean + reach)
        if low == 0.0 or (low > 1.0 - DONE and not close):
            low = LEAST * LEAST * top
        low = min(max(low, mean - reach), top)
        least = math.sqrt(low / top)
        a, b, c = weights(least)
        add_identity(w.square, -c / top)
        factorise(w.square)
        solve(w.square, w.x, w.other)
        mix(w.x, b / c, w.other, a - b / c, 1.0 / math.sqrt(top))
        least *= (a + b * least * least) / (1.0 + c * least * least)
        low, top = min(least * least, 1.0), 1.0
        if close:
            return True
    return False


@compiled
def nudge(x: Any) -> None:
    """Add a little of a matrix that has something in every direction."""
    for i in range(x.shape[0]):
        for j in range(x.shape[0]):
            x[i, j] += NUDGE * math.sin((i + 1.0) * (j + 1.0))


@compiled
def spread(minus: Any) -> Any:
    """Return the mean of the eigenvalues of ``-minus``, of which the upper triangle is read, and
    the furthest that one can lie from it: ``(n - 1)^.5`` standard deviations."""
    n = minus.shape[0]
    mean = 0.0
    for i in range(n):
        mean -= minus[i, i] / n
    variance = 0.0
    for i in range(n):
        own = minus[i, i] + mean
        variance += own * own / n
        for j in range(i + 1, n):
            variance += 2.0 * minus[i, j] * minus[i, j] / n
    return mean, math.sqrt((n - 1) * variance)


@compiled
def weights(least: float) -> Any:
    """Return the weights a, b and c that take singular values from `least` to 1 closest to 1:
    equation 3.11 and theorem 3.1 of the reference."""
    square = least * least
    d = math.pow(4.0 * (1.0 - square) / (square * square), 1.0 / 3.0)
    root = math.sqrt(1.0 + d)
    a = root + 0.5 * math.sqrt(8.0 - 4.0 * d + 8.0 * (2.0 - square) / (square * root))
    b = (a - 1.0) * (a - 1.0) / 4.0
    return a, b, a + b - 1.0


@compiled
def add_identity(m: Any, factor: float) -> None:
    """``m <- I + factor m``, in the upper triangle."""
    for i in range(m.shape[0]):
        for j in range(i, m.shape[0]):
            m[i, j] *= factor
        m[i, i] += 1.0


@compiled
def mix(x: Any, keep: float, other: Any, share: float, factor: float) -> None:
    """``x <- factor (keep x + share other)``."""
    for i in range(x.shape[0]):
        for j in range(x.shape[0]):
            x[i, j] = factor * (keep * x[i, j] + share * other[i, j])
