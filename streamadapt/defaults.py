"""The learners to start with: one set per kind of task."""

from __future__ import annotations

from streamadapt.errors import ConfigError
from streamadapt.learners import ADCSD, RLS, Bias, Calibration, Gain, Learner, River
from streamadapt.learners.base import TaskKind

__all__ = ["default_learners"]


def default_learners(kind: TaskKind) -> list[Learner]:
    """Return a fresh list of learners for a kind of task: one set per kind, for every stream.

    The guard sorts out which of them suit a stream, so a set offers what fails differently rather than what is best
    somewhere. docs/results.md has the figures of each.

    * Forecasts: ADCSD as published, with ten times its learning rate, and with shared normalisation (what a weak base
      misses; the slow one does no harm on a strong base); the bias, the plainest of all; recursive least squares with
      memories of 2,000 and 500 entries (a linear relation that has changed), the best learner on strong bases.
      ADCSD costs most by far.
    * Regression: bias, gain, both together (calibration) and recursive least squares, at several memories.
    * Classification: two of river's classifiers.
    """
    if kind == "forecast":
        # Innovations are clipped at once their running mean and not at twice, as RLS does by itself: closer to the
        # absolute error that forecasts are judged by.
        return [ADCSD(), ADCSD(1e-3), ADCSD(share_norm=True), Bias((0.02, 0.005)), RLS((0.9995, 0.998), clip=1.0)]
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
