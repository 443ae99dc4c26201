"""The events of a lot: which predictions are made and which targets become known, in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

import numpy as np

from streamadapt.compiled import Kernel
from streamadapt.learners.lots import ENTRY, LEARN, NOTHING
from streamadapt.models.origin import less_origin
from streamadapt.pipeline.lots.entries import Entries
from streamadapt.pipeline.lots.items import Items
from streamadapt.pipeline.lots.room import Room
from streamadapt.records import Array
from streamadapt.tasks import Forecast, Supervised
from streamadapt.tasks.issued import Issued
from streamadapt.tasks.outlier_kernels import judge
from streamadapt.tasks.places import Place, moved_out
from streamadapt.tasks.supervised import EXPIRED, LEARNED

__all__ = ["ForecastEvents", "LotEvents", "SupervisedEvents", "events_of"]

EXPIRE: Final = -1


def _judge_labels(p: Any, s: Any, w: Any, labels: Any, rows: Any, experts: Any, errors: Any,  # noqa: PLR0913
                  levels: Any, outliers: Any) -> Any:  # fmt: skip
    """Judge labels in order; return how many there are before the first outlier.

    Parameters
    ----------
    labels : ndarray, (labels, outputs)
    rows : ndarray, (labels,)
        The places of their predictions.
    experts : ndarray, (places, experts, 1, outputs)
    errors, levels, outliers : ndarray, (outputs,)
        Room.
    """
    for n in range(labels.shape[0]):
        for j in range(labels.shape[1]):
            base = experts[rows[n], 0, 0, j]
            errors[j], levels[j] = abs(labels[n, j] - base), abs(base)
        if judge(p, s, 0, w, labels[n], errors, levels, outliers):
            return n
    return labels.shape[0]


judge_labels: Final = Kernel(_judge_labels, "labels of a lot")


class LotEvents(ABC):
    """The events of a lot in their order.

    Parameters
    ----------
    room : Room

    Attributes
    ----------
    count : int
        How many items have been taken.
    kinds, at : ndarray, (events,), int64
        `ENTRY` or `LEARN`, and the place of a prediction.
    item : ndarray, (events,), int64
        Of `ENTRY`: the number of the item.
    """

    kinds: Any
    at: Any
    item: Any
    entry_times: list[int]
    items: Items
    count: int

    def __init__(self, room: Room) -> None:
        self.room = room

    @property
    @abstractmethod
    def entries(self) -> int:
        """The number of entries among the items that have been taken."""

    @abstractmethod
    def finish(self) -> None:
        """Complete the events, now that the base's answers are known."""

    @abstractmethod
    def commit(self) -> None:
        """Let the task have seen the items."""

    @abstractmethod
    def write(self, first: int, stop: int) -> None:
        """Write the events [first, stop) to the arrays of the room."""

    def _in_place(self, issued: Issued | Place) -> Place:
        """Return a prediction in the room's places; one that is not there is copied."""
        places = self.room.places
        if isinstance(issued, Place) and issued.places is places:
            return issued
        places.reserve(1)
        place = Place(places, places.take(), issued.id, issued.time)
        places.put(place.row, moved_out(issued))
        return place


