"""The last period of a panel: kept entry by entry, or by the clock."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamadapt.models.contract import BaseOutput

__all__ = ["LastCycle", "LastPeriod"]

NEVER = -(2**63)


class LastPeriod(nn.Module):
    """The values of the last `period` entries, and whether they follow each other without a gap.

    A gap is seen where the entry before the newest one, as the window tells its time, is not the
    entry that was put in last: after a restore, say. What is held then is no longer one period
    ago, and is not used. Costs O(channels) a push and period x channels float32 numbers.

    Parameters
    ----------
    period : int, >= 1, in entries
    channels : int
    device : torch.device
    """

    values: Tensor
    count: Tensor
    last: Tensor

    def __init__(self, period: int, channels: int, device: torch.device) -> None:
        super().__init__()
        self.period = period
        self.register_buffer(
            "values", torch.zeros(period, channels, dtype=torch.float32, device=device)
        )
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))
        # Event time of the entry put in last.
        self.register_buffer("last", torch.tensor(NEVER, dtype=torch.int64, device=device))

    def _continues(self, times: Tensor | None) -> bool:
        if times is None or len(times) < 2:  # nothing to see a gap by
            return True
        return bool(times[-2] == self.last)

    def ago(self, newest: Tensor, base: BaseOutput, rows: int) -> Tensor | None:
        """Return what followed one period ago, (1 + rows, channels), original units: Z_{t-S},
        Z_{t-S+1}, ...

        `newest` (channels,) and `base` are those of an entry t that has not been put in yet. Rows
        beyond the period repeat it. None until a whole period is known.
        """
        count = int(self.count)
        if count < self.period or not self._continues(base.times):
            return None
        steps = torch.arange(1, rows + 1, dtype=torch.int64, device=self.values.device)
        steps = torch.cat([steps.new_zeros(1), (steps - 1) % self.period + 1])
        # Entry i lies at i % period, and t is entry `count`.
        found = self.values[(count + steps) % self.period]
        if self.period <= rows:
            found[self.period :: self.period] = newest  # one period before t + S is t itself
        return found

    def push(self, newest: Tensor, base: BaseOutput) -> None:
        """Put in the values (channels,) of the newest entry."""
        count = int(self.count) if self._continues(base.times) else 0
        self.values[count % self.period] = newest
        self.count.fill_(count + 1)
        if base.times is not None:
            self.last.copy_(base.times[-1])


NEVER_SEEN = -(2**62)


class LastCycle(nn.Module):
    """The newest values seen in every slot of a period of event time, and when.

    What was seen one period before a time counts if it was at most a slot, or one step of the
    entries, away from it: a gap in the entries costs the forecasts that would need it, and nothing
    else. Costs O(channels) a push and slots x (channels + 2) numbers.

    Parameters
    ----------
    period : int, ns
    slots : int
        An entry replaces the one before it in the same slot: more slots than entries in a period
        lose nothing.
    channels : int
    device : torch.device
    """

    values: Tensor
    seen: Tensor
    last: Tensor

    def __init__(self, period: int, slots: int, channels: int, device: torch.device) -> None:
        super().__init__()
        self.period, self.slots = period, slots
        self.register_buffer(
            "values", torch.zeros(slots, channels, dtype=torch.float32, device=device)
        )
        self.register_buffer(
            "seen", torch.full((slots,), NEVER_SEEN, dtype=torch.int64, device=device)
        )  # event times
        self.register_buffer("last", torch.tensor(NEVER_SEEN, dtype=torch.int64, device=device))

    def _slots(self, times: Tensor) -> Tensor:
        return times % self.period // -(-self.period // self.slots)

    def ago(self, newest: Tensor, base: BaseOutput, rows: int) -> Tensor | None:
        """Return what was seen one period before t, t + d, t + 2 d, ... (d the newest step): (1 +
        rows, channels).

        `newest` (channels,) and `base` are those of an entry t that has not been put in yet. Steps
        beyond the period repeat it. None where one of them was not seen.
        """
        if base.times is None:
            return None
        now = base.times[-1]
        step = now - (base.times[-2] if len(base.times) > 1 else self.last)
        ahead = torch.arange(rows + 1, dtype=torch.int64, device=now.device) * step
        # So that none lies after t.
        turns = ((ahead + self.period - 1) // self.period).clamp_min_(1)
        wanted = now + ahead - turns * self.period
        slots = self._slots(wanted)
        own = wanted == now
        near = (self.seen[slots] - wanted).abs() <= torch.clamp(
            step, min=self.period // self.slots
        )
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
