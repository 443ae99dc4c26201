"""What a scenario measures, computed from the predictions and the data alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from streamadapt import Entry, Label, NoGuard, Pipeline, Prediction
from streamadapt.guard import Guard
from streamadapt.learners import Learner

__all__ = ["BLOCK", "Cost", "Errors", "Learners", "Measured", "cost_of", "cost_per_entry", "cross_check", "drive"]

BLOCK = 500
"""Predictions over which `Measured.worst_block` compares an expert with the base."""
TOLERANCE = 1e-5
"""How far, relatively, the pipeline's own sums may be from ours: its losses are of float64, predictions of float32."""

Progress = Callable[[str], None]
Learners = Callable[[], Sequence[Learner]]
"""Makes the default learners afresh."""


class Errors:
    """The mean absolute error of every expert, one number per prediction, in the order they were made."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}

    def add(self, experts: dict[str, npt.NDArray[np.float32]], actual: npt.NDArray[np.float32]) -> None:
        """Compare the experts' predictions (rows, columns) with what came true."""
        truth = actual.astype(np.float64)
        for name, said in experts.items():
            self.rows.setdefault(name, []).append(float(np.abs(said - truth).mean()))

    def arrays(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return them as arrays of one length."""
        arrays = {name: np.array(row) for name, row in self.rows.items()}
        if len({len(a) for a in arrays.values()}) != 1:
            raise ValueError(
                f"experts were judged on different predictions: { {k: len(a) for k, a in arrays.items()} }"
            )
        return arrays


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time per entry, one thread, in ms: the mean over some hundred entries after as many to warm up.

    Attributes
    ----------
    base, full : float, ms
        A pipeline with the frozen base alone; the whole default pipeline.
    learners : dict of str to float, ms
        What each learner adds to the base-only pipeline when it is the only one, nothing being mixed.
    """

    base: float
    full: float
    learners: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """One scenario's result.

    Attributes
    ----------
    errors : dict of str to ndarray, (predictions,)
        Expert -> mean absolute error of each prediction. ``served`` is the guard's mixture.
    mixed : tuple of str
        The experts that the guard mixed; the other rows stand beside the mixture.
    """

    name: str
    protocol: str
    errors: dict[str, npt.NDArray[np.float64]]
    mixed: tuple[str, ...]
    cost: Cost | None = None

    def figure(self, name: str) -> float:
        """Mean over all predictions."""
        return float(self.errors[name].mean())

    def worst_block(self, name: str) -> float:
        """Largest ratio of an expert's error to the base's over the blocks of `BLOCK` predictions."""
        starts = np.arange(0, len(self.errors["base"]), BLOCK)
        if len(starts) > 1 and len(self.errors["base"]) - starts[-1] < BLOCK // 2:
            starts = starts[:-1]  # a short rest joins the block before it
        return float((np.add.reduceat(self.errors[name], starts) / np.add.reduceat(self.errors["base"], starts)).max())

    def as_json(self) -> dict[str, float | str]:
        """Return the figures and the protocol."""
        return {**{name: self.figure(name) for name in self.errors}, "protocol": self.protocol}


def drive(
    pipeline: Pipeline, items: Sequence[Entry | Label], judge: Callable[[Prediction], None], progress: Progress
) -> None:
    """Run all items through the pipeline, one at a time, and judge every prediction; tell how far it is."""
    told = time.monotonic()
    for i, item in enumerate(items):
        for prediction in pipeline.observe([item]):
            judge(prediction)
        if time.monotonic() - told > 5.0:
            told = time.monotonic()
            progress(f"{i + 1} of {len(items)} items")


def cross_check(pipeline: Pipeline, sums: dict[str, float], cells: int) -> None:
    """Compare our sums of absolute errors over the matured cells with what the pipeline counted itself.

    Raises
    ------
    AssertionError
        If they differ: then either the pipeline or the benchmark judges by something else than it says.
    """
    for name, total in sums.items():
        counted, at = pipeline.stats.loss_sum[name], pipeline.stats.loss_cells[name]
        if at != cells or abs(counted - total) > TOLERANCE * abs(total):
            raise AssertionError(
                f"{name}: the pipeline counted {counted:.9g} in {at} cells, the data say {total:.9g} in {cells}"
            )


def cost_of(
    make: Callable[[Sequence[Learner], Guard | None], Pipeline],
    learners: Learners,
    items: Sequence[Entry | Label],
    entries: int,
) -> Cost:
    """Time the base alone, each learner alone beside it, and the default pipeline."""

    def timed(chosen: Sequence[Learner], guard: Guard | None) -> float:
        return cost_per_entry(make(chosen, guard), items, entries)

    alone = timed([], NoGuard())
    each = {" / ".join(learner.names): timed([learner], NoGuard()) - alone for learner in learners()}
    return Cost(alone, timed(learners(), None), each)


def cost_per_entry(pipeline: Pipeline, items: Sequence[Entry | Label], entries: int) -> float:
    """Return the mean CPU time of an entry in ms, the labels that came since the entry before it included.

    The first half of the `entries` predicted warms up. Process time, so that a shared machine counts only our share.
    """
    times: list[float] = []
    since = 0.0
    for item in items:
        start = time.process_time()
        predicted = pipeline.observe([item])
        since += time.process_time() - start
        if isinstance(item, Entry):
            if predicted:
                times.append(since)
            since = 0.0
        if len(times) == entries:
            break
    return 1e3 * float(np.mean(times[len(times) // 2 :]))
