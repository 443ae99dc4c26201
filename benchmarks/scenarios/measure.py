"""The measures of a scenario, computed from the predictions and the data alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from streamadapt import Entry, Label, NoGuard, Pipeline, Prediction
from streamadapt.guard.base import Guard
from streamadapt.learners import Learner

__all__ = [
    "BLOCK",
    "MAE",
    "PART",
    "SEEDS",
    "Cost",
    "Errors",
    "Figure",
    "Judge",
    "Learners",
    "Measure",
    "Measured",
    "Sums",
    "cost_of",
    "cost_per_entry",
    "cross_check",
    "drive",
    "judge_all",
    "mean_of",
    "of_seed",
    "over_seeds",
    "seeds_protocol",
]

BLOCK = 500
"""Number of predictions over which `Measured.worst_block` compares an expert with the base."""
TOLERANCE = 1e-5
"""Largest relative difference between the pipeline's sums and ours: its losses are float64,
predictions float32."""
PART = " @ "
"""Separates an expert from a part of a scenario."""
SEEDS = (0, 1, 2)
"""Seed of everything that is random in a scenario."""

Progress = Callable[[str], None]
Learners = Callable[[], Sequence[Learner]]
"""Makes new learners."""
Losses = dict[str, npt.NDArray[np.float64]]
"""Expert -> loss of each prediction, (predictions,)."""


@dataclass(frozen=True, slots=True)
class Measure:
    """The meaning of a figure.

    Attributes
    ----------
    key : str
        Its name in the JSON, if a scenario has several measures.
    title : str
        In words, with its unit.
    higher : bool
        Whether higher is better.
    """

    key: str
    title: str
    higher: bool = False


MAE = Measure("mae", "mean absolute error, original units")


class Figure(NamedTuple):
    """A mean over seeds, and the standard deviation over them; None if nothing is random."""

    mean: float
    spread: float | None = None


def mean_of(figures: Sequence[float]) -> Figure:
    """Return the figure of one number per seed; no spread if all are equal."""
    same = len(figures) < 2 or max(figures) == min(figures)
    return Figure(float(np.mean(figures)), None if same else float(np.std(figures, ddof=1)))


class Errors:
    """The mean absolute error of every expert, one number per prediction, in the order they were
    made."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}

    def add(self, experts: Mapping[str, npt.NDArray[Any]], actual: npt.NDArray[Any]) -> None:
        """Compare the experts' predictions (rows, columns) with the actual values."""
        truth = actual.astype(np.float64)
        self.take({name: float(np.abs(output - truth).mean()) for name, output in experts.items()})

    def take(self, losses: Mapping[str, float]) -> None:
        """Add every expert's loss on one prediction."""
        for name, loss in losses.items():
            self.rows.setdefault(name, []).append(loss)

    def arrays(self) -> Losses:
        """Return the losses as arrays of one length."""
        arrays = {name: np.array(row) for name, row in self.rows.items()}
        if len({len(a) for a in arrays.values()}) != 1:
            raise ValueError(
                f"experts were judged on different predictions: "
                f"{ {k: len(a) for k, a in arrays.items()} }"
            )
        return arrays


