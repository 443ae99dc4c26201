"""The drifting scenarios, once with every reaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import data
from benchmarks.drift import synthetic
from benchmarks.scenarios import elec2, forecast, glucose, linkload
from benchmarks.scenarios.linkload_stream import generate, nobel_eu
from benchmarks.scenarios.measure import BLOCK, Errors, Losses, Progress, drive
from streamadapt import Entry, Label, Pipeline, Prediction
from streamadapt.drift.detectors import DetectorName
from streamadapt.drift.monitor import DriftMonitor
from streamadapt.drift.reactions import Reaction
from streamadapt.learners import (
    RLS,
    Bias,
    ErrorMemory,
    Holt,
    LastValue,
    Learner,
    Liquid,
    Refit,
    River,
    Seasonal,
    SlotBias,
)
from streamadapt.learners.defaults import default_learners

__all__ = [
    "CASES",
    "COOL_DOWN",
    "DETECTOR",
    "NONE",
    "REACTIONS",
    "SIGNAL",
    "Case",
    "Prepared",
    "Run",
    "ablate",
]

SEED = 0
DETECTOR: DetectorName = "adwin"
SIGNAL = "loss"
COOL_DOWN = 200
"""Values of the signal."""
NONE = "none"
REACTIONS: tuple[Reaction, ...] = ("boost", "forget", "reset", "refit")
PART = 0.25
"""The part of the longest test streams that is run by default."""
WARM_UP = 500

Judge = Callable[[Prediction], None]


@dataclass(frozen=True, slots=True)
class Run:
    """The effect of one reaction on one scenario.

    Attributes
    ----------
    served, base, best : float
        Errors: of the mixture, of the frozen model, and of the best single expert of this run in
        hindsight.
    worst_block : float
        Largest ratio of the served loss to the base's over blocks of `BLOCK` predictions.
    alarms : int
    done : dict of str to int
        Reactions applied to learners, with their number.
    milliseconds : float
        Total process time per item.
    """

    served: float
    base: float
    best: float
    worst_block: float
    alarms: int = 0
    done: dict[str, int] = field(default_factory=dict)
    milliseconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the figures."""
        return asdict(self)


class Prepared(NamedTuple):
    """A scenario with its base fitted.

    Attributes
    ----------
    make : callable (sequence of Learner) -> Pipeline
    learners : callable () -> sequence of Learner
    judge : callable () -> (judge, callable () -> losses)
        Fresh ones.
    """

    items: Sequence[Entry | Label]
    make: Callable[[Sequence[Learner]], Pipeline]
    learners: Callable[[], Sequence[Learner]]
    judge: Callable[[], tuple[Judge, Callable[[], Losses]]]


@dataclass(frozen=True, slots=True)
class Case:
    """A scenario.

    Attributes
    ----------
    error : str
        The measure.
    protocol : str
        Differences from the scenario in docs/results.md.
    long : bool
        Whether only the first part of it is run.
    """

    prepare: Callable[[Path], Prepared]
    error: str
    protocol: str
    root: bool = False
    long: bool = False


def ablate(
    name: str, folder: Path, progress: Progress, *, part: float = PART, case: Case | None = None
) -> dict[str, Run]:
    """Run one scenario, or the first part of a long one, without a reaction and with each one.

    If the first reaction saw no alarm, none would: the others equal the run without a reaction,
    and are not run.
    """
    case = case or CASES[name]
    prepared = case.prepare(folder)
    if case.long:
        prepared = prepared._replace(items=prepared.items[: int(part * len(prepared.items))])
    runs: dict[str, Run] = {}
    for reaction in (None, *REACTIONS):
        if reaction not in (None, REACTIONS[0]) and runs[REACTIONS[0]].alarms == 0:
            runs[str(reaction)] = replace(runs[NONE])
            continue
        run = runs[reaction or NONE] = once(prepared, reaction, root=case.root, progress=progress)
        summary = (
            f"{name}, {reaction or NONE}: served {run.served:.4f}, base {run.base:.4f}, "
            f"{run.alarms} alarms"
        )
        progress(f"{summary}, {run.milliseconds:.1f} ms an item")
    return runs


