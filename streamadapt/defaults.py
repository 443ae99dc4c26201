"""The learners to start with: one set per kind of task."""

from __future__ import annotations

from streamadapt.errors import ConfigError
from streamadapt.learners import ADCSD, RLS, Bias, Calibration, Gain, Learner, River
from streamadapt.learners.base import TaskKind

__all__ = ["default_learners"]


def default_learners(kind: TaskKind) -> list[Learner]:
    """Return a fresh list of learners for a kind of task."""
    if kind == "forecast":
        return [ADCSD(), ADCSD(share_norm=True), Bias((0.02, 0.005)), RLS((0.9995, 0.998))]
    if kind == "regression":
        # Memories from 2 to 200 labels in about equal ratios: which one fits depends on how often labels come.
        return [
            Bias((0.5, 0.2, 0.05, 0.02)),
            Gain((0.2, 0.05)),
            Calibration((0.6, 0.8, 0.9, 0.98)),
            RLS((0.9, 0.98, 0.995)),
        ]
    if kind == "classification":
        return [River("linear_model.LogisticRegression"), River("tree.HoeffdingAdaptiveTreeClassifier")]
    raise ConfigError("task.kind", kind, "forecast, regression or classification")
