"""What followed one period ago."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from streamadapt.config.durations import duration_ns
from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner
from streamadapt.learners.season import LastCycle, LastPeriod
from streamadapt.models.contract import BaseOutput, Spec, TaskKind

__all__ = ["Seasonal"]


class Seasonal(Learner):
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

    past: LastPeriod | LastCycle

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
        self.period = period
        self.slots = slots

    @property
    def names(self) -> tuple[str, ...]:
        """``seasonal-1d`` and ``seasonal-drift-1d``."""
        return (f"{self.kind}-{self.period}", f"{self.kind}-drift-{self.period}")

    def allocate(self, spec: Spec) -> None:
        """Start with no period known."""
        if isinstance(self.period, str):
            self.past = LastCycle(self._length, self.slots, spec.channels, spec.device)
        else:
            self.past = LastPeriod(self.period, spec.channels, spec.device)

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return both forecasts, or the base's twice."""
        newest = inputs[-1]
        ago = self.past.ago(newest, base, self.spec.rows)
        if ago is None:
            return base.output.expand(2, -1, -1).clone()
        path = ago[1:]
        return torch.stack([path, path + (newest - ago[0])])

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Nothing: targets are entries, and `adapt` sees those."""

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        """Remember the newest entry."""
        self.past.push(inputs[-1], base)
