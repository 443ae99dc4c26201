"""Estimates scales for a base without scaling: learners start with the scale of the first window;
if it was wrong, they restart and learn the stored items again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamadapt.models.contract import Base, Spec
from streamadapt.pipeline.screen import IN_A_ROW, ScreenResult
from streamadapt.pipeline.spec import original_scaling
from streamadapt.pipeline.taking import FIRST
from streamadapt.records import Array, Entry, Mask
from streamadapt.tasks import Matured, Task

__all__ = ["Learned", "Scales"]

MAX_STORED = 512
"""The number of entries that are stored until all scales have settled; for a supervised task,
twice this number of entries and labels."""
MIN_CHANGES = 8
"""A channel's scale is checked after this number of changes of its value, then at every doubling
..."""
SETTLED = 512
"""... up to this number of changes; then the scale has settled."""
FACTOR = 2.0
"""Learners restart if a scale is wrong by more than this factor ..."""
LATE_FACTOR = 8.0
"""... or by more than this factor, if some of the learned items are no longer stored."""
LATE = 4096
"""In a stream of several channels learners do not restart after this number of entries: too much
of the other channels' learning would be lost."""
FAR = 35.0
"""Labels further from their median than this number of usual distances are ignored."""

INPUTS = ("input_loc", "input_scale")
OUTPUTS = ("output_loc", "output_scale")


@dataclass(frozen=True, slots=True)
class Learned:
    """A label that was learned.

    Attributes
    ----------
    id : str
        The id of its entry.
    target, mask : ndarray, (1, columns)
    weight : float
    """

    id: str
    target: Array
    mask: Mask
    weight: float


