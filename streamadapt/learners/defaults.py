"""The default learners: one set per kind of task."""

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
    Logistic,
    Seasonal,
    SlotBias,
)
from streamadapt.models.contract import TaskKind

__all__ = ["default_learners"]


def default_learners(kind: TaskKind) -> list[Learner]:
    """Return a new list of learners for a kind of task: one set per kind, for every stream.

    The guard finds out which learners suit a stream. A set therefore has learners that fail in
    different ways, rather than the best one for some stream. docs/results.md has the figures of
    each.

    * Forecasts: error memories by channel and by panel (earlier windows like the current one);
      recursive least squares with memories of 2,000 and 500 entries, on the absolute error, and on
      all channels and the time of day; the last value and the value of the day before, which are
      weak alone but improve the mixture; the bias, also by time of day; ADCSD as published and
      with shared normalisation (for a weak base). ADCSD and the memory by channel cost most.
    * Regression: bias, gain, both together (calibration) and recursive least squares, each with
      several memories.
    * Classification: the bias of the probabilities, recursive least squares and the last label,
      which follow a fast change; two logistic regressions, a fast one on the inputs' places among
      the last hundred, and a slow one, which learns lasting patterns.
    """
    if kind == "forecast":
        # Innovations are clipped at one running mean; the default of RLS is two. This is closer
        # to the absolute error, by which forecasts are judged.
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
            Logistic(1.0, forgetting=0.99),
            Logistic(0.1),
        ]
    raise ConfigError("task.kind", kind, "forecast, regression or classification")