class SupervisedEvents(LotEvents):
    """Labels and entries of a `Supervised` task whose labels are learned as they come, and whole.

    Parameters
    ----------
    room : Room
    task : Supervised
    items : Items
    taken : Entries or None
        The entries among them.
    """

    def __init__(self, room: Room, task: Supervised, items: Items, taken: Entries | None) -> None:
        super().__init__(room)
        self.task, self.items = task, items
        self.rows = [] if taken is None else taken.rows.tolist()
        self.times = [] if taken is None else taken.times.tolist()
        # (kind, id, place, event time, row of the label's value)
        self.actions: list[tuple[int, str, int, int, int]] = []
        self.marks: list[int] = []  # where the actions of each item begin
        self.held = [(id_, -1 - i) for i, id_ in enumerate(task.pending_labels)]
        self.own = [label.value for label in task.pending_labels.values()]
        self.fresh: dict[str, tuple[int, int]] = {}
        self.order: list[str] = []  # the ids of `fresh`, and how many at its front are gone
        self.passed = 0
        self.gone: set[str] = set()  # ids whose predictions wait no longer
        self.count = self._match()

    @property
    def entries(self) -> int:
        """The number of entries among the items that have been taken."""
        return sum(action[0] == ENTRY for action in self.actions[: self.marks[self.count]])

    def finish(self) -> None:
        """Leave out what the base's answers rule out, and make the arrays of events."""
        self._leave_out_outliers()
        self._make_arrays()

    # -- which label belongs to which prediction

    def _match(self) -> int:
        """Match the items in their order; return how many of them are plain."""
        self.oldest = iter(self.task.waiting.values())
        self.next = next(self.oldest, None)
        self.open = len(self.task.waiting)
        entries = 0
        self.held_before: list[list[tuple[str, int]]] = []
        for i, is_label in enumerate(self.items.is_label):
            self.marks.append(len(self.actions))
            self.held_before.append(self.held)
            if not is_label and entries == len(self.rows):
                return i
            if not self._learn_held():
                return i
            if is_label:
                if not self._learn(self.items.ids[i], int(self.items.times[i]), i):
                    return i
            elif self._predict(i, self.rows[entries], self.times[entries]):
                entries += 1
            else:
                return i
        self.marks.append(len(self.actions))
        self.held_before.append(self.held)
        return len(self.items)

    def _learn_held(self) -> bool:
        """Learn the labels inside the entries before; return whether they are plain."""
        if not self.held:
            return True
        held, self.held = self.held, []
        return all(
            not np.isnan(self._value(at)).any() and self._learn(id_, None, at) for id_, at in held
        )

    def _learn(self, id_: str, time: int | None, label: int) -> bool:
        """Learn a label; return whether it is plain."""
        fresh = self.fresh.get(id_)
        if fresh is not None and id_ not in self.gone:
            row, entry_time = fresh
        else:
            one = self.task.waiting.get(id_)
            if one is None or one.learned is not None or id_ in self.gone:
                return False
            one.issued = self._in_place(one.issued)
            row, entry_time = one.issued.row, one.issued.time
        if time is not None and time - entry_time > self.task.ttl:
            return False
        self.gone.add(id_)
        self.open -= 1
        self.actions.append((LEARN, id_, row, entry_time, label))
        return True

    def _predict(self, i: int, row: int, now: int) -> bool:
        """Let predictions expire, then predict; return whether the entry is plain."""
        id_, task = self.items.ids[i], self.task
        if id_ in self.fresh or task.was_used(id_) or not self._expire(now):
            return False
        self.actions.append((ENTRY, id_, row, now, i))
        self.fresh[id_] = (row, now)
        self.order.append(id_)
        self.open += 1
        if self.items.has_label[i]:
            self.held = [(id_, i)]
        return True

    def _expire(self, now: int) -> bool:
        """Let predictions expire whose time to live has ended; return False if one of this lot
        would."""
        task = self.task
        while self.next is not None:
            one = self.next
            id_ = one.issued.id
            if id_ not in self.gone:
                if now - one.issued.time <= task.ttl and self.open < task.max_pending:
                    return True
                self.gone.add(id_)
                self.open -= 1
                self.actions.append((EXPIRE, id_, 0, one.issued.time, 0))
            self.next = next(self.oldest, None)
        while self.passed < len(self.order) and self.order[self.passed] in self.gone:
            self.passed += 1
        first = self.fresh[self.order[self.passed]][1] if self.passed < len(self.order) else now
        return now - first <= task.ttl and self.open < task.max_pending

    def _leave_out_outliers(self) -> None:
        """Leave out the items from the first label on that is an outlier."""
        task = self.task
        absurd, actions = task.absurd, self.actions[: self.marks[self.count]]
        self.learned = [n for n, action in enumerate(actions) if action[0] == LEARN]
        found_at = [actions[n][4] for n in self.learned]
        if not self.own:  # the usual case
            self.labels = self.items.labels[found_at]
        else:
            labels = [self._value(at) for at in found_at]
            self.labels = np.array(labels, np.float64).reshape(len(labels), task.outputs)
        if not self.learned or task.classes is not None or absurd.limit == np.inf:
            return
        rows = np.array([actions[n][2] for n in self.learned], np.int64)
        before = [array.copy() for array in absurd.state]
        found = self._judge(rows, self.labels)
        if found == len(rows):
            return
        for array, kept in zip(absurd.state, before, strict=True):
            array[...] = kept
        at = self.learned[found]
        self.count = max(i for i in range(self.count) if self.marks[i] <= at)
        keep = sum(n < self.marks[self.count] for n in self.learned)
        self.learned, self.labels = self.learned[:keep], self.labels[:keep]
        self._judge(rows[:keep], self.labels)

    def _judge(self, rows: Any, labels: Array) -> int:
        absurd, each = self.task.absurd, self.task.outputs
        found: int = judge_labels.call(
            absurd.settings, absurd.state, self.room.outlier_room, labels, rows,
            self.room.places.experts, np.zeros(each), np.zeros(each), np.zeros(each, np.bool_),
        )  # fmt: skip
        return found

    def _value(self, label: int) -> Any:
        return self.items.labels[label] if label >= 0 else self.own[-1 - label]

    def _make_arrays(self) -> None:
        done = self.actions[: self.marks[self.count]]
        events = [action for action in done if action[0] != EXPIRE]
        self.kinds = np.array([event[0] for event in events], np.int64)
        self.at = np.array([event[2] for event in events], np.int64)
        self.item = np.array([event[4] for event in events], np.int64)
        self.entry_times = [event[3] for event in events]
        self.done = done
        self.label_of = np.cumsum(self.kinds == LEARN) - 1

    # -- the task

    def commit(self) -> None:
        """Let the task have seen the items."""
        task, places = self.task, self.room.places
        for kind, id_, row, time, _ in self.done:
            if kind == ENTRY:
                task.forget_old_ids(time)
                task.remember(Place(places, row, id_, time))
            else:
                outcome = LEARNED if kind == LEARN else EXPIRED
                task.close(id_, outcome, outcome)
        self._hold_the_rest()

    def _hold_the_rest(self) -> None:
        """Keep the labels inside entries that the next arrival will learn."""
        held = self.held_before[self.count]
        left = {id_ for id_, _ in held}
        for id_ in [id_ for id_ in self.task.pending_labels if id_ not in left]:
            del self.task.pending_labels[id_]
        for id_, label in held:
            if label >= 0:
                self.task.hold(id_, self.items.labels[label].copy(), self.fresh[id_][1])

    def write(self, first: int, stop: int) -> None:
        """Write the events [first, stop) to the arrays of the room."""
        room, n, task = self.room, stop - first, self.task
        lot, guard = room.lot, room.guard_lot
        kinds, at = self.kinds[first:stop], self.at[first:stop]
        lot.kinds[:n], lot.at[:n], guard.rows_at[:n, 0] = kinds, at, at
        lot.bases[:n] = room.places.bases[at]
        is_label = np.flatnonzero(kinds == LEARN)
        if not len(is_label):
            return
        labels = self.labels[self.label_of[first:stop][is_label]]
        if task.classes is None:
            targets = labels[:, None]
        else:
            targets = np.zeros((len(is_label), 1, task.classes))
            targets[np.arange(len(is_label)), 0, labels[:, 0].astype(np.int64)] = 1.0
        base = room.places.experts[at[is_label], 0]
        guard.known[is_label] = lot.known[is_label] = ~np.isnan(base)
        guard.targets[is_label] = targets
        lot.targets[is_label] = _of_learners(room, targets)


