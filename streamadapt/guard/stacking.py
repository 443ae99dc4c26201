"""Stacking: a mixture of experts by recursive ridge regression, whose weights may leave the
simplex."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.cholesky import factorise, solve_one
from streamadapt.compiled import Kernel, compiled
from streamadapt.errors import ConfigError
from streamadapt.guard.mixer import Mixer
from streamadapt.numbers import at_least, clip
from streamadapt.records import Array, Mask

__all__ = ["RidgeStack", "StackRoom", "StackSettings", "StackState", "empty_stack_room", "learn",
           "within_experts"]  # fmt: skip

RELATIVE_RIDGE: Final = 1e-10
"""The ridge is at least so much of the matrix's mean diagonal: a fixed one would be lost in
rounding beside it."""
FARTHEST: Final = 100.0
"""What is more scales away from the experts' mean counts as if it were so far: one outlier must
not be all that the sums know for the next thousands of arrivals."""
LEAST_ERROR: Final = 0.3
"""Errors smaller than this, in scales, weigh no more than one of this size: the reweighting for
absolute loss has no pole at zero."""


class StackSettings(NamedTuple):
    """The arguments of `RidgeStack`."""

    discount: float
    ridge: float
    robust: bool


class StackState(NamedTuple):
    """A, g and the weights of the formulas.

    Attributes
    ----------
    weights : ndarray, (keys, 1, experts, groups_h, groups_c)
    gram : ndarray, (keys, groups_h, groups_c, experts, experts)
    moment : ndarray, (keys, groups_h, groups_c, experts)
    """

    weights: Array
    gram: Array
    moment: Array


class StackRoom(NamedTuple):
    """`a` is (experts, experts), the others (experts,)."""

    a: Array
    b: Array
    w: Array
    x: Array


def empty_stack_room(experts: int) -> StackRoom:
    """Return room for a stack of that number of experts."""
    b, w, x = (np.zeros(experts) for _ in range(3))
    return StackRoom(np.zeros((experts, experts)), b, w, x)


@compiled
def within_experts(predictions: Any, out: Any) -> None:
    """Keep a mixture (rows, columns) within the range of the experts (experts, rows, columns)."""
    experts, rows, columns = predictions.shape
    for h in range(rows):
        for j in range(columns):
            low = high = predictions[0, h, j]
            for k in range(1, experts):
                low, high = min(low, predictions[k, h, j]), max(high, predictions[k, h, j])
            out[h, j] = clip(out[h, j], low, high)


@compiled
def learn(p: Any, s: Any, key: int, w: Any, predictions: Any, target: Any, scale: Any,
          known: Any) -> None:  # fmt: skip
    """Learn from one arrival; a group that has no known cell, or of which a sum would not be
    finite, stays as it was.

    Parameters
    ----------
    p, s, w : StackSettings, StackState, StackRoom
    predictions : ndarray, (experts, rows, columns)
    target, scale : ndarray, (rows, columns)
        The scale in the unit of the predictions.
    known : ndarray, (rows, columns), bool
    """
    rows, columns = target.shape
    groups_h, groups_c = s.moment.shape[1:3]
    if groups_h == 0:
        return
    high, wide = rows // groups_h, columns // groups_c
    for i in range(groups_h):
        for j in range(groups_c):
            _begin(s, key, i, j, w)
            cells = 0.0
            for h in range(i * high, (i + 1) * high):
                for c in range(j * wide, (j + 1) * wide):
                    if known[h, c]:
                        _take_cell(p, w, predictions[:, h, c], target[h, c], scale[h, c])
                        cells += 1.0
            if cells > 0.0 and _take_group(p, s, key, i, j, w, cells):
                _solve(p, s, key, i, j, w)


@compiled
def _begin(s: Any, key: int, i: int, j: int, w: Any) -> None:
    """Set the sums of an arrival to zero, and fetch the weights of the group."""
    a, b = w.a, w.b
    experts = b.shape[0]
    for k in range(experts):
        w.w[k] = s.weights[key, 0, k, i, j]
        b[k] = 0.0
        for n in range(k, experts):
            a[k, n] = 0.0


@compiled
def _take_cell(p: Any, w: Any, said: Any, y: Any, scale: Any) -> None:
    """``A <- A + q x x^T``, ``g <- g + q x v``, ``q = min(1 / .3, 1 / |v - x^T b|)``."""
    a, b, x, usual = w.a, w.b, w.x, w.w
    experts = said.shape[0]
    mean = 0.0
    for k in range(experts):
        mean += said[k]
    mean /= experts
    v = (y - mean) / scale
    size = abs(v)
    for k in range(experts):
        x[k] = (said[k] - mean) / scale
        size = at_least(size, abs(x[k]))
    near = FARTHEST / size if size > FARTHEST else 1.0
    v *= near
    left = v
    for k in range(experts):
        x[k] *= near
        left -= usual[k] * x[k]
    q = 1.0 / at_least(abs(left), LEAST_ERROR) if p.robust else 1.0
    for k in range(experts):
        qx = q * x[k]
        b[k] += qx * v
        for n in range(k, experts):
            a[k, n] += qx * x[n]


@compiled
def _take_group(p: Any, s: Any, key: int, i: int, j: int, w: Any, cells: Any) -> Any:
    """Discount the sums of the group, add the means over the cells, and write both to w; not if
    anything is not finite, which shows on the diagonal."""
    a, b, gram, moment = w.a, w.b, s.gram, s.moment
    experts = b.shape[0]
    for k in range(experts):
        if not (math.isfinite(a[k, k]) and math.isfinite(b[k])):
            return False
    for k in range(experts):
        b[k] = p.discount * moment[key, i, j, k] + b[k] / cells
        moment[key, i, j, k] = b[k]
        for n in range(k, experts):
            a[k, n] = p.discount * gram[key, i, j, k, n] + a[k, n] / cells
            gram[key, i, j, k, n] = a[k, n]
            gram[key, i, j, n, k] = a[k, n]
    return True


@compiled
def _solve(p: Any, s: Any, key: int, i: int, j: int, w: Any) -> None:
    """``b = (A + ridge I)^-1 g``, and the weights ``b_k + (1 - sum b) / K``; w holds A and g."""
    a, b = w.a, w.b
    experts = b.shape[0]
    mean = 0.0
    for k in range(experts):
        mean += a[k, k] / experts
    for k in range(experts):
        a[k, k] += at_least(RELATIVE_RIDGE * mean, p.ridge)
    if not factorise(a):
        return
    solve_one(a, b)
    total = 0.0
    for k in range(experts):
        total += b[k]
    rest = (1.0 - total) / experts
    if math.isfinite(rest):
        for k in range(experts):
            s.weights[key, 0, k, i, j] = b[k] + rest


def _learn_alone(p: Any, s: Any, w: Any, predictions: Any, target: Any, scale: Any,
                 known: Any) -> None:  # fmt: skip
    learn(p, s, 0, w, predictions, target, scale, known)


def _bound_alone(predictions: Any, out: Any) -> None:
    within_experts(predictions, out)


_LEARN: Final = Kernel(_learn_alone)
_BOUND: Final = Kernel(_bound_alone)


class RidgeStack(Mixer):
    """Recursive ridge regression of the target on the experts' predictions [1]_, reweighted for
    absolute loss.

    Per group, with the experts' mean ``m``, the base's scale ``s``, ``x_k = (p_k - m) / s`` and
    ``v = (y - m) / s``, over the group's known cells::

        q = min(1 / .3, 1 / |v - x^T b|)                    (1 for squared loss)
        A <- d A + mean q x x^T,    g <- d g + mean q x v
        b = (A + ridge I)^-1 g,     mixture = m + sum_k b_k (p_k - m)

    The ridge draws b to zero, which is the experts' plain mean. The weights
    ``b_k + (1 - sum b) / K`` sum to one but may be negative: it finds what no convex mixture can,
    and has no regret bound of its own; the layer above has. A mixture is kept within the experts'
    own range: it may weigh them as it likes, but not leave them. The ridge grows with the matrix
    (`RELATIVE_RIDGE`); where there is no finite solution all the same, the weights stay as they
    were.

    Costs, a step: O(cells K^2 + groups K^3).

    Parameters
    ----------
    discount : float, in (0, 1]
    ridge : float, > 0
    robust : bool
        Whether to reweight for absolute loss.

    References
    ----------
    .. [1] Breiman (1996), Stacked regressions, Machine Learning 24.
    """

    def __init__(
        self, discount: float = 0.999, ridge: float = 5.0, *, robust: bool = True
    ) -> None:
        super().__init__(1)
        if not 0.0 < discount <= 1.0:
            raise ConfigError("guard.discount", discount, "a number in (0, 1]")
        if not ridge > 0.0:
            raise ConfigError("guard.ridge", ridge, "a number > 0")
        self.discount = discount
        self.ridge = ridge
        self.robust = robust

    def _allocate(self, shape: tuple[int, ...]) -> None:
        _, experts, *groups = shape
        self.gram = np.zeros((*groups, experts, experts))
        self.moment = np.zeros((*groups, experts))

    @property
    def settings(self) -> StackSettings:
        """Its arguments."""
        return StackSettings(float(self.discount), float(self.ridge), self.robust)

    @property
    def state(self) -> StackState:
        """Views of its arrays; the first axis of each is the key: here one row."""
        return StackState(self.weights[None], self.gram[None], self.moment[None])

    def learn(self, predictions: Array, target: Array, scale: Array, known: Mask) -> None:
        """Learn from what has matured.

        Parameters
        ----------
        predictions : ndarray, (experts, rows, columns)
        target, scale : ndarray, (rows, columns)
        known : ndarray, (rows, columns), bool
        """
        given = (np.array(values, np.float64) for values in (predictions, target, scale))
        room = empty_stack_room(len(predictions))
        _LEARN(self.settings, self.state, room, *given, np.array(known))

    def mix(self, predictions: Array) -> Array:
        """Mix predictions (experts, rows, columns) into (1, rows, columns), within the experts'
        range."""
        mixed = super().mix(predictions)
        _BOUND(np.array(predictions, np.float64), mixed[0])
        return mixed

    def _state(self) -> dict[str, Array]:
        return {"gram": self.gram, "moment": self.moment}
