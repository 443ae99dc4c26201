"""One pass through each scenario with all guards side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.plain_guards import AdaHedge, Median, PlainBOA, PlainMLPoly, RidgeOnly, Simplex
from benchmarks.scenarios import digits, elec2, forecast, glucose, linkload
from benchmarks.scenarios.linkload_networks import lstm
from benchmarks.scenarios.linkload_stream import generate, nobel_eu
from benchmarks.scenarios.measure import BLOCK, Losses, Progress, Sums, cross_check, drive
from streamadapt import (
    Entry,
    FrozenModel,
    Hedge,
    Label,
    PerEntry,
    Pipeline,
    Prediction,
    Supervised,
    TwoLayer,
)
from streamadapt.errors import ConfigError
from streamadapt.guard.base import Guard, Mixture
from streamadapt.guard.two_layer import Mean
from streamadapt.learners.defaults import default_learners
from streamadapt.pipeline.intervals import Intervals
from streamadapt.records import Array, Mask
from streamadapt.tasks.losses import Loss

__all__ = ["COVERAGE", "GUARDS", "RUNS", "SEED", "SHOWN", "Compared", "SideBySide"]

SEED = 0
COVERAGE = 0.9
GUARDS: dict[str, Callable[[], Guard]] = {
    "mean": Mean,
    "median": Median,
    "hedge": Hedge,
    "adahedge": AdaHedge,
    "boa": PlainBOA,
    "ml-poly": PlainMLPoly,
    "ridge stack": RidgeOnly,
    "simplex stack": Simplex,
    "two-layer": TwoLayer,
}
"""All guards with default settings; the last is the default guard."""
MARK = "guard: "
"""Prefix of a guard's predictions among the experts', for the scenarios' own judges."""

Watch = Callable[[Prediction], None]


class SideBySide(Guard):
    """Serves the mixture of the guard `served`, and lets other guards mix the same experts. Each
    guard is charged for its own mixture.

    Attributes
    ----------
    mixtures : dict of str to ndarray, (rows, columns)
        Each guard's mixture of the newest predictions.
    """

    kind = "side-by-side"

    def __init__(self, guards: Mapping[str, Guard], served: str) -> None:
        self.guards = {name: guard for name, guard in guards.items() if name != served} | {
            served: guards[served]
        }
        self.main = guards[served]
        self.mixtures: dict[str, Array] = {}

    def check(self, names: Sequence[str], *, labelled: bool) -> None:
        for guard in self.guards.values():
            guard.check(names, labelled=labelled)

    def build(
        self, names: Sequence[str], rows: int, columns: int, loss: Loss, unit: Array
    ) -> None:
        for name in list(self.guards):
            try:
                self.guards[name].build(names, rows, columns, loss, unit)
            except ConfigError:  # a ridge stack, for distributions
                del self.guards[name]
        self.loss = loss

    def _allocate(self) -> None: ...

    @property
    def n_aggregators(self) -> int:
        return sum(guard.n_aggregators for guard in self.guards.values())

    def mix(self, predictions: Array) -> Mixture:
        mixtures = {name: guard.mix(predictions) for name, guard in self.guards.items()}
        self.mixtures = {name: mixture.served for name, mixture in mixtures.items()}
        # The main guard's mixture is the last.
        own = np.concatenate([mixture.aggregator_outputs for mixture in mixtures.values()])
        last = list(mixtures.values())[-1]
        return Mixture(last.served, own, last.weights)

    def update(
        self, predictions: Array, own: Array, target: Array, mask: Mask, weight: float = 1.0
    ) -> None:
        start = 0
        for guard in self.guards.values():
            stop = start + guard.n_aggregators
            guard.update(predictions, own[start:stop], target, mask, weight)
            start = stop

    def _learn(self, predictions: Array, own: Array, target: Array, known: Mask) -> None: ...

    def _aggregators(self) -> Sequence[Any]:
        return []

    def scale(self) -> Array:
        return self.main.scale()

    def scaled(self, mask: Mask) -> Mask:
        return self.main.scaled(mask)


