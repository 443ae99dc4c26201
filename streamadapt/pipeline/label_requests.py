"""For streams with few, late or no labels: chooses the labels to request, and estimates losses
without labels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from streamadapt.errors import ConfigError
from streamadapt.pipeline.stats import Stats
from streamadapt.records import Array
from streamadapt.tasks import Matured, Task
from streamadapt.tasks.label_budget import LabelBudget
from streamadapt.tasks.loss_estimate import ROLES, ConfidenceEstimate, DirectEstimate, Estimate
from streamadapt.tasks.losses import Loss

__all__ = ["LabelFields", "LabelRequests"]


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
                add(self.stats.estimated, self.estimate.measures, estimates)
                self.stats.estimated_count += 1
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
        known = self.loss.known(matured.mask)
        if not known.any() or not len(matured.aggregator_outputs):
            return
        predictions = np.stack([matured.experts[0, 0], matured.aggregator_outputs[-1, 0]])
        # (roles, known cells)
        cells = self.loss.loss(predictions[:, None], matured.target)[:, known]
        losses: Array = cells.mean(axis=1)
        share = matured.weight * float(known.mean())  # of a label known in part
        note = self._parts(matured.note)
        if note.asked:
            weight = share / note.probability
            add(self.stats.asked_loss, ROLES, (weight * losses).tolist())
            self.stats.asked_weight += weight
        if self.estimate is not None:
            measures = self.estimate.measures
            estimates = note.estimates[: len(measures)]
            true = self.estimate.learn(
                predictions,
                matured.target[0],
                losses,
                note.estimates[len(measures) :],
                matured.weight,
            )
            if not math.isnan(estimates[0]):
                add(self.stats.foreseen, measures, [share * number for number in estimates])
                add(self.stats.seen, measures, (share * true).tolist())
                self.stats.seen_count += share

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


def add(sums: dict[str, float], names: tuple[str, ...], values: Any) -> None:
    """Add a value to the sum of each name."""
    for name, value in zip(names, values, strict=False):
        sums[name] = sums.get(name, 0.0) + float(value)
