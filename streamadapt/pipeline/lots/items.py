"""Items as columns: what a lot is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from streamadapt.columns import Columns
from streamadapt.errors import EntryError
from streamadapt.models.origin import FLOAT32_MAX
from streamadapt.pipeline.coerce import coerced, has_surrogate
from streamadapt.records import Array, Entry, Label
from streamadapt.tasks import Supervised, Task

__all__ = ["Items", "items_of", "plain_items"]


class Items(NamedTuple):
    """Entries and labels in their order, one row each.

    Attributes
    ----------
    is_label : list of bool
    ids : list of str
    times : ndarray, (items,), int64, ns
    values : ndarray, (items, channels), float64
        Anything in the rows of labels.
    labels : ndarray, (items, outputs), float64
        A label, or the one inside an entry; NaN in the rows of other entries.
    has_label : list of bool
        Of entries: whether there is one inside.
    """

    is_label: list[bool]
    ids: list[str]
    times: Any
    values: Array
    labels: Array
    has_label: list[bool]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.ids)

    def first(self, count: int) -> Items:
        """Return the first items."""
        if count >= len(self.ids):
            return self
        columns: Any = (column[:count] for column in self)
        return Items(*columns)


def plain_items(
    given: Sequence[Any], task: Task, channels: int, outputs: int
) -> tuple[Items, list[Entry | Label]]:
    """Return the first items, up to one that may be refused: as columns, and in a pipeline's
    types."""
    taken: list[Entry | Label] = []
    is_label, ids, times, has_label = [], [], [], []
    values, labels = np.zeros((len(given), channels)), np.full((len(given), outputs), np.nan)
    width, labelled = (channels,), (outputs,)
    supervised = isinstance(task, Supervised)
    for i, one in enumerate(given):
        try:
            item = coerced(one)
        except EntryError:
            break
        if isinstance(item, Label):
            if not supervised or item.value.shape != labelled:
                break
            labels[i] = item.value
            has_label.append(False)
        else:
            own = item.label is not None and supervised
            if item.values.shape != width or item.refused is not None:
                break
            if own:
                if item.label.shape != labelled:  # type: ignore[union-attr]
                    break
                labels[i] = item.label
            values[i] = item.values
            has_label.append(own)
        taken.append(item)
        is_label.append(isinstance(item, Label))
        ids.append(item.id)
        times.append(item.time)
    n = len(ids)
    found = Items(is_label, ids, np.array(times, np.int64), values[:n], labels[:n], has_label)
    return up_to_first_bad_label(found, task), taken


def up_to_first_bad_label(items: Items, task: Task) -> Items:
    """Return the items before the first whose label is not whole, too large, or no class."""
    if not (any(items.is_label) or any(items.has_label)):
        return items
    labelled = np.array(items.is_label, np.bool_) | np.array(items.has_label, np.bool_)
    if not isinstance(task, Supervised):  # its labels are refused
        return items.first(int(np.argmax(labelled))) if labelled.any() else items
    bad = labelled & ~(np.abs(items.labels) <= FLOAT32_MAX).all(axis=1)  # NaN: not known
    classes = getattr(task, "classes", None)
    if classes is not None:
        value = np.nan_to_num(items.labels[:, 0])
        bad |= labelled & ((value != np.floor(value)) | (value < 0) | (value >= classes))
    return items.first(int(np.argmax(bad))) if bad.any() else items


def items_of(columns: Columns, task: Task, first: int, count: int, outputs: int) -> Items:
    """Return up to `count` items of columns from `first` on, up to one that may be refused."""
    some = slice(first, first + count)
    is_label, n = columns.is_label, len(columns.times[some])
    assert is_label is not None
    supervised = isinstance(task, Supervised)
    labels, odd = np.full((n, outputs), np.nan), np.zeros(n, np.bool_)
    if supervised and columns.labels is not None:
        if columns.labels.shape[1] == outputs:
            labels = columns.labels[some]
        else:  # they are refused one by one
            odd |= ~np.isnan(columns.labels[some]).all(axis=1)
    told = is_label[some].tolist()
    own = (~np.isnan(labels).all(axis=1) & ~is_label[some]).tolist()
    found = Items(
        told, list(columns.ids[some]), columns.times[some], columns.values[some], labels, own
    )
    odd |= np.array([not id_.isascii() and has_surrogate(id_) for id_ in found.ids], np.bool_)
    return up_to_first_bad_label(found.first(int(np.argmax(odd))) if odd.any() else found, task)
