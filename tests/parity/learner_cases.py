"""Every kind of learner with every task that it supports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from parity import models, streams
from parity.case import add
from parity.tasks import PIPELINES, STREAMS, TTL, Learners
from streamadapt import (
    ADCSD,
    EATA,
    RLS,
    Bias,
    Calibration,
    Dictionary,
    ErrorMemory,
    Gain,
    Holt,
    LastValue,
    Liquid,
    PerEntry,
    Pipeline,
    Refit,
    River,
    Seasonal,
    SlotBias,
    Supervised,
    Tent,
    TwoLayer,
    Unlabelled,
)
from streamadapt.learners import Learner
from streamadapt.learners.liquid.learner import Network

QUICK = {"forecast-simple", "two-simple", "classes-simple"}


def _add(task: str, name: str, learners: Learners, **more: Any) -> None:
    name = f"{task}-{name}"
    make = partial(PIPELINES[task], learners, **more)
    add(name, make, STREAMS[task], quick=name in QUICK)


def _simple() -> list[Learner]:
    return [
        Bias((0.2, 0.02)),
        Gain((0.2, 0.05)),
        Calibration((0.9, 0.98)),
        SlotBias((0.3, 0.1)),
        SlotBias(0.2, period="6h", slots=6),
        LastValue(),
    ]


def _least_squares() -> list[Learner]:
    return [
        RLS((0.9, 0.995)),
        RLS(0.99, features=("calendar",)),
        RLS((0.9, 0.99), loss="l1"),
        RLS(0.97, clip=float("inf"), ridge=1.0),
    ]


def _stores() -> list[Learner]:
    return [
        Dictionary(batch=4),
        Dictionary(RLS(0.99), over="row", threshold=0.2),
        ErrorMemory(capacity=60, k=5),
        ErrorMemory(store="sketch", tables=8, bits=4),
    ]


def _liquid() -> list[Learner]:
    return [
        Liquid("cfc", 6, max_label_delay=16),
        Liquid("ltc", 4, max_label_delay=16, network=Network(unfolds=3)),
        Liquid("cfc", 8, max_label_delay=16, network=Network(mode="pure", wiring="autoncp")),
        Liquid("cfc", 6, residual=False, loss="mse", unroll=2, max_label_delay=16),
    ]


def _refits() -> list[Learner]:
    return [
        Refit(48, memory=60, hidden=6, epochs=2, batch=16),
        Refit(30, memory=60, hidden=(5, 4), epochs=2, batch=16, direct=True),
    ]


EVERYWHERE: dict[str, Learners] = {
    "simple": _simple,
    "least-squares": _least_squares,
    "stores": _stores,
    "liquid": _liquid,
    "refits": _refits,
}
"""Learners that are the same in every task; several are one case, and compared one by one."""


def _forms() -> list[Learner]:
    return [
        RLS((0.99, 0.95), shared=True),
        RLS(0.99, shared=True, loss="l1", features=("calendar",)),
    ]


def _features() -> list[Learner]:
    extras: tuple[Any, ...] = ("level", "calendar", "cross", "season")
    return [RLS(0.99, features=(extra,)) for extra in extras] + [RLS(0.99, features=extras)]


def _memories() -> list[Learner]:
    return [
        ErrorMemory(scope="panel", capacity=60, k=5),
        ErrorMemory(store="sketch", scope="panel", tables=8, bits=4),
        ErrorMemory(capacity=60, k=5, key_window=3, period=43200.0),
    ]


def _naive() -> list[Learner]:
    return [
        Seasonal(48), Seasonal("1d", slots=48), Holt(), Holt(0.3, 0.1, jump=4.0),
    ]  # fmt: skip


FORECASTS: dict[str, Learners] = {
    "least-squares-forms": _forms,
    "least-squares-features": _features,
    "memories": _memories,
    "naive": _naive,
    "river": lambda: [River("linear_model.LinearRegression")],
}


def _optimisers() -> list[Learner]:
    return [
        ADCSD(share_norm=True, loss="huber", lr=3e-3),
        ADCSD(share_norm=True, optimiser="sgd", lr=1e-2),
        ADCSD(share_norm=True, optimiser="lion", lr=1e-4),
        ADCSD(share_norm=True, optimiser="adabelief"),
    ]


CORRECTIONS: dict[str, Learners] = {
    "adcsd": lambda: [ADCSD(1e-3)],
    "adcsd-share-norm": lambda: [ADCSD(share_norm=True)],
    "adcsd-optimisers": _optimisers,
}
"""Their states are large: two rows only."""


def _regression_more() -> list[Learner]:
    return [
        ErrorMemory(capacity=60, k=5, value="label", gamma=0.5, strength=0.8),
        River("linear_model.LinearRegression"),
        River("tree.HoeffdingTreeRegressor", {"grace_period": 50, "max_depth": 3}),
    ]


def _classification_more() -> list[Learner]:
    return [
        ErrorMemory(capacity=60, k=5, value="residual"),
        ErrorMemory(capacity=60, k=5, gamma=0.5),
        River("linear_model.LogisticRegression"),
        River("naive_bayes.GaussianNB", scale=False),
        River("tree.HoeffdingAdaptiveTreeClassifier", {"seed": 1, "grace_period": 50}),
    ]


def _add_labelled() -> None:
    for task in PIPELINES:
        for name, learners in EVERYWHERE.items():
            _add(task, name, learners)
    for name, learners in FORECASTS.items():
        _add("forecast", name, learners)
    for name, learners in CORRECTIONS.items():
        _add("forecast", name, learners, horizon=2)
    for task in ("one", "two"):
        _add(task, "more", _regression_more)
    _add("classes", "more", _classification_more)


# -- with a network that has an embedding and normalisations


def _network(learners: Learners) -> Pipeline:
    return Pipeline(
        Supervised(1, classes=3, ttl=TTL), models.network(), learners(), seed=1, device="cpu"
    )


def _without_labels(name: str, learners: Learners) -> Pipeline:
    return Pipeline(
        Unlabelled(1, classes=3), models.network(), learners(), TwoLayer(prior={name: 0.9}),
        seed=1, device="cpu",
    )  # fmt: skip


def _adapters() -> dict[str, tuple[str, Callable[[], Sequence[Learner]]]]:
    return {
        "tent": ("tent-b8", lambda: [Tent(8, 0.01)]),
        "tent-adam": ("tent-b8-adam", lambda: [Tent(8, 0.01, optimiser="adam")]),
        "eata": ("eata-b8", lambda: [EATA(8, 0.01, fisher=models.source_samples())]),
        "per-entry": ("per_entry", lambda: [PerEntry(models.source_samples(), memory=12)]),
    }


def _add_adapters() -> None:
    labelled = partial(streams.features, labelled=20)
    for name, (_, learners) in _adapters().items():
        expert = learners()[0].names[0]
        add(f"network-{name}", partial(_network, learners), labelled)
        add(f"unlabelled-{name}", partial(_without_labels, expert, learners), streams.features)
    memory = partial(_network, lambda: [ErrorMemory(capacity=60, k=5, embedding="base")])
    add("network-memory", memory, labelled)


def _add_unlabelled() -> None:
    """A dictionary alone needs no labels."""

    def make() -> Pipeline:
        return Pipeline(
            Unlabelled(3), models.scaled(models.one_output, 2, 1), [Dictionary(batch=4)],
            TwoLayer(prior={"dictionary": 0.5}), seed=1, device="cpu",
        )  # fmt: skip

    add(
        "unlabelled-dictionary",
        make,
        lambda: [item for item in streams.regression() if hasattr(item, "values")],
    )
    add("unlabelled-frozen-liquid", _frozen, streams.features)


def _frozen() -> Pipeline:
    learner = Liquid(
        "cfc", 5, update="none", weights=models.FOLDER / "liquid.safetensors", residual=False,
        time_unit=1800.0,
    )  # fmt: skip
    return Pipeline(
        Unlabelled(1, classes=3), models.network(), [learner],
        TwoLayer(prior={learner.names[0]: 0.5}), seed=1, device="cpu",
    )  # fmt: skip


_add_labelled()
_add_adapters()
_add_unlabelled()
