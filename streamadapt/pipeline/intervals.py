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
from streamadapt.errors import ConfigError
from streamadapt.guard.base import Mixture
from streamadapt.pipeline.stats import Stats
from streamadapt.records import Array, Mask
from streamadapt.tasks import Matured, Task

__all__ = ["Intervals", "NoIntervals"]

SCALE_RATE = 0.01
"""The rate per error of the running mean of the served error; the first 1 / SCALE_RATE errors have
equal weights."""
ERROR_CAP = 10.0
"""The running mean clips errors at this many running means: one outlier must not widen the next
hundred intervals."""
FLOOR = 1e-9
"""The smallest running mean, in the unit of the target, so that exact predictions have an
interval, too."""
DELAY_SPAN = 30.0
"""The number of outstanding errors that halves the step; see `Intervals`."""
DELAY_RATE = 0.001
"""The rate of the running mean of the number of outstanding errors; it is small, because a varying
step would bias the coverage."""
KEPT_ROWS = 3
"""Rows of `Issued.aggregator_outputs` that belong to the interval: the served prediction, the
half-width, and the number of known errors at the time of the prediction."""


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
        self._shape: tuple[int, ...] | None = None

    def check(self, task: Task) -> None:
        """Raise `ConfigError` for a classification: a class has no interval."""
        if task.kind == "classification":
            raise ConfigError(
                "intervals",
                self.coverage,
                "no such table: only forecasts and regressions have intervals, not classes",
            )

    def _allocate(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self.quantile = np.full(shape, self.first)
        self.scale = np.zeros(shape)
        self.seen = np.zeros(shape)
        self.delay = np.zeros(shape)

    def issue(self, mixture: Mixture) -> Array:
        """Put the served prediction, the half-width and the count of errors before the guard's
        rows."""
        if self._shape is None:
            self._allocate(mixture.served.shape)
        half = np.where(self.seen > 0.0, np.maximum(self.quantile, 0.0) * self.scale, np.nan)
        return np.concatenate(
            [np.stack([mixture.served, half, self.seen]), mixture.aggregator_outputs]
        )

    def bounds(self, kept: Array) -> tuple[Array, Array]:
        """Return both ends of the interval, (rows, columns); NaN for a cell without a known
        error."""
        served, half, _ = kept[:KEPT_ROWS]
        return served - half, served + half

    def learn(self, matured: Sequence[Matured], stats: Stats) -> Sequence[Matured]:
        """Compare each target with the interval that was issued for it."""
        return [self._learn(one, stats) for one in matured]

    def _learn(self, matured: Matured, stats: Stats) -> Matured:
        served, half, seen_then = matured.aggregator_outputs[:KEPT_ROWS]
        rest = replace(matured, aggregator_outputs=matured.aggregator_outputs[KEPT_ROWS:])
        mask = matured.mask & ~np.isnan(seen_then)  # NaN: it was issued without an interval
        if self._shape is None or not mask.any() or matured.weight == 0.0:
            return rest
        error = np.abs(np.where(mask, matured.target - served, 0.0))
        judged = mask & ~np.isnan(half)
        missed = error > half
        stats.interval_cells += int(judged.sum())
        stats.interval_hits += int((judged & ~missed).sum())
        often = np.maximum(1.0 / (self.seen + 1.0), DELAY_RATE)
        np.copyto(
            self.delay, self.delay + often * (self.seen - seen_then - self.delay), where=mask
        )
        step = self.rate / (1.0 + self.delay / DELAY_SPAN)
        moved = self.quantile + step * (missed - (1.0 - self.coverage))
        np.copyto(self.quantile, moved, where=judged)
        self._follow(error, mask)
        return rest

    def _follow(self, error: Array, mask: Mask) -> None:
        np.copyto(self.seen, self.seen + 1.0, where=mask)
        capped = np.where(self.scale > 0.0, np.minimum(error, ERROR_CAP * self.scale), error)
        rate = np.maximum(1.0 / np.maximum(self.seen, 1.0), SCALE_RATE)
        np.copyto(
            self.scale, np.maximum(self.scale + rate * (capped - self.scale), FLOOR), where=mask
        )

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all arrays; an empty dict before the first prediction."""
        if self._shape is None:
            return {}
        return {
            name: getattr(self, name).copy() for name in ("quantile", "scale", "seen", "delay")
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        self._shape = None
        if state:
            self._allocate(np.shape(state["quantile"]))
            for name, saved in state.items():
                getattr(self, name)[...] = saved
