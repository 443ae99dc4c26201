"""Prediction intervals that keep their coverage: online quantile tracking of the served errors.

Nothing is assumed of the stream. Each cell of the output has a half-width of its own, which grows
when its interval missed and shrinks when it held, so that the share of misses comes to what it
should be, through drift too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from streamadapt.arguments import ShowsArguments
from streamadapt.errors import ConfigError
from streamadapt.guard.two_layer import Mixture
from streamadapt.pipeline.stats import Stats
from streamadapt.records import Array, Mask
from streamadapt.tasks import Matured, Task

__all__ = ["Intervals", "NoIntervals"]

SCALE_RATE = 0.01
"""How fast the running mean of the served error follows it, per error; the first 1 / SCALE_RATE
count alike."""
ERROR_CAP = 10.0
"""Errors beyond so many running means count as that many in it: one outlier must not widen the
next hundred."""
FLOOR = 1e-9
"""Smallest running mean, in the target's own unit: what is predicted exactly has an interval all
the same."""
DELAY_SPAN = 30.0
"""Errors on their way that halve the step; see `Intervals`."""
DELAY_RATE = 0.001
"""How fast the running mean of the errors on their way follows them: a step that varied would tilt
the coverage."""
KEPT = 3
"""Rows of `Issued.aggregator_outputs` that belong to the interval: the served prediction, the
half-width, and the number of errors known by then."""


class NoIntervals(ShowsArguments):
    """Says nothing about errors.

    Attributes
    ----------
    kept : int
        Rows that `issue` puts before the guard's own.
    """

    kept: ClassVar[int] = 0

    def check(self, task: Task) -> None:
        """Suit every task."""
        del task

    def issue(self, mixture: Mixture) -> Array:
        """Return what must be kept of a prediction until its target is known, (n, rows,
        columns)."""
        return mixture.aggregator_outputs

    def bounds(self, own: Array) -> tuple[Array, Array] | tuple[None, None]:
        """Return the interval's two ends, (rows, columns), of a prediction of which `own` was
        kept; or nothing."""
        del own
        return None, None

    def learn(self, matured: Sequence[Matured], stats: Stats) -> Sequence[Matured]:
        """Learn from what has matured, count it, and return it without what `issue` added."""
        del stats
        return matured

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all arrays."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


class Intervals(NoIntervals):
    """Adaptive conformal intervals around what is served [1]_, [2]_.

    Per cell (row and column), with a the share that may be missed, s a running mean of the served
    absolute error and q the quantile tracked::

        low, high = served - q s, served + q s           as issued
        q <- q + g (missed - a),    g = rate / (1 + n / 30)

    when the target is known, `missed` being whether it was outside of the interval as issued and n
    how many of the cell's errors became known in between: many errors on their way must not all
    push q for the same reason. Without steps that vary, q's change is g (misses - a T): after T
    errors the share of misses differs from a by at most ``(q's range) / (g T)``, for any stream,
    however late its labels ([2]_, proposition 1; q's range is that of the errors in units of s,
    and the steps that were on their way). The first q is a normal distribution's.

    A cell has no interval (NaN) before its first error is known. Costs, a step: some ten passes
    over (rows, columns).

    Parameters
    ----------
    coverage : float, in (0, 1)
        The share of the targets that lie within their interval.
    rate : float, > 0
        How fast the width follows the misses (the step of q, in running means of the error).
        Lower: steadier intervals, which take longer to get the coverage right.

    References
    ----------
    .. [1] Gibbs & Candes (2021), Adaptive conformal inference under distribution shift, NeurIPS.
    .. [2] Angelopoulos, Candes & Tibshirani (2023), Conformal PID control for time series
       prediction, NeurIPS.
    """

    kept: ClassVar[int] = KEPT

    def __init__(self, coverage: float = 0.9, rate: float = 0.2) -> None:
        if not 0.0 < coverage < 1.0:
            raise ConfigError("intervals.coverage", coverage, "a share between 0 and 1")
        if not 0.0 < rate < np.inf:
            raise ConfigError("intervals.rate", rate, "a finite number > 0")
        self.coverage = coverage
        self.rate = rate
        normal = NormalDist()
        self.first = normal.inv_cdf(0.5 + 0.5 * coverage) * np.sqrt(
            0.5 * np.pi
        )  # in units of the mean absolute error
        self._shape: tuple[int, ...] | None = None

    def check(self, task: Task) -> None:
        """Raise `ConfigError` for a task whose errors have no size."""
        if task.kind == "classification":
            raise ConfigError(
                "intervals",
                self.coverage,
                "no intervals: a class has none; forecasts and numbers do",
            )

    def _allocate(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self.quantile = np.full(shape, self.first)
        self.scale = np.zeros(shape)
        self.seen = np.zeros(shape)
        self.delay = np.zeros(shape)

    def issue(self, mixture: Mixture) -> Array:
        """Put what was served, its half-width and the count of errors before the guard's own
        rows."""
        if self._shape is None:
            self._allocate(mixture.served.shape)
        half = np.where(self.seen > 0.0, np.maximum(self.quantile, 0.0) * self.scale, np.nan)
        return np.concatenate(
            [np.stack([mixture.served, half, self.seen]), mixture.aggregator_outputs]
        )

    def bounds(self, own: Array) -> tuple[Array, Array]:
        """Return the two ends, (rows, columns); NaN where nothing is known of errors yet."""
        served, half, _ = own[:KEPT]
        return served - half, served + half

    def learn(self, matured: Sequence[Matured], stats: Stats) -> Sequence[Matured]:
        """Charge each target to the interval as it was issued."""
        return [self._learn(one, stats) for one in matured]

    def _learn(self, matured: Matured, stats: Stats) -> Matured:
        served, half, seen_then = matured.aggregator_outputs[:KEPT]
        rest = replace(matured, aggregator_outputs=matured.aggregator_outputs[KEPT:])
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
        """Return copies of all arrays; nothing before the first prediction."""
        if self._shape is None:
            return {}
        return {
            name: getattr(self, name).copy() for name in ("quantile", "scale", "seen", "delay")
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._shape = None
        if state:
            self._allocate(np.shape(state["quantile"]))
            for name, saved in state.items():
                getattr(self, name)[...] = saved
