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

QUICK = {"forecast-bias", "one-least-squares", "two-calibration", "classes-gain"}


def _add(task: str, name: str, learners: Learners, **more: Any) -> None:
    name = f"{task}-{name}"
    make = partial(PIPELINES[task], learners, **more)
    add(name, make, STREAMS[task], quick=name in QUICK)


def _everywhere() -> dict[str, Learners]:
    """Learners that are the same in every task."""
    return {
        "bias": lambda: [Bias((0.2, 0.02))],
        "gain": lambda: [Gain((0.2, 0.05))],
        "calibration": lambda: [Calibration((0.9, 0.98))],
        "slot-bias": lambda: [SlotBias((0.3, 0.1)), SlotBias(0.2, period="6h", slots=6)],
        "persistence": lambda: [LastValue()],
        "rls": lambda: [RLS((0.9, 0.995))],
        "rls-calendar": lambda: [RLS(0.99, features=("calendar",))],
        "rls-l1": lambda: [RLS((0.9, 0.99), loss="l1")],
        "dictionary": lambda: [Dictionary(batch=4)],
        "dictionary-rls": lambda: [Dictionary(RLS(0.99), over="row", threshold=0.2)],
        "memory": lambda: [ErrorMemory(capacity=60, k=5)],
        "memory-sketch": lambda: [ErrorMemory(store="sketch", tables=8, bits=4)],
        "cfc": lambda: [Liquid("cfc", 6, max_label_delay=16)],
        "ltc": lambda: [Liquid("ltc", 4, max_label_delay=16, network=Network(unfolds=3))],
        "cfc-wired": lambda: [
            Liquid("cfc", 8, max_label_delay=16, network=Network(mode="pure", wiring="autoncp"))
        ],
        "liquid-direct": lambda: [
            Liquid("cfc", 6, residual=False, loss="mse", unroll=2, max_label_delay=16)
        ],
        "refit": lambda: [Refit(48, memory=60, hidden=6, epochs=2, batch=16)],
        "refit-direct": lambda: [
            Refit(30, memory=60, hidden=(5, 4), epochs=2, batch=16, direct=True)
        ],
    }


def _forecasts() -> dict[str, Learners]:
    return {
        "rls-open": lambda: [RLS(0.98, clip=float("inf"), ridge=1.0)],
        "rls-shared": lambda: [RLS((0.99, 0.95), shared=True)],
        "rls-shared-l1": lambda: [RLS(0.99, shared=True, loss="l1", features=("calendar",))],
        "rls-level": lambda: [RLS(0.99, features=("level",))],
        "rls-cross": lambda: [RLS(0.99, features=("cross",))],
        "rls-season": lambda: [RLS(0.99, features=("season",))],
        "rls-all": lambda: [RLS(0.99, features=("level", "calendar", "cross", "season"))],
        "memory-panel": lambda: [ErrorMemory(scope="panel", capacity=60, k=5)],
        "memory-panel-sketch": lambda: [
            ErrorMemory(store="sketch", scope="panel", tables=8, bits=4)
        ],
        "memory-period": lambda: [ErrorMemory(capacity=60, k=5, key_window=3, period=43200.0)],
        "seasonal-entries": lambda: [Seasonal(48)],
        "seasonal-time": lambda: [Seasonal("1d", slots=48)],
        "holt": lambda: [Holt(), Holt(0.3, 0.1, jump=4.0)],
        "river-linear": lambda: [River("linear_model.LinearRegression")],
    }


def _adcsd() -> dict[str, Learners]:
    """Their states are large: two rows only."""
    return {
        "adcsd": lambda: [ADCSD(1e-3)],
        "adcsd-share-norm": lambda: [ADCSD(share_norm=True)],
        "adcsd-huber": lambda: [ADCSD(share_norm=True, loss="huber", lr=3e-3)],
        "adcsd-optimisers": lambda: [
            ADCSD(share_norm=True, optimiser="sgd", lr=1e-2),
            ADCSD(share_norm=True, optimiser="lion", lr=1e-4),
            ADCSD(share_norm=True, optimiser="adabelief"),
        ],
    }


def _regressions() -> dict[str, Learners]:
    return {
        "memory-label": lambda: [
            ErrorMemory(capacity=60, k=5, value="label", gamma=0.5, strength=0.8)
        ],
        "river-linear": lambda: [River("linear_model.LinearRegression")],
        "river-tree": lambda: [
            River("tree.HoeffdingTreeRegressor", {"grace_period": 50, "max_depth": 3})
        ],
    }


def _classifications() -> dict[str, Learners]:
    return {
        "memory-residual": lambda: [ErrorMemory(capacity=60, k=5, value="residual")],
        "memory-mixed": lambda: [ErrorMemory(capacity=60, k=5, gamma=0.5)],
        "river-logistic": lambda: [River("linear_model.LogisticRegression")],
        "river-bayes": lambda: [River("naive_bayes.GaussianNB", scale=False)],
        "river-tree": lambda: [
            River("tree.HoeffdingAdaptiveTreeClassifier", {"seed": 1, "grace_period": 50})
        ],
    }


TOGETHER = {
    "simple": ("bias", "gain", "calibration", "slot-bias", "persistence"),
    "least-squares": ("rls", "rls-calendar", "rls-l1"),
    "stores": ("dictionary", "dictionary-rls", "memory", "memory-sketch"),
    "liquid": ("cfc", "ltc", "cfc-wired", "liquid-direct"),
    "refits": ("refit", "refit-direct"),
}
"""What is one case in the regression of one output; each is alone in that of two."""


def _together(names: Sequence[str]) -> list[Learner]:
    everywhere = _everywhere()
    return [learner for name in names for learner in everywhere[name]()]


def _add_labelled() -> None:
    for task in ("forecast", "two", "classes"):
        for name, learners in _everywhere().items():
            _add(task, name, learners)
    for name, names in TOGETHER.items():
        _add("one", name, partial(_together, names))
    for name, learners in _forecasts().items():
        _add("forecast", name, learners)
    for name, learners in _adcsd().items():
        _add("forecast", name, learners, horizon=2)
    for task in ("one", "two"):
        for name, learners in _regressions().items():
            _add(task, name, learners)
    for name, learners in _classifications().items():
        _add("classes", name, learners)


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
