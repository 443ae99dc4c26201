"""One gradient step of ADCSD.

With g the derivative of the loss by the correction of a cell, G what a branch says of it and u the
input of its GELU, branch by branch::

    e = g lambda,   d lambda = sum g G,   d bias_out = sum e,   d weight_out_j = sum e gelu(u_j)
    d beta_j = e weight_out_j gelu'(u_j),   d gamma_j = d beta_j z_j,   a_j = d beta_j gamma_j

a is the derivative by z. LayerNorm takes out means, over what it normalises together::

    d h_j = r (a_j - mean(a) - z_j mean(a z))
    d bias_in_j = sum d h_j,   d weight_in_j = sum s d h_j

With ``z_j = along slope_j + across offset_j`` and ``across = r``, `Sums` is all that these need of
the cells.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.learners.adcsd.arrays import HIDDEN
from streamadapt.learners.adcsd.forward import places, prepare
from streamadapt.learners.adcsd.moves import move, pace_of
from streamadapt.learners.adcsd.rows import ONE, ZERO, add, clear, dot, gelu, line, mean

__all__ = ["learn"]


@compiled
def clear_gradient(d: Any, sums: Any, squares: Any) -> None:
    """Begin sums over the cells."""
    for b in range(d.gate.shape[0]):
        clear(d.norm_weight[b, 0])
        clear(d.norm_bias[b, 0])
        clear(d.weight_out[b, 0])
        clear(d.bias_out[b, 0])
        clear(d.gate[b, 0])
        clear(sums.across[b])
        clear(sums.along[b])
        clear(sums.rest[b])
    clear(squares)


@compiled
def slope_of_loss(p: Any, error: Any, scale: Any) -> Any:
    """Return the derivative of the loss of a cell by its correction; the loss is in original
    units, the correction in scaled ones.

    The error is a float32, as targets are: a smaller one than they can tell is zero.
    """
    if p.huber:
        return scale * min(max(error / scale, -ONE), ONE)
    return scale if error > ZERO else (-scale if error < ZERO else ZERO)


@compiled
def forward(gamma: Any, beta: Any, out: Any, z: Any, active: Any, steep: Any,
            product: Any) -> Any:  # fmt: skip
    """Return ``out . gelu(gamma z + beta)`` of a cell and branch, and keep what its derivatives
    need."""
    for j in range(z.shape[0]):
        active[j], steep[j] = gelu(gamma[j] * z[j] + beta[j])
    return dot(out, active, product)


@compiled
def pull_out(e: Any, out: Any, active: Any, steep: Any, d_out: Any, d_beta: Any) -> None:
    """Through Linear and GELU: ``d out_j += e gelu(u_j)``, ``d beta_j = e out_j gelu'(u_j)``."""
    for j in range(out.shape[0]):
        d_out[j] += e * active[j]
        d_beta[j] = e * out[j] * steep[j]


@compiled
def pull_affine(d_beta: Any, z: Any, d_gamma: Any, squares: Any) -> None:
    """``d gamma_j = d beta_j z_j``, and the squares of both."""
    for j in range(z.shape[0]):
        d = d_beta[j] * z[j]
        d_gamma[j] = d
        squares[j] += d_beta[j] * d_beta[j] + d * d


@compiled
def pull_norm(along: Any, across: Any, d_beta: Any, gamma: Any, sum_along: Any,
              sum_across: Any) -> None:  # fmt: skip
    """Add ``a_j = d beta_j gamma_j`` to the sums over the cells."""
    for j in range(gamma.shape[0]):
        a = d_beta[j] * gamma[j]
        sum_along[j] += along * a
        sum_across[j] += across * a


@compiled
def add_means(r: float, rs: float, a: float, az: float, rest: Any) -> None:
    """Add what LayerNorm takes out of a cell that it normalises by itself: from the means of
    a and a z, in float64."""
    rest[0] += r * a
    rest[1] += rs * a
    rest[2] += r * r * az
    rest[3] += r * rs * az
    rest[4] += rs * rs * az


@compiled
def means_over_all(w: Any, b: int) -> None:
    """Write what LayerNorm takes out of all cells together; the sum of `along` is 0."""
    sums, cells, hidden = w.sums, w.along.shape[1], w.slope.shape[1]
    a, az, square = 0.0, 0.0, 0.0
    for j in range(hidden):
        a += np.float64(sums.across[b, j])
        az += np.float64(w.slope[b, j]) * sums.along[b, j]
        az += np.float64(w.offset[b, j]) * sums.across[b, j]
    for i in range(cells):
        square += np.float64(w.along[b, i]) * w.along[b, i]
    az /= cells * hidden
    across = np.float64(w.across[b, 0])
    sums.rest[b, 0] = a / hidden
    sums.rest[b, 2] = cells * across * across * az
    sums.rest[b, 4] = square * az


