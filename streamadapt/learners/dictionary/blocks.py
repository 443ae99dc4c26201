"""Products and systems of equations of square matrices, in kernels: four rows at a time.

A row is changed by ``out <- out - f_0 r_0 - f_1 r_1 - f_2 r_2 - f_3 r_3``, four such rows in one
loop, so that the processor computes more than it reads; nearly all of the time is spent there. So
the size of a matrix is a multiple of `ROWS`: `padded`.
"""

from __future__ import annotations

import math
from typing import Any, Final

from streamadapt.compiled import compiled

__all__ = ["ROWS", "factorise", "minus_square", "padded", "solve", "transpose"]

ROWS: Final = 4


def padded(size: int) -> int:
    """Return the next multiple of `ROWS`."""
    return -(-size // ROWS) * ROWS


@compiled
def subtract_block(out: Any, factors: Any, rows: Any, i: int, k: int, start: int) -> None:
    """``out_i <- out_i - factors_ik rows_k`` for four i and four k, from column `start` on."""
    # Slices, not indices counted from `start`: with them numba's loop uses whole vectors.
    out0, out1, out2, out3 = (
        out[i, start:], out[i + 1, start:], out[i + 2, start:], out[i + 3, start:],
    )  # fmt: skip
    row0, row1, row2, row3 = (
        rows[k, start:], rows[k + 1, start:], rows[k + 2, start:], rows[k + 3, start:],
    )  # fmt: skip
    a0, a1, a2, a3 = factors[i, k], factors[i, k + 1], factors[i, k + 2], factors[i, k + 3]
    i += 1
    b0, b1, b2, b3 = factors[i, k], factors[i, k + 1], factors[i, k + 2], factors[i, k + 3]
    i += 1
    c0, c1, c2, c3 = factors[i, k], factors[i, k + 1], factors[i, k + 2], factors[i, k + 3]
    i += 1
    d0, d1, d2, d3 = factors[i, k], factors[i, k + 1], factors[i, k + 2], factors[i, k + 3]
    for j in range(out0.shape[0]):
        r0, r1, r2, r3 = row0[j], row1[j], row2[j], row3[j]
        out0[j] = out0[j] - a0 * r0 - a1 * r1 - a2 * r2 - a3 * r3
        out1[j] = out1[j] - b0 * r0 - b1 * r1 - b2 * r2 - b3 * r3
        out2[j] = out2[j] - c0 * r0 - c1 * r1 - c2 * r2 - c3 * r3
        out3[j] = out3[j] - d0 * r0 - d1 * r1 - d2 * r2 - d3 * r3


@compiled
def subtract(out: Any, factor: float, row: Any) -> None:
    """``out <- out - factor row``."""
    for j in range(out.shape[0]):
        out[j] -= factor * row[j]


@compiled
def scale(row: Any, factor: float) -> None:
    """``row <- factor row``."""
    for j in range(row.shape[0]):
        row[j] *= factor


@compiled
def transpose(x: Any, out: Any) -> None:
    """``out = x^T``."""
    n = x.shape[0]
    for i in range(n):
        for j in range(n):
            out[j, i] = x[i, j]


@compiled
def minus_square(m: Any, x: Any, xt: Any) -> None:
    """``m = -x x^T`` in the upper triangle; xt is ``x^T``."""
    n = m.shape[0]
    for i in range(0, n, ROWS):
        for r in range(i, i + ROWS):
            for j in range(n):
                m[r, j] = 0.0
        for k in range(0, n, ROWS):
            subtract_block(m, x, xt, i, k, i)


@compiled
def factorise(m: Any) -> None:
    """Replace a positive definite m by its Cholesky factor U, ``m = U^T U``: U in the upper
    triangle, ``U^T`` in the lower. Only the upper triangle is read."""
    n = m.shape[0]
    for i in range(0, n, ROWS):
        for k in range(0, i, ROWS):
            subtract_block(m, m, m, i, k, i)
        for r in range(i, i + ROWS):
            for k in range(i, r):
                subtract(m[r, r:], m[k, r], m[k, r:])
            scale(m[r, r:], 1.0 / math.sqrt(m[r, r]))
        for j in range(i + 1, n):
            for r in range(i, min(i + ROWS, j)):
                m[j, r] = m[r, j]


@compiled
def solve(factor: Any, right: Any, out: Any) -> None:
    """``out = m^-1 right``, with the `factor` of m that `factorise` makes."""
    n = factor.shape[0]
    for i in range(n):
        for j in range(n):
            out[i, j] = right[i, j]
    for i in range(0, n, ROWS):
        for k in range(0, i, ROWS):
            subtract_block(out, factor, out, i, k, 0)
        for r in range(i, i + ROWS):
            for k in range(i, r):
                subtract(out[r], factor[r, k], out[k])
            scale(out[r], 1.0 / factor[r, r])
    for i in range(n - ROWS, -1, -ROWS):
        for k in range(i + ROWS, n, ROWS):
            subtract_block(out, factor, out, i, k, 0)
        for r in range(i + ROWS - 1, i - 1, -1):
            for k in range(r + 1, i + ROWS):
                subtract(out[r], factor[r, k], out[k])
            scale(out[r], 1.0 / factor[r, r])
