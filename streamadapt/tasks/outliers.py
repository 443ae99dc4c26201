"""Outliers among labels: values so far from all earlier ones that learning them would undo months
of learning."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from streamadapt.errors import ConfigError
from streamadapt.records import Array, Mask

__all__ = ["LabelOutliers"]

FIRST = 10
"""The usual sizes start at the medians of this number of labels."""
BELIEVED = 2
"""Before this number of labels, a label is compared with the base's output: nothing else is known
yet."""
YOUNG_LIMIT = 35.0
"""The limit for the first labels, unless the configured limit is lower, if the base has a scale of
its outputs: little has been learned yet."""
LEVELS = 100.0
"""The largest error of a first label, in multiples of the base's output, if the base has no scale
of its outputs."""
RATE = 0.01
"""How fast the usual sizes follow the labels, per label."""
CLIP = 10.0
"""A larger distance counts as this many usual sizes when the usual sizes are updated."""
IN_A_ROW = 5
"""This many outliers in a row are no mistake, but a change of the stream."""


class LabelOutliers:
    """Detects outliers among the labels of a regression, for each output separately.

    A label is an outlier if its distance from the base is more than `limit` times the base's usual
    error, and more than `limit` times the labels' usual distance from their centre. With the
    second condition, a base that is nearly perfect for a while does not make outliers of ordinary
    labels. Centre and usual sizes are clipped running means that start at the medians of the first
    labels. `IN_A_ROW` outliers in a row show that the stream, or its unit, has changed: the last
    one is accepted, and all statistics start again. The first labels of a stream are compared with
    the scale that the base was fitted on (`unit`), or with the size of the base's output if it has
    no scale.

    Parameters
    ----------
    outputs : int
    limit : float, > CLIP
        Infinite: every label is accepted.

    Attributes
    ----------
    unit : ndarray, (outputs,), or None
        The base's scale of the outputs; not part of the state.
    """

    unit: Array | None = None

    def __init__(self, outputs: int, limit: float) -> None:
        if not limit > CLIP:
            raise ConfigError("task.absurd", limit, f"a number > {CLIP:g}, or inf")
        self.limit = float(limit)
        # label and error of the first labels
        self.first: list[list[tuple[float, float]]] = [[] for _ in range(outputs)]
        self.usual = [(0.0, 0.0, 0.0) for _ in range(outputs)]  # centre, distance from it, error
        self.run = [0] * outputs
        self.changed = [False] * outputs  # whether `first` started again after a change

    def outliers(self, labels: Array, errors: Array, base: Array | None = None) -> Mask:
        """Return which outputs of a label are outliers, (outputs,), and update the usual sizes.

        Parameters
        ----------
        labels, errors : ndarray, (outputs,)
            The error is ``|label - base|``; NaN if either is missing.
        base : ndarray, (outputs,), optional
            The base's outputs. Without them, and without a `unit`, the first labels are always
            accepted.
        """
        outliers: Mask = np.zeros(len(labels), np.bool_)
        if self.limit == np.inf:
            return outliers
        levels = np.zeros(len(labels)) if base is None else np.abs(base)
        for i, (label, error) in enumerate(zip(labels.tolist(), errors.tolist(), strict=True)):
            if error == error:
                outliers[i] = self._is_outlier(i, label, error, float(levels[i]))
        return outliers

    def _largest_error(self, i: int, level: float) -> float:
        """Return the largest accepted distance of a label from the base; 0 if nothing limits
        it."""
        known, usual = len(self.first[i]), max(self.usual[i][1:])
        if self.changed[i] or known == FIRST or (known >= BELIEVED and self.unit is None):
            return self.limit * usual if known >= BELIEVED else 0.0
        if self.unit is None:
            return LEVELS * level
        return min(self.limit, YOUNG_LIMIT) * max(usual, float(self.unit[i]))

    def _is_outlier(self, i: int, label: float, error: float, level: float) -> bool:
        first, usual = self.first[i], self.usual[i]
        if error > self._largest_error(i, level) > 0.0:
            self.run[i] += 1
            if self.run[i] < IN_A_ROW:
                return True
            first.clear()
            self.changed[i] = True
        self.run[i] = 0
        if len(first) < FIRST:
            first.append((label, error))
            middle = median(y for y, _ in first)
            self.usual[i] = (
                middle,
                median(abs(y - middle) for y, _ in first),
                median(e for _, e in first),
            )
            return False
        middle, distance, scale = usual
        away = _clipped(abs(label - middle), distance)
        middle += RATE * (away if label > middle else -away)
        self.usual[i] = (
            middle,
            distance + RATE * (away - distance),
            scale + RATE * (_clipped(error, scale) - scale),
        )
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return copies."""
        first = [[list(pair) for pair in pairs] for pairs in self.first]
        return {
            "first": first,
            "usual": np.array(self.usual),
            "run": list(self.run),
            "changed": self.changed.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.first = [
            [(float(label), float(error)) for label, error in pairs] for pairs in state["first"]
        ]
        self.usual = [
            (float(m), float(d), float(e))
            for m, d, e in np.array(state["usual"], np.float64).tolist()
        ]
        self.run = [int(n) for n in state["run"]]
        self.changed = [bool(changed) for changed in state.get("changed", [True] * len(self.run))]


def _clipped(size: float, usual: float) -> float:
    return min(size, CLIP * usual) if usual > 0.0 else size
