"""The last period of a panel by the clock: what was seen at each time of day."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamadapt.learners.base import BaseOutput

__all__ = ["LastCycle"]

NEVER = -(2**62)


class LastCycle(nn.Module):
    """The newest values seen in every slot of a period of event time, and when.

    What was seen one period before a time counts if it was at most a slot, or one step of the entries, away from it: a
    gap in the entries costs the forecasts that would need it, and nothing else.
    Costs O(channels) a push and slots x (channels + 2) numbers.

    Parameters
    ----------
    period : int, ns
    slots : int
        An entry replaces the one before it in the same slot: more slots than entries in a period lose nothing.
    channels : int
    device : torch.device
    """

    values: Tensor
    seen: Tensor
    last: Tensor

    def __init__(self, period: int, slots: int, channels: int, device: torch.device) -> None:
        super().__init__()
        self.period, self.slots = period, slots
        self.register_buffer("values", torch.zeros(slots, channels, dtype=torch.float32, device=device))
        self.register_buffer("seen", torch.full((slots,), NEVER, dtype=torch.int64, device=device))  # event times
        self.register_buffer("last", torch.tensor(NEVER, dtype=torch.int64, device=device))

    def _slots(self, times: Tensor) -> Tensor:
        return times % self.period // -(-self.period // self.slots)

    def ago(self, newest: Tensor, base: BaseOutput, rows: int) -> Tensor | None:
        """Return what was seen one period before t, t + d, t + 2 d, ... (d the newest step): (1 + rows, channels).

        `newest` (channels,) and `base` are those of an entry t that has not been put in yet. Steps beyond the period
        repeat it. None where one of them was not seen.
        """
        if base.times is None:
            return None
        now = base.times[-1]
        step = now - (base.times[-2] if len(base.times) > 1 else self.last)
        ahead = torch.arange(rows + 1, dtype=torch.int64, device=now.device) * step
        turns = ((ahead + self.period - 1) // self.period).clamp_min_(1)  # so that none lies after t
        wanted = now + ahead - turns * self.period
        slots = self._slots(wanted)
        own = wanted == now
        near = (self.seen[slots] - wanted).abs() <= torch.clamp(step, min=self.period // self.slots)
        if not bool((near | own).all()) or not bool(step > 0):
            return None
        return torch.where(own.unsqueeze(1), newest, self.values[slots])

    def push(self, newest: Tensor, base: BaseOutput) -> None:
        """Put in the values (channels,) of the newest entry."""
        if base.times is not None:
            now = base.times[-1]
            slot = int(self._slots(now))
            self.values[slot] = newest
            self.seen[slot] = now
            self.last.copy_(now)
