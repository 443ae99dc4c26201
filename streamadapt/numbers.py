"""Small functions of numbers, for kernels. NaN stays NaN."""

from __future__ import annotations

import math
from typing import Any

from streamadapt.compiled import compiled, inlined

__all__ = ["at_least", "at_most", "clip", "dot", "first_largest", "softmax",
           "sum_like_numpy", "total"]  # fmt: skip


@compiled
def at_least(x: Any, low: Any) -> Any:
    """Return the larger number."""
    return low if x < low else x


@compiled
def at_most(x: Any, high: Any) -> Any:
    """Return the smaller number."""
    return high if x > high else x


@compiled
def clip(x: Any, low: Any, high: Any) -> Any:
    """Return the number in [low, high] that is nearest to x."""
    return at_most(at_least(x, low), high)


@inlined
def dot(x: Any, y: Any) -> Any:
    """Return ``x^T y``, added up in order."""
    result = 0.0
    for i in range(x.shape[0]):
        result += x[i] * y[i]
    return result


@inlined
def total(x: Any) -> Any:
    """Return the sum of x, added up in eight parts that do not wait for each other."""
    n = x.shape[0]
    rest = 0.0
    for i in range(n - n % 8, n):
        rest += x[i]
    if n < 8:
        return rest
    a, b, c, d, e, f, g, h = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(0, n - 7, 8):
        a += x[i]
        b += x[i + 1]
        c += x[i + 2]
        d += x[i + 3]
        e += x[i + 4]
        f += x[i + 5]
        g += x[i + 6]
        h += x[i + 7]
    return ((a + b) + (c + d)) + ((e + f) + (g + h)) + rest


@compiled
def sum_like_numpy(x: Any) -> Any:
    """Return the sum of x in the order of ``np.sum``: the same bits for up to 128 numbers.

    Eight parts, then the rest one by one.
    """
    n = x.shape[0]
    if n < 8:
        result = 0.0
        for i in range(n):
            result += x[i]
        return result
    a, b, c, d, e, f, g, h = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    for i in range(8, n - 7, 8):
        a += x[i]
        b += x[i + 1]
        c += x[i + 2]
        d += x[i + 3]
        e += x[i + 4]
        f += x[i + 5]
        g += x[i + 6]
        h += x[i + 7]
    result = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(n - n % 8, n):
        result += x[i]
    return result


@compiled
def first_largest(x: Any) -> Any:
    """Return the index of the largest number, the first of equal ones; of the first NaN, if there
    is one."""
    best = 0
    for i in range(x.shape[0]):
        if x[best] == x[best] and not x[i] <= x[best]:
            best = i
    return best


@compiled
def softmax(scores: Any) -> None:
    """``scores <- exp(scores) / sum(exp(scores))``, in place."""
    top = scores[0]
    for j in range(1, scores.shape[0]):
        top = max(top, scores[j])
    total = 0.0
    for j in range(scores.shape[0]):
        scores[j] = math.exp(scores[j] - top)
        total += scores[j]
    for j in range(scores.shape[0]):
        scores[j] /= total
