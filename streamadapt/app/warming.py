"""``streamadapt warm``: compile all kernels, once for each installation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np

from streamadapt.config.registry import kinds
from streamadapt.drift.compiled import COMPILED
from streamadapt.drift.monitor import DriftMonitor
from streamadapt.drift.signals import UsualError
from streamadapt.guard.base import Mixture
from streamadapt.guard.two_layer import TwoLayer
from streamadapt.learners.compiled import CompiledLearner
from streamadapt.pipeline.intervals import Intervals
from streamadapt.pipeline.kernels import try_guard, try_learner
from streamadapt.pipeline.label_requests import LabelRequests
from streamadapt.pipeline.stats import Stats
from streamadapt.tasks import Matured, Supervised
from streamadapt.tasks.losses import Absolute
from streamadapt.tasks.outliers import LabelOutliers

__all__ = ["pieces", "warm"]


def warm(show: Callable[[str, int, int], None]) -> int:
    """Compile, or load, every kernel.

    Parameters
    ----------
    show : callable (name, done, total) -> None
        Called before each.

    Returns
    -------
    int
        How many there are.
    """
    found = [*pieces()]
    for i, (name, prepare) in enumerate(found):
        show(name, i, len(found))
        prepare()
    return len(found)


def pieces() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what uses kernels, by name, with a call that compiles or loads them."""
    yield "the guard", partial(try_guard, TwoLayer(), ["base", "expert"], 1, Absolute())
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
