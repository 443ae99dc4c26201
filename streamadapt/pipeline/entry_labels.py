"""Labels inside entries: an invalid label is refused alone, and its entry is still predicted."""

from __future__ import annotations

from dataclasses import replace

from streamadapt.errors import EntryError, LabelError, Reason
from streamadapt.pipeline.stats import Stats
from streamadapt.records import Entry, Label, RefusedLabel
from streamadapt.tasks import Task

__all__ = ["count_refused", "without_bad_label"]


def without_bad_label(task: Task, item: Entry | Label) -> tuple[Entry | Label, LabelError | None]:
    """Return an item, and the error of the label inside it; an entry with an invalid label is
    returned without that label."""
    if not isinstance(item, Entry) or (item.label is None and item.refused is None):
        return item, None
    fault = task.label_fault(item)
    if fault is None:
        return item, None
    return replace(item, label=None, refused=RefusedLabel(fault.reason, fault.detail)), fault


def count_refused(stats: Stats, item: Entry | Label, error: EntryError) -> None:
    """Count a refused item by its reason; count a refused label also among the labels that no loss
    contains.

    A duplicate label is not counted there: the losses contain the first one.
    """
    stats.rejected[error.reason.value] += 1
    is_label = isinstance(error, LabelError) or isinstance(item, Label)
    if is_label and error.reason is not Reason.DUPLICATE_LABEL:
        stats.rejected_labels[error.reason.value] += 1
