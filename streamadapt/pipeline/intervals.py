"""Prediction intervals that keep their coverage, by online quantile tracking of the served errors.

They assume nothing about the stream. Each cell of the output has its own half-width, which grows
after a miss and shrinks after a hit. So the share of misses approaches its target, also during
drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from streamadapt.arguments import ShowsArguments
from streamadapt.compiled import Kernel
from streamadapt.errors import ConfigError
from streamadapt.guard.base import Mixture
from streamadapt.pipeline.interval_kernels import (
    KEPT_ROWS,
    IntervalSettings,
    IntervalState,
    empty_intervals,
    issue,
    learn,
)
from streamadapt.pipeline.stats import Stats
from streamadapt.records import Array
from streamadapt.tasks import Matured, Task

__all__ = ["Intervals", "NoIntervals"]


class NoIntervals(ShowsArguments):
    """No prediction intervals.

    Attributes
    ----------
    kept : int
        The number of rows that `issue` puts before the rows of the guard.
    """

    kept: ClassVar[int] = 0

    def check(self, task: Task) -> None:
        """Accept every task."""
        del task

    def issue(self, mixture: Mixture) -> Array:
        """Return the rows to keep with a prediction until its target is known, (n, rows,
        columns)."""
        return mixture.aggregator_outputs

    def bounds(self, kept: Array) -> tuple[Array, Array] | tuple[None, None]:
        """Return both ends of the interval, (rows, columns), from the rows of `issue`; None if
        there are no intervals."""
        del kept
        return None, None

    def learn(self, matured: Sequence[Matured], stats: Stats) -> Sequence[Matured]:
        """Learn from matured examples, count them, and return them without the rows of
        `issue`."""
        del stats
        return matured

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all arrays."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""


class Intervals(NoIntervals):
    """Adaptive conformal intervals around the served prediction [1]_, [2]_.

    Per cell (row and column), with a the allowed share of misses, s a running mean of the served
    absolute error and q the tracked quantile::

        low, high = served - q s, served + q s           when the prediction is issued
        q <- q + g (missed - a),    g = rate / (1 + n / 30)

    The update is made when the target is known. `missed` is 1 if the target was outside of the
    issued interval, and n is the number of the cell's errors that became known between prediction
    and target: many outstanding errors must not all move q for the same reason. With a constant
    step, the change of q is g (misses - a T). So after T errors the share of misses differs from a
    by at most ``(q's range) / (g T)``, for any stream and any delay of its labels ([2]_,
    proposition 1; q's range is that of the errors in units of s, plus the outstanding steps). The
    first q is that of a normal distribution.

    A cell has no interval (NaN) before its first error is known. Costs per step: about ten passes
    over (rows, columns).

    Parameters
    ----------
    coverage : float, in (0, 1)
        The share of targets that should be inside their interval.
    rate : float, > 0
        The step of q after a miss, in running means of the error. With a lower rate, the width
        varies less, but it takes longer until the coverage is right.

    References
    ----------
    .. [1] Gibbs & Candes (2021), Adaptive conformal inference under distribution shift, NeurIPS.
    .. [2] Angelopoulos, Candes & Tibshirani (2023), Conformal PID control for time series
       prediction, NeurIPS.
    """

    kept: ClassVar[int] = KEPT_ROWS

    def __init__(self, coverage: float = 0.9, rate: float = 0.2) -> None:
        if not 0.0 < coverage < 1.0:
            raise ConfigError("intervals.coverage", coverage, "a share between 0 and 1")
        if not 0.0 < rate < np.inf:
            raise ConfigError("intervals.rate", rate, "a finite number > 0")
        self.coverage = coverage
        self.rate = rate
        normal = NormalDist()
        # In units of the mean absolute error.
        self.first = normal.inv_cdf(0.5 + 0.5 * coverage) * np.sqrt(0.5 * np.pi)
        self.settings = IntervalSettings(1.0 - coverage, rate)
        self.state: IntervalState | None = None  # of one key

    def check(self, task: Task) -> None:
        """Raise `ConfigError` for a classification: a class has no interval."""
        if task.kind == "classification":
            raise ConfigError(
                "intervals",
                self.coverage,
                "no such table: only forecasts and regressions have intervals, not classes",
            )

    def issue(self, mixture: Mixture) -> Array:
        """Put the served prediction, the half-width and the count of errors before the guard's
        rows."""
        served = np.array(mixture.served, np.float64, order="C")
        if self.state is None:
            self.state = empty_intervals(1, served.shape, self.first)
        kept = np.zeros((KEPT_ROWS, *served.shape))
        _issue.call(self.settings, self.state, 0, served, kept)
        return np.concatenate([kept, mixture.aggregator_outputs])

    def bounds(self, kept: Array) -> tuple[Array, Array]:
        """Return both ends of the interval, (rows, columns); NaN for a cell without a known
        error."""
        served, half, _ = kept[:KEPT_ROWS]
        return served - half, served + half

    def learn(self, matured: Sequence[Matured], stats: Stats) -> Sequence[Matured]:
        """Compare each target with the interval that was issued for it."""
        return [self._learn(one, stats) for one in matured]

    def _learn(self, matured: Matured, stats: Stats) -> Matured:
        kept, rest = np.split(matured.aggregator_outputs, [KEPT_ROWS])
        if self.state is not None:
            counts = np.zeros((1, 2), np.int64)
            _learn.call(
                self.settings,
                self.state,
                0,
                *(np.array(each, np.float64, order="C") for each in (kept, matured.target)),
                np.array(matured.mask, np.bool_, order="C"),
                float(matured.weight),
                counts,
            )
            stats.interval_cells += int(counts[0, 0])
            stats.interval_hits += int(counts[0, 1])
        return replace(matured, aggregator_outputs=rest)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all arrays; an empty dict before the first prediction."""
        if self.state is None:
            return {}
        return {name: array[0].copy() for name, array in self.state._asdict().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        self.state = None
        if state:
            self.state = empty_intervals(1, np.shape(state["quantile"]), self.first)
            for name, saved in state.items():
                getattr(self.state, name)[0] = saved


_issue, _learn = Kernel(issue), Kernel(learn)
