"""Estimate the loss of a prediction before its label arrives: from confidence, or from
disagreement."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from streamadapt.records import Array
from streamadapt.tasks.losses import Log

__all__ = ["ROLES", "ConfidenceEstimate", "DirectEstimate", "Estimate"]

ROLES = ("base", "served")
"""The predictions whose loss is estimated."""

DECAY = 0.999
"""The factor by which earlier labels lose weight, per label."""
BINS = 24
"""Bins of equal width in log odds, from -7 to 7 (probabilities .0009 to .9991) and beyond."""
PRIOR = 5.0
"""The weight of a bin's uncorrected probabilities, in labels."""
RIDGE = 1.0
LARGEST = 20.0
"""The largest loss that counts, in multiples of the recent loss or of the guard's scale: a wrong
label must not spoil the regression."""
RECENT = 0.02
"""How fast the recent loss follows the labels."""


class Estimate(ABC):
    """Estimates the losses of the base's and the served predictions; each label improves it.

    It learns the relation between the losses of labelled predictions and quantities that are known
    without labels. When this relation changes (concept drift: the distribution of the labels given
    the inputs), the estimates are wrong until labels show the change.
    """

    measures: tuple[str, ...]
    """Names of the first numbers that `estimate` returns."""
    length: int
    """The number of numbers that `estimate` returns."""

    @abstractmethod
    def estimate(
        self, experts: Array, served: Array, scale: Array, unit: Array
    ) -> tuple[float, ...]:
        """Return the estimates for `measures`, NaN if nothing is known yet, and then the numbers
        that `learn` needs (`extra`).

        Parameters
        ----------
        experts : ndarray, (experts, 1, columns)
        served : ndarray, (1, columns)
        scale, unit : ndarray, (1, columns) or (1, 1)
            The guard's scale of losses, and the same in the unit of the predictions.
        """

    @abstractmethod
    def learn(
        self,
        predictions: Array,
        target: Array,
        losses: Array,
        extra: tuple[float, ...],
        weight: float,
    ) -> Array:
        """Learn from one label; return the true values of `measures`.

        Parameters
        ----------
        predictions : ndarray, (2, columns)
            The predictions of `ROLES`, as they were issued.
        target : ndarray, (columns,)
        losses : ndarray, (2,)
            Means over the known columns.
        extra : tuple of float
            The numbers that `estimate` returned after the measures.
        weight : float
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return copies."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


class ConfidenceEstimate(Estimate):
    """Classification: the expected loss under the recalibrated probabilities [1]_.

    A probability p is recalibrated by the frequency of the class among the probabilities of the
    same bin: ``q = p + (hits - sum p) / (n + PRIOR)``, with decaying sums over the bin's labels
    and all classes; q is then normalised to the sum 1. Expected log loss: ``-sum_c q_c ln p_c``;
    expected accuracy: q of the likeliest class.

    References
    ----------
    .. [1] Confidence-based performance estimation as in NannyML's documentation; the average
       confidence of Guillory et al. (2021), Predicting with confidence on unseen distributions,
       ICCV, and of Garg et al. (2022), Leveraging unlabeled data to predict out-of-distribution
       performance, ICLR.
    """

    measures = (*ROLES, *(f"{role}_accuracy" for role in ROLES))
    length = 2 * len(ROLES)

    def __init__(self) -> None:
        odds = np.linspace(-7.0, 7.0, BINS - 1)
        self.edges = 1.0 / (1.0 + np.exp(-odds))
        self.counts = np.zeros((len(ROLES), BINS))
        self.excess = np.zeros((len(ROLES), BINS))  # sums of (hit - p)
        self._first = BINS * np.arange(len(ROLES))[:, None]

    def estimate(
        self, experts: Array, served: Array, scale: Array, unit: Array
    ) -> tuple[float, ...]:
        """Return expected log losses and accuracies."""
        del scale, unit
        p = np.concatenate([experts[0], served])  # (roles, classes)
        at = self.edges.searchsorted(p) + self._first
        q = p + self.excess.ravel()[at] / (self.counts.ravel()[at] + PRIOR)
        np.maximum(q, Log.floor, out=q)
        q /= q.sum(axis=1, keepdims=True)
        losses = -(q * np.log(np.maximum(p, Log.floor))).sum(axis=1)
        best = q[np.arange(len(p)), p.argmax(axis=1)]
        return (*losses.tolist(), *best.tolist())

    def learn(
        self,
        predictions: Array,
        target: Array,
        losses: Array,
        extra: tuple[float, ...],
        weight: float,
    ) -> Array:
        """Count the label in its bins."""
        at = self.edges.searchsorted(predictions) + self._first
        self.counts *= DECAY
        self.excess *= DECAY
        np.add.at(self.counts.ravel(), at, weight)
        np.add.at(self.excess.ravel(), at, weight * (target - predictions))
        right = predictions.argmax(axis=1) == target.argmax()
        return np.concatenate([losses, right.astype(np.float64)])

    def state_dict(self) -> dict[str, Any]:
        """Return the bins."""
        return {"counts": self.counts.copy(), "excess": self.excess.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.counts[...], self.excess[...] = state["counts"], state["excess"]


class DirectEstimate(Estimate):
    """Regression: the loss is estimated from quantities that need no label (direct loss
    estimation).

    With s the guard's scale of losses, d the experts' mean distance from the served prediction in
    units of that scale, and m the recent mean loss, each at the time of the prediction:
    ``loss / s ~ b_0 + b_1 d + b_2 m / s``, by recursive least squares with forgetting, from
    ``b = (0, 0, 1)``, the recent loss. An estimate is never below 0.
    """

    measures = ROLES
    length = 2 * len(ROLES) + 2

    def __init__(self) -> None:
        self.recent = np.full(len(ROLES), np.nan)
        self.count = 0
        self.weights = [[0.0, 0.0, 1.0] for _ in ROLES]
        # 00, 01, 02, 11, 12, 22
        self.information = [[RIDGE, 0.0, 0.0, RIDGE, 0.0, RIDGE] for _ in ROLES]

    def estimate(
        self, experts: Array, served: Array, scale: Array, unit: Array
    ) -> tuple[float, ...]:
        """Return the expected losses."""
        s = float(scale.sum()) / scale.size
        distance = np.minimum(np.abs(experts - served) / unit, LARGEST)
        d = float(distance.sum()) / distance.size
        estimates, relative = [], []
        for (b0, b1, b2), m in zip(self.weights, self.recent.tolist(), strict=True):
            estimates.append(max(0.0, b0 + b1 * d + b2 * m / s) * s if m == m else m)
            relative.append(m / s)
        return (*estimates, s, d, *relative)

    def learn(
        self,
        predictions: Array,
        target: Array,
        losses: Array,
        extra: tuple[float, ...],
        weight: float,
    ) -> Array:
        """Make one step of the regression."""
        del predictions, target
        s, d, *relative = extra
        if not (math.isfinite(s) and np.isfinite(losses).all()):
            return losses  # there was no estimate, or a loss is not finite
        first = np.isnan(self.recent)
        capped = np.where(first, losses, np.minimum(losses, LARGEST * np.maximum(self.recent, s)))
        self.count += 1
        follow = max(RECENT, 1.0 / self.count)
        self.recent = np.where(first, capped, self.recent + follow * (capped - self.recent))
        for role, (m, y) in enumerate(zip(relative, (capped / s).tolist(), strict=True)):
            if math.isfinite(d) and math.isfinite(m):  # else the prediction is from the very start
                self.weights[role], self.information[role] = _step(
                    self.weights[role], self.information[role], d, m, y, weight
                )
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Return weights and information."""
        return {
            "recent": self.recent.copy(),
            "weights": np.array(self.weights),
            "information": np.array(self.information),
            "count": self.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.recent = np.array(state["recent"], np.float64)
        self.weights = np.array(state["weights"], np.float64).tolist()
        self.information = np.array(state["information"], np.float64).tolist()
        self.count = int(state["count"])


def _step(
    b: list[float], information: list[float], d: float, m: float, y: float, weight: float
) -> tuple[list[float], list[float]]:
    """Make one step of recursive least squares on (1, d, m); return the new weights and
    information.

    Solved by cofactors in plain numbers: for three numbers, a single array operation costs more
    than all of this.
    """
    leak = (1.0 - DECAY) * RIDGE
    news = (
        weight + leak,
        weight * d,
        weight * m,
        weight * d * d + leak,
        weight * d * m,
        weight * m * m + leak,
    )
    i00, i01, i02, i11, i12, i22 = moved = [
        DECAY * old + new for old, new in zip(information, news, strict=True)
    ]
    c00, c01, c02 = i11 * i22 - i12 * i12, i02 * i12 - i01 * i22, i01 * i12 - i02 * i11
    c11, c12, c22 = i00 * i22 - i02 * i02, i01 * i02 - i00 * i12, i00 * i11 - i01 * i01
    determinant = i00 * c00 + i01 * c01 + i02 * c02
    if not 0.0 < determinant < math.inf:  # no solution in floating point: change nothing
        return b, information
    step = weight * (y - b[0] - b[1] * d - b[2] * m) / determinant
    gain = (c00 + c01 * d + c02 * m, c01 + c11 * d + c12 * m, c02 + c12 * d + c22 * m)
    stepped = [old + step * g for old, g in zip(b, gain, strict=True)]
    return (stepped, moved) if all(map(math.isfinite, stepped)) else (b, information)
