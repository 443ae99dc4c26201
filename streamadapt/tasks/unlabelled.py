"""A task without labels: its learners adapt without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from streamadapt.errors import ConfigError, EntryError, Reason
from streamadapt.models.contract import TaskKind
from streamadapt.records import Entry, Label
from streamadapt.tasks.base import Arrival, Task, positive
from streamadapt.tasks.class_names import ClassName, counted_classes
from streamadapt.tasks.issued import Issued
from streamadapt.tasks.places import Place

__all__ = ["Unlabelled"]


class Unlabelled(Task):
    """Predicts an output from the values of the last `window` entries; no label ever comes.

    Only learners that adapt without labels fit this task. No loss is measured, so the served
    prediction is the mixture that the guard was configured to trust (`TwoLayer`'s ``prior``). If a
    few labels come, use `Supervised`.

    Parameters
    ----------
    window : int, >= 1, in entries
        The number of entries that a prediction is made from.
    outputs : int, >= 1
        The number of values of an output (regression).
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
        """The number of predictions that wait for a target: always 0."""
        return 0

    def observe(self, item: Entry | Label) -> Arrival:
        """Slide the window; a label inside an entry is ignored."""
        if isinstance(item, Label):
            raise EntryError(
                Reason.UNKNOWN_LABEL, "an unlabelled task learns from no labels", item.position
            )
        self.check_entry(item, None)
        window = self.take_in(item)
        return Arrival(inputs=window.values if window.full else None)

    def remember(self, issued: Issued | Place) -> None:
        """Do nothing: no target will come."""
