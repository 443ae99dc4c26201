"""How large the loss of a prediction will be, told before its label comes: from confidence, or
from disagreement."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from streamadapt.records import Array
from streamadapt.tasks.losses import Log

__all__ = ["ROLES", "ConfidenceEstimate", "DirectEstimate", "Estimate"]

ROLES = ("base", "served")
"""Whose loss is estimated."""

DECAY = 0.999
"""Of what was learned, per label."""
BINS = 24
"""Bins of equal width in log odds, from -7 to 7 (probabilities .0009 to .9991) and beyond."""
PRIOR = 5.0
"""A bin's predictions are taken at their word until there are about so many labels to say
otherwise."""
RIDGE = 1.0
LARGEST = 20.0
"""A loss counts up to so many recent ones, or guard's scales: a label that is garbage must not
spoil the regression."""
RECENT = 0.02
"""How fast the recent loss follows the labels."""


class Estimate(ABC):
    """Estimates the loss of what base and guard say, label by label better.

    What is learned is how the losses of the labelled go with what is seen without labels. Where
    that changes (the labels' distribution given the inputs: concept drift) estimates are wrong
    until labels show it.
    """

    measures: tuple[str, ...]
    """Names of the numbers that `estimate` returns first."""
    length: int
    """How many numbers it returns."""

    @abstractmethod
    def estimate(
        self, experts: Array, served: Array, scale: Array, unit: Array
    ) -> tuple[float, ...]:
        """Return the estimates for `measures`, NaN where nothing is known yet, and what `learn`
        wants back.

        Parameters
        ----------
        experts : ndarray, (experts, 1, columns)
        served : ndarray, (1, columns)
        scale, unit : ndarray, (1, columns) or (1, 1)
            The guard's, of losses and in the predictions' own unit.
        """

    @abstractmethod
    def learn(
        self, said: Array, target: Array, losses: Array, extra: tuple[float, ...], weight: float
    ) -> Array:
        """Learn from one label; return the true values of `measures`.

        Parameters
        ----------
        said : ndarray, (2, columns)
            Of `ROLES`, as it was said.
        target : ndarray, (columns,)
        losses : ndarray, (2,)
            Means over what is known.
        extra : tuple of float
            What `estimate` returned after the measures.
        weight : float
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return copies."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


class ConfidenceEstimate(Estimate):
    """Classification: the expected loss if the probabilities, recalibrated, are true [1]_.

    A probability p is recalibrated by how often the class came in those of its bin:
    ``q = p + (hits - sum p) / (n + PRIOR)``, sums over the bin's labels and all classes, decaying;
    q is then brought to sum to one. Expected log loss: ``-sum_c q_c ln p_c``; expected accuracy: q
    of the likeliest class.

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
        self.excess = np.zeros((len(ROLES), BINS))  # sums of (came - p)
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
        self, said: Array, target: Array, losses: Array, extra: tuple[float, ...], weight: float
    ) -> Array:
        """Count the label in its bins."""
        at = self.edges.searchsorted(said) + self._first
        self.counts *= DECAY
        self.excess *= DECAY
        np.add.at(self.counts.ravel(), at, weight)
        np.add.at(self.excess.ravel(), at, weight * (target - said))
        right = said.argmax(axis=1) == target.argmax()
        return np.concatenate([losses, right.astype(np.float64)])

    def state_dict(self) -> dict[str, Any]:
        """Return the bins."""
        return {"counts": self.counts.copy(), "excess": self.excess.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.counts[...], self.excess[...] = state["counts"], state["excess"]


class DirectEstimate(Estimate):
    """Values: the loss regressed on what is seen without a label (direct loss estimation).

    With s the guard's scale of losses, d the experts' mean distance from what is served in units
    of the guard's scale, and m the recent mean loss, each at the time of the prediction:
    ``loss / s ~ b_0 + b_1 d + b_2 m / s``, by recursive least squares with forgetting, from
    ``b = (0, 0, 1)``, the recent loss. An estimate is never below 0.
    """

    measures = ROLES
    length = 2 * len(ROLES) + 2

    def __init__(self) -> None:
        self.recent = np.full(len(ROLES), np.nan)
        self.count = 0
        self.weights = [[0.0, 0.0, 1.0] for _ in ROLES]
        self.information = [
            [RIDGE, 0.0, 0.0, RIDGE, 0.0, RIDGE] for _ in ROLES
        ]  # 00, 01, 02, 11, 12, 22

    def estimate(
        self, experts: Array, served: Array, scale: Array, unit: Array
    ) -> tuple[float, ...]:
        """Return the expected losses."""
        s = float(scale.sum()) / scale.size
        distance = np.minimum(np.abs(experts - served) / unit, LARGEST)
        d = float(distance.sum()) / distance.size
        found, relative = [], []
        for (b0, b1, b2), m in zip(self.weights, self.recent.tolist(), strict=True):
            found.append(max(0.0, b0 + b1 * d + b2 * m / s) * s if m == m else m)
            relative.append(m / s)
        return (*found, s, d, *relative)

    def learn(
        self, said: Array, target: Array, losses: Array, extra: tuple[float, ...], weight: float
    ) -> Array:
        """Make one step."""
        del said, target
        s, d, *relative = extra
        if not (math.isfinite(s) and np.isfinite(losses).all()):
            return losses  # said without an estimate, or a loss that is beyond all numbers
        first = np.isnan(self.recent)
        capped = np.where(first, losses, np.minimum(losses, LARGEST * np.maximum(self.recent, s)))
        self.count += 1
        follow = max(RECENT, 1.0 / self.count)
        self.recent = np.where(first, capped, self.recent + follow * (capped - self.recent))
        for role, (m, y) in enumerate(zip(relative, (capped / s).tolist(), strict=True)):
            if math.isfinite(d) and math.isfinite(m):  # else it was said before anything was known
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
    """Make one step of recursive least squares on (1, d, m), and return weights and information
    after it.

    By cofactors, in plain numbers: for three of them an array's every operation costs more than
    all of this.
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
    if (
        not 0.0 < determinant < math.inf
    ):  # numbers too far apart for a solution: what is known stays
        return b, information
    step = weight * (y - b[0] - b[1] * d - b[2] * m) / determinant
    gain = (c00 + c01 * d + c02 * m, c01 + c11 * d + c12 * m, c02 + c12 * d + c22 * m)
    stepped = [old + step * g for old, g in zip(b, gain, strict=True)]
    return (stepped, moved) if all(map(math.isfinite, stepped)) else (b, information)
