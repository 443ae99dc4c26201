"""Drift monitors, label requests, intervals, wrong values, panels, keys, and the default sets."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from parity import models, streams
from parity.breaking import Breaking
from parity.case import add, add_stored
from parity.guard_cases import learners
from parity.streams import STEP
from parity.tasks import PIPELINES, STREAMS, TTL, classes, forecast, one, two
from streamadapt import (
    ADCSD,
    RLS,
    Bias,
    Calibration,
    Dictionary,
    DriftMonitor,
    Entry,
    ErrorMemory,
    Forecast,
    Gain,
    Holt,
    KeyedPipeline,
    LastValue,
    Liquid,
    Panel,
    Persistence,
    Pipeline,
    Refit,
    River,
    Seasonal,
    SlotBias,
    Supervised,
)
from streamadapt.drift.detectors import BINARY, DETECTORS
from streamadapt.learners import Learner
from streamadapt.learners.defaults import default_learners
from streamadapt.pipeline.intervals import Intervals
from streamadapt.state.key_store import DirectoryKeyStore
from streamadapt.tasks.label_budget import LabelBudget

QUICK = {"one-drift-boost", "one-budget"}


def _add(name: str, make: Any, stream: Any, **more: Any) -> None:
    add(name, make, stream, quick=name in QUICK, **more)


# -- drift

SENSITIVE: dict[str, dict[str, Any]] = {
    "adwin": {"delta": 0.05},
    "page-hinkley": {"threshold": 10.0},
    "kswin": {"alpha": 0.01},
    "ddm": {"drift_threshold": 2.0},
    "eddm": {"beta": 0.95},
}
"""So that each detector fires at least once."""


def _few() -> list[Learner]:
    return [Bias((0.2, 0.02)), Calibration(0.98), RLS(0.98)]


def _watched(detectors: Iterable[Any], reaction: Any, **more: Any) -> Pipeline:
    monitors = [
        DriftMonitor(
            detector,
            "error" if DETECTORS[detector].startswith(BINARY) else "loss",
            reaction,
            params=SENSITIVE.get(detector),
            cool_down=20,
            **more,
        )
        for detector in detectors
    ]
    pipeline: Pipeline = one(_few, drift=monitors)
    return pipeline


def _add_drifts() -> None:
    _add("one-drift-alert", partial(_watched, DETECTORS, "alert"), STREAMS["one"])
    for reaction in ("boost", "forget", "reset", "refit"):
        make = partial(_watched, ["adwin"], reaction, refit_trial=60)
        _add(f"one-drift-{reaction}", make, STREAMS["one"])


def _all_sorts() -> list[Learner]:
    """Every kind of learner that the cases above leave out, in small."""
    return [
        Gain(0.1),
        SlotBias(0.2),
        LastValue(),
        ErrorMemory(capacity=60, k=5),
        ErrorMemory(store="sketch", tables=4, bits=3),
        Dictionary(batch=4),
        Liquid("cfc", 4, max_label_delay=16),
        Refit(48, memory=60, hidden=4, epochs=2, batch=16),
        River("linear_model.LinearRegression"),
    ]


def _of_forecasts() -> list[Learner]:
    more: list[Learner] = [ADCSD(share_norm=True), Holt(), Seasonal(48), RLS(0.99, shared=True)]
    return [*_all_sorts()[:-1], *more, RLS(0.99, loss="l1")]


def _of_labels() -> list[Learner]:
    return [*_all_sorts()[:-1], River("linear_model.LogisticRegression")]


def _reacting(task: str, some: Any, reaction: Any) -> Pipeline:
    monitor = DriftMonitor(
        "page-hinkley", "loss", reaction, params=SENSITIVE["page-hinkley"], cool_down=100
    )
    return PIPELINES[task](some, drift=[monitor])


def _add_reactions() -> None:
    """What `boost` and `forget` do to every kind of learner."""
    some = {"forecast": _of_forecasts, "two": _all_sorts, "classes": _of_labels}
    for task, learners_of in some.items():
        for reaction in ("boost", "forget"):
            make = partial(_reacting, task, learners_of, reaction)
            _add(f"{task}-{reaction}-all", make, STREAMS[task])


def _of_channels() -> Pipeline:
    """Detectors of each channel, and of a learner's own signal."""
    monitors = [
        DriftMonitor("adwin", "loss", "boost", channels="each", params={"delta": 0.05}),
        DriftMonitor("page-hinkley", "residual", params={"threshold": 15.0}),
        DriftMonitor("kswin", "input", channels="each"),
        DriftMonitor("adwin", "dictionary-error"),
    ]
    pipeline: Pipeline = forecast(
        lambda: [Bias(0.1), RLS(0.99), Dictionary(batch=4)], drift=monitors
    )
    return pipeline