class Scales:
    """Estimates the scaling from the stream, if the base has none.

    A channel's scale is the standard deviation of the values at which it changed, since a constant
    sensor gives no information. It is checked when the channel has changed 8, 16, ... 512 times.
    If it then differs from the scale in use by more than `FACTOR`, the learners must restart with
    the new scale and learn the stored items again. After 512 changes a scale has settled; it is
    estimated again if the channel changes by far more than usual. The same applies to the labels
    of a regression.

    Memory: `MAX_STORED` entries, until all scales have settled; only the first `FIRST` entries if
    the base has a scaling.

    Parameters
    ----------
    task : Task
        Before its first entry.
    base : Base
    """

    def __init__(self, task: Task, base: Base) -> None:
        self.pristine = task.state_dict()
        self.forecast = task.kind == "forecast"
        labelled = task.kind == "regression" and task.labelled
        self.free_inputs = base.input_scale is None
        self.free_outputs = base.output_scale is None and (self.forecast or labelled)
        self.labels = labelled and self.free_outputs
        self.items: deque[tuple[Entry | Learned, Mask | None]] = deque(
            maxlen=MAX_STORED if self.forecast else 2 * MAX_STORED
        )
        self.active = True
        self.entries = 0
        self.dropped = False  # whether some of the learned items are no longer stored
        self.spent = 0  # items learned again so far
        self.moves = np.zeros(0, np.int64)
        # The entries before this number give no information about a channel any more.
        self.since = np.zeros(0, np.int64)
        self.last: Array = np.zeros(0)
        self.label_count = 0

    @property
    def free(self) -> bool:
        """Whether there is a scale to estimate."""
        return self.free_inputs or self.free_outputs

    def take(self, entry: Entry, result: ScreenResult) -> bool:
        """Store an accepted entry; return whether the scales must be checked now."""
        self.entries += 1
        if self.free and result.changed.any():
            self._change(result.changed)
        if not self.active:
            return False
        self._store(entry, result.absurd if result.absurd.any() else None)
        if result.hindsight is not None:
            self._mark(result.hindsight)
        return self._count(_cleaned(entry, result.absurd)) or result.hindsight is not None

    def learn(self, matured: Sequence[Matured]) -> bool:
        """Store learned labels; return whether the scales must be checked now."""
        if not self.active or self.forecast:
            return False
        due = False
        for one in matured:
            self._store(Learned(one.id, one.target, one.mask, one.weight), None)
            if self.labels and one.mask.any():
                self.label_count += 1
                due |= bool(_doubled(np.array([self.label_count]))[0])
        return due

    def _store(self, item: Entry | Learned, absurd: Mask | None) -> None:
        self.dropped |= len(self.items) == self.items.maxlen
        self.items.append((item, absurd))

    def _mark(self, hindsight: Mask) -> None:
        """Correct which of the first values count as outliers."""
        rows = iter(hindsight)
        for i, (item, _) in enumerate(self.items):
            if isinstance(item, Entry):
                absurd = next(rows, None)
                self.items[i] = item, absurd if absurd is not None and absurd.any() else None

    def _change(self, changed: Mask) -> None:
        self.moves = np.where(changed, 0, self.moves)
        self.since = np.where(changed, self.entries - IN_A_ROW, self.since)
        if not self.active:
            self.active, self.dropped = True, True

    def _count(self, values: Array) -> bool:
        """Count changes of values; return whether a count has reached a power of two."""
        if len(self.moves) == 0:
            self.moves, self.since, self.last = (
                np.zeros(len(values), np.int64),
                np.zeros(len(values), np.int64),
                values,
            )
            return False
        moved = ~np.isnan(values) & (values != self.last) & ~np.isnan(self.last)
        self.moves = self.moves + moved
        self.last = np.where(np.isnan(values), self.last, values)
        return bool((moved & _doubled(self.moves)).any())

    def settle(self) -> None:
        """Drop the stored items if all scales have settled."""
        if not self.active or self.entries < FIRST:
            return
        if not self._inputs_open() and not self._labels_open():
            self.active = False
            self.items.clear()

    def _inputs_open(self) -> bool:
        """Whether a scale that is estimated from the entries has not settled yet."""
        if not self.free_inputs and not (self.free_outputs and self.forecast):
            return False
        several = len(self.moves) > 1
        if several and self.entries > LATE:
            return False
        return bool((self.moves < SETTLED).any())

    def _labels_open(self) -> bool:
        """Whether the scale that is estimated from the labels has not settled yet."""
        return self.labels and self.label_count < SETTLED and self.entries <= LATE

    # -- estimates

    def better(self, spec: Spec, columns: int) -> dict[str, Array] | None:
        """Return the scaling with which learners must restart, original units; None if the scaling
        in use is good enough."""
        scaling: dict[str, Array] = {}
        wrong = False
        several = len(self.moves) > 1
        if several and self.dropped and self.entries > LATE:
            return None
        factor = LATE_FACTOR if self.dropped else FACTOR
        if self.free_inputs or (self.free_outputs and self.forecast):
            loc, scale, known = _moving(self._values())
            known &= self.moves <= SETTLED  # a settled scale does not change
            for names, free in (
                (INPUTS, self.free_inputs),
                (OUTPUTS, self.free_outputs and self.forecast),
            ):
                if free:
                    wrong |= self._put(scaling, names, spec, (loc, scale), known, factor)
        if self.labels and self.label_count >= MIN_CHANGES:
            loc, scale, known = _of_labels(self._labels(columns))
            wrong |= self._put(scaling, OUTPUTS, spec, (loc, scale), known, factor)
        if not wrong or self.spent + len(self.items) > 2 * self.entries + 2 * MAX_STORED:
            return None
        return scaling

    def _put(
        self,
        new: dict[str, Array],
        names: tuple[str, str],
        spec: Spec,
        estimate: tuple[Array, Array],
        known: Mask,
        factor: float,
    ) -> bool:
        scaling = original_scaling(spec)
        used = [scaling[name] for name in names]
        ratio = np.where(known, estimate[1] / used[1], 1.0)
        for name, now, then in zip(names, estimate, used, strict=True):
            new[name] = np.where(known, now, then)
        return bool(((ratio > factor) | (ratio < 1.0 / factor)).any())

    def _values(self) -> Array:
        values = np.stack(
            [_cleaned(item, absurd) for item, absurd in self.items if isinstance(item, Entry)]
        )
        number = np.arange(self.entries - len(values), self.entries)
        return np.where(number[:, None] >= self.since, values, np.nan)

    def _labels(self, columns: int) -> Array:
        rows = [
            np.where(item.mask, item.target, np.nan)
            for item, _ in self.items
            if isinstance(item, Learned)
        ]
        return np.array(rows, np.float64).reshape(-1, columns)

    def cleaned(self) -> list[Entry | Learned]:
        """Return the stored items, with outliers treated as missing.

        Outliers before a channel's first other value are replaced by that value: it is the best
        estimate of the level. No entry has a later time than an entry after it: if event time went
        back, the later times were wrong.
        """
        cleaned: list[Entry | Learned] = []
        # The first right value of each channel, as long as only outliers came before it.
        first: Array | None = None
        for item, absurd in self.items:
            if absurd is not None and isinstance(item, Entry):
                first = self._first() if first is None else first
                item = replace(item, values=np.where(absurd, first, item.values))
            if first is not None and isinstance(item, Entry):
                seen = ~np.isnan(item.values) & (True if absurd is None else ~absurd)
                first = np.where(seen, np.nan, first)
            cleaned.append(item)
        return _in_order(cleaned)

    def _first(self) -> Array:
        """Return the first value of each channel that is not an outlier, if there is an outlier
        before it; else NaN."""
        values = np.stack(
            [_cleaned(item, absurd) for item, absurd in self.items if isinstance(item, Entry)]
        )
        masks = [absurd for item, absurd in self.items if isinstance(item, Entry)]
        known = ~np.isnan(values)
        at = known.argmax(axis=0)
        earlier = np.zeros(values.shape[1], np.bool_)
        for i, absurd in enumerate(masks):
            if absurd is not None:
                earlier |= absurd & ((i < at) | ~known.any(axis=0))
        first: Array = np.where(earlier, values[at, np.arange(values.shape[1])], np.nan)
        return first

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and the stored items, as plain values and arrays."""
        return {
            "active": self.active,
            "entries": self.entries,
            "dropped": self.dropped,
            "spent": self.spent,
            "moves": self.moves.copy(),
            "since": self.since.copy(),
            "last": self.last.copy(),
            "label_count": self.label_count,
            "items": _packed(list(self.items)),
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restore a state from `state_dict`; None, as in older checkpoints, means that all scales
        have settled."""
        self.items.clear()
        if state is None:
            self.active = False
            return
        self.active, self.dropped = bool(state["active"]), bool(state["dropped"])
        self.entries, self.spent = int(state["entries"]), int(state["spent"])
        self.moves, self.last = (
            np.array(state["moves"], np.int64),
            np.array(state["last"], np.float64),
        )
        self.since = np.array(state["since"], np.int64)
        self.label_count = int(state["label_count"])
        self.items.extend(_unpacked(state["items"]))


