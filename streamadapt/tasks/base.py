"""The base class of tasks: a task defines input and target, and when a target is known."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from streamadapt.arguments import ShowsArguments
from streamadapt.errors import ConfigError, EntryError, LabelError, Reason
from streamadapt.models.contract import BaseOutput, TaskKind
from streamadapt.models.origin import FLOAT32_MAX, less_origin
from streamadapt.records import Array, Entry, FloatArray, Label, Mask, Position
from streamadapt.tasks.class_names import ClassName
from streamadapt.tasks.event_clock import EventClock, Verdict, ahead_of, behind_of
from streamadapt.tasks.issued import Issued
from streamadapt.tasks.losses import Loss, loss_named
from streamadapt.tasks.places import Place

__all__ = ["Arrival", "Example", "Matured", "Task", "Window"]


@dataclass(frozen=True, slots=True)
class Example:
    """One training example of a learner; see `Learner.matures`.

    `inputs` is (window, channels); `base.output`, `target` and `mask` are (rows, columns).
    """

    inputs: Tensor
    base: BaseOutput
    target: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Matured:
    """The targets that became known at one arrival, with the predictions of them.

    Attributes
    ----------
    rows : Example
        The example for learners that mature by rows.
    path : Example or None
        The example for learners that mature by paths; None while the first forecast is still open.
    experts : ndarray, (experts, rows, columns), float64
        The experts' predictions of the cells in `rows`, as they were issued.
    aggregator_outputs : ndarray, (aggregators, rows, columns), float64
        The outputs of the guard's aggregators for the same cells, as they were issued.
    target, mask : ndarray, (rows, columns)
        The same as in `rows`, for the guard.
    weight : float, >= 0
        The weight of the example in every loss.
    note : tuple of float
        `Issued.note`.
    id : str
        The id of the entry, if its target became known by a label.
    """

    rows: Example
    path: Example | None
    experts: Array
    aggregator_outputs: Array
    target: Array
    mask: Mask
    weight: float = 1.0
    note: tuple[float, ...] = ()
    id: str = ""


@dataclass(slots=True)
class Arrival:
    """The effect of one entry or label.

    Attributes
    ----------
    matured : list of Matured
        The examples to learn now, in this order.
    inputs : ndarray, (window, channels), float64, or None
        The window to predict from; None while the first window fills, and for a label.
    """

    matured: list[Matured] = field(default_factory=list)
    inputs: FloatArray | None = None


class Window:
    """The last values of every channel and their event times; a missing value is replaced by the
    last known one.

    The times never decrease: an entry that was accepted out of order has the newest time.

    Parameters
    ----------
    length : int, >= 1, in entries
    channels : int
    """

    def __init__(self, length: int, channels: int) -> None:
        self.values = np.zeros((length, channels))
        self.times = np.zeros(length, np.int64)
        self.last = np.zeros(channels)
        self.seen = np.zeros(channels, np.bool_)
        self.count = 0

    def push(self, values: FloatArray, time: int) -> None:
        """Append one row and drop the oldest; NaN is missing, `time` is in ns."""
        known = ~np.isnan(values)
        self.last = np.where(known, values, self.last)
        self.seen |= known
        self.values[:-1] = self.values[1:]
        self.values[-1] = self.last
        self.times[:-1] = self.times[1:]
        self.times[-1] = time
        self.count += 1

    def pushed(self, values: FloatArray, time: int) -> Window:
        """Return a copy with one more row; this window does not change."""
        copied = Window(*self.values.shape)
        copied.load_state_dict(self.state_dict())
        copied.push(values, time)
        return copied

    @property
    def full(self) -> bool:
        """Whether all rows of the window have been filled."""
        return self.count >= len(self.values)

    def fill_unseen(self, loc: FloatArray) -> Array:
        """Return a copy, (length, channels), float64; a channel without any value so far gets
        `loc`."""
        return np.where(self.seen, self.values, loc).astype(np.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return copies."""
        arrays = {name: getattr(self, name).copy() for name in ("values", "times", "last", "seen")}
        return {**arrays, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.values = np.array(state["values"], np.float64)
        self.times = np.array(state["times"], np.int64)
        self.last = np.array(state["last"], np.float64)
        self.seen = np.array(state["seen"], np.bool_)
        self.count = int(state["count"])


class Task(ShowsArguments, ABC):
    """Turns entries and labels into examples, and keeps predictions until their targets are known.

    Parameters
    ----------
    window : int, >= 1, in entries
        The number of entries that a prediction is made from.
    rows : int
        Rows of an output: the horizon of a forecast, else 1.
    loss : {"absolute", "squared", "log"}
        The loss that the guard minimises and the statistics report.
    """

    name: ClassVar[str]
    labelled: ClassVar[bool] = True
    kind: TaskKind
    class_names: tuple[ClassName, ...] = ()

    def __init__(self, window: int, rows: int, loss: str) -> None:
        if not 1 <= window <= 100_000:
            raise ConfigError("task.window", window, "1 to 100000 entries")
        self.window_length = window
        self.rows = rows
        self.loss: Loss = loss_named(loss)
        self.window: Window | None = None
        self.clock = EventClock()
        # Labels by outcome; the pipeline puts its statistics' counter here.
        self.outcomes: Counter[str] = Counter()
        self.device = torch.device("cpu")
        # of the outputs, see `streamadapt.models.origin`; the pipeline puts it here
        self.origin: Array | None = None
        # of the entry observed next: which values are no targets
        self.absurd_values: Mask | None = None

    @property
    def last_time(self) -> int:
        """The newest event time, ns; -2**63 before the first entry."""
        return -(2**63) if self.clock.newest is None else self.clock.newest

    @abstractmethod
    def columns(self, channels: int) -> int:
        """Return the number of columns of an output, given the channels of the entries."""

    @abstractmethod
    def observe(self, item: Entry | Label) -> Arrival:
        """Process one entry or label.

        Raises
        ------
        EntryError
            If it is refused; then nothing has changed.
        """

    def label_fault(self, entry: Entry) -> LabelError | None:
        """Return the error of the label inside an entry; None if the label is valid, or if the
        task does not learn from such labels."""
        del entry
        return None

    @abstractmethod
    def remember(self, issued: Issued | Place) -> None:
        """Keep the prediction of the newest entry until its target is known."""

    def move_waiting(self, moved: Callable[[Issued], Issued]) -> None:
        """Replace each waiting prediction by ``moved(prediction)``.

        A task without waiting predictions does nothing.
        """
        del moved

    def unjudge_waiting(self, columns: Mask) -> None:
        """Exclude these columns (columns,) of the waiting predictions from learning and from all
        losses."""

        def unjudged(issued: Issued) -> Issued:
            experts, own = issued.experts.copy(), issued.aggregator_outputs.copy()
            experts[..., columns] = own[..., columns] = np.nan
            return replace(issued, experts=experts, aggregator_outputs=own)

        self.move_waiting(unjudged)

    @property
    @abstractmethod
    def pending(self) -> int:
        """The number of predictions that wait for a target."""

    def known(self, window: Window) -> Mask | None:
        """Return which columns can be predicted from `window`, (columns,); None means all."""
        del window
        return None

    def check_entry(self, entry: Entry, channels: int | None, *, ahead: bool = False) -> None:
        """Raise `EntryError` for an entry that no task accepts; with `ahead` its time may be far
        ahead.

        Changes nothing.
        """
        self.check_values(entry, channels)
        verdict = self.clock.judge(entry.time)
        if verdict is Verdict.AHEAD and not ahead:
            raise EntryError(
                Reason.BAD_TIME, ahead_of(entry.time, self.clock.newest), entry.position
            )
        if verdict is Verdict.BEHIND:
            raise EntryError(
                Reason.TIME_BACKWARDS, behind_of(entry.time, self.last_time), entry.position
            )

    def check_values(self, entry: Entry, channels: int | None) -> None:
        """Raise `EntryError` for values that no task accepts."""
        width = channels if self.window is None else self.window.values.shape[1]
        if (
            entry.values.ndim != 1
            or len(entry.values) == 0
            or (width is not None and len(entry.values) != width)
        ):
            expected = "at least one value" if width is None else f"{width} values"
            raise EntryError(
                Reason.WRONG_WIDTH,
                f"expected {expected}, got {entry.values.shape}",
                entry.position,
            )
        check_size(entry.values, "values", entry.position)

    def refused(self, item: Entry | Label, reason: Reason) -> None:
        """Record that `observe` refused an item; the time of such an entry may later prove
        right."""
        if isinstance(item, Entry) and reason in (Reason.BAD_TIME, Reason.TIME_BACKWARDS):
            self.clock.refuse(item.time)

    def window_with(self, entry: Entry) -> Window:
        """Return a copy of the window with a checked entry appended: the input of its
        prediction."""
        time = self.clock.time_of(entry.time)
        window = (self.window or Window(self.window_length, len(entry.values))).pushed(
            entry.values, time
        )
        window.times = np.minimum(window.times, time)  # later times were wrong
        return window

    def take_in(self, entry: Entry) -> Window:
        """Append a checked entry to the window; an entry that is older than `last_time` gets that
        time."""
        before = self.last_time
        time = self.clock.take(entry.time)
        if time < before:
            self.go_back(time)
        if self.window is None:
            self.window = Window(self.window_length, len(entry.values))
        self.window.push(entry.values, time)
        return self.window

    def set_unit(self, unit: Tensor | None) -> None:
        """Set the scale of the outputs from the base, (columns,), in original units; None if the
        base has no scale."""
        del unit

    def tensor(self, outputs: Array) -> Tensor:
        """Return targets or outputs (rows, columns) in the form for learners: less the origin,
        float32, on the device."""
        return torch.from_numpy(less_origin(outputs, self.origin)).to(self.device)

    def as_taken(self, entry: Entry) -> Entry:
        """Return the entry that was accepted last, with the event time that the task gave it."""
        return entry if entry.time == self.last_time else replace(entry, time=self.last_time)

    def go_back(self, time: int) -> None:
        """Replace every later time in the state by `time`, ns: the clock was wrong."""
        if self.window is not None:
            self.window.times = np.minimum(self.window.times, time)

    def count(self, outcome: str, n: int = 1) -> None:
        """Count a label's outcome."""
        self.outcomes[outcome] += n

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as copies."""
        return {
            "window": None if self.window is None else self.window.state_dict(),
            "last_time": self.last_time,
            "clock": self.clock.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.window = None
        if state["window"] is not None:
            self.window = Window(*np.shape(state["window"]["values"]))
            self.window.load_state_dict(state["window"])
        if "clock" in state:
            self.clock.load_state_dict(state["clock"])
        elif int(state["last_time"]) != -(2**63):  # the state of an earlier version
            steps = (
                []
                if self.window is None
                else np.diff(self.window.times[-self.window.count :])[:-1].tolist()
            )
            self.clock.start_from(int(state["last_time"]), steps)


def check_size(numbers: FloatArray, what: str, position: Position) -> None:
    """Raise `EntryError` if a number is infinite, or too large for float32."""
    if (np.abs(numbers) > FLOAT32_MAX).any():
        worst = float(numbers[np.abs(numbers) > FLOAT32_MAX][0])
        detail = f"{what}: expected finite numbers up to {FLOAT32_MAX:.4g}, got {worst:g}"
        raise EntryError(Reason.NOT_FINITE, detail, position)


def positive(path: str, value: int, most: float = math.inf) -> int:
    """Return `value` if it is a whole number from 1 to `most`; `ConfigError` otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigError(
            path, value, "a whole number >= 1" + ("" if most == math.inf else f" and <= {most:g}")
        )
    return value
