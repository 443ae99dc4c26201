"""The events of a lot: which predictions are made and which targets become known, in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from streamadapt.learners.lots import ENTRY, LEARN, NOTHING
from streamadapt.models.origin import less_origin
from streamadapt.pipeline.lots.room import Room
from streamadapt.records import Array, Entry, Label
from streamadapt.tasks import Forecast, Supervised
from streamadapt.tasks.issued import Issued
from streamadapt.tasks.places import Place, Places, moved_out
from streamadapt.tasks.supervised import Learnt

__all__ = ["Actual", "ForecastEvents", "LotEvents", "Predicted", "SupervisedEvents", "events_of",
           "split"]  # fmt: skip


class Predicted(NamedTuple):
    """An entry of a lot.

    Attributes
    ----------
    item : int
        Its number among the items of the lot.
    entry : Entry
    row : int
        The place of its prediction.
    time : int, ns
        The event time that it got.
    """

    item: int
    entry: Entry
    row: int
    time: int


class LotEvents(ABC):
    """The events of a lot in their order.

    Parameters
    ----------
    room : Room

    Attributes
    ----------
    events : list
        A `Predicted`, or what a task calls a target that became known.
    entries : int
        How many entries have been taken.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.events: list[Any] = []
        self.entries = 0

    @abstractmethod
    def take_label(self, label: Label) -> None:
        """Add the events of a label; raise `EntryError` if it is refused."""

    @abstractmethod
    def take_entry(self, entry: Predicted) -> None:
        """Add the events of an entry, its prediction the last."""

    @abstractmethod
    def write(self, first: int, stop: int) -> None:
        """Write the events [first, stop) to the arrays of the room."""

    def _adopted(self, issued: Issued | Place) -> int:
        """Return the row of a prediction; one that is not there is copied."""
        places = self.room.places
        if isinstance(issued, Place) and issued.places is places:
            return issued.row
        places.reserve(1)
        row = places.take()
        places.put(row, moved_out(issued))
        return row

    def _write_entries(self, kinds: Any, at: Any, first: int, stop: int) -> Any:
        """Write kinds and places; return which events are entries."""
        is_entry = np.zeros(stop - first, np.bool_)
        for n, event in enumerate(self.events[first:stop]):
            if isinstance(event, Predicted):
                is_entry[n], at[n] = True, event.row
        kinds[: stop - first] = np.where(is_entry, ENTRY, LEARN)
        return is_entry


class SupervisedEvents(LotEvents):
    """Labels and entries of a `Supervised` task.

    Parameters
    ----------
    room : Room
    task : Supervised
    """

    def __init__(self, room: Room, task: Supervised) -> None:
        super().__init__(room)
        self.task = task

    def take_label(self, label: Label) -> None:
        """Match it to its prediction."""
        self._add(self.task.take_label(label))

    def take_entry(self, entry: Predicted) -> None:
        """Learn what is due, then predict."""
        self._add(self.task.learn_due(entry.time))
        self.events.append(entry)
        self.task.hold_own_label(entry.entry, entry.time)
        self.task.remember(Place(self.room.places, entry.row, entry.entry.id, entry.time))

    def _add(self, learnt: list[Learnt]) -> None:
        for one in learnt:
            row = self._adopted(one.issued)
            if not isinstance(one.issued, Place) or one.issued.places is not self.room.places:
                self.room.places.release(row)
            self.events.append((row, one))

    def write(self, first: int, stop: int) -> None:
        """Write the events [first, stop) to the arrays of the room."""
        room, n = self.room, stop - first
        lot, guard = room.lot, room.guard_lot
        is_entry = self._write_entries(lot.kinds, lot.at, first, stop)
        for i, event in enumerate(self.events[first:stop]):
            if not is_entry[i]:
                row, one = event
                lot.at[i] = guard.rows_at[i, 0] = row
                guard.targets[i], guard.known[i] = one.target, one.mask
                lot.weights[i] = guard.weights[i] = one.weight
        lot.bases[:n] = room.places.bases[lot.at[:n]]
        lot.targets[:n] = _of_learners(room, guard.targets[:n])
        lot.known[:n] = guard.known[:n]


class Actual(NamedTuple):
    """The values of an entry, which are the targets of earlier forecasts.

    Attributes
    ----------
    number : int
        Of the entry among those whose values are remembered.
    rows : tuple of int
        The places of the open forecasts, the newest first.
    """

    number: int
    rows: tuple[int, ...]