class Sums:
    """Our own count of what the pipeline counts: every expert's loss, summed over the cells whose
    target is known."""

    def __init__(self) -> None:
        self.of: dict[str, float] = {}
        self.cells = 0

    def add(self, losses: Mapping[str, float], cells: int) -> None:
        """Add the losses of one prediction, each a sum over its `cells`."""
        self.cells += cells
        for name, loss in losses.items():
            self.of[name] = self.of.get(name, 0.0) + loss


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time per entry, one thread, in ms: the mean over some hundred entries after as many to
    warm up.

    Attributes
    ----------
    base, full : float, ms
        A pipeline with the frozen base alone; the whole pipeline.
    learners : dict of str to float, ms
        The cost that each learner adds to the base-only pipeline when it is alone, with nothing
        mixed.
    """

    base: float
    full: float
    learners: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """One scenario's result.

    Attributes
    ----------
    measures : tuple of Measure
        Experts are ranked by the first measure.
    figures : dict of str to dict of str to Figure
        Expert -> key of the measure -> figure. ``served`` is the guard's mixture.
    mixed : tuple of str
        The experts that the guard mixed; the other rows are listed beside the mixture.
    losses : dict of str to ndarray, (predictions,)
        Expert -> loss of each prediction, the mean over the seeds. Empty if there is no such
        thing.
    loss : str
        A description of these losses.
    marks : tuple of int
        Predictions at which the stream changed, for the plots.
    root : bool
        Whether the root of a mean of `losses` is shown.
    details : dict of str to Figure
        Further figures of the first measure, ``"expert @ part"`` of the scenario's parts.
    """

    name: str
    protocol: str
    measures: tuple[Measure, ...]
    figures: dict[str, dict[str, Figure]]
    mixed: tuple[str, ...]
    losses: Losses = field(default_factory=dict)
    loss: str = "absolute error"
    marks: tuple[int, ...] = ()
    root: bool = False
    cost: Cost | None = None
    details: dict[str, Figure] = field(default_factory=dict)

    @classmethod
    def of_errors(
        cls,
        name: str,
        protocol: str,
        runs: Sequence[Losses],
        mixed: tuple[str, ...],
        cost: Cost | None = None,
    ) -> Measured:
        """Mean absolute errors of every prediction, one run per seed."""
        figures = {
            expert: {MAE.key: mean_of([float(run[expert].mean()) for run in runs])}
            for expert in runs[0]
        }
        return cls(name, protocol, (MAE,), figures, mixed, losses=over_seeds(runs), cost=cost)

    @property
    def adapts(self) -> bool:
        """Whether there are a frozen base and a served mixture to compare."""
        return "base" in self.figures and "served" in self.figures

    @property
    def measure(self) -> Measure:
        """The measure that experts are ranked by."""
        return self.measures[0]

    def figure(self, name: str, measure: str | None = None) -> float:
        """Return an expert's mean; by default of the first measure."""
        return self.figures[name][measure or self.measure.key].mean

    def spread(self, name: str, measure: str | None = None) -> float:
        """Return the standard deviation over the seeds; 0 if nothing is random."""
        return self.figures[name][measure or self.measure.key].spread or 0.0

    def best(self, measure: str | None = None) -> str:
        """Return the name of the best single expert in hindsight among the mixed ones."""
        chosen = next(m for m in self.measures if m.key == (measure or self.measure.key))
        ranked = sorted(self.mixed, key=lambda name: self.figure(name, chosen.key))
        return ranked[-1] if chosen.higher else ranked[0]

    def worst_block(self, name: str) -> float | None:
        """Largest ratio of an expert's loss to the base's over the blocks of `BLOCK`
        predictions."""
        if not self.losses:
            return None
        starts = np.arange(0, len(self.losses["base"]), BLOCK)
        if len(starts) > 1 and len(self.losses["base"]) - starts[-1] < BLOCK // 2:
            starts = starts[:-1]  # a short rest joins the block before it
        ratio = np.add.reduceat(self.losses[name], starts) / np.add.reduceat(
            self.losses["base"], starts
        )
        return float(np.sqrt(ratio.max()) if self.root else ratio.max())

    def as_json(self) -> dict[str, Any]:
        """Return the figures, the protocol and, if anything is random, the spreads.

        An expert's value is a number, or ``{measure: number}`` where the scenario has several
        measures. ``spread`` holds, in the same form, the experts whose figures differ between the
        seeds; ``details`` the figures of parts.
        """
        spreads = {
            name: {
                m.key: row[m.key].spread for m in self.measures if row[m.key].spread is not None
            }
            for name, row in self.figures.items()
        }
        means = {
            name: {m.key: row[m.key].mean for m in self.measures}
            for name, row in self.figures.items()
        }
        result: dict[str, Any] = {name: self._flat(row) for name, row in means.items()}
        result["protocol"] = self.protocol
        if self.details:
            result["details"] = {name: figure.mean for name, figure in self.details.items()}
        if any(spreads.values()):
            result["spread"] = {name: self._flat(row) for name, row in spreads.items() if row}
        return result

    def _flat(self, row: Mapping[str, float | None]) -> Any:
        return dict(row) if len(self.measures) > 1 else next(iter(row.values()))


