"""Elec2 and the glucose sensor with labels delivered in a given condition, and the results of the
pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import data
from benchmarks.scenarios import elec2, glucose
from streamadapt import Entry, Label, Pipeline, Supervised
from streamadapt.learners import Learner, River
from streamadapt.learners.defaults import default_learners
from streamadapt.models.contract import Base
from streamadapt.tasks.label_budget import LabelBudget
from streamadapt.tasks.losses import loss_named

__all__ = ["BLOCK", "Run", "Stream", "delivered", "elec2_stream", "glucose_stream", "run"]

Array = npt.NDArray[np.float64]
BLOCK = 500


@dataclass(frozen=True)
class Stream:
    """Entries, their true labels, and the pipeline that is deployed on them.

    Attributes
    ----------
    entries : list of Entry
        Ids are row numbers.
    truth : ndarray, (n,)
    delay : int, ns
        From an entry's event time to its label; 0: it arrives before the next entry.
    low, high : float
        The range of the training part's labels.
    """

    name: str
    entries: list[Entry]
    truth: Array
    delay: int
    classes: int | None
    window: int
    base: Base
    learners: Callable[[], list[Learner]]
    low: float
    high: float

    def pipeline(self, budget: LabelBudget | None = None) -> Pipeline:
        """Make the pipeline."""
        task = Supervised(self.window, classes=self.classes)
        return Pipeline(
            task,
            self.base,
            self.learners(),
            device="cpu",
            budget=budget,
            on_rejected=lambda item, error: None,
        )


def elec2_stream(folder: Path, rows: int) -> Stream:
    """Elec2 with the experts of its scenario, except the two slowest, the forest and the tree."""
    batch, setting = data.elec2(folder), elec2.ELEC2
    assert batch.labels is not None
    first = setting.split(batch)
    entries = [Entry(e.values, e.time, e.id) for e in list(batch.entries())[first : first + rows]]
    truth = batch.labels[first : first + rows, 0].astype(np.float64)

    def learners() -> list[Learner]:
        return [
            one
            for one in elec2.learners()
            if not isinstance(one, River) or "Logistic" in one.names[0]
        ]

    return Stream(
        "elec2", entries, truth, 0, 2, 1, elec2.fit(setting, batch, 0), learners, 0.0, 1.0
    )


def glucose_stream(rows: int) -> Stream:
    """The glucose sensor with the default experts; labels arrive six hours late."""
    batch, setting = data.glucose(), glucose.SENSORS[0]
    assert batch.labels is not None
    first = setting.split(batch)
    known = batch.labels[:first, 0]
    entries = [Entry(e.values, e.time, e.id) for e in list(batch.entries())[first : first + rows]]
    truth = batch.labels[first : first + rows, 0].astype(np.float64)
    return Stream(
        "glucose", entries, truth, setting.delay, None, setting.window, setting.fit(batch),
        lambda: default_learners("regression"), float(known.min()), float(known.max()),
    )  # fmt: skip


@dataclass
class Run:
    """The results of one run.

    Attributes
    ----------
    losses : dict of str to ndarray, (predictions,)
        Expert -> the task's loss against the labels that it is judged by.
    hits : dict of str to ndarray
        With classes: whether the likeliest class was right.
    matured : ndarray
        For each prediction the mean served loss over the newest `BLOCK` labels known
        by then, NaN before the first label: the only guide without an estimate.
    """

    pipeline: Pipeline
    losses: dict[str, list[float]] = field(default_factory=dict)
    hits: dict[str, list[float]] = field(default_factory=dict)
    estimated: list[float] = field(default_factory=list)
    matured: list[float] = field(default_factory=list)
    asked: int = 0

    def mean(self, expert: str) -> float:
        """Mean loss."""
        return float(np.mean(self.losses[expert]))

    def best(self) -> str:
        """The best expert in hindsight."""
        return min((name for name in self.losses if name != "served"), key=self.mean)

    def worst_block(self) -> float:
        """Largest ratio of the served loss to the base's over blocks of `BLOCK`."""
        served, base = (blocks(self.losses[name]) for name in ("served", "base"))
        return float((served / base).max())


def blocks(values: Sequence[float]) -> Array:
    """Means over whole blocks of `BLOCK`."""
    whole = len(values) // BLOCK * BLOCK
    return np.asarray(values[:whole], np.float64).reshape(-1, BLOCK).mean(axis=1)


Answer = Callable[[int, bool | None], Iterator[float]]
"""Row and whether its label was asked for -> the labels that are delivered."""


def delivered(kind: str, stream: Stream, seed: int = 0) -> tuple[Answer, Array]:
    """Return the labels delivered in a condition, and the labels used for judging.

    Parameters
    ----------
    kind : str
        ``all``, ``asked``, ``shuffled``, ``dropped``, ``garbage``, ``absurd`` or ``twice``.
    """
    rng = np.random.default_rng(seed)
    n = len(stream.truth)
    truth = rng.permutation(stream.truth) if kind == "shuffled" else stream.truth
    labels, times = truth.copy(), np.ones(n, np.int64)
    if kind == "dropped":
        times = (rng.random(n) < 0.1).astype(np.int64)
    elif kind == "twice":
        times[:] = 2
    elif kind in ("garbage", "absurd"):
        bad = rng.random(n) < 0.05
        if kind == "absurd":
            wrong = np.where(rng.random(n) < 0.5, -1.0, 1.0) * 1e6
        elif stream.classes is not None:
            wrong = 1.0 - truth
        else:
            wrong = rng.uniform(stream.low, stream.high, n)
        labels = np.where(bad, wrong, truth)

    def answer(row: int, ask: bool | None) -> Iterator[float]:
        if kind != "asked" or ask:
            yield from [float(labels[row])] * int(times[row])

    return answer, truth


def run(
    stream: Stream,
    kind: str,
    budget: LabelBudget | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Run:
    """Run a stream in a condition; every prediction is judged, whether or not its label is
    delivered."""
    answer, truth = delivered(kind, stream)
    pipeline = stream.pipeline(budget)
    found = Run(pipeline)
    loss = loss_named("absolute" if stream.classes is None else "log")
    waiting: list[Label] = []  # in order, since all have the same delay
    known: list[float] = []  # served losses of the labels that have arrived
    served_losses: dict[str, float] = {}
    first = int(stream.entries[0].id)
    for i, entry in enumerate(stream.entries):
        while waiting and waiting[0].time <= entry.time:
            label = waiting.pop(0)
            pipeline.observe([label])
            if label.id in served_losses:
                known.append(served_losses.pop(label.id))
        for p in pipeline.observe([entry]):
            row = int(p.id) - first
            actual = (
                np.array([[truth[row]]])
                if stream.classes is None
                else np.eye(stream.classes)[[int(truth[row])]]
            )
            for name, output in {**p.experts, "served": p.served}.items():
                found.losses.setdefault(name, []).append(
                    float(loss.loss(output.astype(np.float64), actual)[0, 0])
                )
                if stream.classes is not None:
                    found.hits.setdefault(name, []).append(
                        float(output[0].argmax() == actual[0].argmax())
                    )
            found.estimated.append(np.nan if p.estimated_loss is None else p.estimated_loss)
            found.matured.append(float(np.mean(known[-BLOCK:])) if known else np.nan)
            found.asked += bool(p.ask)
            for value in answer(row, p.ask):
                waiting.append(
                    Label(p.id, np.array([value], np.float32), entry.time + stream.delay)
                )
                served_losses[p.id] = found.losses["served"][-1]
        if i % 5000 == 4999:
            progress(f"{i + 1} of {len(stream.entries)}")
    return found
