"""A bias for every time of day (or of any other period)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.config.durations import duration_ns
from streamadapt.errors import ConfigError
from streamadapt.learners.base import Maturity, one_or_more
from streamadapt.learners.bias import BiasRoom, correct, move, shrink
from streamadapt.learners.compiled import CompiledLearner, Steps
from streamadapt.learners.lots import NEVER
from streamadapt.learners.masks import some_known
from streamadapt.models.contract import Spec
from streamadapt.records import Array

__all__ = ["SlotBias"]


class SlotBiasSettings(NamedTuple):
    """`rate` is (experts,); `period` and `length`, of a slot, are in ns."""

    rate: Array
    period: int
    length: int


class SlotBiasState(NamedTuple):
    """Per key: `bias` (slots, experts, rows, columns); `issued` (rows + 1,), the event times of
    the last entries learned, newest first, of which the last one tells the oldest row's share."""

    bias: Array
    issued: Array


@compiled
def predict(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = base + b[slot]``, or the softmax of ``ln base + b[slot]``."""
    slot = slot_of(p, x.times[x.times.shape[0] - 1]) if x.times.shape[0] > 0 else 0
    correct(c, s.bias[key, slot], x, out)


@compiled
def learn(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """Move b of the slots that the known rows were issued in."""
    if not c.forecast and not some_known(y.known):
        return  # the times of forecasts keep step with the entries, known or not
    timed = x.times.shape[0] > 0
    if timed:
        remember(s, key, x.times[x.times.shape[0] - 1])
    for h in range(y.known.shape[0]):
        if not timed:
            move(c, p, s.bias[key, 0], w, x, y, h, 1.0)
        elif s.issued[key, h] != NEVER:
            slot = slot_of(p, s.issued[key, h])
            move(c, p, s.bias[key, slot], w, x, y, h, share_of(p, s, key, h))


@compiled
def forget(c: Any, p: Any, s: Any, key: int, w: Any, keep: float) -> None:
    """Shrink b in all slots."""
    for slot in range(s.bias.shape[1]):
        shrink(s.bias[key, slot], keep)


@compiled
def slot_of(p: Any, time: int) -> int:
    """Return the slot of an event time."""
    slot: int = time % p.period // p.length
    return slot


@compiled
def remember(s: Any, key: int, time: int) -> None:
    """Put an event time before the others."""
    for h in range(s.issued.shape[1] - 1, 0, -1):
        s.issued[key, h] = s.issued[key, h - 1]
    s.issued[key, 0] = time


@compiled
def share_of(p: Any, s: Any, key: int, h: int) -> float:
    """Return the share of a visit that row h stands for."""
    if s.issued[key, h + 1] == NEVER:
        return 1.0
    share: float = abs(s.issued[key, h] - s.issued[key, h + 1]) / p.length
    return min(share, 1.0)


class SlotBias(CompiledLearner):
    """``prediction = base + b[slot]``, an exponentially weighted mean of the base's errors per
    slot of the period.

    The period is cut into `slots` of equal length, counted in event time from the Unix epoch (UTC
    midnight, where the period is a day); a prediction's slot s is that of its entry. With each
    known target::

        b[s] <- b[s] + rate share (target - base - b[s])

    ``share = min(1, time since the last learned entry / length of a slot)``, so that `rate` is
    what one whole visit of the slot moves b by, however many entries fall into it
    (``rate x 24 / S`` an entry, of S entries a day and 24 slots). b starts at zero and moves no
    faster in the first visits: taking the first day's errors whole made it worse than the base on
    a week of road speeds (3.74 against 3.57), moving slowly better (3.51). Classification:
    ``prediction = softmax(ln base + b[s])`` and
    ``b[s] <- b[s] + rate share (target - prediction)``, as `Bias` has it.

    A row of a forecast is learned the moment its target is known. Entries without times all have
    slot 0 and share 1.

    Costs O(rows x columns) time, slots x rows x columns numbers per rate.

    Parameters
    ----------
    rate : float or sequence of floats, in (0, 1]
        Per visit of a slot. Several rates: one expert each.
    period : str or float
        A duration such as ``"1d"``, or seconds.
    slots : int, >= 1
        The number of equal slots that the period is cut into.

    Examples
    --------
    >>> SlotBias(0.1, period="7d", slots=168).names
    ('slot_bias-604800s-168-0.1',)
    """

    kind: ClassVar[str] = "slot_bias"
    matures: ClassVar[Maturity] = "rows"
    steps = Steps(predict, learn, forget=forget)

    def __init__(
        self, rate: float | Sequence[float] = 0.1, *, period: str | float = "1d", slots: int = 24
    ) -> None:
        super().__init__()
        self.rates = one_or_more("rate", rate, 0.0, 1.0)
        if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= 10_000:
            raise ConfigError("slots", slots, "a whole number from 1 to 10000")
        if isinstance(period, str):
            self.period = duration_ns("period", period)
        elif math.isfinite(period) and 0.0 < period < 2**62 / 1e9:
            self.period = round(period * 1e9)
        else:
            raise ConfigError("period", period, 'a duration such as "1d", or seconds > 0')
        self.slots = slots
        if self.period < slots:
            raise ConfigError("period", period, "at least one nanosecond for every slot")
        self._length = -(-self.period // slots)  # ns

    @property
    def names(self) -> tuple[str, ...]:
        """``slot_bias-0.1`` and its siblings; period (s) and slots too, where they are not a day
        and 24."""
        other = (
            ""
            if (self.period, self.slots) == (86_400 * 10**9, 24)
            else f"-{self.period / 1e9:g}s-{self.slots}"
        )
        return tuple(f"{self.kind}{other}-{rate:g}" for rate in self.rates)

    def settings(self, spec: Spec) -> SlotBiasSettings:
        """Return rates, period and length of a slot."""
        return SlotBiasSettings(np.array(self.rates), self.period, self._length)

    def start(self, spec: Spec) -> SlotBiasState:
        """Start without a correction."""
        bias = np.zeros((self.slots, len(self.rates), spec.rows, spec.columns))
        return SlotBiasState(bias, np.full(spec.rows + 1, NEVER))

    def room(self, spec: Spec) -> BiasRoom:
        """Return room for a row of predictions."""
        return BiasRoom(np.zeros(spec.columns))

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go back, and learn nothing from forecasts whose entries the restored state does not
        know."""
        super().restore(snapshot)
        self.state.issued.fill(NEVER)
