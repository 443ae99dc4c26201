"""Compile, or load, what a pipeline will run, before its first entry comes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import numpy as np
import torch

from streamadapt.guard.base import Guard
from streamadapt.learners import Learner
from streamadapt.learners.compiled import CompiledLearner
from streamadapt.models.contract import Spec, TaskKind
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.pipeline.pipeline import Pipeline
from streamadapt.tasks.losses import Loss

__all__ = ["Step", "kernel_steps", "try_guard", "try_learner"]

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
    return [("the guard", guard), *learners]


def try_learner(learner: Learner, kind: TaskKind, columns: int = 1) -> None:
    """Build a copy of a learner for a task of the smallest size."""
    given, to_predict = torch.ones(1), torch.ones(columns)
    spec = Spec(kind, 1, 1, 1, columns, given, given, to_predict, to_predict, torch.device("cpu"))
    deepcopy(learner).build(spec)


def try_guard(guard: Guard, names: list[str], columns: int, loss: Loss) -> None:
    """Let a copy of a guard mix once, and learn once."""
    guard = deepcopy(guard)
    guard.build(names, 1, columns, loss, np.ones(columns))
    experts = np.full((len(names), 1, columns), 1.0 / columns)
    mixture = guard.mix(experts)
    known = np.ones((1, columns), np.bool_)
    guard.update(experts, mixture.aggregator_outputs, np.ones((1, columns)), known)
