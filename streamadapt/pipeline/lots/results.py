"""Predictions of a lot as objects, and as columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from streamadapt.columns import PredictionColumns, RefusedItem
from streamadapt.pipeline.label_requests import LabelFields
from streamadapt.pipeline.lots.tell import Told
from streamadapt.records import Array, Prediction

__all__ = ["Collected", "predictions_of"]

NO_FIELDS = LabelFields()


def predictions_of(
    told: Told, given: Sequence[Any], names: Sequence[str], classes: Any
) -> Iterator[Prediction]:
    """Yield the predictions of a lot.

    Parameters
    ----------
    told : Told
    given : sequence of Entry or Label
        The items.
    names : sequence of str
        Of the experts.
    classes : tuple
        The names of classes.
    """
    n = -1
    for run, experts in enumerate(told.experts):
        served, weights = told.served[run], told.weights[run].tolist()
        for i in range(len(experts)):
            n += 1
            entry = given[told.items[n]]
            drifts, reactions = told.drifts.get(n, ((), ()))
            low, high = (told.low[run][i], told.high[run][i]) if told.low else (None, None)
            yield Prediction(
                entry.position, entry.id, entry.key, entry.time, served[i], experts[i, 0],
                dict(zip(names, experts[i], strict=True)),
                dict(zip(names, weights[i], strict=True)), drifts, {}, reactions,
                *_fields(told, n), (), low, high, classes,
            )  # fmt: skip


def _fields(told: Told, n: int) -> LabelFields:
    if told.fields:
        return told.fields[n]
    if not told.estimates:
        return NO_FIELDS
    loss = told.estimates[n]
    return LabelFields(None, None, loss if loss == loss else None)


class Collected:
    """The predictions of a call of `Pipeline.observe_lot`, lot by lot.

    Parameters
    ----------
    names : tuple of str
        Of the experts.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.items: list[int] = []
        self.parts: dict[str, list[Array]] = {
            name: [] for name in ("served", "experts", "weights", "low", "high")
        }
        self.losses: list[float] = []
        self.drifts: list[tuple[int, str]] = []
        self.refused: list[RefusedItem] = []

    def add_lot(self, told: Told, first: int) -> None:
        """Add a lot whose first item is `first`."""
        before = len(self.items)
        self.items += [first + item for item in told.items]
        for name, parts in self.parts.items():
            parts += getattr(told, name)
        losses = [one.estimated_loss for one in told.fields] or told.estimates
        self.losses += [np.nan if loss is None else loss for loss in losses]
        self.losses += [np.nan] * (len(self.items) - len(self.losses))
        for n, (drifts, _) in told.drifts.items():
            self.drifts += [(before + n, drift) for drift in drifts]

    def add(self, prediction: Prediction, item: int) -> None:
        """Add the prediction of one item."""
        experts = np.stack([prediction.experts[name] for name in self.names])
        weights = np.array([prediction.weights[name] for name in self.names])
        self.drifts += [(len(self.items), drift) for drift in prediction.drifts]
        self.items.append(item)
        found = {"served": prediction.served, "experts": experts, "weights": weights}
        if prediction.low is not None and prediction.high is not None:
            found |= {"low": prediction.low, "high": prediction.high}
        for name, array in found.items():
            self.parts[name].append(np.asarray(array, np.float64)[None])
        loss = prediction.estimated_loss
        self.losses.append(np.nan if loss is None else loss)

    def columns(self, rows: int, columns: int) -> PredictionColumns:
        """Return all of them; without any, the arrays have the shape of an output of (rows,
        columns)."""
        k = len(self.names)
        shapes = {"experts": (0, k, rows, columns), "weights": (0, k)}
        arrays = {
            name: np.concatenate(parts)
            if parts
            else np.zeros(shapes.get(name, (0, rows, columns)))
            for name, parts in self.parts.items()
        }
        if not self.parts["low"]:
            arrays |= dict.fromkeys(("low", "high"))  # type: ignore[arg-type]
        return PredictionColumns(
            np.array(self.items, np.int64), arrays["served"], arrays["experts"],
            arrays["weights"], self.names, np.array(self.losses), arrays["low"], arrays["high"],
            self.drifts, self.refused,
        )  # fmt: skip
