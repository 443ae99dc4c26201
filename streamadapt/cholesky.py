"""Systems of linear equations with a symmetric positive definite matrix, in kernels."""

from __future__ import annotations

import math
from typing import Any

from streamadapt.compiled import compiled

__all__ = ["factorise", "solve", "solve_one"]


@compiled
def factorise(m: Any) -> bool:
    """Replace the upper triangle of m (n, n) by its Cholesky factor, ``m = U^T U``; return False
    if m has lost its positive definiteness to rounding."""
    n = m.shape[0]
    for k in range(n):
        if not m[k, k] > 0.0:
            return False
        root = math.sqrt(m[k, k])
        for j in range(k, n):
            m[k, j] /= root
        for i in range(k + 1, n):
            factor = m[k, i]
            for j in range(i, n):
                m[i, j] -= factor * m[k, j]
    return True


@compiled
def solve_one(upper: Any, b: Any) -> None:
    """``b <- (U^T U)^-1 b``; b is (d,). The same as `solve`, whose columns are independent."""
    d = b.shape[0]
    for k in range(d):
        b[k] /= upper[k, k]
        for i in range(k + 1, d):
            b[i] -= upper[k, i] * b[k]
    for k in range(d - 1, -1, -1):
        for i in range(k + 1, d):
            b[k] -= upper[k, i] * b[i]
        b[k] /= upper[k, k]


@compiled
def solve(upper: Any, right: Any) -> None:
    """``right <- (U^T U)^-1 right``; right is (d, columns)."""
    d, columns = right.shape
    for k in range(d):
        for j in range(columns):
            right[k, j] /= upper[k, k]
        for i in range(k + 1, d):
            for j in range(columns):
                right[i, j] -= upper[k, i] * right[k, j]
    for k in range(d - 1, -1, -1):
        for i in range(k + 1, d):
            for j in range(columns):
                right[k, j] -= upper[k, i] * right[i, j]
        for j in range(columns):
            right[k, j] /= upper[k, k]