@compiled
def pull_through_norm(p: Any, w: Any, b: int) -> None:
    """Write the gradient of the first linear layer."""
    if not p.share_norm:
        means_over_all(w, b)
    sums, rest, d = w.sums, w.sums.rest[b], w.gradient
    for j in range(w.slope.shape[1]):
        slope, offset = np.float64(w.slope[b, j]), np.float64(w.offset[b, j])
        across = sums.across[b, j] - rest[0] - (rest[3] * slope + rest[2] * offset)
        along = sums.along[b, j] - rest[1] - (rest[4] * slope + rest[3] * offset)
        d.bias_in[b, 0, j] = np.float32(across)
        d.weight_in[b, 0, j] = np.float32(along + w.middle[b] * across)


@compiled
def walk(p: Any, pace: Any, weights: Any, gradient: Any, squares: Any) -> None:
    """Make a step in a row of each branch, and add the squares of its gradient."""
    for b in range(gradient.shape[0]):
        for j in range(gradient.shape[2]):
            squares[j] += gradient[b, 0, j] * gradient[b, 0, j]
        move(p, pace, weights, b, 0, gradient[b, 0])


@compiled
def walk_rest(p: Any, pace: Any, v: Any, key: int, d: Any, squares: Any) -> None:
    """Make the steps that wait for the sums over the cells."""
    walk(p, pace, v.weight_in[key], d.weight_in, squares)
    walk(p, pace, v.bias_in[key], d.bias_in, squares)
    walk(p, pace, v.weight_out[key], d.weight_out, squares)
    walk(p, pace, v.bias_out[key], d.bias_out, squares)
    walk(p, pace, v.gate[key], d.gate, squares)
    if p.share_norm:
        walk(p, pace, v.norm_weight[key], d.norm_weight, squares)
        walk(p, pace, v.norm_bias[key], d.norm_bias, squares)
        walk(p, pace, v.shift[key], d.shift, squares)


@compiled
def sweep(c: Any, p: Any, pace: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """Go over the cells: correction, loss, and what both branches add to the gradient.

    A row of the affine that is the cell's own makes its step at once.
    """
    v, d, sums, (rows, columns) = s.weights, w.gradient, w.sums, x.base.shape
    gammas, betas = v.norm_weight[key], v.norm_bias[key]
    outs, gates = v.weight_out[key, 0], v.gate[key, 0]
    squares = w.unused if p.share_norm else w.squares
    count = np.float32(count_known(y.known))
    for t in range(rows):
        for n in range(columns):
            i, row, gate = places(p, columns, t, n)
            correction = v.shift[key, 0, 0, 0, i] if p.share_norm else ZERO
            for b in range(w.branches.shape[0]):
                line(w.along[b, i], w.slope[b], w.across[b, i], w.offset[b], w.z[b])
                w.branches[b] = v.bias_out[key, 0, b, 0, 0] + forward(
                    gammas[0, b, row], betas[0, b, row], outs[b, 0], w.z[b], w.active[b],
                    w.steep[b], w.product,
                )  # fmt: skip
                correction += gates[b, 0, gate] * w.branches[b]
            g = ZERO
            if y.known[t, n]:
                scale = np.float32(c.output_scale[n])
                said = np.float32(x.base[t, n]) + correction * scale
                g = slope_of_loss(p, said - np.float32(y.target[t, n]), scale) / count
            for b in range(w.branches.shape[0]):
                along, across, gamma, z = w.along[b, i], w.across[b, i], gammas[0, b, row], w.z[b]
                e = g * gates[b, 0, gate]
                d.gate[b, 0, gate] += g * w.branches[b]
                d.bias_out[b, 0, 0] += e
                pull_out(e, outs[b, 0], w.active[b], w.steep[b], d.weight_out[b, 0], w.d_beta)
                pull_norm(along, across, w.d_beta, gamma, sums.along[b], sums.across[b])
                pull_affine(w.d_beta, z, w.d_gamma, squares)
                if p.share_norm:
                    a = np.float64(dot(gamma, w.d_beta, w.product)) / HIDDEN
                    az = np.float64(dot(gamma, w.d_gamma, w.product)) / HIDDEN
                    add_means(np.float64(across), np.float64(along), a, az, sums.rest[b])
                    add(ONE, w.d_gamma, d.norm_weight[b, 0])
                    add(ONE, w.d_beta, d.norm_bias[b, 0])
                else:
                    move(p, pace, gammas, b, row, w.d_gamma)
                    move(p, pace, betas, b, row, w.d_beta)
            if p.share_norm:
                d.shift[0, 0, i] = g


@compiled
def count_known(known: Any) -> int:
    """Return how many targets are known."""
    count = 0
    for t in range(known.shape[0]):
        for n in range(known.shape[1]):
            count += 1 if known[t, n] else 0
    return count


@compiled
def learn(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """Make one step on one matured forecast."""
    if count_known(y.known) == 0 or y.weight == 0.0:
        return
    s.steps[key] += 1
    pace = pace_of(p.rate * y.boost * y.weight, s.steps[key])
    prepare(c, p, s.weights, key, w, x)
    clear_gradient(w.gradient, w.sums, w.squares)
    sweep(c, p, pace, s, key, w, x, y)
    for b in range(w.branches.shape[0]):
        pull_through_norm(p, w, b)
    walk_rest(p, pace, s.weights, key, w.gradient, w.squares)
    s.norm[key] = math.sqrt(mean(w.squares) * w.squares.shape[0])
