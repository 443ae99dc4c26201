"""Process-wide settings of torch and numpy change no result; settings and random states stay
unchanged."""

from __future__ import annotations

import ast
import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streamadapt
from streamadapt import (
    ADCSD,
    EATA,
    Batch,
    Calibration,
    Dictionary,
    DriftMonitor,
    Entry,
    ErrorMemory,
    Forecast,
    FrozenModel,
    Gain,
    Holt,
    LastValue,
    Liquid,
    Persistence,
    Pipeline,
    Refit,
    River,
    Seasonal,
    SlotBias,
    Supervised,
    Tent,
)
from streamadapt.learners.defaults import default_learners
from streamadapt.models.fit import fit_forecast, fit_supervised
from streamadapt.pipeline.intervals import Intervals

N = 40
X = np.random.default_rng(0).normal(20.0, 5.0, size=(N, 2)).astype(np.float32)
Y = X.sum(1, keepdims=True)


def net(*layers: nn.Module) -> nn.Module:
    """A user's model, made before any setting; it does not use the global random state."""
    made = nn.Sequential(nn.Flatten(), *layers)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return made


NETS = {
    "forecast": net(nn.Linear(12, 4), nn.Unflatten(1, (2, 2))),
    "classification": net(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)),
}


def forecast() -> str:
    learners = [
        *default_learners("forecast"), ADCSD(), Dictionary(), Gain(0.1), Refit(20, memory=50),
        Liquid(), River("linear_model.LinearRegression"), SlotBias(), Calibration(0.9),
        LastValue(), Seasonal(24), Holt(0.3), ErrorMemory(),
    ]  # fmt: skip
    mine = unique(learners)
    base = fit_forecast(Batch(X, np.arange(N)), 6, 2)
    drift = [DriftMonitor("adwin", "loss", reaction="refit")]
    pipeline = Pipeline(Forecast(6, 2), base, mine, drift=drift, intervals=Intervals())
    entries = [Entry(row, t * 300 * 10**9) for t, row in enumerate(X)]
    module = Pipeline(Forecast(6, 2), NETS["forecast"], default_learners("forecast"))
    return bits(pipeline, entries) + bits(module, entries)


def regression() -> str:
    learners = [
        *default_learners("regression"), Dictionary(), Refit(20, memory=50), LastValue(),
        ErrorMemory(), River("linear_model.LinearRegression"),
    ]  # fmt: skip
    base = fit_supervised(Batch(X, np.arange(N), Y), 1)
    return bits(Pipeline(Supervised(1), base, unique(learners)), entries_with(Y))


def classification() -> str:
    learners = [
        *default_learners("classification"),
        Tent(16),
        EATA(16),
        LastValue(),
        Refit(20, memory=50),
    ]
    base = FrozenModel(NETS["classification"], softmax=True)
    return bits(
        Pipeline(Supervised(1, classes=2), base, unique(learners)),
        entries_with(np.float32(Y > 40.0)),
    )


def far() -> str:
    entries = [Entry(row, t * 10**9) for t, row in enumerate(X.astype(np.float64) + 2e8)]
    return bits(Pipeline(Forecast(6, 2), Persistence(2), default_learners("forecast")), entries)


def unique(learners: list[Any]) -> list[Any]:
    seen: set[str] = set()
    found = []
    for learner in learners:
        if not seen & set(learner.names):
            found.append(learner)
        seen |= set(learner.names)
    return found


def entries_with(labels: Any) -> list[Entry]:
    return [Entry(X[t], t * 10**9, str(t), label=labels[t]) for t in range(N)]


def bits(pipeline: Pipeline, entries: list[Entry]) -> str:
    """Return a hash of a pipeline's predictions, half of them after its state was loaded by
    another pipeline."""
    digest = hashlib.sha256()
    for entry in entries:
        for p in pipeline.observe([entry]):
            for array in (p.served, *p.experts.values(), p.low if p.low is not None else p.base):
                digest.update(array.tobytes())
            digest.update(repr((p.weights, p.scores)).encode())
    for name, value in sorted(pipeline.state_dict()["guard"].items()):
        digest.update(
            name.encode() + np.asarray(value).tobytes() if isinstance(value, np.ndarray) else b""
        )
    return digest.hexdigest()


@contextmanager
def then(put: Callable[[], Any], back: Callable[[], Any]) -> Iterator[None]:
    put()
    try:
        yield
    finally:
        back()


def numpy_raises() -> Any:
    return np.errstate(all="raise")


SETTINGS: dict[str, Callable[[], Any]] = {
    "default dtype float64": lambda: then(
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    ),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad off": lambda: torch.set_grad_enabled(False),
    "grad on": torch.enable_grad,
    "device meta": lambda: torch.device("meta"),
    "device cpu": lambda: torch.device("cpu"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": lambda: then(
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "numpy raises": numpy_raises,
    "other seeds": lambda: then(
        lambda: (torch.manual_seed(9), np.random.seed(9), random.seed(9)), lambda: None
    ),
}
KINDS = {
    "forecast": forecast,
    "regression": regression,
    "classification": classification,
    "far": far,
}


@pytest.fixture(scope="module")
def plain() -> dict[str, str]:
    with nullcontext():
        return {kind: run() for kind, run in KINDS.items()}


@pytest.mark.parametrize("setting", SETTINGS)
def test_process_settings_change_no_bit(setting: str, plain: dict[str, str]) -> None:
    with SETTINGS[setting]():
        before = state_of_process()
        found = {kind: run() for kind, run in KINDS.items()}
        assert state_of_process() == before
    assert found == plain


def state_of_process() -> tuple[Any, ...]:
    drawn = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    torch_state = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )
    return (
        *drawn,
        *torch_state,
        torch.is_autocast_enabled("cpu"),
        torch.get_default_device(),
        np.geterr(),
    )


FACTORIES = (
    "zeros",
    "ones",
    "empty",
    "full",
    "tensor",
    "rand",
    "randn",
    "eye",
    "linspace",
    "arange",
)


def test_every_tensor_made_names_its_dtype() -> None:
    """The default dtype is process-wide: if a thread sets it for its own work, it must not affect
    this one."""
    bare = []
    for path in Path(streamadapt.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            named = any(keyword.arg in ("dtype", None) for keyword in node.keywords)
            if of_torch and node.func.attr in FACTORIES and not named:
                bare.append(f"{path.name}:{node.lineno}")
    assert bare == []


def test_an_entry_of_inference_tensors_and_a_base_made_in_inference_mode() -> None:
    with torch.inference_mode():
        values = [torch.tensor([float(t)]) for t in range(8)]
        model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1))
        pipeline = Pipeline(Forecast(2, 1), model, default_learners("forecast"))
    assert len(pipeline.observe([Entry(v, t) for t, v in enumerate(values)])) == 7
    assert Persistence(1)(values[0].unsqueeze(0)).output.shape == (1, 1)
