"""Stacking: a mixture of experts by recursive ridge regression, whose weights may leave the
simplex."""

from __future__ import annotations

import numpy as np

from streamadapt.errors import ConfigError
from streamadapt.guard.aggregators import Mixer
from streamadapt.records import Array, Mask

__all__ = ["RidgeStack"]

RELATIVE_RIDGE = 1e-10
"""The ridge is at least so much of the matrix's mean diagonal: a fixed one would be lost in
rounding beside it."""
FARTHEST = 100.0
"""What is more scales away from the experts' mean counts as if it were so far: one outlier must
not be all that the sums know for the next thousands of arrivals."""
LEAST_ERROR = 0.3
"""Errors below so many scales weigh no more than this one: the reweighting for absolute loss has
no pole at zero."""


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

    def learn(self, predictions: Array, target: Array, scale: Array, known: Mask) -> None:
        """Learn from what has matured.

        Parameters
        ----------
        predictions : ndarray, (experts, rows, columns)
        target, scale : ndarray, (rows, columns)
        known : ndarray, (rows, columns), bool
        """
        mean = predictions.mean(axis=0)
        x = np.where(known, (predictions - mean) / scale, 0.0)
        v = np.where(known, (target - mean) / scale, 0.0)
        x, v = _within(FARTHEST, x, v)
        left = np.abs(v - (self.weights[0] * x).sum(axis=0))
        q = known / np.maximum(left, LEAST_ERROR) if self.robust else known
        grouped = _by_group(
            np.concatenate([x, v[None], q[None], known[None]]), *self.gram.shape[:2]
        )
        x, v, q = grouped[..., :-3, :], grouped[..., -3, :], grouped[..., -2, :]
        cells = grouped[..., -1, :].sum(axis=-1)  # (groups_h, groups_c)
        news = cells > 0.0
        weighted = x * (q / np.maximum(cells, 1.0)[..., None])[..., None, :]
        gram = self.discount * self.gram + weighted @ x.swapaxes(-1, -2)
        moment = self.discount * self.moment + (weighted @ v[..., None])[..., 0]
        news = news & np.isfinite(gram).all(axis=(-1, -2)) & np.isfinite(moment).all(axis=-1)
        np.copyto(self.gram, gram, where=news[..., None, None])
        np.copyto(self.moment, moment, where=news[..., None])
        self._solve(news)

    def _solve(self, news: Mask) -> None:
        experts = self.gram.shape[-1]
        mean = np.trace(self.gram, axis1=-2, axis2=-1) / experts
        ridge = np.maximum(self.ridge, RELATIVE_RIDGE * mean)[..., None, None]
        try:
            b = np.linalg.solve(self.gram + ridge * np.eye(experts), self.moment[..., None])[
                ..., 0
            ]
        except np.linalg.LinAlgError:
            return
        # (groups_h, groups_c, experts)
        weights = b + (1.0 - b.sum(axis=-1, keepdims=True)) / experts
        np.copyto(
            self.weights[0],
            np.moveaxis(weights, -1, 0),
            where=news & np.isfinite(weights).all(axis=-1),
        )

    def mix(self, predictions: Array) -> Array:
        """Mix predictions (experts, rows, columns) into (1, rows, columns), within the experts'
        range."""
        low, high = predictions.min(axis=0), predictions.max(axis=0)
        return np.clip(super().mix(predictions), low, high)

    def _state(self) -> dict[str, Array]:
        return {"gram": self.gram, "moment": self.moment}


def _within(most: float, x: Array, v: Array) -> tuple[Array, Array]:
    """Scale down the cells in which x (experts, rows, columns) or v (rows, columns) is beyond
    `most`."""
    size = np.maximum(np.abs(x).max(axis=0), np.abs(v))
    if not (size > most).any():
        return x, v
    factor = np.where(size > most, most / np.maximum(size, most), 1.0)
    return x * factor, v * factor


def _by_group(values: Array, rows: int, columns: int) -> Array:
    """(n, h, c) -> (rows, columns, n, cells in a group), for as many groups."""
    n, h, c = values.shape
    if (rows, columns) == (1, 1):
        return values.reshape(1, 1, n, -1)
    split = values.reshape(n, rows, h // rows, columns, c // columns)
    return split.transpose(1, 3, 0, 2, 4).reshape(rows, columns, n, -1)
