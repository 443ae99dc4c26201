"""Items and predictions as columns: the arrays that `Pipeline.observe_lot` takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from streamadapt.errors import Reason, ShapeError
from streamadapt.records import Array, Entry, Label

__all__ = ["Columns", "PredictionColumns", "RefusedItem"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Entries, and the labels of earlier entries, in the order of their arrival: one row each.

    Attributes
    ----------
    values : ndarray, (items, channels), float64
        NaN marks a missing value. The row of a label has no meaning.
    times : ndarray, (items,), int64, ns since the Unix epoch
        Event times; of a label, when it became known.
    ids : sequence of str
        Of the entry, or of the entry that a label belongs to; not needed by forecasts.
    labels : ndarray, (items, outputs), float64, or None
        The label of a row that is a label; of an entry, the label inside it. NaN where there is
        none.
    is_label : ndarray, (items,), bool, or None
        Which rows are labels of earlier entries; None: all rows are entries.

    Examples
    --------
    >>> columns = Columns([[20.5], [20.7]], times=[0, 10**9], ids=["a", "b"])
    >>> len(columns), columns.item(1).id
    (2, 'b')
    """

    values: Array
    times: npt.NDArray[np.int64]
    ids: Sequence[str] = ()
    labels: Array | None = None
    is_label: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        """Convert the columns to arrays, and check their shapes."""
        values = np.array(self.values, np.float64, order="C")
        n = len(values)
        times = np.array(self.times)
        if times.ndim != 1 or (len(times) and times.dtype.kind not in "iu"):
            raise ShapeError(
                f"times must be whole numbers of ns, one for each item, got {times.dtype} of "
                f"{times.shape}"
            )
        times = times.astype(np.int64)
        is_label = np.zeros(n, np.bool_) if self.is_label is None else self.is_label
        ids = ["" if id_ is None else str(id_) for id_ in self.ids] or [""] * n
        found: dict[str, Any] = {"values": values, "times": times, "ids": ids}
        found["is_label"] = np.array(is_label, np.bool_)
        if self.labels is not None:
            labels = np.array(self.labels, np.float64, order="C")
            found["labels"] = labels[:, None] if labels.ndim == 1 else labels
        for name, column in found.items():
            dims = 2 if name in ("values", "labels") else 1
            if np.ndim(column) != dims or len(column) != n:
                raise ShapeError(
                    f"{name} must have one row for each item, got {np.shape(column)} for values "
                    f"of {values.shape}"
                )
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.values)

    def item(self, i: int) -> Entry | Label:
        """Return item i as an object."""
        label = None if self.labels is None else self.labels[i].copy()
        assert self.is_label is not None
        if self.is_label[i]:
            nothing = np.full(1, np.nan)
            return Label(self.ids[i], nothing if label is None else label, int(self.times[i]))
        own = None if label is None or bool(np.isnan(label).all()) else label
        return Entry(self.values[i].copy(), int(self.times[i]), self.ids[i], label=own)


@dataclass(frozen=True, slots=True)
class RefusedItem:
    """Why an item was refused.

    Attributes
    ----------
    item : int
        Its row.
    reason : Reason
    detail : str
    """

    item: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class PredictionColumns:
    """The predictions of a lot, one row for each predicted entry.

    Attributes
    ----------
    items : ndarray, (predictions,), int64
        The row of each entry among the items.
    served : ndarray, (predictions, rows, columns), float64
    experts : ndarray, (predictions, experts, rows, columns), float64
        The base comes first.
    weights : ndarray, (predictions, experts), float64
        Each expert's share of what is served.
    names : tuple of str
        Of the experts.
    estimated_loss : ndarray, (predictions,), float64
        NaN where it is not known.
    low, high : ndarray, (predictions, rows, columns), float64, or None
        The ends of the intervals.
    drifts : list of (int, str)
        Prediction and detector: ``(17, "adwin:loss")``.
    refused : list of RefusedItem

    Examples
    --------
    >>> from streamadapt import Forecast, Persistence, Pipeline
    >>> pipeline = Pipeline(Forecast(1, 2), Persistence(2))
    >>> found = pipeline.observe_lot(Columns([[3.0], [4.0]], times=[0, 10**9]))
    >>> len(found), found.served[1].tolist(), found.names
    (2, [[4.0], [4.0]], ('base',))
    """

    items: npt.NDArray[np.int64]
    served: Array
    experts: Array
    weights: Array
    names: tuple[str, ...]
    estimated_loss: Array
    low: Array | None = None
    high: Array | None = None
    drifts: list[tuple[int, str]] = field(default_factory=list)
    refused: list[RefusedItem] = field(default_factory=list)

    @property
    def base(self) -> Array:
        """The base's predictions, (predictions, rows, columns)."""
        return self.experts[:, 0]

    def __len__(self) -> int:
        """Return the number of predictions."""
        return len(self.items)
