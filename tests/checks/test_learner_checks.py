"""Every learner and detector of the package passes the shared suites; none is left out by
accident."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch

import streamadapt.learners
from streamadapt.drift.detectors import BINARY, DETECTORS
from streamadapt.drift.monitor import DriftMonitor
from streamadapt.errors import ConfigError
from streamadapt.learners import (
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
    Learner,
    Liquid,
    Logistic,
    PerEntry,
    Refit,
    River,
    Seasonal,
    SlotBias,
    Tent,
)
from streamadapt.learners.liquid.learner import Network
from streamadapt.testing.checks.cases import CASES
from streamadapt.testing.checks.detectors import check_detector, yield_detector_checks
from streamadapt.testing.checks.learners import (
    check_cpu_and_cuda_agree,
    check_learner,
    yield_learner_checks,
)

torch.set_num_threads(1)  # small steps: a second thread costs more than it saves

MAKERS: dict[str, Callable[[], Learner]] = {
    "adcsd": ADCSD,
    "adcsd-share-norm": lambda: ADCSD(share_norm=True, loss="huber"),
    "bias": lambda: Bias((0.5, 0.2)),
    "calibration": lambda: Calibration((0.98, 0.9)),
    "dictionary": Dictionary,
    "dictionary-rls": lambda: Dictionary(RLS((0.99, 0.95)), over="row", threshold=0.2, batch=3),
    "dictionary-river": lambda: Dictionary(River("naive_bayes.GaussianNB"), batch=1),
    "eata": lambda: EATA(8, 1e-2, fisher=CASES[4].source_samples(), d=2.0),
    "error_memory": lambda: ErrorMemory(capacity=60, k=8),
    "error_memory-panel": lambda: ErrorMemory(scope="panel", capacity=60, k=8),
    "error_memory-sketch": lambda: ErrorMemory(store="sketch", tables=12, bits=5),
    "error_memory-sketch-panel": lambda: ErrorMemory(
        store="sketch", scope="panel", tables=12, bits=5
    ),
    "gain": lambda: Gain((0.1, 0.02)),
    "holt": Holt,
    "liquid-cfc": lambda: Liquid(unroll=2),
    "liquid-ltc": lambda: Liquid("ltc", 8, unroll=1, network=Network(unfolds=3)),
    "logistic": lambda: Logistic((1.0, 0.3)),
    "per_entry": lambda: PerEntry(CASES[4].source_samples() + 3.0),
    "per_entry-familiar": lambda: PerEntry(CASES[5].source_samples()),
    "persistence": LastValue,
    "refit": lambda: Refit(20, memory=100, hidden=16, lr=1e-2),
    "refit-direct": lambda: Refit(20, memory=200, hidden=(16, 8), lr=1e-2, direct=True),
    "rls": lambda: RLS((0.99, 0.95)),
    "rls-calendar": lambda: RLS(0.99, features=["calendar"]),
    "rls-cross": lambda: RLS((0.99, 0.95), features=["level", "calendar", "cross"]),
    "rls-l1": lambda: RLS((0.99, 0.95), loss="l1"),
    "rls-season": lambda: RLS((0.99, 0.95), features=["season"]),
    "rls-shared": lambda: RLS((0.99, 0.95), shared=True),
    "rls-shared-l1": lambda: RLS((0.99, 0.95), shared=True, loss="l1", features=["level"]),
    "river-regressor": lambda: River("linear_model.LinearRegression"),
    "river-classifier": lambda: River("naive_bayes.GaussianNB"),
    "seasonal": lambda: Seasonal(5),
    "slot_bias": lambda: SlotBias((0.5, 0.4), period=1e-6, slots=100),
    "tent": lambda: Tent(8, 1e-2),
}
LEARNS = {
    ADCSD: {"forecast"},
    Bias: {"forecast", "regression", "classification"},
    Calibration: {"forecast", "regression", "classification"},
    Dictionary: {"forecast", "regression", "classification"},
    EATA: {"classification"},
    ErrorMemory: {"forecast", "regression", "classification"},
    Gain: {"forecast", "regression", "classification"},
    Holt: {"forecast"},
    LastValue: {"forecast", "regression", "classification"},
    Liquid: {"forecast", "regression", "classification"},
    Logistic: {"classification"},
    PerEntry: {"classification"},
    RLS: {"forecast", "regression", "classification"},
    Refit: {"forecast", "regression", "classification"},
    River: {"forecast", "regression", "classification"},
    Seasonal: {"forecast"},
    SlotBias: {"forecast", "regression", "classification"},
    Tent: {"classification"},
}


SKIPS: dict[str, dict[str, str]] = {
    "persistence": {
        "check_learns_it_where_it_is": "predicts the last value seen in every column, whatever "
        "the base predicts"
    },
}
"""Learner -> check -> why the check cannot hold."""

DEFAULTS = {name for name in MAKERS if "-" not in name} | {
    "liquid-cfc",
    "river-regressor",
    "river-classifier",
}
"""The learners with default settings. The others are variants, and run the long checks in `make
test-slow`."""
LONG = dict.fromkeys(
    (
        "check_learns_a_constant_error",
        "check_learns_it_where_it_is",
        "check_state_is_bounded",
        "check_late_steps_cost_no_more",
    ),
    "hundreds of steps for each case",
)


def test_the_written_list_equals_the_discovered_one() -> None:
    found = {
        cls
        for _, cls in inspect.getmembers(streamadapt.learners, inspect.isclass)
        if issubclass(cls, Learner) and not inspect.isabstract(cls)
    }
    assert found == set(LEARNS) == {type(make()) for make in MAKERS.values()}
    names = {
        name
        for name, cls in inspect.getmembers(streamadapt.learners, inspect.isclass)
        if cls in found
    }
    assert names <= set(streamadapt.learners.__all__)


def test_learners_accept_exactly_their_documented_tasks() -> None:
    takes: dict[type[Learner], set[str]] = {cls: set() for cls in LEARNS}
    for make in MAKERS.values():
        for case in CASES:
            learner = make()
            try:
                learner.build(case.spec(torch.device("cpu")))
            except ConfigError:
                continue
            takes[type(learner)].add(case.kind)
    assert takes == LEARNS


@pytest.mark.parametrize("name", MAKERS)
def test_learners_pass(name: str) -> None:
    known = SKIPS.get(name, {})
    check_learner(MAKERS[name], skip=known if name in DEFAULTS else LONG | known)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MAKERS.keys() - DEFAULTS))
def test_variants_pass_the_long_checks(name: str) -> None:
    short = {
        check.__name__: "passed above"
        for check in yield_learner_checks()
        if check.__name__ not in LONG
    }
    check_learner(MAKERS[name], skip=short | SKIPS.get(name, {}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", MAKERS)
def test_learners_pass_on_a_gpu(name: str) -> None:
    check_learner(MAKERS[name], device="cuda", skip=SKIPS.get(name))
    check_cpu_and_cuda_agree(MAKERS[name], torch.device("cuda"))


@pytest.mark.parametrize("check", [*yield_detector_checks()], ids=lambda c: c.__name__)
@pytest.mark.parametrize("detector", DETECTORS)
def test_detectors_pass(detector: str, check: Callable[..., None]) -> None:
    """With the boost reaction, which includes everything of the alert reaction."""
    if detector == "eddm" and check.__name__ == "check_clear_jump_is_seen":
        pytest.skip(
            "false alarms are its nature: it compares distances between single errors, without "
            "a bound"
        )
    signal = "error" if DETECTORS[detector].startswith(BINARY) else "loss"
    check(lambda: DriftMonitor(detector, signal, "boost", factor=3.0, half_life=10.0))


def test_check_detector_runs_all() -> None:
    check_detector(
        lambda: DriftMonitor("page-hinkley", "input", "alert", params={"threshold": 20.0})
    )


def test_a_skip_needs_a_known_name_and_a_reason() -> None:
    with pytest.raises(ConfigError, match="check_nothing"):
        check_learner(Bias, skip={"check_nothing": "because"})
    with pytest.raises(ConfigError, match="reason"):
        check_learner(Bias, skip={"check_state_is_bounded": ""})


def test_a_skipped_check_does_not_run_and_the_others_do() -> None:
    with pytest.raises(AssertionError, match="loss below the base's"):
        check_learner(Numb)
    slow = {"check_state_is_bounded": "slow", "check_late_steps_cost_no_more": "slow"}
    useless = {
        "check_learns_a_constant_error": "learns nothing",
        "check_learns_it_where_it_is": "learns nothing",
    }
    check_learner(Numb, skip=slow | useless)


class Numb(Bias):
    """Never learns."""

    kinds = frozenset({"regression"})

    def learn(self, inputs, base, target, mask) -> None:  # type: ignore[no-untyped-def]
        super().learn(inputs, base, target, mask & False)
