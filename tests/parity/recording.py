"""What is kept of a run: every n-th prediction as float64, and all discrete decisions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.streams import Item
from streamadapt import Entry, Label, Prediction
from streamadapt.errors import EntryError

NUMBERS = 2400
"""About so many numbers are kept of a run: wide outputs are kept less often."""

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float64]]]


@dataclass
class Record:
    """A run's predictions.

    Attributes
    ----------
    arrays : dict of str to ndarray, float64
        Of every `Facts.every`-th prediction: ``served``, (predictions, rows, columns);
        ``expert:NAME``, likewise, the base among them; ``weights`` of every fifth of these,
        (predictions / 5, experts);
        ``low``, ``high``, ``ask_probability``, ``estimated_loss``, ``score:NAME`` where there are
        such. Of the end of the run: ``loss_sum``, (experts and served,).
    facts : dict of str to JSON value
        What must be the same exactly; `facts_of` lists it.
    """

    arrays: Arrays
    facts: dict[str, Any] = field(default_factory=dict)


class Run:
    """Passes items to a pipeline one at a time; keeps refusals, and what `keep` makes of each
    prediction."""

    def __init__(
        self, pipeline: Any, keep: Callable[[Prediction], Prediction] = lambda p: p
    ) -> None:
        self.pipeline, self.keep = pipeline, keep
        self.predictions: list[Prediction] = []
        self.refused: list[list[str]] = []
        pipeline.on_rejected = self._refused

    def _refused(self, item: Entry | Label, error: EntryError) -> None:
        self.refused.append([type(item).__name__, str(item.id), error.reason.value])

    def take(self, items: Iterable[Item]) -> None:
        for item in items:
            self.predictions += map(self.keep, self.pipeline.observe([item]))


def record(pipeline: Any, items: Sequence[Item]) -> Record:
    """Run `items` through a pipeline."""
    run = Run(pipeline)
    run.take(items)
    predictions = run.predictions
    every = step_of(predictions[0])
    return Record(
        arrays_of(predictions[::every]) | {"loss_sum": losses_of(pipeline)},
        facts_of(pipeline, predictions, run.refused, every),
    )


def step_of(prediction: Prediction, numbers: int = NUMBERS) -> int:
    """Return which predictions to keep: every n-th, n odd, so that it fits no season."""
    each = (len(prediction.experts) + 1) * prediction.served.size + len(prediction.weights) / 5
    step = math.ceil(1000 * each / numbers)
    return step if step % 2 else step + 1


def arrays_of(kept: Sequence[Prediction]) -> Arrays:
    """Return the numbers of some predictions."""
    first = kept[0]
    found: Arrays = {"served": np.stack([p.served for p in kept])}
    for name in first.experts:
        found[f"expert:{name}"] = np.stack([p.experts[name] for p in kept])
    found["weights"] = np.array([list(p.weights.values()) for p in kept[::5]])
    for name in ("low", "high", "ask_probability", "estimated_loss"):
        column = [getattr(p, name) for p in kept]
        some = [np.asarray(value) for value in column if value is not None]
        if some:
            blank = np.full_like(some[0], np.nan, dtype=np.float64)
            found[name] = np.stack([blank if v is None else np.asarray(v) for v in column])
    for name in sorted({name for p in kept for name in p.scores}):
        found[f"score:{name}"] = np.array([p.scores.get(name, np.nan) for p in kept])
    return {name: array.astype(np.float64) for name, array in found.items()}


def facts_of(
    pipeline: Any, predictions: Sequence[Prediction], refused: list[list[str]], every: int
) -> dict[str, Any]:
    """Return names, decisions and counts; those of decisions are of all predictions."""
    stats = pipeline.stats
    counters = ("labels", "rejected", "drifts", "reactions", "faults", "times", "keys")
    return {
        "every": every,
        "predictions": len(predictions),
        "ids": hashlib.sha256("\n".join(p.id for p in predictions).encode()).hexdigest(),
        "names": list(pipeline.names),
        "drifts": [[i, *p.drifts] for i, p in enumerate(predictions) if p.drifts],
        "reactions": [[i, *p.reactions] for i, p in enumerate(predictions) if p.reactions],
        "asked": [i for i, p in enumerate(predictions) if p.ask],
        "refused": refused,
        "counts": {name: dict(sorted(getattr(stats, name).items())) for name in counters},
        "updates": {name: dict(sorted(counts.items())) for name, counts in stats.updates.items()},
        "totals": {
            "entries": stats.entries, "predictions": stats.predictions, "absurd": stats.absurd,
            "asked": stats.asked, "interval_cells": stats.interval_cells,
            "interval_hits": stats.interval_hits, "pending": stats.pending,
        },
        "loss_cells": dict(stats.loss_cells),
    }  # fmt: skip


def base_error(recorded: Record) -> float:
    """Return the base's mean loss; 0 where no label came."""
    cells = recorded.facts["loss_cells"].get("base", 0)
    names = list(recorded.facts["loss_cells"])
    return float(recorded.arrays["loss_sum"][names.index("base")]) / cells if cells else 0.0


def losses_of(pipeline: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the sums of the losses in the order of `Stats.loss_cells`."""
    stats = pipeline.stats
    return np.array([stats.loss_sum[name] for name in stats.loss_cells], np.float64)
