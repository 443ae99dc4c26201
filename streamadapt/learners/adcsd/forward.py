"""ADCSD's correction of a forecast."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.learners.adcsd.rows import ZERO, gelu, mean, total

__all__ = ["places", "predict", "prepare"]

KERNEL: Final = 5
EPS: Final = 1e-5
"""Of LayerNorm."""


@compiled
def split(c: Any, x: Any, parts: Any) -> None:
    """Write the trend, the moving average over `KERNEL` steps with the ends repeated, and the
    seasonal part, what it leaves; (2, M), in scaled units."""
    rows, columns = x.base.shape
    for t in range(rows):
        for n in range(columns):
            scaled = (x.base[t, n] - c.output_loc[n]) / c.output_scale[n]
            parts[0, t * columns + n] = scaled
    half = KERNEL // 2
    for t in range(rows):
        for n in range(columns):
            total = 0.0
            for k in range(t - half, t + half + 1):
                total += parts[0, min(max(k, 0), rows - 1) * columns + n]
            parts[1, t * columns + n] = total / KERNEL
    for i in range(parts.shape[1]):
        parts[0, i] -= parts[1, i]


@compiled
def normalise_all(v: Any, key: int, w: Any, b: int) -> None:
    """LayerNorm over all cells of a branch, ``h = s weight + bias``:

    ``z = r ((s - mean s) weight + d)``, ``d = mean s (weight - mean weight) + bias - mean bias``.
    """
    s, weight, bias = w.parts[b], v.weight_in[key, 0, b, 0], v.bias_in[key, 0, b, 0]
    middle, weights, biases = mean(s), mean(weight), mean(bias)
    spread = 0.0
    for i in range(s.shape[0]):
        spread += (s[i] - middle) * (s[i] - middle)
    square, rest = 0.0, 0.0
    for j in range(weight.shape[0]):
        d = middle * (weight[j] - weights) + (bias[j] - biases)
        square += np.float64(weight[j]) * weight[j]
        rest += d * d
        w.slope[b, j] = weight[j]
        w.offset[b, j] = np.float32(d)
    variance = (spread / s.shape[0] * square + rest) / weight.shape[0]
    r = 1.0 / math.sqrt(variance + EPS)
    w.middle[b] = middle
    for i in range(s.shape[0]):
        w.along[b, i] = np.float32(r * (s[i] - middle))
        w.across[b, i] = np.float32(r)


@compiled
def normalise_each(v: Any, key: int, w: Any, b: int) -> None:
    """LayerNorm of each cell of a branch by itself, ``h = s weight + bias``:

    ``z = r (s (weight - mean weight) + bias - mean bias)``.
    """
    s, weight, bias = w.parts[b], v.weight_in[key, 0, b, 0], v.bias_in[key, 0, b, 0]
    weights, biases = mean(weight), mean(bias)
    square, both, rest = 0.0, 0.0, 0.0
    for j in range(weight.shape[0]):
        slope, offset = weight[j] - weights, bias[j] - biases
        square += slope * slope
        both += slope * offset
        rest += offset * offset
        w.slope[b, j] = np.float32(slope)
        w.offset[b, j] = np.float32(offset)
    w.middle[b] = 0.0
    for i in range(s.shape[0]):
        variance = (s[i] * s[i] * square + 2.0 * s[i] * both + rest) / weight.shape[0]
        r = 1.0 / math.sqrt(max(variance, 0.0) + EPS)
        w.along[b, i] = np.float32(r * s[i])
        w.across[b, i] = np.float32(r)


@compiled
def prepare(c: Any, p: Any, v: Any, key: int, w: Any, x: Any) -> None:
    """Split a forecast, and normalise both branches; `v` are the weights."""
    split(c, x, w.parts)
    for b in range(w.parts.shape[0]):
        if p.share_norm:
            normalise_each(v, key, w, b)
        else:
            normalise_all(v, key, w, b)


@compiled
def say(along: Any, across: Any, slope: Any, offset: Any, gamma: Any, beta: Any, out: Any,
        product: Any) -> Any:  # fmt: skip
    """Return ``out . gelu(gamma z + beta)`` of a cell and branch."""
    for j in range(product.shape[0]):
        active, _ = gelu(gamma[j] * (along * slope[j] + across * offset[j]) + beta[j])
        product[j] = out[j] * active
    return total(product)


@compiled
def places(p: Any, columns: int, t: int, n: int) -> Any:
    """Return the number of a cell, and those of its row of the affine and of its lambda."""
    i = t * columns + n
    return (i, 0, i) if p.share_norm else (i, i, n)


@compiled
def predict(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = base + scale correction``, the correction being ``lambda_1 g_1 + lambda_2 g_2``, and
    the shift where there is one."""
    v = s.weights
    prepare(c, p, v, key, w, x)
    rows, columns = x.base.shape
    for t in range(rows):
        for n in range(columns):
            i, row, gate = places(p, columns, t, n)
            correction = v.shift[key, 0, 0, 0, i] if p.share_norm else ZERO
            for b in range(w.branches.shape[0]):
                g = v.bias_out[key, 0, b, 0, 0] + say(
                    w.along[b, i], w.across[b, i], w.slope[b], w.offset[b],
                    v.norm_weight[key, 0, b, row], v.norm_bias[key, 0, b, row],
                    v.weight_out[key, 0, b, 0], w.product,
                )  # fmt: skip
                correction += v.gate[key, 0, b, 0, gate] * g
            out[0, t, n] = x.base[t, n] + np.float64(correction) * c.output_scale[n]