def _of_classes() -> Pipeline:
    monitors = [
        DriftMonitor("adwin", "error", "forget", params={"delta": 0.1}),
        DriftMonitor("page-hinkley", "confidence", params={"threshold": 2.0, "delta": 0.001}),
        DriftMonitor("ddm", "error", "reset", params={"drift_threshold": 1.5}),
    ]
    pipeline: Pipeline = classes(lambda: [Bias(0.1), RLS(0.98)], drift=monitors)
    return pipeline


def _of_embedding() -> Pipeline:
    return Pipeline(
        Supervised(1, classes=3, ttl=TTL), models.network(), [Bias(0.1)],
        drift=[DriftMonitor("adwin", "embedding", "boost")], seed=1, device="cpu",
    )  # fmt: skip


# -- labels


def _simple() -> list[Learner]:
    return [Bias(0.1), RLS(0.98), Gain(0.1), Calibration(0.98)]


def _clicks(*, correct: bool = True, some: Any = _simple) -> Pipeline:
    task = Supervised(
        2, classes=2, ttl=10 * STEP, negative_after=4 * STEP, correct_negatives=correct
    )
    base = models.scaled(models.two_classes, 2)
    return Pipeline(task, base, some(), seed=1, device="cpu")


def _add_labels() -> None:
    budget = {"one": one, "classes": classes}
    for name, make in budget.items():
        for floor in (0.2, 1.0):
            end = "" if floor < 1.0 else "-random"
            asked = partial(LabelBudget, 0.3, floor, 7)
            _add(
                f"{name}-budget{end}",
                partial(lambda make, asked: make(learners, budget=asked()), make, asked),
                STREAMS[name],
            )
    corrected = {"correction_window": 3 * STEP}
    _add("one-corrections", partial(one, learners, task=corrected), streams.corrections)
    for correct in (True, False):
        end = "" if correct else "-uncorrected"
        _add(f"clicks{end}", partial(_clicks, correct=correct), streams.clicks)
    _add("clicks-all", partial(_clicks, some=_of_labels), streams.clicks)
    _add("one-late", partial(one, learners), partial(streams.regression, delay=20))


# -- values


def _far_series() -> Pipeline:
    return Pipeline(Forecast(6, 3), Persistence(3), learners(), seed=1, device="cpu")


def _far_labels() -> Pipeline:
    return Pipeline(Supervised(3, ttl=TTL), models.far_output, learners(), seed=1, device="cpu")


def _add_values() -> None:
    for name, make in PIPELINES.items():
        if name != "classes":
            piped = partial(lambda make: make(learners, intervals=Intervals(0.8)), make)
            _add(f"{name}-intervals", piped, STREAMS[name])
    wild = partial(streams.regression, wild=True)
    _add("one-wild", partial(one, learners, intervals=Intervals()), wild)
    _add("two-wild", partial(two, learners), partial(wild, outputs=2))
    _add("forecast-wild", partial(forecast, learners), _wild_series)
    _add("forecast-far", _far_series, partial(streams.series, level=1e8))
    far = partial(streams.regression, level=1e6, label_level=1e7)
    _add("one-far", _far_labels, far)
    # The second checkpoint lies before the first label: the level of the outputs is unknown.
    _add("one-far-early", _far_labels, far, before=5)
    _add("forecast-missing", partial(forecast, learners), partial(streams.series, missing=30))


