"""The pipelines and the first entries of the scenarios of `benchmarks.quality`, of seed 0.

The lengths are cut where a whole run takes long: the figures of whole runs are in docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.scenarios import digits, elec2, forecast, glucose, linkload
from benchmarks.scenarios.digits_data import as_tensor, load_digits, train
from benchmarks.scenarios.linkload_networks import lstm
from benchmarks.scenarios.linkload_stream import generate, nobel_eu
from parity.streams import Item
from streamadapt import (
    EATA,
    RLS,
    Bias,
    Entry,
    ErrorMemory,
    FrozenModel,
    Hedge,
    Label,
    LastValue,
    PerEntry,
    Pipeline,
    River,
    Supervised,
    Tent,
)
from streamadapt.learners import Learner
from streamadapt.learners.defaults import default_learners

ENTRIES = {
    "cgm-6h": 3000,
    "cgm-sparse": 3000,
    "etth1-weak": 2000,
    "etth1-strong": 2000,
    "los-weak": 500,
    "los-strong": 500,
    "elec2": 3000,
    "linkload": 500,
}
"""How many entries of a scenario are run; the digits are run whole, the first stream of each."""

Made = tuple[Pipeline, list[Item]]


def _glucose(setting: glucose.Setting, folder: Path) -> Made:
    del folder  # the readings come with a package
    batch = data.glucose()
    pipeline = glucose.pipeline_for(setting, setting.fit(batch), default_learners("regression"))
    return pipeline, glucose.items_of(setting, batch)


def _forecast(setting: forecast.Setting, folder: Path) -> Made:
    batch = setting.load(folder)
    learners = default_learners("forecast")
    pipeline = forecast.pipeline_for(setting, setting.fit(batch), learners)
    return pipeline, list(forecast.stream_of(setting, batch))


def _elec2(folder: Path) -> Made:
    setting = elec2.ELEC2
    batch = data.elec2(folder)
    pipeline = elec2.pipeline_for(elec2.fit(setting, batch, 0), _classifiers())
    return pipeline, list(elec2.items_of(setting, batch))


def _classifiers() -> list[Learner]:
    """The experts of the scenario when the files were written."""
    return [
        LastValue(),
        Bias((0.5, 0.1)),
        RLS((0.9, 0.98)),
        ErrorMemory(capacity=50, k=5),
        ErrorMemory(store="sketch"),
        River("linear_model.LogisticRegression"),
        River("tree.HoeffdingAdaptiveTreeClassifier"),
        River("forest.ARFClassifier", {"n_models": 10}),
    ]


def _linkload(folder: Path) -> Made:
    del folder  # the loads are made
    setting, network = linkload.LINKLOAD, nobel_eu()
    loads = generate(network, setting.traffic, 0)
    own, rival = linkload.fit(setting, loads, 0), linkload.fit(setting, loads, 0, lstm)
    base = linkload.frozen(own, len(network.links))
    pipeline = linkload.pipeline_for(setting, base, linkload.experts(setting, own, rival))
    return pipeline, list(linkload.stream_of(setting, loads))


@cache
def _trained() -> tuple[Any, Any]:
    images = load_digits(0)
    return images, train(images, 0)


def _digits(name: str, folder: Path) -> Made:
    """The first stream of a scenario, with the pipeline that `benchmarks.scenarios.digits` has."""
    del folder  # the images come with a package
    images, net = _trained()
    source = as_tensor(images.source)
    learners = [
        PerEntry(source),
        Tent(digits.BATCH, optimiser="adam"),
        EATA(digits.BATCH, 5e-3, fisher=source),
    ]
    guard = Hedge(digits.ETA, digits.SHARE, prior={"per_entry": digits.PRIOR})
    base = FrozenModel(net, softmax=True)
    task = Supervised(1, classes=digits.CLASSES)
    stream = digits._stream(images, digits.STREAMS[name][0], 0)
    return Pipeline(task, base, learners, guard, device="cpu"), _digit_items(stream)


def _digit_items(stream: Any) -> list[Item]:
    known = np.random.default_rng([0, 3]).random(len(stream.labels)) < digits.LABELLED
    items: list[Item] = []
    for t, image in enumerate(stream.images):
        late = t - digits.DELAY - 1
        if late >= 0 and known[late]:
            items.append(Label(str(late), np.array([stream.labels[late]], np.float32), t + 1))
        items.append(Entry(image.ravel(), time=t + 1, id=str(t)))
    return items


SCENARIOS: dict[str, Callable[[Path], Made]] = {
    **{setting.name: partial(_glucose, setting) for setting in glucose.SENSORS},
    **{setting.name: partial(_forecast, setting) for setting in forecast.FORECASTS},
    "elec2": _elec2,
    "linkload": _linkload,
    **{name: partial(_digits, name) for name in digits.NAMES},
}
MEASURED = ("etth1-weak", "etth1-strong", "los-weak", "los-strong", "elec2")
"""The scenarios that read a file of the data folder."""


def made(name: str, folder: Path) -> Made:
    """Return a scenario's pipeline, and the items up to its last entry that is run."""
    pipeline, items = SCENARIOS[name](folder)
    entries = [i for i, item in enumerate(items) if isinstance(item, Entry)]
    most = ENTRIES.get(name, len(entries))
    return pipeline, items[: entries[min(most, len(entries)) - 1] + 1]