class ForecastEvents(LotEvents):
    """Entries of a `Forecast` task, each the target of the forecasts before it.

    Parameters
    ----------
    room : Room
    task : Forecast
    values : ndarray, (entries, columns), float64
        Of the lot's entries.
    """

    def __init__(self, room: Room, task: Forecast, values: Array) -> None:
        super().__init__(room)
        self.task = task
        before = np.reshape(task.actual, (len(task.actual), room.spec.columns))
        self.actual = np.concatenate([before, values.reshape(-1, room.spec.columns)])
        self.before = len(task.actual)
        for i, issued in enumerate(task.issued):
            if not isinstance(issued, Place) or issued.places is not room.places:
                place = Place(room.places, self._adopted(issued), issued.id, issued.time)
                task.issued[i] = place

    def take_label(self, label: Label) -> None:
        """Refuse it."""
        self.task.observe(label)

    def take_entry(self, entry: Predicted) -> None:
        """Mature a row of each open forecast, then predict."""
        task, number = self.task, self.before + self.entries
        task.actual.append(self.actual[number].copy())
        if task.issued:
            rows = tuple(one.row for one in reversed(task.issued) if isinstance(one, Place))
            self.events.append(Actual(number, rows))
        self.events.append(entry)
        task.remember(Place(self.room.places, entry.row, entry.entry.id, entry.time))

    def write(self, first: int, stop: int) -> None:
        """Write the events [first, stop) to the arrays of the room."""
        room, n = self.room, stop - first
        lot, guard = room.lot, room.guard_lot
        is_entry = self._write_entries(lot.kinds, lot.at, first, stop)
        numbers = np.zeros(n, np.int64)
        guard.rows_at[:n] = -1
        for i, event in enumerate(self.events[first:stop]):
            if not is_entry[i]:
                numbers[i] = event.number
                guard.rows_at[i, : len(event.rows)] = event.rows
                lot.at[i] = event.rows[0]
        self._write_rows(is_entry, numbers, n)
        self._write_paths(is_entry, numbers, n)

    def _write_rows(self, is_entry: Any, numbers: Any, n: int) -> None:
        """Write the targets by rows: each belongs to another forecast."""
        room, lot, guard = self.room, self.room.lot, self.room.guard_lot
        rows_at, places = guard.rows_at[:n], room.places
        base = places.experts[rows_at, 0, np.arange(rows_at.shape[1])]
        base[rows_at < 0] = 0.0
        actual = np.broadcast_to(self.actual[numbers][:, None], base.shape)
        known = (rows_at >= 0)[:, :, None] & ~np.isnan(actual) & ~np.isnan(base)
        guard.targets[:n], guard.known[:n] = np.where(known, actual, base), known
        guard.weights[:n] = lot.weights[:n] = 1.0
        mixed = _of_learners(room, np.nan_to_num(base))
        lot.bases[:n] = np.where(is_entry[:, None, None], places.bases[lot.at[:n]], mixed)
        lot.targets[:n], lot.known[:n] = _of_learners(room, guard.targets[:n]), known

    def _write_paths(self, is_entry: Any, numbers: Any, n: int) -> None:
        """Write the targets by paths: those of the forecast whose last row is known now."""
        room, path, rows_at = self.room, self.room.path, self.room.guard_lot.rows_at[:n]
        whole = ~is_entry & (rows_at[:, -1] >= 0)
        path.kinds[:n] = np.where(is_entry, ENTRY, np.where(whole, LEARN, NOTHING))
        path.at[:n] = np.where(is_entry, room.lot.at[:n], np.maximum(rows_at[:, -1], 0))
        path.bases[:n] = room.places.bases[path.at[:n]]
        rows = rows_at.shape[1]
        target = self.actual[np.maximum(numbers[:, None] + np.arange(1 - rows, 1), 0)]
        base = room.places.experts[path.at[:n], 0]
        path.targets[:n] = _of_learners(room, target)
        path.known[:n] = ~np.isnan(target) & ~np.isnan(base)


def _of_learners(room: Room, values: Array) -> Any:
    """Return outputs or targets as learners get them: less the origin, rounded to float32."""
    origin = room.spec.output_origin
    return less_origin(values, None if origin is None else origin.numpy())


def events_of(room: Room, task: Supervised | Forecast, values: Array) -> LotEvents:
    """Return a lot of a task without events yet."""
    if isinstance(task, Forecast):
        return ForecastEvents(room, task, values)
    return SupervisedEvents(room, task)


def split(events: Sequence[Any], first: int, most: int, most_learned: int) -> int:
    """Return where a run of events from `first` on ends: after `most` of them, or right after
    `most_learned` targets."""
    learned = 0
    for i in range(first, min(first + most, len(events))):
        learned += not isinstance(events[i], Predicted)
        if learned == most_learned:
            return i + 1
    return min(first + most, len(events))