def _in_order(items: Sequence[Entry | Learned]) -> list[Entry | Learned]:
    latest = 2**63 - 1
    ordered = list(items)
    for i in range(len(ordered) - 1, -1, -1):
        item = ordered[i]
        if isinstance(item, Entry):
            latest = min(latest, item.time)
            ordered[i] = item if item.time == latest else replace(item, time=latest)
    return ordered


def _doubled(counts: Any) -> Mask:
    in_range = (counts >= MIN_CHANGES) & (counts <= SETTLED)
    doubled: Mask = in_range & ((counts & (counts - 1)) == 0)
    return doubled


def _cleaned(entry: Entry, absurd: Mask | None) -> Array:
    values = np.asarray(entry.values, np.float64)
    return values if absurd is None else np.where(absurd, np.nan, values)


def _moving(values: Array) -> tuple[Array, Array, Mask]:
    """Return location and scale of (entries, channels), and where they are known."""
    known = ~np.isnan(values)
    at = np.where(known, np.arange(len(values))[:, None], 0)
    np.maximum.accumulate(at, axis=0, out=at)
    filled = values[at, np.arange(values.shape[1])]
    moved = np.zeros(values.shape, np.bool_)
    moved[1:] = known[1:] & (filled[1:] != filled[:-1]) & ~np.isnan(filled[:-1])
    return _spread(np.where(moved, values, np.nan))


def _of_labels(labels: Array) -> tuple[Array, Array, Mask]:
    with np.errstate(all="ignore"):
        middle = np.array(
            [np.median(c[~np.isnan(c)]) if (~np.isnan(c)).any() else 0.0 for c in labels.T]
        )
        away = np.abs(labels - middle)
        usual = np.array(
            [np.median(c[~np.isnan(c)]) if (~np.isnan(c)).any() else 0.0 for c in away.T]
        )
    return _spread(np.where(away <= FAR * usual, labels, np.nan))


def _spread(values: Array) -> tuple[Array, Array, Mask]:
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    many = np.maximum(count, 1)
    loc = np.where(known, values, 0.0).sum(axis=0) / many
    scale = np.sqrt(np.where(known, np.square(values - loc), 0.0).sum(axis=0) / many)
    fine: Mask = (count >= MIN_CHANGES) & (scale > 1e-12 * np.abs(loc)) & (scale > 0.0)
    return loc, scale, fine


def _packed(items: list[tuple[Entry | Learned, Mask | None]]) -> dict[str, Any] | None:
    """Return the saved form of the items: arrays with one row per item; None if there are none."""
    if not items:
        return None
    entries = [(item, absurd) for item, absurd in items if isinstance(item, Entry)]
    learned = [item for item, _ in items if isinstance(item, Learned)]
    masks = [
        np.zeros(len(entry.values), np.bool_) if absurd is None else absurd
        for entry, absurd in entries
    ]
    return {
        "ids": [item.id for item, _ in items],
        "is_entry": [isinstance(item, Entry) for item, _ in items],
        "times": [entry.time for entry, _ in entries],
        "values": np.stack([entry.values for entry, _ in entries]) if entries else None,
        "absurd": np.stack(masks) if entries else None,
        "targets": np.stack([one.target for one in learned]) if learned else None,
        "masks": np.stack([one.mask for one in learned]) if learned else None,
        "weights": [float(one.weight) for one in learned],
    }


def _unpacked(state: dict[str, Any] | None) -> Iterator[tuple[Entry | Learned, Mask | None]]:
    row = labelled = 0
    for id_, is_entry in (
        () if state is None else zip(state["ids"], state["is_entry"], strict=True)
    ):
        assert state is not None
        if is_entry:
            absurd = np.array(state["absurd"][row], np.bool_)
            entry = Entry(np.array(state["values"][row]), int(state["times"][row]), str(id_))
            yield entry, absurd if absurd.any() else None
            row += 1
        else:
            target, mask = (
                np.array(state["targets"][labelled]),
                np.array(state["masks"][labelled], np.bool_),
            )
            yield Learned(str(id_), target, mask, float(state["weights"][labelled])), None
            labelled += 1
