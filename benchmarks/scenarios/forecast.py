"""Forecasting scenarios: ETTh1 and los_speed, from a weak and from a strong frozen base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import etth1, los_speed
from benchmarks.scenarios.measure import Errors, Learners, Measured, Progress, cost_of, cross_check, drive
from streamadapt import Batch, Entry, Forecast, Linear, Pipeline, Prediction
from streamadapt.defaults import default_learners
from streamadapt.fit import fit_forecast
from streamadapt.guard import Guard
from streamadapt.learners import Learner

__all__ = ["FORECASTS", "Setting", "issue_times", "measure", "pipeline_for", "stream_of"]

HORIZON = 12
RIDGE = 0.1
COST_ENTRIES = 200
SEEDS = (0, 1, 2)
"""Of the learners' initial weights (ADCSD's); everything else has no randomness."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A data set, how it is split and what the frozen base is.

    Attributes
    ----------
    train : float, in (0, 1)
        The part, from the start, that the base is fitted on.
    window : int, in entries
    strong : bool
        Whether the last value is subtracted from window and target.
    shared_scale : bool
        One scalar location and scale for all columns, from the training part.
    """

    name: str
    load: Callable[[Path], Batch]
    train: float
    window: int
    strong: bool
    shared_scale: bool
    horizon: int = HORIZON

    def split(self, batch: Batch) -> int:
        """Return the number of training rows."""
        return int(self.train * len(batch))

    def fit(self, batch: Batch) -> Linear:
        """Fit the base on the training part."""
        n = self.split(batch)
        history = Batch(batch.values[:n], batch.times[:n])
        return fit_forecast(
            history, self.window, self.horizon, ridge=RIDGE, subtract_last=self.strong, shared_scale=self.shared_scale
        )

    def protocol(self) -> str:
        """State what the figures are."""
        scaling = "one scalar pair" if self.shared_scale else "per column"
        form = "last value subtracted from window and target" if self.strong else "raw window"
        h, w = self.horizon, self.window
        return (
            f"{self.name}: MAE in original units over all {h} steps, columns and issue times t (index of the last "
            f"input row, from 0) in [n_train + {w}, n - {h}); n_train = first {self.train:.0%} of the n rows. "
            f"Base, frozen: ridge regression (penalty {RIDGE}, bias term), one for all columns, from a column's "
            f"last {w} rows to its next {h}, {form}, fitted on the training part; z-scores from the training "
            f"part, {scaling}. Delay: row h of a forecast issued at t is known at t + h, the whole forecast at t "
            f"+ {h}; what an arrival makes known is learned before the prediction of that arrival, nothing "
            "earlier. One pass in time order, from the first row of the first judged window; learners start "
            "untrained (rls: from the sufficient statistics of the base's fit); one default set of "
            "learners for all forecast scenarios. Expert that the guard does not mix: persistence (the last "
            "value)."
        )


def issue_times(setting: Setting, rows: int) -> range:
    """Return the rows whose forecasts are judged: the window lies in the test part, and so do all targets."""
    return range(int(setting.train * rows) + setting.window, rows - setting.horizon)


def stream_of(setting: Setting, batch: Batch) -> list[Entry]:
    """Return the entries to be observed: from the first row of the first judged window to the last row."""
    first = issue_times(setting, len(batch)).start - setting.window + 1
    return list(batch.entries())[first:]


def pipeline_for(
    setting: Setting, base: Linear, learners: Sequence[Learner], guard: Guard | None = None, *, seed: int = 0
) -> Pipeline:
    """Make a pipeline, with the default guard if none is given."""
    task = Forecast(setting.window, setting.horizon)
    return Pipeline(task, base, learners, guard, device="cpu", seed=seed)


class _Judge:
    """Compares forecasts with the rows that followed."""

    def __init__(self, setting: Setting, batch: Batch) -> None:
        self.values = batch.values
        self.horizon = setting.horizon
        self.judged = issue_times(setting, len(batch))
        self.issued: list[int] = []
        self.errors = Errors()
        self.sums: dict[str, float] = {}
        self.cells = 0

    def __call__(self, prediction: Prediction) -> None:
        t = int(prediction.id)
        actual = self.values[t + 1 : t + 1 + self.horizon]
        experts = {**prediction.experts, "served": prediction.served}
        self.cells += actual.size
        for name, said in experts.items():
            total = np.abs(said[: len(actual)].astype(np.float64) - actual).sum()
            self.sums[name] = self.sums.get(name, 0.0) + float(total)
        if t in self.judged:
            self.issued.append(t)
            experts["persistence"] = np.broadcast_to(self.values[t], actual.shape)
            self.errors.add(experts, actual)


def _default() -> list[Learner]:
    return default_learners("forecast")


def measure(
    setting: Setting,
    batch: Batch,
    progress: Progress,
    learners: Learners = _default,
    seeds: Sequence[int] = SEEDS,
) -> Measured:
    """Run the default pipeline over the test part, once per seed; a prediction's error is its mean over the seeds."""
    base = setting.fit(batch)
    items = stream_of(setting, batch)
    runs = [_run(setting, batch, pipeline_for(setting, base, learners(), seed=seed), progress) for seed in seeds]
    mixed = tuple(name for name in runs[0] if name not in ("persistence", "served"))
    ordered = {
        name: np.mean([run[name] for run in runs], axis=0, dtype=np.float64)
        for name in (*mixed, "persistence", "served")
    }
    cost = cost_of(partial(pipeline_for, setting, base), learners, items, COST_ENTRIES)
    return Measured(setting.name, f"{setting.protocol()} {_spread(runs, seeds)}", ordered, mixed, cost)


def _run(setting: Setting, batch: Batch, pipeline: Pipeline, progress: Progress) -> dict[str, Any]:
    """Return every expert's error at every judged issue time."""
    judge = _Judge(setting, batch)
    drive(pipeline, stream_of(setting, batch), judge, progress)
    if judge.issued != list(judge.judged):
        raise AssertionError(f"{setting.name}: {len(judge.issued)} issue times, expected those of {judge.judged}")
    cross_check(pipeline, judge.sums, judge.cells)
    return judge.errors.arrays()


def _spread(runs: Sequence[dict[str, Any]], seeds: Sequence[int]) -> str:
    """Say how far the seeds are apart."""
    figures = {name: [float(run[name].mean()) for run in runs] for name in runs[0]}
    spread = {name: max(values) - min(values) for name, values in figures.items()}
    apart = ", ".join(f"{name} {value:.4f}" for name, value in spread.items() if value > 0.0) or "none"
    return f"Figures are means over seeds {', '.join(map(str, seeds))}; largest minus smallest: {apart}."


FORECASTS = (
    Setting("etth1-weak", etth1, 0.6, 12, strong=False, shared_scale=False),
    Setting("etth1-strong", etth1, 0.6, 96, strong=True, shared_scale=False),
    Setting("los-weak", los_speed, 0.3, 12, strong=False, shared_scale=True),
    Setting("los-strong", los_speed, 0.3, 12, strong=True, shared_scale=True),
)
