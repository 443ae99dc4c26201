"""Forecasting a panel: one entry is one time step of all channels."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from streamadapt.entry import Entry, Label
from streamadapt.errors import ConfigError, EntryError, Reason
from streamadapt.learners.base import BaseOutput, TaskKind
from streamadapt.losses import Array, Mask
from streamadapt.tasks.base import Arrival, Example, Issued, Matured, Task, positive

__all__ = ["Forecast"]


class Forecast(Task):
    """From the last `window` entries to the next `horizon`, all channels at once.

    The targets are the entries themselves: a forecast issued at entry t has row h known at entry t + h, and is whole at
    t + horizon. Steps are counted in entries.

    Parameters
    ----------
    window : int, >= 1, in entries
    horizon : int, >= 1, in entries
    loss : {"absolute", "squared"}
    """

    name: ClassVar[str] = "forecast"
    kind: TaskKind = "forecast"

    def __init__(self, window: int, horizon: int, *, loss: str = "absolute") -> None:
        super().__init__(window, positive("task.horizon", horizon, 10_000), loss)
        if self.loss.name == "log":
            raise ConfigError("task.loss", loss, "absolute or squared for forecasts")
        self.issued: deque[Issued] = deque(maxlen=horizon)  # oldest first
        self.actual: deque[Array] = deque(maxlen=horizon)  # the newest values, NaN where missing

    def columns(self, channels: int) -> int:
        """Return one column per channel."""
        return channels

    @property
    def pending(self) -> int:
        """Forecasts with rows still open."""
        return len(self.issued)

    def known(self) -> Mask | None:
        """Return which channels were ever observed."""
        return None if self.window is None or self.window.seen.all() else self.window.seen

    def observe(self, item: Entry | Label) -> Arrival:
        """Mature one row of each open forecast, and slide the window."""
        if isinstance(item, Label):
            raise EntryError(Reason.UNKNOWN_LABEL, "a forecast's targets are its own entries", item.position)
        self.check_entry(item, None)
        window = self.take_in(item)
        self.actual.append(item.values.astype(np.float64))
        arrival = Arrival()
        if self.issued:
            arrival.matured.append(self._mature(self.actual[-1]))
        if window.full:
            arrival.inputs = window.values
        return arrival

    def _mature(self, actual: Array) -> Matured:
        newest = self.issued[-1]
        rows, columns = newest.base.output.shape
        experts = np.zeros((len(newest.experts), rows, columns))
        own = np.zeros((len(newest.own), rows, columns))
        mask = np.zeros((rows, columns), np.bool_)
        for h, issued in enumerate(reversed(self.issued)):  # row h was issued h + 1 entries ago
            experts[:, h] = issued.experts[:, h]
            own[:, h] = issued.own[:, h]
            mask[h] = True
        mask &= ~np.isnan(actual) & ~np.isnan(experts[0])  # NaN: the base said nothing
        target = np.where(mask, actual, experts[0])
        said = BaseOutput(self._tensor(np.nan_to_num(experts[0])), newest.base.embedding)
        example = Example(newest.inputs, said, self._tensor(target), torch.from_numpy(mask).to(self.device))
        path = self._path() if len(self.issued) == rows else None
        return Matured(example, path, experts, own, target, mask)

    def _path(self) -> Example:
        """The forecast that has just become whole."""
        oldest = self.issued[0]
        target = np.stack(self.actual)
        mask = ~np.isnan(target) & ~np.isnan(oldest.experts[0])
        return Example(oldest.inputs, oldest.base, self._tensor(target), torch.from_numpy(mask).to(self.device))

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array.astype(np.float32)).to(self.device)

    def remember(self, issued: Issued) -> None:
        """Keep a forecast for `horizon` entries."""
        self.issued.append(issued)

    def state_dict(self) -> dict[str, Any]:
        """Return the window, the open forecasts and the newest values."""
        state = super().state_dict()
        state["actual"] = np.stack(self.actual) if self.actual else None
        if self.issued:
            first = self.issued[0]
            state["issued"] = {
                "inputs": torch.stack([i.inputs for i in self.issued]),
                "base": torch.stack([i.base.output for i in self.issued]),
                "embedding": None
                if first.base.embedding is None
                else torch.stack([i.base.embedding for i in self.issued if i.base.embedding is not None]),
                "experts": np.stack([i.experts for i in self.issued]),
                "own": np.stack([i.own for i in self.issued]),
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self.actual.clear()
        self.actual.extend(np.array(row) for row in (() if state["actual"] is None else state["actual"]))
        self.issued.clear()
        saved = state.get("issued")
        for i in range(0 if saved is None else len(saved["inputs"])):
            assert saved is not None
            embedding = None if saved["embedding"] is None else saved["embedding"][i].to(self.device)
            output = BaseOutput(saved["base"][i].to(self.device), embedding)
            # The entry itself is not needed any more: targets come from the entries that follow.
            nobody = Entry(np.zeros(0, np.float32), 0)
            inputs = saved["inputs"][i].to(self.device)
            self.issued.append(Issued(nobody, inputs, output, np.array(saved["experts"][i]), np.array(saved["own"][i])))