def over_seeds(runs: Sequence[Losses]) -> Losses:
    """Average the losses of each prediction over the runs."""
    return {
        name: np.mean([run[name] for run in runs], axis=0, dtype=np.float64) for name in runs[0]
    }


def of_seed(progress: Progress, seed: int) -> Progress:
    """Put the seed into progress messages."""
    return lambda text: progress(f"seed {seed}: {text}")


def seeds_protocol(seeds: Sequence[int]) -> str:
    """Describe a figure and its spread."""
    listed = ", ".join(map(str, seeds))
    return (
        f"Figures are means over seeds {listed}; spread: the standard deviation over them (n - 1)."
    )


def drive(
    pipeline: Pipeline,
    items: Sequence[Entry | Label],
    judge: Callable[[Prediction], None],
    progress: Progress,
) -> None:
    """Run all items through the pipeline, one at a time, judge every prediction, and report the
    progress."""
    last_report = time.monotonic()
    for i, item in enumerate(items):
        for prediction in pipeline.observe([item]):
            judge(prediction)
        if time.monotonic() - last_report > 5.0:
            last_report = time.monotonic()
            progress(f"{i + 1} of {len(items)} items")


class Judge(Protocol):
    """Compares predictions with the data, called with each prediction; `issued` are the rows
    judged, `sums` the matured losses."""

    issued: list[int]
    sums: Sums

    def __call__(self, prediction: Prediction) -> None: ...


def judge_all(
    name: str,
    pipeline: Pipeline,
    items: Sequence[Entry | Label],
    judge: Judge,
    expected: range,
    progress: Progress,
) -> None:
    """Drive a pipeline, and check that exactly the `expected` rows were judged and that its counts
    agree with the data.

    Raises
    ------
    AssertionError
        If not.
    """
    drive(pipeline, items, judge, progress)
    if judge.issued != list(expected):
        raise AssertionError(
            f"{name}: {len(judge.issued)} predictions were judged, expected those of {expected}"
        )
    cross_check(pipeline, judge.sums)


def cross_check(pipeline: Pipeline, sums: Sums) -> None:
    """Compare our sums of losses over the matured cells with the pipeline's own sums.

    A cell that an absurd value reaches is in our sums only (`Stats.absurd`): the pipeline may then
    have counted fewer.

    Raises
    ------
    AssertionError
        If they differ: then either the pipeline or the benchmark judges by something else than it
        says.
    """
    for name, total in sums.of.items():
        counted, at = pipeline.stats.loss_sum[name], pipeline.stats.loss_cells[name]
        absurd = pipeline.stats.absurd
        differs = at != sums.cells or abs(counted - total) > TOLERANCE * abs(total)
        if differs and (absurd == 0 or at >= sums.cells):
            raise AssertionError(
                f"{name}: the pipeline counted {counted:.9g} in {at} cells, the data say "
                f"{total:.9g} in {sums.cells}"
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
    each = {
        " / ".join(learner.names): timed([learner], NoGuard()) - alone for learner in learners()
    }
    return Cost(alone, timed(learners(), None), each)


def cost_per_entry(pipeline: Pipeline, items: Sequence[Entry | Label], entries: int) -> float:
    """Return the mean CPU time of an entry in ms, the labels that arrived since the previous entry
    included.

    The first half of the `entries` predicted warms up. Process time, so that a shared machine
    counts only our share.
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