@dataclass(frozen=True, slots=True)
class Compared:
    """One scenario's result, one seed.

    Attributes
    ----------
    measure : str
        A description of the figures.
    figures : dict of str to float
        The figures of the base, every guard, and ``best expert``.
    best : str
        The expert that was best in hindsight.
    blocks : dict of str to float
        The worst block of `BLOCK` predictions, as a ratio to the base's error; by the same names.
        May be empty.
    further : dict of str to dict of str to float
        Other measures of the same predictions.
    intervals : dict of str to float
        Results of `Intervals(COVERAGE)` around the default guard: ``judged``, the share of all
        judged targets inside; ``counted``, the pipeline's own count over the labels that arrived;
        ``width``, the mean width. Empty for classes.
    """

    name: str
    measure: str
    figures: dict[str, float]
    best: str
    blocks: dict[str, float] = field(default_factory=dict)
    further: dict[str, dict[str, float]] = field(default_factory=dict)
    intervals: dict[str, float] = field(default_factory=dict)
    higher: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the figures."""
        figures: dict[str, Any] = {
            "measure": self.measure, "seed": SEED, "best_expert": self.best,
            "figures": self.figures, "worst_block": self.blocks,
        }  # fmt: skip
        figures |= {"further": self.further} if self.further else {}
        return figures | ({"intervals": self.intervals} if self.intervals else {})


def compared(
    name: str,
    measure: str,
    losses: Losses,
    experts: Sequence[str],
    *,
    root: bool = False,
    **more: Any,
) -> Compared:
    """Summarise the losses of every prediction; with `root` the root of the mean is shown."""

    def shown(values: Any) -> float:
        return float(np.sqrt(values) if root else values)

    means = {expert: shown(of.mean()) for expert, of in losses.items()}
    best = min(experts, key=lambda expert: means[expert])
    starts = np.arange(0, len(losses["base"]), BLOCK)
    if len(starts) > 1 and len(losses["base"]) - starts[-1] < BLOCK // 2:
        starts = starts[:-1]  # a short rest joins the block before it
    base = np.add.reduceat(losses["base"], starts)
    named = {"base": "base", "best expert": best} | {
        g: MARK + g for g in GUARDS if MARK + g in losses
    }
    figures = {row: means[of] for row, of in named.items()}
    blocks = {
        row: shown((np.add.reduceat(losses[of], starts) / base).max()) for row, of in named.items()
    }
    return Compared(name, measure, figures, best, blocks, **more)


def guards_for(served: str = "two-layer") -> SideBySide:
    """Return new guards."""
    return SideBySide({name: make() for name, make in GUARDS.items()}, served)


def watched(
    name: str,
    pipeline: Pipeline,
    items: Sequence[Entry | Label],
    judge: Any,
    expected: range,
    progress: Progress,
    truth: Callable[[int], Array] | None = None,
    watch: Watch | None = None,
) -> dict[str, float]:
    """Drive a pipeline and let the scenario's judge see the guards among the experts.

    Parameters
    ----------
    truth : callable, optional
        The targets of the prediction for a row, (rows, columns); if given, its intervals are
        judged.

    Returns
    -------
    dict
        `Compared.intervals`.

    Raises
    ------
    AssertionError
        If other rows were judged than `expected`, or the pipeline counted another loss of its
        experts, or of what it served, than the data say.
    """
    guards = pipeline.guard
    assert isinstance(guards, SideBySide)
    if truth is not None:
        pipeline.intervals = Intervals(COVERAGE)
    within, widths = [], []

    def see(prediction: Prediction) -> None:
        if watch is not None:
            watch(prediction)
        row, low, high = int(prediction.id), prediction.low, prediction.high
        if truth is not None and low is not None and high is not None and row in expected:
            actual = truth(row)
            known = ~np.isnan(low)
            within.append(((low <= actual) & (actual <= high))[known])
            widths.append((high - low)[known])
        mixtures = {
            MARK + guard: served.astype(np.float32) for guard, served in guards.mixtures.items()
        }
        judge(replace(prediction, experts={**prediction.experts, **mixtures}))

    drive(pipeline, items, see, progress)
    if judge.issued != list(expected):
        raise AssertionError(
            f"{name}: {len(judge.issued)} predictions were judged, expected those of {expected}"
        )
    own = Sums()
    own.cells, own.of = (
        judge.sums.cells,
        {k: v for k, v in judge.sums.of.items() if not k.startswith(MARK)},
    )
    cross_check(pipeline, own)
    if truth is None:
        return {}
    counted = pipeline.stats.interval_coverage()
    assert counted is not None
    judged = np.concatenate(within)
    return {
        "judged": float(judged.mean()),
        "counted": counted,
        "width": float(np.concatenate(widths).mean()),
    }


def of_glucose(
    setting: glucose.Setting, folder: Path, progress: Progress, watch: Watch | None = None
) -> Compared:
    del folder  # the readings are in a package
    batch = data.glucose()
    items = glucose.items_of(setting, batch)
    pipeline = glucose.pipeline_for(
        setting, setting.fit(batch), default_learners("regression"), guards_for()
    )
    judge = glucose._Judge(setting, batch, {item.id for item in items if isinstance(item, Label)})
    expected = range(setting.split(batch) + setting.window - 1, len(batch))
    intervals = watched(
        setting.name,
        pipeline,
        items,
        judge,
        expected,
        progress,
        lambda row: judge.truth[row][None],
        watch,
    )
    title = "mean absolute error, mg/dL"
    return compared(
        setting.name, title, judge.errors.arrays(), pipeline.names, intervals=intervals
    )


def of_forecast(
    setting: forecast.Setting, folder: Path, progress: Progress, watch: Watch | None = None
) -> Compared:
    batch = setting.load(folder)
    pipeline = forecast.pipeline_for(
        setting, setting.fit(batch), default_learners("forecast"), guards_for(), seed=SEED
    )
    judge = forecast._Judge(setting, batch)
    items, ahead = forecast.stream_of(setting, batch), setting.horizon
    intervals = watched(
        setting.name, pipeline, items, judge, judge.judged, progress,
        lambda row: batch.values[row + 1 : row + 1 + ahead], watch,
    )  # fmt: skip
    title = "mean absolute error, original units"
    return compared(
        setting.name, title, judge.errors.arrays(), pipeline.names, intervals=intervals
    )


def of_elec2(
    setting: elec2.Setting, folder: Path, progress: Progress, watch: Watch | None = None
) -> Compared:
    batch = data.elec2(folder)
    pipeline = elec2.pipeline_for(
        elec2.fit(setting, batch, SEED), elec2.learners(), guards_for(), seed=SEED
    )
    judge = elec2._Judge(setting, batch)
    expected = range(judge.first, len(batch))
    watched(
        setting.name,
        pipeline,
        elec2.items_of(setting, batch),
        judge,
        expected,
        progress,
        watch=watch,
    )
    losses, truth = judge.losses.arrays(), judge.truth[judge.first :]
    figures = {name: elec2.figures_of(judge.ups[name], losses[name], truth) for name in losses}
    further = {
        key: {
            name.removeprefix(MARK): row[key] for name, row in figures.items() if name != "served"
        }
        for key in ("auc", "accuracy")
    }
    return compared(setting.name, "log loss, nats", losses, pipeline.names, further=further)


def of_linkload(
    setting: linkload.Setting, folder: Path, progress: Progress, watch: Watch | None = None
) -> Compared:
    del folder  # the loads are generated
    network = nobel_eu()
    loads = generate(network, setting.traffic, SEED)
    own, rival = linkload.fit(setting, loads, SEED), linkload.fit(setting, loads, SEED, lstm)
    base = linkload.frozen(own, len(network.links))
    pipeline = linkload.pipeline_for(
        setting, base, linkload.experts(setting, own, rival), guards_for(), seed=SEED
    )
    judge = linkload._Judge(setting, loads)
    items, values = linkload.stream_of(setting, loads), loads.batch.values
    intervals = watched(
        setting.name,
        pipeline,
        items,
        judge,
        judge.judged,
        progress,
        lambda row: values[row + 1][None],
        watch,
    )
    losses = judge.losses.arrays()
    once = linkload.after_failures(setting, loads, skip=1)
    further = {
        linkload.SETTLED.key: {
            name.removeprefix(MARK): float(np.sqrt(of[once].mean()))
            for name, of in losses.items()
            if name != "served"
        }
    }
    return compared(
        setting.name,
        "RMSE of z-scores",
        losses,
        pipeline.names,
        root=True,
        further=further,
        intervals=intervals,
    )


def of_digits(name: str, folder: Path, progress: Progress) -> Compared:
    """Mean accuracy over the scenario's streams; ``served`` there is a Hedge with a prior, not the
    default guard."""
    del folder  # the images are in scikit-learn
    images, net = digits._prepared(SEED)
    rows: list[dict[str, float]] = []
    for which in digits.STREAMS[name]:
        progress(which)
        rows.append(
            _digits_stream(
                images,
                net,
                digits._stream(images, which, SEED),
                everything=name != "digits-unseen",
            )
        )
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    experts = [key for key in means if not key.startswith(MARK)]
    best = max(experts, key=lambda expert: means[expert])
    figures = {"base": means["base"], "best expert": means[best]}
    figures |= {
        key.removeprefix(MARK): value for key, value in means.items() if key.startswith(MARK)
    }
    return Compared(name, "accuracy (higher is better)", figures, best, higher=True)


def _digits_stream(images: Any, net: Any, stream: Any, *, everything: bool) -> dict[str, float]:
    learners: list[Any] = [PerEntry(digits.as_tensor(images.source))]
    if everything:
        learners += [digits._tent(), digits._eata(images)]
    prior = Hedge(digits.ETA, digits.SHARE, prior={"per_entry": digits.PRIOR})
    guards = SideBySide(
        {**{g: make() for g, make in GUARDS.items()}, PRIOR_HEDGE: prior}, PRIOR_HEDGE
    )
    task = Supervised(1, classes=digits.CLASSES)
    pipeline = Pipeline(
        task, FrozenModel(net, softmax=True), learners, guards, device="cpu", seed=SEED
    )
    known = np.random.default_rng([SEED, 3]).random(len(stream.labels)) < digits.LABELLED
    hits: dict[str, int] = {}
    for t, (image, truth) in enumerate(zip(stream.images, stream.labels, strict=True)):
        items: list[Entry | Label] = []
        late = t - digits.DELAY - 1
        if late >= 0 and known[late]:
            items.append(Label(str(late), np.array([stream.labels[late]], np.float32), time=t + 1))
        items.append(Entry(image.ravel(), time=t + 1, id=str(t)))
        (prediction,) = pipeline.observe(items)
        for who, p in {
            **prediction.experts,
            **{MARK + g: p for g, p in guards.mixtures.items()},
        }.items():
            hits[who] = hits.get(who, 0) + int(p.astype(np.float32).argmax() == truth)
    return {who: count / len(stream.labels) for who, count in hits.items()}


PRIOR_HEDGE = "hedge, prior"
"""The guard of the digits scenarios."""

RUNS: dict[str, Callable[[Path, Progress], Compared]] = {
    **{setting.name: partial(of_glucose, setting) for setting in glucose.SENSORS},
    linkload.LINKLOAD.name: partial(of_linkload, linkload.LINKLOAD),
    **{name: partial(of_digits, name) for name in digits.NAMES},
    **{setting.name: partial(of_forecast, setting) for setting in forecast.FORECASTS},
    elec2.ELEC2.name: partial(of_elec2, elec2.ELEC2),
}
"""The fast scenarios first. The dictionary scenarios have no mixture."""
SHOWN = (
    *(setting.name for setting in glucose.SENSORS),
    *(setting.name for setting in forecast.FORECASTS), elec2.ELEC2.name, linkload.LINKLOAD.name,
    *digits.NAMES,
)  # fmt: skip
"""The order of the page."""
