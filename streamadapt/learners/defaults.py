"""The learners to start with: one set per kind of task."""

from __future__ import annotations

from streamadapt.errors import ConfigError
from streamadapt.learners import (
    ADCSD,
    RLS,
    Bias,
    Calibration,
    ErrorMemory,
    Gain,
    LastValue,
    Learner,
    River,
    Seasonal,
    SlotBias,
)
from streamadapt.models.contract import TaskKind

__all__ = ["default_learners"]


def default_learners(kind: TaskKind) -> list[Learner]:
    """Return a fresh list of learners for a kind of task: one set per kind, for every stream.

    The guard sorts out which of them suit a stream, so a set offers what fails differently rather
    than what is best somewhere. docs/results.md has the figures of each.

    * Forecasts: error memories by channel and by panel (windows like this one, seen before) and
      recursive least squares with memories of 2,000 and 500 entries, on the absolute error, and on
      all channels and the time of day; the last value and the day before, poor by themselves and
      good company; the bias, by time of day too; ADCSD as published and with shared normalisation
      (what a weak base misses). ADCSD and the memory by channel cost most.
    * Regression: bias, gain, both together (calibration) and recursive least squares, at several
      memories.
    * Classification: the bias of the probabilities, recursive least squares and the last label,
      which follow a fast change; two of river's classifiers, which find what is lasting.
    """
    if kind == "forecast":
        # Innovations are clipped at once their running mean and not at twice, as RLS does by
        # itself: closer to the absolute error that forecasts are judged by.
        return [
            ADCSD(),
            ADCSD(share_norm=True),
            Bias((0.02, 0.005)),
            SlotBias((0.1, 0.03)),
            RLS((0.9995, 0.998), clip=1.0),
            RLS(0.9995, loss="l1"),
            RLS(0.9995, clip=1.0, features=("cross", "calendar")),
            ErrorMemory(),
            ErrorMemory(scope="panel"),
            LastValue(),
            Seasonal("1d"),
        ]
    if kind == "regression":
        # Memories from 2 to 200 labels in about equal ratios: which one fits depends on how often
        # labels come.
        return [
            Bias((0.5, 0.2, 0.05, 0.02)),
            Gain((0.2, 0.05)),
            Calibration((0.6, 0.8, 0.9, 0.98)),
            RLS((0.9, 0.98, 0.995)),
        ]
    if kind == "classification":
        return [
            Bias((0.5, 0.1)),
            RLS((0.9, 0.98)),
            LastValue(),
            River("linear_model.LogisticRegression"),
            River("tree.HoeffdingAdaptiveTreeClassifier"),
        ]
    raise ConfigError("task.kind", kind, "forecast, regression or classification")
