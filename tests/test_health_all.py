"""Whatever the learner: when its state turns to NaN it is taken out, named in the metrics, and put
back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import entries, entry, walk
from prometheus_client import CollectorRegistry
from torch import Tensor, nn

from streamadapt import (
    EATA,
    RLS,
    Calibration,
    Dictionary,
    ErrorMemory,
    Forecast,
    FrozenModel,
    Holt,
    Liquid,
    PerEntry,
    Pipeline,
    Refit,
    Seasonal,
    SlotBias,
    Supervised,
    Tent,
)
from streamadapt.app.exposition import MetricsCollector
from streamadapt.engine.metrics import Metrics
from streamadapt.learners import Learner

FORECASTERS: dict[str, Callable[[], Learner]] = {
    "calibration": lambda: Calibration(0.9),
    "dictionary": Dictionary,
    "error-memory": lambda: ErrorMemory(capacity=60, k=5),
    "error-memory-panel": lambda: ErrorMemory(scope="panel", capacity=60, k=5),
    "error-memory-sketch": lambda: ErrorMemory(store="sketch", tables=8, bits=4),
    "holt": Holt,
    "liquid": lambda: Liquid(unroll=2),
    "refit": lambda: Refit(30, memory=60, hidden=8),
    "rls": lambda: RLS(0.99),
    "rls-l1": lambda: RLS(0.99, loss="l1"),
    "rls-shared": lambda: RLS(0.99, shared=True, features=["calendar"]),
    "seasonal": lambda: Seasonal(5),
    "slot_bias": lambda: SlotBias(0.1, period=2e-8, slots=4),
}
IMAGES = torch.randn(60, 1, 8, generator=torch.Generator().manual_seed(0))
CLASSIFIERS: dict[str, Callable[[], Learner]] = {
    "eata": lambda: EATA(8, 1e-2, fisher=IMAGES),
    "per_entry": lambda: PerEntry(IMAGES),
    "tent": lambda: Tent(8, 1e-2),
}


def poison(learner: Learner) -> int:
    """Turn every floating-point number of the state into NaN; return how many there were."""
    state = learner.state_dict()
    numbers = [t for t in state.values() if isinstance(t, Tensor) and t.is_floating_point()]
    for tensor in numbers:
        tensor.detach().fill_(torch.nan)
    learner.load_state_dict(state)
    return sum(tensor.numel() for tensor in numbers)


def judged(
    pipeline: Pipeline, items: list[Any], learner: Learner, *, silent: bool = False
) -> None:
    """Poison in the middle; everything that is served stays finite, and the learner ends well.

    `silent`: it says what the base says where it knows nothing, and gets over NaN without being
    restored.
    """
    said = pipeline.observe(items[:150])
    assert poison(learner) > 0
    said += pipeline.observe(items[150:])
    assert all(
        np.isfinite(p.served).all() and np.isfinite(list(p.experts.values())).all() for p in said
    )
    for name in learner.names:
        assert any(not np.array_equal(p.experts[name], p.base) for p in said[-100:]), (
            f"{name} speaks again"
        )
    restored = {name: pipeline.stats.updates[name]["restored"] for name in learner.names}
    assert set(restored.values()) <= {0, 1}, "taken out once, and well from then on"
    if not silent:
        assert sum(restored.values()) >= 1
        broken = next(name for name, count in restored.items() if count)
        assert shown(pipeline, learner=broken, result="restored") == 1.0


def shown(pipeline: Pipeline, **labels: str) -> float | None:
    """What a scrape of the updates says."""
    metrics, registry = Metrics(), CollectorRegistry()
    MetricsCollector(metrics, registry)
    metrics.pipeline(0, pipeline.stats)
    return registry.get_sample_value("streamadapt_updates_total", {"partition": "0", **labels})


@pytest.mark.parametrize("kind", FORECASTERS)
def test_a_forecaster_whose_state_is_nan_comes_back(kind: str) -> None:
    learner = FORECASTERS[kind]()
    pipeline = Pipeline(Forecast(4, 2), lambda x: x[-1:].repeat(2, 1) + 1.0, [learner])
    exact = kind in (
        "error-memory",
        "error-memory-panel",
    )  # what is no number is near to nothing, until overwritten
    judged(pipeline, entries(walk(400, 2)), learner, silent=exact)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x[:, -1])
        return out


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_whose_state_is_nan_comes_back(kind: str) -> None:
    torch.manual_seed(0)
    learner = CLASSIFIERS[kind]()
    base = FrozenModel(Network(), softmax=True)
    pipeline = Pipeline(Supervised(1, classes=3), base, [learner])
    values = np.random.default_rng(0).normal(1.0, 2.0, (400, 8)).astype(np.float32)
    judged(
        pipeline,
        [entry(v, t + 1, id=str(t), label=np.float32([t % 3])) for t, v in enumerate(values)],
        learner,
    )
