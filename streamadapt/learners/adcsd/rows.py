"""Rows of float32 numbers, element by element: what most of ADCSD's time goes into."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from streamadapt.compiled import compiled

__all__ = ["ONE", "ZERO", "add", "clear", "dot", "gelu", "line", "mean", "total"]

ZERO: Final = np.float32(0.0)
ONE: Final = np.float32(1.0)
LEAST: Final = np.float32(-126.0)
"""The least exponent of two of a normal float32."""
ROUNDER: Final = np.float32(1.5 * 2.0**23 + 127.0)
"""``y + ROUNDER`` is rounded to a whole number n, and ends with the bits of ``n + 127``: shifted
by 23 places they are those of the float32 ``2^n``."""
HALF_IN_TWOS: Final = np.float32(-0.5 * 1.4426950408889634)
"""``exp(-x^2 / 2) = 2^(HALF_IN_TWOS x^2)``."""
DENSITY: Final = np.float32(0.3989422804014327)
"""Of the normal distribution at 0."""
E1, E2, E3, E4, E5 = (
    np.float32(x) for x in (0.69314698, 0.24022242, 0.05550734, 0.00967151, 0.00132647)
)
"""``2^x = 1 + E1 x + E2 x^2 + ...`` for x in [-.5, .5], wrong by 1e-7 of it at most."""
T0: Final = np.float32(0.23164189)
T1, T2, T3, T4, T5 = (
    np.float32(0.5 * x)
    for x in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
)
"""Abramowitz and Stegun, 7.1.26: ``1 - Phi(x) = exp(-x^2 / 2) (T1 t + T2 t^2 + ...)`` with
``t = 1 / (1 + T0 x)`` for x >= 0, wrong by 8e-8 at most."""


@compiled
def clear(row: Any) -> None:
    """``row <- 0``."""
    for j in range(row.shape[0]):
        row[j] = ZERO


@compiled
def mean(row: Any) -> float:
    """Return the mean, in float64."""
    total = 0.0
    for j in range(row.shape[0]):
        total += np.float64(row[j])
    result: float = total / row.shape[0]
    return result


@compiled
def add(factor: Any, row: Any, total: Any) -> None:
    """``total <- total + factor row``."""
    for j in range(row.shape[0]):
        total[j] += factor * row[j]


@compiled
def line(along: Any, slope: Any, across: Any, offset: Any, out: Any) -> None:
    """``out = along slope + across offset``."""
    for j in range(out.shape[0]):
        out[j] = along * slope[j] + across * offset[j]


@compiled
def dot(one: Any, other: Any, product: Any) -> Any:
    """Return the sum of ``one other``; `product` is room for as many numbers."""
    for j in range(product.shape[0]):
        product[j] = one[j] * other[j]
    return total(product)


@compiled
def total(row: Any) -> Any:
    """Return the sum of a row, halving it until eight sums are left; its length is eight times a
    power of two, and what was in it is lost."""
    half = row.shape[0] // 2
    while half >= 8:
        add(ONE, row[half : 2 * half], row[:half])
        half //= 2
    return ((row[0] + row[1]) + (row[2] + row[3])) + ((row[4] + row[5]) + (row[6] + row[7]))


@compiled
def power_of_two(y: Any) -> Any:
    """Return ``2^y`` for y <= 0. (`math.exp` takes one number at a time.)"""
    y = y if y > LEAST else LEAST
    rounded = y + ROUNDER
    x = y - (rounded - ROUNDER)
    power = ONE + x * (E1 + x * (E2 + x * (E3 + x * (E4 + x * E5))))
    bits = np.float32(rounded).view(np.int32)
    return power * np.int32(bits << 23).view(np.float32)


@compiled
def gelu(u: Any) -> Any:
    """Return the exact GELU, ``u Phi(u)``, and its derivative, ``Phi(u) + u phi(u)``."""
    bell = power_of_two(HALF_IN_TWOS * u * u)
    t = ONE / (ONE + T0 * abs(u))
    tail = bell * t * (T1 + t * (T2 + t * (T3 + t * (T4 + t * T5))))
    phi = ONE - tail if u >= ZERO else tail
    return u * phi, phi + u * DENSITY * bell
