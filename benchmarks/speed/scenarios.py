"""The scenarios by name; the names are permanent."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.speed import learners, pipelines, startup
from benchmarks.speed.context import Context, NotThereError
from benchmarks.speed.rounds import Measured

__all__ = ["SCENARIOS", "measure"]

Scenario = Callable[[str, Context], Measured]


def _regression(way: str, name: str, ctx: Context) -> Measured:
    return pipelines.regression(name, way, ctx)


SCENARIOS: dict[str, Scenario] = {
    "regression-lot": partial(_regression, "columns"),
    "regression-one": partial(_regression, "one"),
    "classification-lot": pipelines.classification_lot,
    "regression-river": pipelines.regression_river,
    "forecast-etth1": pipelines.forecast_lot,
    "forecast-los": pipelines.forecast_lot,
    "adcsd-7": partial(learners.adcsd, 7, 200),
    "adcsd-207": partial(learners.adcsd, 207, 20),
    "adcsd-883": partial(learners.adcsd, 883, 5),
    "memory-1e3": partial(learners.memory, 10**3, 2_000),
    "memory-1e4": partial(learners.memory, 10**4, 1_000),
    "memory-1e5": partial(learners.memory, 10**5, 200),
    "memory-1e6": partial(learners.memory, 10**6, 20),
    "sketch-flat": learners.sketch_flat,
    "dictionary-20": partial(learners.dictionary, 20, 500),
    "dictionary-50": partial(learners.dictionary, 50, 300),
    "dictionary-256": partial(learners.dictionary, 256, 20),
    "check-cpu": startup.check_cpu,
}


def measure(name: str, ctx: Context) -> Measured:
    """Run one scenario; what goes wrong in it is part of the result."""
    try:
        return SCENARIOS[name](name, ctx)
    except NotThereError as exc:
        return Measured(name, "us an entry", f"Skipped: {exc}.", problem=str(exc), skipped=True)
    except Exception as exc:
        problem = f"{type(exc).__name__}: {exc}"
        return Measured(name, "us an entry", f"Failed: {problem}.", problem=problem)
