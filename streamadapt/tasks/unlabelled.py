"""Entries whose labels never come: what adapts does so without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from streamadapt.errors import ConfigError, EntryError, Reason
from streamadapt.models.contract import TaskKind
from streamadapt.records import Entry, Label
from streamadapt.tasks.base import Arrival, Task, positive
from streamadapt.tasks.class_names import ClassName, counted_classes
from streamadapt.tasks.issued import Issued

__all__ = ["Unlabelled"]


class Unlabelled(Task):
    """From the last `window` entries' values to an output that nobody will ever judge.

    Only learners that adapt without labels fit it, and nothing is measured, so that what is served
    is what the guard was told to trust beforehand (`TwoLayer`'s ``prior``). Where a few labels
    come, `Supervised` is the task.

    Parameters
    ----------
    window : int, >= 1, in entries
        How many entries one prediction is made from.
    outputs : int, >= 1
        Values of an output (regression).
    classes : int >= 2, or sequence of str, bool, int or float, optional
        Classification: the number of classes, or the list of their names.

    Examples
    --------
    >>> Unlabelled(classes=10).kind
    'classification'
    """

    name: ClassVar[str] = "unlabelled"
    labelled: ClassVar[bool] = False

    def __init__(
        self,
        window: int = 1,
        *,
        outputs: int = 1,
        classes: int | Sequence[ClassName] | None = None,
    ) -> None:
        super().__init__(window, 1, "absolute" if classes is None else "log")
        count, self.class_names = counted_classes(classes)
        if count is not None and outputs != 1:
            raise ConfigError("task.classes", classes, "2 to 100000 classes, with one output")
        self.kind: TaskKind = "regression" if count is None else "classification"
        self.outputs = positive("task.outputs", outputs, 100_000)
        self.classes = count

    def columns(self, channels: int) -> int:
        """Return the outputs, or one column per class."""
        del channels
        return self.classes or self.outputs

    @property
    def pending(self) -> int:
        """Nothing waits."""
        return 0

    def observe(self, item: Entry | Label) -> Arrival:
        """Slide the window; a label inside an entry is not looked at."""
        if isinstance(item, Label):
            raise EntryError(
                Reason.UNKNOWN_LABEL, "an unlabelled task learns from no labels", item.position
            )
        self.check_entry(item, None)
        window = self.take_in(item)
        return Arrival(inputs=window.values if window.full else None)

    def remember(self, issued: Issued) -> None:
        """Forget it: no target will come."""
