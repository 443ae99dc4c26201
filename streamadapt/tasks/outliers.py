"""Outliers among labels: values so far from all earlier ones that learning them would undo months
of learning."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamadapt.compiled import Kernel
from streamadapt.errors import ConfigError
from streamadapt.records import Array, Mask
from streamadapt.tasks.outlier_kernels import (
    CLIP,
    OutlierSettings,
    empty_outliers,
    judge,
    outlier_room,
)

__all__ = ["LabelOutliers"]


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
        self.state = empty_outliers(1, outputs)

    @property
    def settings(self) -> OutlierSettings:
        """What its functions must know (`streamadapt.tasks.outlier_kernels`)."""
        outputs = self.state.run.shape[1]
        unit = np.zeros(outputs) if self.unit is None else np.array(self.unit, np.float64)
        return OutlierSettings(self.limit, unit, self.unit is not None)

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
        if self.limit < np.inf:
            levels = np.zeros(len(labels)) if base is None else np.abs(base)
            given = (np.array(each, np.float64) for each in (labels, errors, levels))
            _judge.call(self.settings, self.state, 0, outlier_room(), *given, outliers)
        return outliers

    def state_dict(self) -> dict[str, Any]:
        """Return copies."""
        s = self.state
        pairs = np.stack([s.labels[0], s.errors[0]], axis=-1)
        return {
            "first": [pairs[i, :known].tolist() for i, known in enumerate(s.known[0])],
            "usual": s.usual[0].copy(),
            "run": s.run[0].tolist(),
            "changed": s.changed[0].tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        outputs = len(state["run"])
        s = self.state = empty_outliers(1, outputs)
        for i, pairs in enumerate(state["first"]):
            s.known[0, i] = len(pairs)
            for k, (label, error) in enumerate(pairs):
                s.labels[0, i, k], s.errors[0, i, k] = label, error
        s.usual[0], s.run[0] = state["usual"], state["run"]
        s.changed[0] = state.get("changed", [True] * outputs)


_judge = Kernel(judge)
