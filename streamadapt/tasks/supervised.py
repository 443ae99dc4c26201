"""Supervised learning on a stream: features now, a label later (or never)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np
import torch

from streamadapt.entry import Entry, FloatArray, Label
from streamadapt.errors import ConfigError, EntryError, Reason
from streamadapt.learners.base import TaskKind
from streamadapt.tasks.base import Arrival, Example, Matured, Task, positive
from streamadapt.tasks.issued import Issued, pack, unpack

__all__ = ["Supervised"]

DAY_NS = 86_400_000_000_000

LEARNED, EXPIRED, UNPREDICTED = "learned", "expired", "unpredicted"


class Supervised(Task):
    """From the last `window` entries' values to a label, joined by the entry's id.

    A label that comes inside its entry is learned at the next arrival: the entry itself is predicted first. A label
    that comes apart is learned when it arrives, if its entry's prediction still waits. Every id is remembered for
    twice `ttl` of event time, so that a second label and one that is too late are told from an unknown one.

    Parameters
    ----------
    window : int, >= 1, in entries
    outputs : int, >= 1
        Values of a label (regression).
    classes : int, >= 2, optional
        Classification: labels are class indices from 0, outputs are distributions over so many classes.
    ttl : int, ns of event time
        How long a prediction waits for its label.
    max_pending : int
        At most so many predictions wait; beyond it the oldest expires early.
    loss : str, optional
        Default: ``absolute``, or ``log`` for classification.
    """

    name: ClassVar[str] = "supervised"

    def __init__(
        self,
        window: int = 1,
        *,
        outputs: int = 1,
        classes: int | None = None,
        ttl: int = DAY_NS,
        max_pending: int = 100_000,
        loss: str | None = None,
    ) -> None:
        super().__init__(window, 1, loss or ("absolute" if classes is None else "log"))
        if classes is not None and (not 2 <= classes <= 100_000 or outputs != 1):
            raise ConfigError("task.classes", classes, "2 to 100000 classes, with one output")
        if (self.loss.name == "log") != (classes is not None):
            raise ConfigError(
                "task.loss", self.loss.name, "log for classification, absolute, squared or pinball-q for regression"
            )
        if not 0 < ttl < 2**62:
            raise ConfigError("task.ttl", ttl, "a duration > 0")
        self.kind: TaskKind = "regression" if classes is None else "classification"
        self.outputs = positive("task.outputs", outputs, 100_000)
        self.classes = classes
        self.ttl = ttl
        self.max_pending = positive("task.max_pending", max_pending)
        self.waiting: OrderedDict[str, Issued] = OrderedDict()
        self.closed: OrderedDict[str, tuple[int, str]] = OrderedDict()  # id -> (entry time, outcome)
        self._own: tuple[str, FloatArray] | None = None  # the newest entry's own label, learned at the next arrival

    def columns(self, channels: int) -> int:
        """Return the outputs, or one column per class."""
        del channels
        return self.classes or self.outputs

    @property
    def pending(self) -> int:
        """Predictions without a label."""
        return len(self.waiting)

    def observe(self, item: Entry | Label) -> Arrival:
        """Match labels to predictions, and slide the window."""
        if isinstance(item, Label):
            self._check_label(item)
        else:
            self.check_entry(item, None)
            if item.id in self.waiting or item.id in self.closed:
                raise EntryError(Reason.DUPLICATE_ID, f"id {_short(item.id)} was used before", item.position)
            if item.label is not None:
                self._check_value(item.label, item)
        arrival = Arrival()
        if self._own is not None:
            arrival.matured += self._close(*self._own)
            self._own = None
        if isinstance(item, Label):
            arrival.matured += self._close(item.id, item.value)
            return arrival
        window = self.take_in(item)
        self._expire(item.time)
        if window.full:
            arrival.inputs = window.values
        else:
            self.closed[item.id] = (item.time, UNPREDICTED)
        if item.label is not None:
            self._own = (item.id, item.label)
        return arrival

    def remember(self, issued: Issued) -> None:
        """Keep a prediction until its label arrives or its time is up."""
        self.waiting[issued.entry.id] = issued

    def _check_label(self, label: Label) -> None:
        own = self._own is not None and self._own[0] == label.id
        if label.id not in self.waiting or own:
            _, outcome = self.closed.get(label.id, (0, ""))
            if own or outcome == LEARNED:
                raise EntryError(Reason.DUPLICATE_LABEL, f"id {_short(label.id)} has its label", label.position)
            if outcome == EXPIRED:
                raise EntryError(Reason.LATE_LABEL, f"id {_short(label.id)} waits no longer", label.position)
            if not outcome:
                raise EntryError(Reason.UNKNOWN_LABEL, f"no entry with id {_short(label.id)}", label.position)
        elif label.time - self.waiting[label.id].entry.time > self.ttl:
            late = (label.time - self.waiting[label.id].entry.time) / 1e9
            raise EntryError(Reason.LATE_LABEL, f"id {_short(label.id)}: {late:g} s after its entry", label.position)
        self._check_value(label.value, label)

    def _check_value(self, value: FloatArray, item: Entry | Label) -> None:
        if value.shape != (self.outputs,):
            detail = f"expected a label of {self.outputs} values, got {value.shape}"
            raise EntryError(Reason.WRONG_WIDTH, detail, item.position)
        if np.isinf(value).any():
            raise EntryError(Reason.NOT_FINITE, "expected a finite label", item.position)
        if self.classes is not None and not np.isnan(value[0]):
            c = float(value[0])
            if not (c.is_integer() and 0 <= c < self.classes):
                detail = f"expected a class from 0 to {self.classes - 1}, got {c:g}"
                raise EntryError(Reason.BAD_CLASS, detail, item.position)

    def _close(self, id_: str, value: FloatArray) -> list[Matured]:
        issued = self.waiting.pop(id_, None)
        if issued is None:
            time, _ = self.closed[id_]
            self.closed[id_] = (time, LEARNED)
            self.count(UNPREDICTED)
            return []
        self.closed[id_] = (issued.entry.time, LEARNED)
        self.count(LEARNED)
        return [self._mature(issued, value)]

    def _mature(self, issued: Issued, value: FloatArray) -> Matured:
        mask = ~np.isnan(value)[None]  # (1, outputs)
        judged = ~np.isnan(issued.experts[0])  # NaN: the base said nothing
        if self.classes is None:
            target = np.where(mask, value, issued.experts[0]).astype(np.float64)
        else:
            mask = np.repeat(mask, self.classes, axis=1)
            target = np.zeros((1, self.classes))
            if mask.all():
                target[0, int(value[0])] = 1.0
        mask = mask & judged
        tensor = torch.from_numpy(target.astype(np.float32)).to(self.device)
        example = Example(issued.inputs, issued.base, tensor, torch.from_numpy(mask).to(self.device))
        return Matured(example, example, issued.experts, issued.own, target, mask)

    def _expire(self, now: int) -> None:
        """Give up on predictions past their time, and forget ids past twice their time."""
        while self.waiting:
            id_, oldest = next(iter(self.waiting.items()))
            if now - oldest.entry.time <= self.ttl and len(self.waiting) < self.max_pending:
                break
            del self.waiting[id_]
            self.closed[id_] = (oldest.entry.time, EXPIRED)
            self.count(EXPIRED)
        while self.closed:
            id_, (time, _) = next(iter(self.closed.items()))
            if now - time <= 2 * self.ttl and len(self.closed) < 2 * self.max_pending:
                break
            del self.closed[id_]

    def state_dict(self) -> dict[str, Any]:
        """Return the window, the waiting predictions and the remembered ids."""
        state = super().state_dict()
        state["own"] = None if self._own is None else {"id": self._own[0], "value": self._own[1].copy()}
        state["closed"] = [[id_, time, outcome] for id_, (time, outcome) in self.closed.items()]
        state["waiting"] = pack(list(self.waiting.values()))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        own = state["own"]
        self._own = None if own is None else (own["id"], np.array(own["value"], np.float32))
        self.closed = OrderedDict((id_, (int(time), outcome)) for id_, time, outcome in state["closed"])
        self.waiting = OrderedDict((i.entry.id, i) for i in unpack(state["waiting"], self.device))


def _short(id_: str) -> str:
    return repr(id_ if len(id_) <= 60 else id_[:57] + "...")
