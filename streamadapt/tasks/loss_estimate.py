"""Estimate the loss of a prediction before its label arrives: from confidence, or from
disagreement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from streamadapt.compiled import Kernel
from streamadapt.records import Array
from streamadapt.tasks.estimate_kernels import (
    BINS,
    RIDGE,
    ConfidenceSettings,
    ConfidenceState,
    DirectSettings,
    DirectState,
    EstimateRoom,
    confidence_estimate,
    confidence_learn,
    direct_estimate,
    direct_learn,
    estimate_room,
)

__all__ = ["ROLES", "ConfidenceEstimate", "DirectEstimate", "Estimate"]

ROLES = ("base", "served")
"""The predictions whose loss is estimated."""


class Steps(NamedTuple):
    """The functions of an estimate, of `streamadapt.tasks.estimate_kernels`."""

    estimate: Kernel
    learn: Kernel


class Estimate(ABC):
    """Estimates the losses of the base's and the served predictions; each label improves it.

    It learns the relation between the losses of labelled predictions and quantities that are known
    without labels. When this relation changes (concept drift: the distribution of the labels given
    the inputs), the estimates are wrong until labels show the change.

    Attributes
    ----------
    settings, state : NamedTuple
        What its functions take; the first axis of each array of the state is the key: here one
        row.
    """

    steps: ClassVar[Steps]
    settings: Any
    state: Any
    measures: tuple[str, ...]
    """Names of the first numbers that `estimate` returns."""
    length: int
    """The number of numbers that `estimate` returns."""

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
        room = self.room(len(experts), served.shape[1])
        out = np.zeros(self.length)
        given = map(_copied, (experts, served, scale, unit))
        self.steps.estimate.call(self.settings, self.state, 0, room, *given, out)
        return tuple(out.tolist())

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
        room = self.room(1, len(target))
        out = np.zeros(len(self.measures))
        given = map(_copied, (predictions, target, losses, extra))
        self.steps.learn.call(self.settings, self.state, 0, room, *given, float(weight), out)
        return out

    def room(self, experts: int, columns: int) -> EstimateRoom:
        """Return room to work in, for predictions of this shape."""
        classify = isinstance(self.settings, ConfidenceSettings)
        return estimate_room(experts, columns, len(self.measures), classify=classify)

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

    steps = Steps(Kernel(confidence_estimate), Kernel(confidence_learn))

    def __init__(self) -> None:
        odds = np.linspace(-7.0, 7.0, BINS - 1)
        self.settings = ConfidenceSettings(1.0 / (1.0 + np.exp(-odds)))
        shape = (1, len(ROLES), BINS)
        self.state = ConfidenceState(np.zeros(shape), np.zeros(shape))

    def state_dict(self) -> dict[str, Any]:
        """Return the bins."""
        return {"counts": self.state.counts[0].copy(), "excess": self.state.excess[0].copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.state.counts[0], self.state.excess[0] = state["counts"], state["excess"]


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

    steps = Steps(Kernel(direct_estimate), Kernel(direct_learn))

    def __init__(self) -> None:
        self.settings = DirectSettings(RIDGE)
        ridge = np.array([RIDGE, 0.0, 0.0, RIDGE, 0.0, RIDGE])
        self.state = DirectState(
            np.full((1, len(ROLES)), np.nan),
            np.zeros(1, np.int64),
            np.tile(np.array([0.0, 0.0, 1.0]), (1, len(ROLES), 1)),
            np.tile(ridge, (1, len(ROLES), 1)),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return weights and information."""
        return {
            "recent": self.state.recent[0].copy(),
            "weights": self.state.weights[0].copy(),
            "information": self.state.information[0].copy(),
            "count": int(self.state.count[0]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for name in ("recent", "weights", "information", "count"):
            getattr(self.state, name)[0] = state[name]


def _copied(values: Any) -> Array:
    """Return an array that a kernel was compiled for: of its own, and written row by row."""
    return np.array(values, np.float64, order="C")
