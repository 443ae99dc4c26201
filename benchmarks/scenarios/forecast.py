"""Forecasting scenarios: ETTh1 and los_speed, from a weak and from a strong frozen base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.data import etth1, los_speed
from benchmarks.scenarios.measure import (
    SEEDS,
    Errors,
    Learners,
    Losses,
    Measured,
    Progress,
    Sums,
    cost_of,
    judge_all,
    of_seed,
    seeds_protocol,
)
from streamadapt import Batch, Entry, Forecast, Linear, Pipeline, Prediction
from streamadapt.guard.base import Guard
from streamadapt.learners import Learner
from streamadapt.learners.defaults import default_learners
from streamadapt.models.fit import fit_forecast

__all__ = ["FORECASTS", "Setting", "issue_times", "measure", "pipeline_for", "stream_of"]

HORIZON = 12
RIDGE = 0.1
COST_ENTRIES = 200


@dataclass(frozen=True, slots=True)
class Setting:
    """A data set, its split and its frozen base.

    Attributes
    ----------
    train : float, in (0, 1)
        The part, from the start, on which the base is fitted.
    window : int, in entries
    strong : bool
        Whether the last value is subtracted from window and target.
    shared_scale : bool
        One scalar location and scale for all columns, from the training part.
    warm_up : int, in entries
        The number of last entries of the training part that are observed first, without judging
        their forecasts: the learners and their memories start from them, as in a deployment that
        replays its history.
    """

    name: str
    load: Callable[[Path], Batch]
    train: float
    window: int
    strong: bool
    shared_scale: bool
    horizon: int = HORIZON
    warm_up: int = 0

    def split(self, batch: Batch) -> int:
        """Return the number of training rows."""
        return int(self.train * len(batch))

    def fit(self, batch: Batch) -> Linear:
        """Fit the base on the training part."""
        n = self.split(batch)
        history = Batch(batch.values[:n], batch.times[:n])
        return fit_forecast(
            history,
            self.window,
            self.horizon,
            ridge=RIDGE,
            subtract_last=self.strong,
            shared_scale=self.shared_scale,
        )

    def protocol(self) -> str:
        """Describe the figures."""
        scaling = "one scalar pair" if self.shared_scale else "per column"
        form = "last value subtracted from window and target" if self.strong else "raw window"
        h, w = self.horizon, self.window
        start = "from the first row of the first judged window; learners start untrained"
        if self.warm_up:
            start = (
                f"from {self.warm_up} rows before the first row of the first judged window, the "
                f"forecasts in between "
                "being learned from and not judged; learners start untrained there"
            )
        return (
            f"{self.name}: MAE in original units over all {h} steps, columns and issue times t "
            f"(index of the last "
            f"input row, from 0) in [n_train + {w}, n - {h}); n_train = first {self.train:.0%} "
            f"of the n rows. "
            f"Base, frozen: ridge regression (penalty {RIDGE}, bias term), one for all columns, "
            f"from a column's "
            f"last {w} rows to its next {h}, {form}, fitted on the training part; z-scores from "
            f"the training "
            f"part, {scaling}. Delay: row h of a forecast issued at t is known at t + h, the "
            f"whole forecast at t "
            f"+ {h}; what an arrival makes known is learned before the prediction of that "
            f"arrival, nothing "
            f"earlier. One pass in time order, {start} (rls: from the sufficient statistics of "
            f"the base's fit); one "
            "default set of learners for all forecast scenarios; persistence is the last value."
        )


def issue_times(setting: Setting, rows: int) -> range:
    """Return the rows whose forecasts are judged: the window lies in the test part, and so do all
    targets."""
    return range(int(setting.train * rows) + setting.window, rows - setting.horizon)


def stream_of(setting: Setting, batch: Batch) -> list[Entry]:
    """Return the entries to observe: from the first row of the first judged window on, or
    `warm_up` before."""
    first = issue_times(setting, len(batch)).start - setting.window + 1 - setting.warm_up
    if first < 0:
        raise ValueError(
            f"{setting.name}: {setting.warm_up} entries to warm up, {first + setting.warm_up} "
            f"there are"
        )
    return list(batch.entries())[first:]


def pipeline_for(
    setting: Setting,
    base: Linear,
    learners: Sequence[Learner],
    guard: Guard | None = None,
    *,
    seed: int = 0,
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
        self.sums = Sums()

    def __call__(self, prediction: Prediction) -> None:
        t = int(prediction.id)
        actual = self.values[t + 1 : t + 1 + self.horizon]
        experts = {**prediction.experts, "served": prediction.served}
        outputs = {
            name: output[: len(actual)].astype(np.float64) for name, output in experts.items()
        }
        self.sums.add(
            {name: float(np.abs(output - actual).sum()) for name, output in outputs.items()},
            actual.size,
        )
        if t in self.judged:
            self.issued.append(t)
            experts.setdefault("persistence", np.broadcast_to(self.values[t], actual.shape))
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
    """Run the default pipeline over the test part, once per seed; a prediction's error is its mean
    over the seeds."""
    base = setting.fit(batch)
    items = stream_of(setting, batch)
    runs = [
        _run(
            setting,
            batch,
            pipeline_for(setting, base, learners(), seed=seed),
            of_seed(progress, seed),
        )
        for seed in seeds
    ]
    mixed = ("base", *(name for learner in learners() for name in learner.names))
    ordered = [
        {name: run[name] for name in dict.fromkeys((*mixed, "persistence", "served"))}
        for run in runs
    ]
    cost = cost_of(partial(pipeline_for, setting, base), learners, items, COST_ENTRIES)
    protocol = f"{setting.protocol()} {seeds_protocol(seeds)}"
    return Measured.of_errors(setting.name, protocol, ordered, mixed, cost)


def _run(setting: Setting, batch: Batch, pipeline: Pipeline, progress: Progress) -> Losses:
    """Return every expert's error at every judged issue time."""
    judge = _Judge(setting, batch)
    judge_all(setting.name, pipeline, stream_of(setting, batch), judge, judge.judged, progress)
    return judge.errors.arrays()


FORECASTS = (
    Setting("etth1-weak", etth1, 0.6, 12, strong=False, shared_scale=False, warm_up=4000),
    Setting("etth1-strong", etth1, 0.6, 96, strong=True, shared_scale=False, warm_up=4000),
    Setting("los-weak", los_speed, 0.3, 12, strong=False, shared_scale=True, warm_up=590),
    Setting("los-strong", los_speed, 0.3, 12, strong=True, shared_scale=True, warm_up=590),
)
