"""A bias for every time of day (or of any other period)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from streamadapt.config.durations import duration_ns
from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner, Maturity, one_or_more, require_shape
from streamadapt.learners.simplex import log_odds
from streamadapt.models.contract import BaseOutput, Spec

__all__ = ["SlotBias"]

NEVER = -(2**63)


class SlotBias(Learner):
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

    Costs O(rows x columns) time, slots x rows x columns float32 numbers per rate.

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
    bias: Tensor
    issued: Tensor

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

    def allocate(self, spec: Spec) -> None:
        """Start without a correction."""
        self._classify = spec.kind == "classification"
        cells = (len(self.rates), spec.rows, spec.columns)
        self.register_buffer(
            "bias", torch.zeros(self.slots, *cells, dtype=torch.float32, device=spec.device)
        )
        # Event times of the last entries predicted, newest first; one more, whose distance is the
        # oldest row's share.
        self.register_buffer(
            "issued", torch.full((spec.rows + 1,), NEVER, dtype=torch.int64, device=spec.device)
        )
        self._rate = torch.tensor(self.rates, dtype=torch.float32, device=spec.device).view(-1, 1)
        self._row = torch.arange(spec.rows, dtype=torch.int64, device=spec.device)

    def _slots(self, times: Tensor) -> Tensor:
        return times % self.period // self._length

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return ``base + b`` of the newest entry's slot, or the softmax of it."""
        del inputs
        slot = 0 if base.times is None else int(self._slots(base.times[-1]))
        if self._classify:
            return torch.softmax(log_odds(base.output) + self.bias[slot], dim=-1)
        return base.output + self.bias[slot]

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go back, and learn nothing from forecasts whose entries the restored state does not
        know."""
        super().restore(snapshot)
        self.issued.fill_(NEVER)

    def forget(self, keep: float) -> None:
        """Shrink b in all slots."""
        self.bias.mul_(keep)

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Move b of the slots that the known rows were issued in."""
        del inputs
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        if self.spec.kind != "forecast" and not bool(mask.any()):
            return  # else the times keep step with the entries, known or not
        if base.times is None:
            slots, share = (
                torch.zeros_like(self._row),
                torch.ones_like(self._rate[0]).expand(len(self._row)),
            )
        else:
            self.issued.copy_(torch.cat([base.times[-1:], self.issued[:-1]]))
            now, before = self.issued[:-1], self.issued[1:]
            mask = mask & (now != NEVER).unsqueeze(1)
            slots = self._slots(now)
            share = (
                ((now - before).abs().float() / self._length)
                .clamp_max(1.0)
                .masked_fill(before == NEVER, 1.0)
            )
        self._move(slots, share, base.output, target, mask)

    def _move(
        self, slots: Tensor, share: Tensor, output: Tensor, target: Tensor, mask: Tensor
    ) -> None:
        """Learn targets (rows, columns), of entries in `slots`, each a `share` of a visit; both
        (rows,)."""
        bias = self.bias[slots, :, self._row]  # (rows, rates, columns)
        rate = ((self._rate * (self.boost * self.weight)).clamp_max(1.0) * share).T.unsqueeze(-1)
        if self._classify:
            said = torch.softmax(log_odds(output).unsqueeze(1) + bias, dim=-1)
            moved = torch.addcmul(bias, target.unsqueeze(1) - said, rate)
        else:
            moved = torch.lerp(bias, (target - output).unsqueeze(1), rate)
        self.bias[slots, :, self._row] = torch.where(mask.unsqueeze(1), moved, bias)
