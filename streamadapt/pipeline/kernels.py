"""Compile, or load, what a pipeline will run, before its first entry comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import numpy as np
import torch

from streamadapt.drift.monitor import DriftMonitor
from streamadapt.guard.base import Guard
from streamadapt.learners import Learner
from streamadapt.learners.compiled import CompiledLearner
from streamadapt.models.builtin import Linear
from streamadapt.models.contract import Spec, TaskKind
from streamadapt.pipeline.intervals import Intervals
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.pipeline.pipeline import Pipeline
from streamadapt.pipeline.taking import FIRST
from streamadapt.records import Entry
from streamadapt.tasks import Forecast, Supervised
from streamadapt.tasks.losses import Loss

__all__ = ["Step", "kernel_steps", "try_guard", "try_learner", "try_lots"]

Step = tuple[str, Callable[[], None]]
"""What uses kernels, and a call that compiles or loads them."""


def kernel_steps(pipeline: Pipeline | KeyedPipeline) -> list[Step]:
    """Return the steps that compile or load the kernels of a fresh pipeline; they change nothing
    in it.

    Kernels depend on no size, so that each step works on the smallest arrays.
    """
    one = pipeline.template if isinstance(pipeline, KeyedPipeline) else pipeline
    columns = 2 if one.task.kind == "classification" else 1
    guard = partial(try_guard, one.guard, one.names, columns, one.task.loss)
    learners = [
        (learner.kind, partial(try_learner, learner, one.task.kind, columns))
        for learner in one.learners
        if isinstance(learner, CompiledLearner)
    ]
    lots = partial(try_lots, one.task.kind, one.learners, one.guard, one.intervals.kept > 0)
    return [("the guard", guard), *learners, ("lots", lots)]


def try_learner(learner: Learner, kind: TaskKind, columns: int = 1) -> None:
    """Build a copy of a learner for a task of the smallest size."""
    given, to_predict = (torch.ones(n, dtype=torch.float32) for n in (1, columns))
    spec = Spec(kind, 1, 1, 1, columns, given, given, to_predict, to_predict, torch.device("cpu"))
    deepcopy(learner).build(spec)


def try_lots(
    kind: TaskKind, learners: Sequence[Learner] = (), guard: Guard | None = None,
    intervals: bool = True,
) -> None:  # fmt: skip
    """Take a few entries through a pipeline of the smallest size, in a lot."""
    window, forecast = 2, kind == "forecast"
    classes = 2 if kind == "classification" else None
    task = Forecast(window, 1) if forecast else Supervised(window, classes=classes)
    columns = classes or 1
    sizes = {"input": 1, "output": columns}
    scaling = {f"{side}_loc": torch.zeros(n, dtype=torch.float32) for side, n in sizes.items()}
    scaling |= {f"{side}_scale": torch.ones(n, dtype=torch.float32) for side, n in sizes.items()}
    shape = (window if forecast else window + 1, columns)
    weights = torch.zeros(shape, dtype=torch.float32)
    base = Linear(kind, weights, window, subtract_last=forecast, scaling=scaling)
    pipeline = Pipeline(
        task, base, [one for one in map(deepcopy, learners) if isinstance(one, CompiledLearner)],
        deepcopy(guard), [DriftMonitor("adwin", "loss")],
        intervals=Intervals() if intervals and classes is None else None,
    )  # fmt: skip
    # The first entries are judged one by one.
    entries = [
        Entry(np.array([t % 3.0]), t * 10**9, str(t), label=np.array([t % 2.0]))
        for t in range(FIRST + window + 5)
    ]
    pipeline.observe(entries)


def try_guard(guard: Guard, names: list[str], columns: int, loss: Loss) -> None:
    """Let a copy of a guard mix once, and learn once."""
    guard = deepcopy(guard)
    guard.build(names, 1, columns, loss, np.ones(columns))
    experts = np.full((len(names), 1, columns), 1.0 / columns)
    mixture = guard.mix(experts)
    known = np.ones((1, columns), np.bool_)
    guard.update(experts, mixture.aggregator_outputs, np.ones((1, columns)), known)
