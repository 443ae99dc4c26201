"""Shared by the tests of the core: seeded streams, calling a learner directly, comparing bit for
bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamadapt import (
    ADCSD,
    RLS,
    Bias,
    Entry,
    Forecast,
    Label,
    Persistence,
    Pipeline,
    Position,
    Prediction,
    River,
    Supervised,
)
from streamadapt.learners import BaseOutput, Learner, Spec
from streamadapt.models.contract import Base, as_base
from streamadapt.testing.checks.cases import state_bytes

torch.set_num_threads(1)  # small steps: a second thread costs more than it saves

CPU = torch.device("cpu")


def spec_of(
    kind: Any,
    window: int,
    channels: int,
    rows: int,
    columns: int,
    *,
    scale: Tensor | None = None,
    **more: Any,
) -> Spec:
    """Return a spec without a location; the scale is that of inputs and outputs."""
    scale = torch.ones(max(channels, columns)) if scale is None else scale
    return Spec(
        kind, window, channels, rows, columns, torch.zeros(channels), scale[:channels],
        torch.zeros(columns), scale[:columns], CPU, **more,
    )  # fmt: skip


def with_scaling(base: Any, channels: int, columns: int) -> Base:
    """Return a base with a scaling of ones: no scale has to settle, and nothing is learned
    twice."""
    base = as_base(base)
    for name, count in (("input", channels), ("output", columns)):
        setattr(base, f"{name}_loc", torch.zeros(count))
        setattr(base, f"{name}_scale", torch.ones(count))
    return base


def built(learner: Any, spec: Spec) -> Any:
    """Build a learner and return it."""
    assert isinstance(learner, Learner)
    learner.build(spec)
    return learner


def base(output: Any) -> BaseOutput:
    return BaseOutput(torch.as_tensor(np.asarray(output), dtype=torch.float32))


def entry(values: Any, time: int, **more: Any) -> Entry:
    return Entry(
        np.atleast_1d(np.asarray(values, np.float32)),
        time,
        position=Position("t", 0, time),
        **more,
    )


def walk(n: int, channels: int = 2, seed: int = 0, missing: float = 0.0) -> np.ndarray[Any, Any]:
    """Return a mean-reverting walk around 10, with some values missing."""
    rng = np.random.default_rng(seed)
    z = np.zeros((n, channels))
    for t in range(1, n):
        z[t] = 0.9 * z[t - 1] + 0.5 * rng.normal(size=channels)
    z += 10.0
    z[rng.random(z.shape) < missing] = np.nan
    return z.astype(np.float32)


def entries(values: Iterable[Any], **more: Any) -> list[Entry]:
    return [entry(row, t + 1, id=str(t), **more) for t, row in enumerate(values)]


def bits(predictions: Sequence[Prediction]) -> list[Any]:
    """Return a form in which equality means the same predictions, bit for bit."""
    return [
        (
            p.id,
            p.time,
            p.served.tobytes(),
            p.base.tobytes(),
            {k: v.tobytes() for k, v in p.experts.items()},
            dict(p.weights),
            p.drifts,
        )
        for p in predictions
    ]


def state(pipeline: Pipeline, *, without: Sequence[str] = ()) -> bytes:
    """Return a pipeline's whole state as bytes."""
    return state_bytes({k: v for k, v in pipeline.state_dict().items() if k not in without})


def items_in_order(*streams: Sequence[Entry | Label]) -> list[Entry | Label]:
    """Return entries and labels by time; a label before an entry of the same time."""
    return sorted((i for s in streams for i in s), key=lambda i: (i.time, isinstance(i, Entry)))


def pipeline_of(kind: str, **more: Any) -> Pipeline:
    """Return a pipeline with every kind of learner for a stream of `stream_of`."""
    if kind == "forecast":
        learners: list[Learner] = [Bias((0.1, 0.02)), RLS(0.99), ADCSD(1e-3, share_norm=True)]
        return Pipeline(Forecast(4, 3), Persistence(3), learners, **more)
    if kind == "classes":
        return Pipeline(
            Supervised(1, classes=3), softmax_base, [River("naive_bayes.GaussianNB")], **more
        )
    task = Supervised(2, outputs=2, ttl=1_000)
    return Pipeline(
        task,
        linear_base,
        [Bias((0.1, 0.02)), RLS(0.99), River("linear_model.LinearRegression")],
        **more,
    )


def linear_base(inputs: Tensor) -> Tensor:
    """Two outputs from the newest of two channels, wrong by a constant."""
    return torch.stack([inputs[-1, 0] + 1.0, inputs[-1, 1] - 2.0]).unsqueeze(0)


def softmax_base(inputs: Tensor) -> Tensor:
    """Three classes, with moderate accuracy."""
    return torch.softmax(
        torch.stack([inputs[-1, 0] - 10.0, torch.zeros(()), 10.0 - inputs[-1, 1]]), 0
    ).unsqueeze(0)


KINDS = ("forecast", "own labels", "late labels", "classes")


def stream_of(kind: str, n: int = 90, seed: int = 0) -> list[Entry | Label]:
    """Return entries with their labels inside, or 7 entries late, or with their own targets; some
    values and labels are missing."""
    rng = np.random.default_rng(seed + 100)
    values = walk(n, 2, seed, missing=0.0 if kind == "classes" else 0.05)
    if kind == "forecast":
        return list(entries(values))
    filled = np.nan_to_num(values, nan=10.0)
    if kind == "classes":
        targets = (filled.sum(1) > 19.5).astype(np.float32)[:, None] + (filled[:, :1] > 10.5)
        targets[rng.random(n) < 0.1] = np.nan
    else:
        targets = (filled * 0.5 + rng.normal(size=filled.shape)).astype(np.float32)
        targets[rng.random(targets.shape) < 0.1] = np.nan
    targets = targets.astype(np.float32)
    if kind != "late labels":
        return [
            entry(v, t + 1, id=str(t), label=y)
            for t, (v, y) in enumerate(zip(values, targets, strict=True))
        ]
    labels = [Label(str(t), y, t + 8) for t, y in enumerate(targets[: n - 7])]
    return items_in_order(entries(values), labels)
