"""Forecasting a panel: one entry is one time step of all channels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

from streamadapt.errors import ConfigError, EntryError, Reason
from streamadapt.models.contract import TaskKind
from streamadapt.records import Array, Entry, Label, Mask
from streamadapt.tasks.base import Arrival, Example, Matured, Task, Window, positive
from streamadapt.tasks.issued import Issued, pack, unpack
from streamadapt.tasks.places import Place, moved_out

__all__ = ["Forecast"]


class Forecast(Task):
    """Predicts the next `horizon` entries from the last `window` entries, all channels together.

    The targets are the entries themselves: row h of a forecast issued at entry t is known at entry
    t + h, and the whole forecast at t + horizon. Steps are counted in entries.

    Parameters
    ----------
    window : int, >= 1, in entries
        The number of entries that a forecast is made from.
    horizon : int, >= 1, in entries
        The number of entries that a forecast covers.
    loss : str
        The loss by which experts are compared: ``absolute``, ``squared``, or ``pinball-0.9`` for
        the quantile 0.9.

    Examples
    --------
    >>> Forecast(window=12, horizon=3).rows
    3
    """

    name: ClassVar[str] = "forecast"
    kind: TaskKind = "forecast"

    def __init__(self, window: int, horizon: int, *, loss: str = "absolute") -> None:
        super().__init__(window, positive("task.horizon", horizon, 10_000), loss)
        if self.loss.name == "log":
            raise ConfigError("task.loss", loss, "absolute, squared or pinball-q for forecasts")
        self.issued: deque[Issued | Place] = deque(maxlen=horizon)  # oldest first
        self.actual: deque[Array] = deque(maxlen=horizon)  # the newest values, NaN where missing

    def columns(self, channels: int) -> int:
        """Return one column per channel."""
        return channels

    @property
    def pending(self) -> int:
        """The number of forecasts with rows that are not known yet."""
        return len(self.issued)

    def known(self, window: Window) -> Mask | None:
        """Return which channels have had a value; None means all."""
        return None if window.seen.all() else window.seen

    def observe(self, item: Entry | Label) -> Arrival:
        """Mature one row of each open forecast, and slide the window."""
        if isinstance(item, Label):
            raise EntryError(
                Reason.UNKNOWN_LABEL, "a forecast's targets are its own entries", item.position
            )
        self.check_entry(item, None)
        window = self.take_in(item)
        actual = item.values.astype(np.float64)
        self.actual.append(
            actual if self.absurd_values is None else np.where(self.absurd_values, np.nan, actual)
        )
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
        aggregators = np.zeros((len(newest.aggregator_outputs), rows, columns))
        mask = np.zeros((rows, columns), np.bool_)
        for h, issued in enumerate(reversed(self.issued)):  # row h was issued h + 1 entries ago
            experts[:, h] = issued.experts[:, h]
            aggregators[:, h] = issued.aggregator_outputs[:, h]
            mask[h] = True
        mask &= ~np.isnan(actual) & ~np.isnan(experts[0])  # NaN: no prediction of the base
        target = np.where(mask, actual, experts[0])
        base = newest.base._replace(output=self.tensor(np.nan_to_num(experts[0])))
        example = Example(
            newest.inputs, base, self.tensor(target), torch.from_numpy(mask).to(self.device)
        )
        path = self._path() if len(self.issued) == rows else None
        return Matured(example, path, experts, aggregators, target, mask)

    def _path(self) -> Example:
        """Return the example of the forecast whose last row has just become known."""
        oldest = self.issued[0]
        target = np.stack(self.actual)
        mask = ~np.isnan(target) & ~np.isnan(oldest.experts[0])
        return Example(
            oldest.inputs, oldest.base, self.tensor(target), torch.from_numpy(mask).to(self.device)
        )

    def move_waiting(self, moved: Callable[[Issued], Issued]) -> None:
        """Replace each waiting prediction by ``moved(prediction)``."""
        self.issued = deque(
            (moved(moved_out(one)) for one in self.issued), maxlen=self.issued.maxlen
        )

    def remember(self, issued: Issued | Place) -> None:
        """Keep a forecast for `horizon` entries."""
        if len(self.issued) == self.rows:
            oldest = self.issued.popleft()
            if isinstance(oldest, Place):
                oldest.places.release(oldest.row)
        self.issued.append(issued)

    def state_dict(self) -> dict[str, Any]:
        """Return the window, the open forecasts and the newest values."""
        state = super().state_dict()
        state["actual"] = np.stack(self.actual) if self.actual else None
        state["issued"] = pack(self.issued)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self.actual.clear()
        self.actual.extend(
            np.array(row) for row in (() if state["actual"] is None else state["actual"])
        )
        self.issued.clear()
        self.issued.extend(unpack(state["issued"], self.device))