class ForecastEvents(LotEvents):
    """Entries of a `Forecast` task, each the target of the forecasts before it.

    Parameters
    ----------
    room : Room
    task : Forecast
    items : Items
    taken : Entries or None
    """

    def __init__(self, room: Room, task: Forecast, items: Items, taken: Entries | None) -> None:
        super().__init__(room)
        self.task, self.items = task, items
        placed = [self._in_place(issued) for issued in task.issued]
        for i, place in enumerate(placed):
            task.issued[i] = place
        rows = [] if taken is None else taken.rows.tolist()
        self.count, self.open = len(rows), len(task.issued)
        self.new_rows = rows
        self.entry_times = [] if taken is None else taken.times.tolist()
        self.rows = np.array([*(one.row for one in placed), *rows], np.int64)
        before = np.reshape(task.actual, (len(task.actual), room.spec.columns))
        values = np.zeros((0, room.spec.columns)) if taken is None else taken.values[: self.count]
        self.actual = np.concatenate([before, values])
        self.known_before = len(before)
        numbers = np.arange(self.count)
        self.entry = numbers.repeat(2)[0 if self.open else 1 :]
        self.kinds = np.tile([LEARN, ENTRY], self.count)[0 if self.open else 1 :]
        self.at = self.rows[self.open + self.entry]
        self.item = self.entry

    @property
    def entries(self) -> int:
        """The number of entries."""
        return self.count

    def finish(self) -> None:
        """Do nothing: all is known."""

    def commit(self) -> None:
        """Let the task have seen the items."""
        task, places, ids = self.task, self.room.places, self.items.ids
        for i, row in enumerate(self.new_rows):
            task.remember(Place(places, row, ids[i], self.entry_times[i]))
        for values in self.actual[self.known_before :][-task.rows :]:
            task.actual.append(values.copy())

    def write(self, first: int, stop: int) -> None:
        """Write the events [first, stop) to the arrays of the room."""
        room, n = self.room, stop - first
        lot, guard, steps = room.lot, room.guard_lot, room.spec.rows
        is_entry, entry = self.kinds[first:stop] == ENTRY, self.entry[first:stop]
        places = (self.open + entry)[:, None] - 1 - np.arange(steps)
        rows_at = np.where(places >= 0, self.rows[np.maximum(places, 0)], -1)
        guard.rows_at[:n] = rows_at
        lot.kinds[:n] = self.kinds[first:stop]
        lot.at[:n] = np.where(is_entry, self.at[first:stop], np.maximum(rows_at[:, 0], 0))
        numbers = self.known_before + entry
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


def events_of(
    room: Room, task: Supervised | Forecast, items: Items, taken: Entries | None
) -> LotEvents:
    """Return the events of a lot."""
    if isinstance(task, Forecast):
        return ForecastEvents(room, task, items, taken)
    return SupervisedEvents(room, task, items, taken)
