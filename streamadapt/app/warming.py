"""``streamadapt warm``: compile all kernels, once for each installation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple, cast

import numpy as np

from streamadapt.compiled import not_kept
from streamadapt.config.registry import kinds
from streamadapt.drift.compiled import COMPILED
from streamadapt.drift.monitor import DriftMonitor
from streamadapt.drift.signals import UsualError
from streamadapt.guard.base import Mixture
from streamadapt.guard.two_layer import TwoLayer
from streamadapt.learners.compiled import CompiledLearner
from streamadapt.pipeline.intervals import Intervals
from streamadapt.pipeline.kernels import try_guard, try_learner, try_lots
from streamadapt.pipeline.label_requests import LabelRequests
from streamadapt.pipeline.stats import Stats
from streamadapt.tasks import Matured, Supervised
from streamadapt.tasks.losses import Absolute
from streamadapt.tasks.outliers import LabelOutliers

__all__ = ["Warmed", "compile_piece", "pieces", "warm"]


SLOW = ("lots of a forecast", "error_memory", "the guard", "rls", "adcsd", "dictionary")
"""What takes longest to compile comes first, so that no process is left with it at the end."""
MOST_PROCESSES = 4


class Warmed(NamedTuple):
    """What `warm` did.

    Attributes
    ----------
    parts : int
        How many pieces there are.
    problem : str
        Why what was compiled is not kept; empty if it is.
    """

    parts: int
    problem: str


def warm(show: Callable[[int, int], None], processes: int | None = None) -> Warmed:
    """Compile every kernel that has not been compiled yet, in several processes.

    Parameters
    ----------
    show : callable (done, total) -> None
        Called after each.
    processes : int, optional
        Default: one for each processor, up to `MOST_PROCESSES`.
    """
    names = [name for name, _ in pieces()]
    names.sort(key=lambda name: SLOW.index(name) if name in SLOW else len(SLOW))
    processes = processes or min(os.cpu_count() or 1, MOST_PROCESSES)
    problems = []
    # New interpreters: this one may have threads, which a fork would not copy.
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        show(0, len(names))
        for done, problem in enumerate(pool.map(compile_piece, names), 1):
            show(done, len(names))
            problems.append(problem)
    return Warmed(len(names), next(filter(None, problems), ""))


def compile_piece(name: str) -> str:
    """Compile one of the `pieces`; return why what was compiled is not kept, or an empty text."""
    dict(pieces())[name]()
    return not_kept()


def pieces() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what uses kernels, by name, with a call that compiles or loads them."""
    yield "the guard", partial(try_guard, TwoLayer(), ["base", "expert"], 1, Absolute())
    for kind in ("forecast", "regression", "classification"):
        yield f"lots of a {kind}", partial(try_lots, kind)
    yield "loss estimates", _estimates
    yield "intervals", _intervals
    yield "outliers", _outliers
    yield "signals", _signals
    for name in COMPILED:
        yield f"the detector {name}", partial(_detector, name)
    for kind, point in sorted(kinds("learners").items()):
        made = point.load()
        if isinstance(made, type) and issubclass(made, CompiledLearner):
            yield kind, _building(made)


def _building(learner: type[CompiledLearner]) -> Callable[[], object]:
    def build() -> None:
        for made in learner.variants():
            for kind in sorted(made.kinds):
                try_learner(made, kind)

    return build


def _estimates() -> None:
    for task in (Supervised(), Supervised(classes=2)):
        columns = task.columns(1)
        experts, one = np.ones((2, 1, columns)), np.ones((1, columns))
        requests = LabelRequests(task)
        note = requests.record(experts, one[:1], one, commit=True)
        row: Any = None
        requests.learn(Matured(row, row, experts, experts, one, one > 0.0, note=note))


def _intervals() -> None:
    intervals, one, row = Intervals(), np.ones((1, 1)), cast(Any, None)
    kept = intervals.issue(Mixture(one, one[None], one[0]))
    intervals.learn([Matured(row, row, one[None], kept, one, one > 0.0)], Stats())


def _outliers() -> None:
    LabelOutliers(1, 100.0).outliers(np.ones(1), np.ones(1))


def _signals() -> None:
    one = np.ones((1, 1))
    UsualError().signals(one, one, one > 0.0, Absolute(), "regression")


def _detector(name: Any) -> None:
    DriftMonitor(name).update(1.0)