def once(prepared: Prepared, reaction: Reaction | None, *, root: bool, progress: Progress) -> Run:
    """Run a scenario with one reaction, or without."""
    monitors = (
        [] if reaction is None else [DriftMonitor(DETECTOR, SIGNAL, reaction, cool_down=COOL_DOWN)]
    )
    bare = prepared.make(prepared.learners())
    pipeline = Pipeline(
        bare.task, bare.base, bare.learners, bare.guard, monitors, device="cpu", seed=SEED
    )
    judge, losses = prepared.judge()
    start = time.process_time()
    drive(pipeline, prepared.items, judge, progress)
    each = 1e3 * (time.process_time() - start) / len(prepared.items)
    found = losses()
    alarms = sum(pipeline.stats.drifts.values())
    return summary(
        found,
        pipeline.names,
        root=root,
        alarms=alarms,
        done=dict(pipeline.stats.reactions),
        each=each,
    )


def summary(
    losses: Losses,
    experts: Sequence[str],
    *,
    root: bool,
    alarms: int,
    done: dict[str, int],
    each: float,
) -> Run:
    """Summarise the losses of every prediction; with `root` the root of a mean is shown."""

    def shown(value: Any) -> float:
        return float(np.sqrt(value) if root else value)

    starts = np.arange(0, len(losses["base"]), BLOCK)
    if len(starts) > 1 and len(losses["base"]) - starts[-1] < BLOCK // 2:
        starts = starts[:-1]  # a short rest joins the block before it
    ratio = np.add.reduceat(losses["served"], starts) / np.add.reduceat(losses["base"], starts)
    best = min(shown(losses[name].mean()) for name in experts)
    served, base = (shown(losses[name].mean()) for name in ("served", "base"))
    return Run(served, base, best, shown(ratio.max()), alarms, done, each)


def _forecast(setting: forecast.Setting, folder: Path) -> Prepared:
    setting = replace(setting, warm_up=min(setting.warm_up, WARM_UP))
    batch = setting.load(folder)
    base = setting.fit(batch)

    def judge() -> tuple[Judge, Callable[[], Losses]]:
        one = forecast._Judge(setting, batch)
        return one, one.errors.arrays

    make = partial(forecast.pipeline_for, setting, base, seed=SEED)
    return Prepared(forecast.stream_of(setting, batch), make, _forecasters, judge)


def _forecasters() -> list[Learner]:
    return [
        Bias((0.02, 0.005)),
        SlotBias((0.1, 0.03)),
        RLS((0.9995, 0.998), clip=1.0),
        ErrorMemory(scope="panel"),
        LastValue(),
        Seasonal("1d"),
    ]


def _glucose(setting: glucose.Setting, folder: Path) -> Prepared:
    del folder  # the readings are in a package
    batch = data.glucose()
    items = glucose.items_of(setting, batch)
    delivered = {item.id for item in items if isinstance(item, Label)}

    def judge() -> tuple[Judge, Callable[[], Losses]]:
        one = glucose._Judge(setting, batch, delivered)
        return one, one.errors.arrays

    make = partial(glucose.pipeline_for, setting, setting.fit(batch))
    return Prepared(items, make, partial(default_learners, "regression"), judge)


def _elec2(folder: Path) -> Prepared:
    setting, batch = elec2.ELEC2, data.elec2(folder)
    base = elec2.fit(setting, batch, SEED)
    items = elec2.items_of(setting, batch)

    def judge() -> tuple[Judge, Callable[[], Losses]]:
        one = elec2._Judge(setting, batch)
        return one, one.losses.arrays

    make = partial(elec2.pipeline_for, base, seed=SEED)
    return Prepared(items, make, classifiers, judge)


