"""For streams with few, late or no labels: chooses the labels to request, and estimates losses
without labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from streamadapt.compiled import Kernel
from streamadapt.errors import ConfigError
from streamadapt.pipeline.stats import Stats
from streamadapt.records import Array
from streamadapt.tasks import Matured, Task
from streamadapt.tasks.estimate_kernels import (
    LossSums,
    count_estimated,
    estimate_room,
    label_step,
    no_learn,
)
from streamadapt.tasks.label_budget import LabelBudget
from streamadapt.tasks.loss_estimate import ROLES, ConfidenceEstimate, DirectEstimate, Estimate
from streamadapt.tasks.loss_kernels import loss_settings
from streamadapt.tasks.losses import Loss

__all__ = ["LabelFields", "LabelRequests", "put_sums", "sums_of"]


class LabelFields(NamedTuple):
    """The fields of a `Prediction` about its label; None if there is no budget, or no estimate.

    Attributes
    ----------
    ask : bool or None
        Whether the label is requested.
    ask_probability : float or None
        The probability of the request.
    estimated_loss : float or None
        The estimated loss of the served prediction, in the task's loss.
    """

    ask: bool | None = None
    ask_probability: float | None = None
    estimated_loss: float | None = None


class _Note(NamedTuple):
    """The note of a prediction, by its parts.

    Attributes
    ----------
    probability : float
        Of the request; 0 without a budget.
    asked : bool
        Whether the label was requested.
    estimates : tuple of float
        One for each of `Estimate.measures`, then what the estimate learns from; empty without an
        estimate, NaN where it is not known.
    """

    probability: float
    asked: bool
    estimates: tuple[float, ...]


class LabelRequests:
    """Requests labels, estimates losses without labels, and compares both with the true losses.

    Each prediction has a note, which is kept until its label arrives. The note has the probability
    and the outcome of the request (with a budget), then the estimates (with `estimate`). The
    losses of requested labels, each divided by the probability of the request, are an unbiased
    estimate of the loss over all predictions.

    Parameters
    ----------
    task : Task
    budget : LabelBudget, optional
        Supervised tasks only.
    estimate : bool
        Whether losses are estimated. Forecasts, whose targets always come, have no estimates.
    """

    def __init__(
        self, task: Task, budget: LabelBudget | None = None, *, estimate: bool = True
    ) -> None:
        if budget is not None and task.name != "supervised":
            raise ConfigError(
                "labels.rate", budget.rate, f"a supervised task: a {task.name} requests no labels"
            )
        self.loss: Loss = task.loss
        self.classify = task.kind == "classification"
        self.budget = budget
        self.estimate: Estimate | None = None
        if estimate and task.kind != "forecast":
            self.estimate = ConfidenceEstimate() if self.classify else DirectEstimate()
        self.stats = Stats()  # the pipeline replaces it by its own

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the estimated measures; none without an estimate."""
        return () if self.estimate is None else self.estimate.measures

    @property
    def silent(self) -> bool:
        """Whether there is neither a budget nor an estimate."""
        return self.budget is None and self.estimate is None

    def record(
        self, experts: Array, served: Array, scale: Array, *, commit: bool
    ) -> tuple[float, ...]:
        """Return the note of a new prediction; without `commit` no label is requested, and nothing
        changes.

        Parameters
        ----------
        experts : ndarray, (experts, rows, columns)
        served : ndarray, (rows, columns)
        scale : ndarray, (rows, columns) or (rows, 1)
            The guard's scale of losses.
        """
        unit = self.loss.length_of(scale)
        note: tuple[float, ...] = ()
        if self.budget is not None:
            probability, ask = 0.0, False
            if commit:
                probability, ask = self.budget.decide(
                    experts, served, unit, classify=self.classify
                )
                self.stats.asked += ask
            note = (probability, float(ask))
        if self.estimate is not None:
            estimates = self.estimate.estimate(experts, served, scale, unit)
            if commit and not math.isnan(estimates[0]):
                sums = sums_of(self.stats, self.measures)
                count_estimated(sums, 0, np.array(estimates))
                put_sums(self.stats, self.measures, sums)
            note += estimates
        return note

    def blank(self) -> tuple[float, ...]:
        """Return the note of a prediction after a fault: no request, no estimate."""
        asked = () if self.budget is None else (0.0, 0.0)
        return asked if self.estimate is None else asked + (math.nan,) * self.estimate.length

    def fields(self, note: tuple[float, ...], *, commit: bool) -> LabelFields:
        """Return the label fields of the prediction with this note."""
        parts = self._parts(note)
        loss = parts.estimates[ROLES.index("served")] if parts.estimates else math.nan
        known_loss = None if math.isnan(loss) else loss
        if self.budget is None or not commit:
            return LabelFields(estimated_loss=known_loss)
        return LabelFields(parts.asked, parts.probability, known_loss)

    def _parts(self, note: tuple[float, ...]) -> _Note:
        if self.budget is None:
            return _Note(0.0, False, note)
        return _Note(note[0], bool(note[1]), note[2:])

    def learn(self, matured: Matured) -> None:
        """Learn the true loss of a prediction; this changes only later requests and estimates."""
        if self.silent or not matured.note:
            return
        if not len(matured.aggregator_outputs):
            return
        note, estimate = self._parts(matured.note), self.estimate
        base, target = matured.experts[0, 0], matured.target[0]
        sums = sums_of(self.stats, self.measures)
        _label_kernel(no_learn if estimate is None else estimate.steps.learn.function).call(
            loss_settings(self.loss),
            () if estimate is None else estimate.settings,
            () if estimate is None else estimate.state,
            estimate_room(1, len(base), len(self.measures), classify=self.classify),
            sums,
            *(np.array(cells, np.float64) for cells in (base, matured.aggregator_outputs[-1, 0])),
            np.array(target, np.float64),
            np.array(matured.mask[0], np.bool_),
            note.probability if note.asked else 0.0,
            np.array(note.estimates, np.float64),
            float(matured.weight),
        )
        put_sums(self.stats, self.measures, sums)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the budget and the estimates; the sums are in the statistics."""
        return {
            "budget": None if self.budget is None else self.budget.state_dict(),
            "estimate": None if self.estimate is None else self.estimate.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        if self.budget is not None and state["budget"] is not None:
            self.budget.load_state_dict(state["budget"])
        if self.estimate is not None and state["estimate"] is not None:
            self.estimate.load_state_dict(state["estimate"])


@cache
def _label_kernel(learn: Callable[..., None]) -> Kernel:
    step = label_step(learn)

    def run(loss: Any, p: Any, s: Any, w: Any, sums: Any, base: Any,  # noqa: PLR0913
            served: Any, target: Any, mask: Any, asked: float, estimates: Any,
            weight: float) -> None:  # fmt: skip
        step(loss, p, s, 0, w, sums, base, served, target, mask, asked, estimates, weight)

    return Kernel(run, "a label's losses")


def sums_of(stats: Stats, measures: tuple[str, ...]) -> LossSums:
    """Return the sums of the statistics as arrays of one key, for kernels."""
    by_name = (stats.estimated, measures), (stats.foreseen, measures), (stats.seen, measures)
    rows = ([[sums.get(name, 0.0) for name in names]] for sums, names in by_name)
    asked = [[stats.asked_loss.get(role, 0.0) for role in ROLES]]
    counts = ([stats.estimated_count], [stats.seen_count], [stats.asked_weight])
    return LossSums(*(np.array(each, np.float64) for each in (*rows, asked, *counts)))


def put_sums(stats: Stats, measures: tuple[str, ...], sums: LossSums) -> None:
    """Write the sums of `sums_of` back, after kernels have added to them."""
    stats.estimated_count = int(sums.estimated_count[0])
    stats.seen_count = float(sums.seen_count[0])
    stats.asked_weight = float(sums.asked_weight[0])
    if stats.estimated_count:
        stats.estimated = dict(zip(measures, sums.estimated[0].tolist(), strict=True))
    if stats.seen_count:
        stats.foreseen = dict(zip(measures, sums.foreseen[0].tolist(), strict=True))
        stats.seen = dict(zip(measures, sums.seen[0].tolist(), strict=True))
    if stats.asked_weight:
        stats.asked_loss = dict(zip(ROLES, sums.asked[0].tolist(), strict=True))