def _wild_series() -> list[streams.Item]:
    chosen = streams.Numbers(90).chance(1, 1500)
    items = streams.series()
    for i in range(len(items)):
        item = items[i]
        if chosen[i] and isinstance(item, Entry):
            values = item.values.copy()
            values[0] = 1e9
            items[i] = streams.entry(i, values, item.time)
    return items


# -- parts around the learners


def _broken(make: Any) -> Pipeline:
    pipeline: Pipeline = make(lambda: [Bias(0.1), Breaking(0.1)])
    return pipeline


def _panel(**columns: Any) -> Pipeline:
    panel = Panel(step="30m", lateness="1h", **columns)
    return Pipeline(
        Forecast(4, 2), Persistence(2), [Bias(0.1), RLS(0.99)], panel=panel, seed=1, device="cpu"
    )


def _keyed(folder: Path, make: Any, max_keys: int) -> KeyedPipeline:
    few = partial(make, lambda: [Bias(0.1), RLS(0.98)])
    return KeyedPipeline(few, max_keys, DirectoryKeyStore(folder / "keys"))


def _add_parts() -> None:
    for name, make in PIPELINES.items():
        _add(f"{name}-broken", partial(_broken, make), STREAMS[name])
    size = {"before": 900, "after": 1910}  # records: about two for each prediction
    _add("panel", partial(_panel, sensors=("east", "west")), streams.sensors, **size)
    _add("panel-open", partial(_panel, max_sensors=3), streams.sensors, **size)
    keys = ("a", "b", "c", "d")
    for name in ("forecast", "one", "classes"):
        maker: Any = {"forecast": streams.series, "one": streams.regression}.get(
            name, streams.classes
        )
        stream = partial(streams.keyed, partial(maker, n=375), keys)
        # With two keys in memory nearly every entry brings one back, which takes long.
        for most, before, after in ((4, 500, 1000), (2, 300, 200)):
            make_keyed = partial(_keyed, make=PIPELINES[name], max_keys=most)
            add_stored(f"{name}-keys-{most}", make_keyed, stream, before=before, after=after)


# -- the default sets, and a fitted base


def _fitted(task: Any, name: str, some: Any) -> Pipeline:
    return Pipeline(task, models.linear(name), some(), seed=1, device="cpu")


def _add_defaults() -> None:
    tasks: dict[str, Any] = {
        "forecast": (partial(Forecast, 6, 3), "forecast", STREAMS["forecast"]),
        "one": (partial(Supervised, 3, ttl=TTL), "regression", STREAMS["one"]),
        "classes": (
            partial(Supervised, 2, classes=3, ttl=TTL), "classification", STREAMS["classes"]
        ),
    }  # fmt: skip
    for name, (task, kind, stream) in tasks.items():
        some = _classifiers if kind == "classification" else partial(default_learners, kind)
        _add(f"{name}-default", partial(PIPELINES[name], some), stream)
        fitted = partial(lambda task, kind, some: _fitted(task(), kind, some), task, kind)
        _add(f"{name}-fitted", partial(fitted, _linear_learners), stream)
    _add("forecast-default-fitted", partial(_default_fitted), STREAMS["forecast"])


def _classifiers() -> list[Learner]:
    """The default set for classes when the files were written."""
    return [
        Bias((0.5, 0.1)),
        RLS((0.9, 0.98)),
        LastValue(),
        River("linear_model.LogisticRegression"),
        River("tree.HoeffdingAdaptiveTreeClassifier"),
    ]


def _linear_learners() -> list[Learner]:
    return [Bias(0.1), RLS((0.99, 0.95)), RLS(0.99, loss="l1"), Liquid("cfc", 4)]


def _default_fitted() -> Pipeline:
    return _fitted(Forecast(6, 3), "forecast", lambda: default_learners("forecast")[2:])


_add_drifts()
_add_reactions()
_add("forecast-drift-channels", _of_channels, STREAMS["forecast"])
_add("classes-drift", _of_classes, STREAMS["classes"])
_add("network-drift", _of_embedding, partial(streams.features, labelled=20))
_add_labels()
_add_values()
_add_parts()
_add_defaults()