def _linkload(folder: Path) -> Prepared:
    del folder  # the loads are generated
    setting, network = linkload.LINKLOAD, nobel_eu()
    loads = generate(network, setting.traffic, SEED)
    base = linkload.frozen(linkload.fit(setting, loads, SEED), len(network.links))

    def judge() -> tuple[Judge, Callable[[], Losses]]:
        one = linkload._Judge(setting, loads)
        return one, one.losses.arrays

    def learners() -> list[Learner]:
        own = [LastValue(), Holt(), Bias(0.1), RLS(0.998), ErrorMemory()]
        return [*own, Liquid(loss="mse"), Refit(setting.refit_every)]

    make = partial(linkload.pipeline_for, setting, base, seed=SEED)
    return Prepared(linkload.stream_of(setting, loads), make, learners, judge)


class _Truth:
    """Compares predictions with the label that is inside each entry: log loss, or absolute
    error."""

    def __init__(self, items: Sequence[Entry | Label], classes: bool) -> None:
        self.labels = {
            item.id: item.label
            for item in items
            if isinstance(item, Entry) and item.label is not None
        }
        self.classes = classes
        self.losses = Errors()

    def __call__(self, prediction: Prediction) -> None:
        label = self.labels[prediction.id]
        outputs = {**prediction.experts, "served": prediction.served}
        if self.classes:
            k = int(label[0])
            self.losses.take(
                {name: float(-np.log(max(p[0, k], elec2.FLOOR))) for name, p in outputs.items()}
            )
        else:
            self.losses.take(
                {name: abs(float(p[0, 0]) - float(label[0])) for name, p in outputs.items()}
            )


def classifiers() -> list[Learner]:
    """Return the default learners of classification before `logistic` took the place of river's:
    the page was measured with them."""
    names = ("linear_model.LogisticRegression", "tree.HoeffdingAdaptiveTreeClassifier")
    return [Bias((0.5, 0.1)), RLS((0.9, 0.98)), LastValue(), *map(River, names)]


def _synthetic(name: str, folder: Path) -> Prepared:
    del folder  # river generates it
    stream = dict(synthetic.streams(SEED))[name]()
    classes = stream.group != "regression"
    bare = stream.pipeline([])

    def judge() -> tuple[Judge, Callable[[], Losses]]:
        one = _Truth(stream.items, classes)
        return one, one.losses.arrays

    def make(learners: Sequence[Learner]) -> Pipeline:
        own = stream.pipeline([])
        return Pipeline(own.task, bare.base, learners, None, device="cpu", seed=SEED)

    chosen = classifiers if classes else partial(default_learners, "regression")
    return Prepared(stream.items, make, chosen, judge)


MAE, LOG, RMSE = "mean absolute error", "log loss, nats", "RMSE of z-scores"
_DEFAULTS = "the default learners of {}"
_REDUCED = (
    "learners: bias, slot_bias, rls .9995 and .998, error_memory by panel, last value, seasonal "
    "(no ADCSD, memory by "
    f"channel or further rls: a run would take several times as long); {WARM_UP} entries to "
    f"warm up at most"
)
_REGRESSION = _DEFAULTS.format("regression")
_CLASSIFICATION = "bias, rls, persistence and two classifiers of river"
_RIVERS = "the stream of docs/drift.md; "

CASES: dict[str, Case] = {
    **{
        s.name: Case(partial(_glucose, s), f"{MAE}, mg/dL", _REGRESSION, long=True)
        for s in glucose.SENSORS
    },
    **{
        s.name: Case(
            partial(_forecast, s),
            f"{MAE}, original units",
            _REDUCED,
            long=s.name.startswith("etth1"),
        )
        for s in forecast.FORECASTS
    },
    "elec2": Case(_elec2, LOG, f"{_CLASSIFICATION}: no forest", long=True),
    "linkload": Case(
        _linkload,
        RMSE,
        "without the two networks of the paper that learn per entry; its other learners",
        root=True,
    ),
    "agrawal-abrupt": Case(partial(_synthetic, "agrawal-abrupt"), LOG, _RIVERS + _CLASSIFICATION),
    "friedman-gra": Case(partial(_synthetic, "friedman-gra"), MAE, _RIVERS + _REGRESSION),
}
"""The scenarios that drift."""
