"""What followed one period ago."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.config.durations import duration_ns
from streamadapt.errors import ConfigError
from streamadapt.learners.compiled import CompiledLearner, Steps
from streamadapt.learners.season import (
    CycleState,
    PeriodState,
    cycle_ago,
    cycle_is_known,
    new_cycle,
    new_period,
    period_ago,
    period_is_known,
    put_in_cycle,
    put_in_period,
)
from streamadapt.models.contract import Spec, TaskKind

__all__ = ["Seasonal"]


class SeasonalSettings(NamedTuple):
    """`period` is in ns, or in entries."""

    period: int


class SeasonalState(NamedTuple):
    """The last period."""

    past: PeriodState | CycleState


@compiled
def predict_by_entries(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out_0 = Z_{t+h-S}``, ``out_1 = Z_t + Z_{t+h-S} - Z_{t-S}``."""
    _, rows, columns = out.shape
    if not period_is_known(s.past, key, x):
        repeat(x.base, out)
        return
    for j in range(columns):
        newest = np.float64(x.window[x.window.shape[0] - 1, j])
        drift = newest - period_ago(s.past, key, x, 0, j)
        for h in range(rows):
            out[0, h, j] = period_ago(s.past, key, x, h + 1, j)
            out[1, h, j] = out[0, h, j] + drift


@compiled
def adapt_by_entries(c: Any, p: Any, s: Any, key: int, w: Any, x: Any) -> None:
    """Remember the newest entry."""
    put_in_period(s.past, key, x)


@compiled
def predict_by_clock(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """The same, S a duration and h steps of time ahead."""
    _, rows, columns = out.shape
    if not cycle_is_known(s.past, key, p.period, x, rows):
        repeat(x.base, out)
        return
    for j in range(columns):
        newest = np.float64(x.window[x.window.shape[0] - 1, j])
        drift = newest - cycle_ago(s.past, key, p.period, x, 0, j)
        for h in range(rows):
            out[0, h, j] = cycle_ago(s.past, key, p.period, x, h + 1, j)
            out[1, h, j] = out[0, h, j] + drift


@compiled
def adapt_by_clock(c: Any, p: Any, s: Any, key: int, w: Any, x: Any) -> None:
    """Remember the newest entry."""
    put_in_cycle(s.past, key, p.period, x)


@compiled
def repeat(base: Any, out: Any) -> None:
    """Predict what the base predicts, in all experts."""
    experts, rows, columns = out.shape
    for e in range(experts):
        for h in range(rows):
            for j in range(columns):
                out[e, h, j] = base[h, j]


class Seasonal(CompiledLearner):
    """Two naive forecasts by the season, S entries long, which know nothing of the base.

    ``seasonal``: ``prediction_h = Z_{t+h-S}``. ``seasonal-drift``:
    ``prediction_h = Z_t + Z_{t+h-S} - Z_{t-S}``, the same path started from the newest value [1]_.
    Where the horizon is longer than a period, the period is repeated. Where what is needed of the
    last period was not seen, both say what the base says. They learn from the entries alone:
    `learn` does nothing.

    Costs O(rows x channels) time per entry, S x channels float32 numbers (`slots` x channels by
    the clock).

    Parameters
    ----------
    period : str or int
        A duration of event time such as ``"1d"``, looked up by the clock; or a number of entries,
        >= 1: 24 for the days of an hourly stream without gaps.
    slots : int, >= 1
        With a duration: the number of slots that a period is cut into; an entry replaces the one
        before it in the same slot. 288 of a day are five minutes each.

    References
    ----------
    .. [1] Hyndman & Athanasopoulos (2021), Forecasting: principles and practice, section 5.2.

    Examples
    --------
    >>> Seasonal("1d", slots=96).names
    ('seasonal-1d', 'seasonal-drift-1d')
    """

    kind: ClassVar[str] = "seasonal"
    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"forecast"})
    needs_labels: ClassVar[bool] = False

    def __init__(self, period: str | int = "1d", *, slots: int = 288) -> None:
        super().__init__()
        if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= 100_000:
            raise ConfigError("slots", slots, "a whole number, 1 to 100000")
        if isinstance(period, str):
            self._length = duration_ns("period", period)
            if self._length < slots:
                raise ConfigError("period", period, "at least one nanosecond for every slot")
        elif (
            isinstance(period, bool) or not isinstance(period, int) or not 1 <= period <= 1_000_000
        ):
            raise ConfigError(
                "period", period, 'a duration such as "1d", or a number of entries, 1 to 1000000'
            )
        else:
            self._length = period
        self.period = period
        self.slots = slots

    @property
    def names(self) -> tuple[str, ...]:
        """``seasonal-1d`` and ``seasonal-drift-1d``."""
        return (f"{self.kind}-{self.period}", f"{self.kind}-drift-{self.period}")

    @classmethod
    def variants(cls) -> tuple[Seasonal, Seasonal]:
        """Return one by the clock, and one by entries."""
        return cls(), cls(1)

    def steps_for(self, spec: Spec) -> Steps:
        """Return the steps by the clock, or by entries."""
        del spec
        if isinstance(self.period, str):
            return Steps(predict_by_clock, adapt=adapt_by_clock)
        return Steps(predict_by_entries, adapt=adapt_by_entries)

    def settings(self, spec: Spec) -> SeasonalSettings:
        """Return the period."""
        return SeasonalSettings(self._length)

    def start(self, spec: Spec) -> SeasonalState:
        """Start with no period known."""
        if isinstance(self.period, str):
            return SeasonalState(new_cycle(self.slots, spec.channels))
        return SeasonalState(new_period(self.period, spec.channels))
