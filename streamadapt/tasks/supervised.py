"""Supervised learning on a stream: features now, a label later (in parts, twice, corrected, or
never)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamadapt.config.renamed import accepts_old_names
from streamadapt.errors import ConfigError, EntryError, LabelError, Reason
from streamadapt.models.contract import TaskKind
from streamadapt.records import Array, Entry, FloatArray, Label, Mask
from streamadapt.tasks.base import Arrival, Example, Matured, Task, check_size, positive
from streamadapt.tasks.class_names import ClassName, counted_classes
from streamadapt.tasks.delayed_positives import DelayedPositives
from streamadapt.tasks.event_clock import DAY_NS
from streamadapt.tasks.issued import Issued, pack, unpack
from streamadapt.tasks.outliers import LabelOutliers
from streamadapt.tasks.places import Place, moved_out
from streamadapt.tasks.settling import PendingLabel, PendingLabels, Queue

__all__ = ["EXPIRED", "LEARNED", "Learnt", "Supervised", "Waiting"]

LEARNED, EXPIRED, UNPREDICTED = "learned", "expired", "unpredicted"
PARTIAL, CORRECTED, ABSURD = "partial", "corrected", "absurd"
NEGATIVE, TURNED, CONFIRMED = "negative", "turned", "confirmed"


@dataclass(slots=True)
class Waiting:
    """A prediction that waits for its label.

    Attributes
    ----------
    issued : Issued
    learned : ndarray, (outputs,), bool, or None
        The outputs of its label that are learned; None if no label has come.
    assumed_negative : bool
        Whether it was learned as a negative because no label came in time.
    label_refused : bool
        Whether its entry had a label that was refused: no label then does not mean a negative.
    """

    issued: Issued | Place
    learned: Mask | None = None
    assumed_negative: bool = False
    label_refused: bool = False

    @property
    def entry_time(self) -> int:
        """The event time of its entry, ns."""
        return self.issued.time


class Learnt(NamedTuple):
    """A label that is learned now.

    Attributes
    ----------
    issued : Issued or Place
        The prediction that it belongs to.
    target, mask : ndarray, (1, columns)
    weight : float, >= 0
    """

    issued: Issued | Place
    target: Array
    mask: Mask
    weight: float


@accepts_old_names("task.supervised")
class Supervised(Task):
    """Predicts a label from the values of the last `window` entries; label and entry are joined by
    the entry's id.

    A label inside an entry is learned at the next arrival: the entry itself is predicted first. A
    separate label is learned when it arrives, if its entry's prediction still waits. Every id is
    remembered for twice `ttl` of event time, so that a second label, a late label and a label with
    an unknown id are distinguished.

    A label may contain some outputs only: these are learned, and the prediction waits for the
    others. A learned output is not learned again, and cannot be corrected. A further label
    replaces outputs that are not learned yet: those of a label inside an entry before the next
    arrival, and those of every label for as long as `correction_window`. Of two labels that
    differ, the one with the later time counts. A label without any new output is refused as a
    duplicate.

    Parameters
    ----------
    window : int, >= 1, in entries
        The number of entries that a prediction is made from.
    outputs : int, >= 1
        The number of values of a label (regression).
    classes : int >= 2, or sequence of str, bool, int or float, optional
        Classification: the number of classes, with the labels 0, 1, ..., or the list of their
        names, in the order of the base's probabilities. Records may have the names as labels; in
        Python, `label` makes a label from a name.
    ttl : int, ns of event time
        How long a prediction waits for its label.
    max_pending : int
        The largest number of predictions that wait for their labels; beyond it the oldest one
        expires early.
    loss : str, optional
        The loss by which experts are compared: ``absolute``, ``squared``, ``pinball-0.9`` or, for
        classes, ``log``. Default: ``absolute``, or ``log`` for classification.
    correction_window : int, ns of event time, from 0 to `ttl`
        How long a label can still be corrected. It is learned before the prediction of the first
        entry that is younger than the label by this time. Labels that are due at the same entry
        are learned in the order of their times, not of their arrival. 0: labels are learned as
        soon as they arrive.
    negative_after : int, ns of event time, less than `ttl`, optional
        For two classes of which only the second is ever reported, as with clicks and purchases: an
        entry without a label is learned as a negative after this time. If its label comes later,
        the entry is learned as a positive too.
    correct_negatives : bool
        With `negative_after`: whether weights of the examples compensate for the negatives that
        were learned before a late positive (`DelayedPositives`).
    absurd : float, > 10
        A label that differs from the base by more than this many usual errors of the base is an
        outlier: it is not learned, and the prediction waits for another label. ``inf``: every
        label is learned.

    Examples
    --------
    >>> task = Supervised(window=6, classes=["no", "yes"])
    >>> task.kind, task.label("yes").tolist()
    ('classification', [1.0])
    """

    name: ClassVar[str] = "supervised"

    def __init__(  # noqa: PLR0913 - each is a key of its table
        self,
        window: int = 1,
        *,
        outputs: int = 1,
        classes: int | Sequence[ClassName] | None = None,
        ttl: int = DAY_NS,
        max_pending: int = 100_000,
        loss: str | None = None,
        correction_window: int = 0,
        negative_after: int | None = None,
        correct_negatives: bool = True,
        absurd: float = 100.0,
    ) -> None:
        super().__init__(window, 1, loss or ("absolute" if classes is None else "log"))
        count, self.class_names = counted_classes(classes)
        if count is not None and outputs != 1:
            raise ConfigError("task.classes", classes, "2 to 100000 classes, with one output")
        _check_loss(self.loss.name, classify=count is not None)
        _check_durations(ttl, correction_window, negative_after)
        if negative_after is not None and count != 2:
            raise ConfigError(
                "task.classes",
                classes,
                "2 classes, of which only the second is reported (negative_after)",
            )
        self.kind: TaskKind = "regression" if count is None else "classification"
        self.outputs = positive("task.outputs", outputs, 100_000)
        self.classes = count
        self.absurd = LabelOutliers(self.outputs, absurd)
        self.ttl = ttl
        self.correction_window = correction_window
        self.max_pending = positive("task.max_pending", max_pending)
        self.waiting: OrderedDict[str, Waiting] = OrderedDict()
        # id -> (entry time, outcome)
        self.closed: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self.pending_labels = PendingLabels()
        self.negative_after = negative_after
        self.correct_negatives = correct_negatives
        self.positives = DelayedPositives()
        self._due = Queue()

    def columns(self, channels: int) -> int:
        """Return the outputs, or one column per class."""
        del channels
        return self.classes or self.outputs

    @property
    def pending(self) -> int:
        """The number of predictions without a whole label."""
        return len(self.waiting)

    def set_unit(self, unit: Tensor | None) -> None:
        """Set the scale that the first labels are compared with."""
        if unit is not None and self.classes is None:
            self.absurd.unit = unit.detach().cpu().double().numpy()

    def label(self, name: ClassName) -> FloatArray:
        """Return the label of a class by its name, (1,), in the form of `Entry.label` and
        `Label.value`.

        Raises
        ------
        ConfigError
            If no class has this name with the same type.
        """
        for i, known in enumerate(self.class_names):
            if known == name and isinstance(known, bool) == isinstance(name, bool):
                return np.array([i], np.float32)
        raise ConfigError("label", name, f"one of the task's class names, {self.class_names}")

    def label_fault(self, entry: Entry) -> LabelError | None:
        """Return the error of the label inside an entry; None if there is none."""
        if entry.refused is not None:
            fault: tuple[Reason, str] = entry.refused
        elif entry.label is None:
            return None
        else:
            try:
                self._check_value(entry.label, entry)
                return None
            except EntryError as error:
                fault = error.reason, error.detail
        return LabelError(
            fault[0], f"its label: {fault[1]}; the entry itself is predicted", entry.position
        )

    def observe(self, item: Entry | Label) -> Arrival:
        """Match labels to predictions, and slide the window."""
        if isinstance(item, Label):
            return Arrival([self._matured(one) for one in self.take_label(item)])
        self.check_entry(item, None)
        if self.was_used(item.id):
            raise EntryError(
                Reason.DUPLICATE_ID, f"id {_short(item.id)} was used before", item.position
            )
        if item.label is not None:
            self._check_value(item.label, item)
        window = self.take_in(item)
        arrival = Arrival([self._matured(one) for one in self.learn_due(self.last_time)])
        if window.full:
            arrival.inputs = window.values
        else:
            self.closed[item.id] = (self.last_time, UNPREDICTED)
        self.hold_own_label(item, self.last_time)
        return arrival

    def was_used(self, id_: str) -> bool:
        """Return whether an entry with this id is remembered."""
        return id_ in self.waiting or id_ in self.closed

    def take_label(self, label: Label) -> list[Learnt]:
        """Match a label to its prediction; return what is learned now.

        Raises
        ------
        EntryError
            If it is refused; then nothing has changed.
        """
        self._check_label(label)
        self.hold(label.id, label.value, label.time)
        learnt: list[Learnt] = []
        self._learn_at_once(learnt)
        return learnt

    def learn_due(self, now: int) -> list[Learnt]:
        """Return what is learned at an entry of the time `now`, ns; predictions whose time to live
        has ended expire."""
        learnt: list[Learnt] = []
        self._learn_at_once(learnt)
        self._learn_due(now, learnt)
        self._expire(now, learnt)
        return learnt

    def hold_own_label(self, entry: Entry, now: int) -> None:
        """Keep the checked label inside an entry until the next arrival."""
        if entry.label is not None:
            self.hold(entry.id, entry.label, now, entry_time=now)

    def go_back(self, time: int) -> None:
        """Replace every later time in the state by `time`, ns: the clock was wrong."""
        super().go_back(time)
        for one in self.waiting.values():
            if one.entry_time <= time:
                continue
            if isinstance(one.issued, Place):
                one.issued.time = time
            else:
                one.issued = replace(one.issued, entry=replace(one.issued.entry, time=time))
        self.closed = OrderedDict(
            (id_, (min(at, time), outcome)) for id_, (at, outcome) in self.closed.items()
        )
        for pending in self.pending_labels.values():
            pending.due = min(pending.due, time + self.correction_window)
        self._rebuild_queue()

    def remember(self, issued: Issued | Place) -> None:
        """Keep a prediction until its label arrives or its time-to-live ends."""
        one = self.waiting[issued.id] = Waiting(issued)
        if self.negative_after is not None:
            entry = issued.entry
            one.label_refused = entry.refused is not None
            self._due.push(entry.time + self.negative_after, entry.time, entry.id, is_label=False)

    def move_waiting(self, moved: Callable[[Issued], Issued]) -> None:
        """Replace each waiting prediction by ``moved(prediction)``."""
        for one in self.waiting.values():
            one.issued = moved(moved_out(one.issued))

    # -- arriving labels

    def _check_label(self, label: Label) -> None:
        if label.id not in self.waiting:
            _, outcome = self.closed.get(label.id, (0, ""))
            if outcome == LEARNED or label.id in self.pending_labels:
                raise EntryError(
                    Reason.DUPLICATE_LABEL, f"id {_short(label.id)} has its label", label.position
                )
            if outcome == EXPIRED:
                raise EntryError(
                    Reason.LATE_LABEL, f"id {_short(label.id)} waits no longer", label.position
                )
            if not outcome:
                detail = (
                    f"no entry with id {_short(label.id)} (yet: a label dated at or before "
                    f"its entry is read first)"
                )
                raise EntryError(Reason.UNKNOWN_LABEL, detail, label.position)
        elif label.time - self.waiting[label.id].entry_time > self.ttl:
            late = (label.time - self.waiting[label.id].entry_time) / 1e9
            raise EntryError(
                Reason.LATE_LABEL,
                f"id {_short(label.id)}: {late:g} s after its entry",
                label.position,
            )
        self._check_value(label.value, label)
        if not self._is_news(label):
            raise EntryError(
                Reason.DUPLICATE_LABEL, f"id {_short(label.id)}: nothing new", label.position
            )

    def _check_value(self, value: FloatArray, item: Entry | Label) -> None:
        if value.shape != (self.outputs,):
            detail = f"expected a label of {self.outputs} values, got {value.shape}"
            raise EntryError(Reason.WRONG_WIDTH, detail, item.position)
        check_size(value, "label", item.position)
        if self.classes is not None and not np.isnan(value[0]):
            c = float(value[0])
            if not (c.is_integer() and 0 <= c < self.classes):
                hint = (
                    "" if self.class_names else "; other classes have names: task.classes = [...]"
                )
                detail = f"expected a class from 0 to {self.classes - 1}, got {c:g}{hint}"
                raise EntryError(Reason.BAD_CLASS, detail, item.position)

    def _learned(self, id_: str) -> Mask | None:
        """Return which outputs of a waiting prediction's label are learned, (outputs,); None if no
        label has come."""
        one = self.waiting.get(id_)
        return None if one is None else one.learned

    def _is_news(self, label: Label) -> bool:
        """Whether a label has an output that is neither learned nor pending."""
        pending, learned = self.pending_labels.get(label.id), self._learned(label.id)
        value = label.value if learned is None else np.where(learned, np.nan, label.value)
        if pending is not None:
            return bool(pending.changed_outputs(value, label.time).any()) or (
                label.time + self.correction_window < pending.due and not np.isnan(value).all()
            )
        return learned is None or not np.isnan(value).all()

    def hold(self, id_: str, value: FloatArray, time: int, entry_time: int | None = None) -> None:
        """Keep a checked label until it is learned; `entry_time` is given for a label inside its
        entry."""
        learned, pending = self._learned(id_), self.pending_labels.get(id_)
        due = time + self.correction_window
        if learned is not None:
            value = np.where(learned, np.nan, value)
        if pending is not None:
            due = min(due, pending.due)
            moved = due < pending.due
            if pending.merge(value, time, due):
                self.count(CORRECTED)
        else:
            self.pending_labels[id_] = PendingLabel.of(value, time, due)
            moved = True
        if self.correction_window and moved:
            if entry_time is None:
                entry_time = (
                    self.waiting[id_].entry_time if id_ in self.waiting else self.closed[id_][0]
                )
            self._due.push(due, entry_time, id_, is_label=True)
            # Labels that came earlier and earlier.
            if len(self._due) > 4 * (len(self.waiting) + len(self.pending_labels)) + 64:
                self._rebuild_queue()

    # -- learning

    def _learn_at_once(self, learnt: list[Learnt]) -> None:
        """Learn the labels that wait for the next arrival."""
        if self.correction_window or not self.pending_labels:
            return
        for id_ in list(self.pending_labels):
            self._learn_pending(id_, learnt)

    def _learn_due(self, now: int, learnt: list[Learnt]) -> None:
        """Learn the labels that are due by `now`, and the entries without a label that are now
        assumed to be negatives."""
        for due, id_, is_label in self._due.pop_due(now):
            pending = self.pending_labels.get(id_)
            if is_label:
                if pending is not None and pending.due == due:
                    self._learn_pending(id_, learnt)
            elif self._lacks_a_label(id_):
                one = self.waiting[id_]
                one.assumed_negative = True
                self.count(NEGATIVE)
                learnt.append(self._learnt(one.issued, np.zeros(1), certain=False))

    def _lacks_a_label(self, id_: str) -> bool:
        """Whether a waiting entry has no label so far; a label without any known output does not
        count."""
        one = self.waiting.get(id_)
        if one is None or one.assumed_negative or one.label_refused:
            return False
        if one.learned is not None and one.learned.any():
            return False
        pending = self.pending_labels.get(id_)
        return pending is None or bool(np.isnan(pending.value).all())

    def _learn_pending(self, id_: str, learnt: list[Learnt]) -> None:
        value = self.pending_labels.pop(id_).value
        one = self.waiting.get(id_)
        if one is None:
            if id_ in self.closed:
                self.closed[id_] = (self.closed[id_][0], LEARNED)
            self.count(UNPREDICTED)
            return
        if self.classes is None:
            base = one.issued.experts[0, 0]
            outliers = self.absurd.outliers(value.astype(np.float64), np.abs(value - base), base)
            if outliers.any():
                value = np.where(outliers, np.nan, value)
                self.count(ABSURD)
        known = ~np.isnan(value)
        # Has been learned just so.
        if one.assumed_negative and known.any() and value[0] == 0.0:
            self.close(id_, LEARNED, CONFIRMED)
            return
        one.learned = known if one.learned is None else one.learned | known
        if self.negative_after is not None and known.any() and value[0] == 1.0:
            self.positives.saw_positive(late=one.assumed_negative)
        learnt.append(self._learnt(one.issued, value))
        if one.learned.all():
            self.close(id_, LEARNED, TURNED if one.assumed_negative else LEARNED)
        else:
            self.count(PARTIAL)

    def close(self, id_: str, closed_as: str, outcome: str | None) -> None:
        """End the waiting of a prediction, and count the outcome; its id is remembered."""
        issued = self.waiting.pop(id_).issued
        self.closed[id_] = (issued.time, closed_as)
        if isinstance(issued, Place):
            issued.places.release(issued.row)
        if outcome is not None:
            self.count(outcome)

    def _learnt(
        self, issued: Issued | Place, value: FloatArray, *, certain: bool = True
    ) -> Learnt:
        mask = ~np.isnan(value)[None]  # (1, outputs)
        base = issued.experts[0]
        judged = ~np.isnan(base)  # NaN: no prediction of the base
        if self.classes is None:
            target = np.where(mask, value, base).astype(np.float64)
        else:
            mask = np.repeat(mask, self.classes, axis=1)
            target = np.zeros((1, self.classes))
            if mask.all():
                target[0, int(value[0])] = 1.0
        weight = 1.0
        if self.negative_after is not None and self.correct_negatives:
            weight = self.positives.weight(issued.aggregator_outputs, base, certain=certain)
        return Learnt(issued, target, mask & judged, weight)

    def _matured(self, one: Learnt) -> Matured:
        issued, known = one.issued, torch.from_numpy(one.mask).to(self.device)
        example = Example(issued.inputs, issued.base, self.tensor(one.target), known)
        return Matured(
            example,
            example,
            issued.experts,
            issued.aggregator_outputs,
            one.target,
            one.mask,
            one.weight,
            issued.note,
            issued.id,
        )

    def _expire(self, now: int, learnt: list[Learnt]) -> None:
        """Expire predictions older than the time-to-live, and forget old ids."""
        while self.waiting:
            id_, oldest = next(iter(self.waiting.items()))
            if now - oldest.entry_time <= self.ttl and len(self.waiting) < self.max_pending:
                break
            if id_ in self.pending_labels:  # its label has arrived, but is not due yet
                self._learn_pending(id_, learnt)
            if id_ in self.waiting:
                self.close(id_, EXPIRED, None if oldest.assumed_negative else EXPIRED)
        self.forget_old_ids(now)

    def forget_old_ids(self, now: int) -> None:
        """Forget ids older than twice the time-to-live, and the oldest beyond twice
        `max_pending`."""
        while self.closed:
            id_, (time, _) = next(iter(self.closed.items()))
            if now - time <= 2 * self.ttl and len(self.closed) < 2 * self.max_pending:
                break
            del self.closed[id_]

    # -- state

    def _rebuild_queue(self) -> None:
        """Fill the queue again with all items that are still due, and no others."""
        self._due = Queue()
        for id_, pending in self.pending_labels.items() if self.correction_window else ():
            time = (
                self.waiting[id_].entry_time
                if id_ in self.waiting
                else self.closed.get(id_, (pending.due, ""))[0]
            )
            self._due.push(pending.due, time, id_, is_label=True)
        if self.negative_after is not None:
            for id_, one in self.waiting.items():
                if not one.assumed_negative:
                    time = one.entry_time
                    self._due.push(time + self.negative_after, time, id_, is_label=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the window, the waiting predictions, their labels so far and the remembered
        ids."""
        state = super().state_dict()
        state["held"] = self.pending_labels.pack()
        waiting = self.waiting.items()
        state["told"] = [[i, one.learned.copy()] for i, one in waiting if one.learned is not None]
        state["fake"] = [id_ for id_, one in waiting if one.assumed_negative]
        refused = [id_ for id_, one in waiting if one.label_refused]
        if refused:
            state["unsure"] = refused
        state["positives"] = self.positives.state_dict()
        state["absurd"] = self.absurd.state_dict()
        state["closed"] = [[id_, time, outcome] for id_, (time, outcome) in self.closed.items()]
        state["waiting"] = pack([one.issued for one in self.waiting.values()])
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self.pending_labels = PendingLabels.unpack(state["held"])
        self.positives.load_state_dict(state["positives"])
        self.absurd.load_state_dict(state["absurd"])
        self.closed = OrderedDict(
            (id_, (int(time), outcome)) for id_, time, outcome in state["closed"]
        )
        self.waiting = OrderedDict(
            (issued.id, Waiting(issued)) for issued in unpack(state["waiting"], self.device)
        )
        for id_, learned in state["told"]:
            self.waiting[id_].learned = np.array(learned, np.bool_)
        for id_ in state["fake"]:
            self.waiting[id_].assumed_negative = True
        for id_ in state.get("unsure", ()):
            self.waiting[id_].label_refused = True
        self._rebuild_queue()


def _short(id_: str) -> str:
    return repr(id_ if len(id_) <= 60 else id_[:57] + "...")


def _check_loss(name: str, *, classify: bool) -> None:
    if (name == "log") != classify:
        raise ConfigError(
            "task.loss",
            name,
            "log for classification, absolute, squared or pinball-q for regression",
        )


def _check_durations(ttl: int, correction_window: int, negative_after: int | None) -> None:
    """Raise `ConfigError` unless both of the shorter durations (ns) end within the task's ttl."""
    if not 0 < ttl < 2**62:
        raise ConfigError("task.ttl", ttl, "a duration > 0")
    if not 0 <= correction_window <= ttl:
        raise ConfigError(
            "task.correction_window", correction_window, "a duration from 0 to the task's ttl"
        )
    if negative_after is not None and not 0 <= negative_after < ttl:
        raise ConfigError(
            "task.negative_after", negative_after, "a duration less than the task's ttl"
        )
