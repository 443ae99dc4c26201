"""Small functions of numbers, for the guard's kernels. NaN stays NaN."""

from __future__ import annotations

from typing import Any

from streamadapt.compiled import compiled

__all__ = ["at_least", "at_most", "clip", "total"]


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


@compiled
def total(x: Any) -> Any:
    """Return the sum of x, added up in eight parts that do not wait for each other."""
    n = x.shape[0]
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
    rest = 0.0
    for i in range(n - n % 8, n):
        rest += x[i]
    return ((a + b) + (c + d)) + ((e + f) + (g + h)) + rest
