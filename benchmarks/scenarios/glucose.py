"""Regression scenarios: calibrating a glucose sensor with few, late labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.scenarios.measure import (
    Errors,
    Learners,
    Measured,
    Progress,
    Sums,
    cost_of,
    judge_all,
)
from streamadapt import Batch, Entry, Label, Linear, Pipeline, Prediction, Supervised
from streamadapt.guard.base import Guard
from streamadapt.learners import Learner
from streamadapt.learners.defaults import default_learners
from streamadapt.models.fit import fit_supervised

__all__ = ["SENSORS", "Setting", "items_of", "measure", "no_change", "pipeline_for"]

HOUR_NS = 3_600_000_000_000
COST_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Setting:
    """The delay and the number of labels.

    Attributes
    ----------
    every : int, >= 1
        One row of every `every` rows has a label that arrives.
    train : float, in (0, 1)
        The part, from the start, on which the base is fitted.
    window : int, in entries
    delay : int, ns
        From an entry's event time to the arrival of its label.
    """

    name: str
    every: int = 1
    train: float = 0.2
    window: int = 6
    delay: int = 6 * HOUR_NS

    def split(self, batch: Batch) -> int:
        """Return the number of training rows."""
        return int(self.train * len(batch))

    def fit(self, batch: Batch) -> Linear:
        """Fit the base on the training part, all of whose labels are known."""
        assert batch.labels is not None
        n = self.split(batch)
        return fit_supervised(
            Batch(batch.values[:n], batch.times[:n], batch.labels[:n]), window=self.window
        )

    def protocol(self) -> str:
        """Describe the figures."""
        which = (
            "every row has a label" if self.every == 1 else f"one row in {self.every} has a label"
        )
        return (
            f"{self.name}: MAE in mg/dL over every prediction after the first {self.train:.0%} "
            f"of the rows of CGM "
            "in bokeh_sampledata (52,281 rows; those whose current is 'nil' are left out "
            "first), whether or not "
            f"its label arrives. Base, frozen: ridge regression from the last {self.window} "
            f"currents, fitted on "
            f"that first part. Delay: {which}, which arrives {self.delay / HOUR_NS:g} h after "
            f"the row's event "
            "time, before the first row that is not older than that, and is learned then. One "
            "pass in event-time "
            "order; the window starts with the first row after the training part, so that the "
            "first "
            f"{self.window - 1} rows are not predicted. Expert that the guard does not mix: "
            f"no-change (the newest "
            "label that has arrived; those of the training part count as they would have arrived)."
        )


def items_of(setting: Setting, batch: Batch) -> list[Entry | Label]:
    """Return entries (ids are row numbers) and labels in the order of their arrival; labels go
    first at equal times."""
    assert batch.labels is not None
    first = setting.split(batch)
    arrivals: list[tuple[int, int, Entry | Label]] = []
    for entry in list(Batch(batch.values, batch.times).entries())[first:]:
        row = int(entry.id)
        arrivals.append((entry.time, 1, entry))
        if (row - first) % setting.every == 0:
            known = entry.time + setting.delay
            arrivals.append((known, 0, Label(entry.id, batch.labels[row], known)))
    arrivals.sort(key=lambda arrival: arrival[:2])  # stable: equal times keep their order
    last = max(i for i, (_, _, item) in enumerate(arrivals) if isinstance(item, Entry))
    return [item for _, _, item in arrivals[: last + 1]]


def no_change(setting: Setting, batch: Batch) -> np.ndarray:
    """Return, for every row, the newest label that has arrived by then, (n,); NaN before the
    first."""
    assert batch.labels is not None
    first = setting.split(batch)
    rows = np.arange(len(batch))
    labelled = rows[(rows - first) % setting.every == 0]
    newest = np.searchsorted(batch.times[labelled] + setting.delay, batch.times, side="right") - 1
    values = batch.labels[labelled, 0].astype(np.float64)
    return np.where(newest >= 0, values[newest], np.nan)


def pipeline_for(
    setting: Setting, base: Linear, learners: Sequence[Learner], guard: Guard | None = None
) -> Pipeline:
    """Make a pipeline, with the default guard if none is given."""
    return Pipeline(Supervised(setting.window), base, learners, guard, device="cpu")


class _Judge:
    """Compares predictions with all labels, also with those that never arrive."""

    def __init__(self, setting: Setting, batch: Batch, delivered: set[str]) -> None:
        assert batch.labels is not None
        self.truth = batch.labels
        self.plain = no_change(setting, batch)
        self.delivered = delivered
        self.errors = Errors()
        self.issued: list[int] = []
        self.sums = Sums()

    def __call__(self, prediction: Prediction) -> None:
        row = int(prediction.id)
        self.issued.append(row)
        actual = self.truth[row][None]  # (1, 1)
        experts = {**prediction.experts, "served": prediction.served}
        if prediction.id in self.delivered:
            self.sums.add(
                {
                    name: abs(float(output[0, 0]) - float(actual[0, 0]))
                    for name, output in experts.items()
                },
                1,
            )
        experts["no-change"] = np.full((1, 1), self.plain[row])
        self.errors.add(experts, actual)


def _default() -> list[Learner]:
    return default_learners("regression")


def measure(
    setting: Setting, batch: Batch, progress: Progress, learners: Learners = _default
) -> Measured:
    """Run the default pipeline over the rest of the rows."""
    base = setting.fit(batch)
    items = items_of(setting, batch)
    pipeline = pipeline_for(setting, base, learners())
    judge = _Judge(setting, batch, {item.id for item in items if isinstance(item, Label)})
    expected = range(setting.split(batch) + setting.window - 1, len(batch))
    judge_all(setting.name, pipeline, items, judge, expected, progress)
    errors = judge.errors.arrays()
    mixed = tuple(pipeline.names)
    ordered = {name: errors[name] for name in (*mixed, "no-change", "served")}
    cost = cost_of(partial(pipeline_for, setting, base), learners, items, COST_ENTRIES)
    return Measured.of_errors(setting.name, setting.protocol(), [ordered], mixed, cost)


SENSORS = (Setting("cgm-6h"), Setting("cgm-sparse", every=72))
