"""Forecasting scenarios: ETTh1 and los_speed, from a weak and from a strong frozen base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.data import etth1, los_speed
from benchmarks.scenarios.measure import Cost, Errors, Measured, Progress, cost_per_entry, cross_check, drive
from streamadapt import ADCSD, Batch, Entry, Forecast, Linear, NoGuard, Pipeline, Prediction
from streamadapt.defaults import default_learners
from streamadapt.fit import fit_forecast
from streamadapt.learners import Learner

__all__ = ["FORECASTS", "Setting", "issue_times", "measure", "pipeline_for", "stream_of"]

HORIZON = 12
RIDGE = 0.1
COST_ENTRIES = 200

Learners = Callable[[], Sequence[Learner]]


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
        return (
            f"{self.name}: MAE in original units over all {self.horizon} steps, columns and issue times t (index of the last "
            f"input row, from 0) in [n_train + {self.window}, n - {self.horizon}); n_train = first {self.train:.0%} of the rows. "
            f"Base, frozen: ridge regression (penalty {RIDGE}, bias term) from a column's last {self.window} rows to its next "
            f"{self.horizon}, one for all columns, {form}, fitted on the training part; z-scores from the training part, "
            f"{scaling}. Delay: row h of a forecast issued at t is known at t + h, the whole forecast at t + {self.horizon}; "
            "what an arrival makes known is learned before the prediction of that arrival, nothing earlier. One pass in "
            "time order; learners start untrained (rls: from the sufficient statistics of the base's fit), one default set for "
            "all forecast scenarios. "
            "Experts that the guard does not mix: persistence (last value), adcsd-1e-3."
        )


def issue_times(setting: Setting, rows: int) -> range:
    """Return the rows whose forecasts are judged: the window lies in the test part, and so do all targets."""
    return range(int(setting.train * rows) + setting.window, rows - setting.horizon)


def stream_of(setting: Setting, batch: Batch) -> list[Entry]:
    """Return the entries to be observed: from the first row of the first judged window to the last row."""
    first = issue_times(setting, len(batch)).start - setting.window + 1
    return list(batch.entries())[first:]


def pipeline_for(setting: Setting, base: Linear, learners: Sequence[Learner], *, guarded: bool = True) -> Pipeline:
    """Make a pipeline; unguarded ones serve the base."""
    task = Forecast(setting.window, setting.horizon)
    return Pipeline(task, base, learners, None if guarded else NoGuard(), device="cpu")


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


def measure(
    setting: Setting,
    batch: Batch,
    progress: Progress,
    learners: Learners = partial(default_learners, "forecast"),
    beside: Learners = lambda: [ADCSD(1e-3)],
) -> Measured:
    """Run the default pipeline, and the experts beside it, over the test part."""
    base = setting.fit(batch)
    items = stream_of(setting, batch)
    errors: dict[str, np.ndarray] = {}
    mixed: tuple[str, ...] = ()
    for chosen, guarded in ((learners(), True), (beside(), False)):
        if not chosen:
            continue
        pipeline = pipeline_for(setting, base, chosen, guarded=guarded)
        judge = _Judge(setting, batch)
        drive(pipeline, items, judge, progress)
        if judge.issued != list(judge.judged):
            raise AssertionError(f"{setting.name}: issue times {judge.issued[:1]}..., expected {judge.judged}")
        cross_check(pipeline, judge.sums, judge.cells)
        errors = judge.errors.arrays() | errors
        mixed = mixed or tuple(pipeline.names)
    return Measured(setting.name, setting.protocol(), _ordered(errors, mixed), mixed, _cost(setting, base, items, learners))


def _ordered(errors: dict[str, np.ndarray], mixed: Sequence[str]) -> dict[str, np.ndarray]:
    beside = sorted(set(errors) - {*mixed, "served"})
    return {name: errors[name] for name in (*mixed, *beside, "served")}


def _cost(setting: Setting, base: Linear, items: list[Entry], learners: Learners) -> Cost:
    def timed(chosen: Sequence[Learner], *, guarded: bool = False) -> float:
        return cost_per_entry(pipeline_for(setting, base, chosen, guarded=guarded), items, COST_ENTRIES)

    alone = timed([])
    each = {" / ".join(learner.names): timed([learner]) - alone for learner in learners()}
    return Cost(alone, timed(learners(), guarded=True), each)


FORECASTS = (
    Setting("etth1-weak", etth1, 0.6, 12, strong=False, shared_scale=False),
    Setting("etth1-strong", etth1, 0.6, 96, strong=True, shared_scale=False),
    Setting("los-weak", los_speed, 0.3, 12, strong=False, shared_scale=True),
    Setting("los-strong", los_speed, 0.3, 12, strong=True, shared_scale=True),
)
