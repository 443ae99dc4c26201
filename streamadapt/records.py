"""The records that travel through an engine: what came in, what goes out, what was refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamadapt.errors import Reason, ShapeError

__all__ = [
    "Array",
    "Batch",
    "DeadLetter",
    "Entry",
    "FloatArray",
    "Label",
    "Position",
    "Prediction",
    "Record",
    "RefusedLabel",
    "Skipped",
    "StreamPartition",
]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

FloatArray = npt.NDArray[np.floating[Any]]

_POSITION = re.compile(r"(.*)\[(\d{1,10})\]@(-?\d{1,19})", re.DOTALL | re.ASCII)


class Position(NamedTuple):
    """The position of a record in its source; totally ordered within one partition.

    Examples
    --------
    >>> str(Position("speeds", 0, 17))
    'speeds[0]@17'
    """

    stream: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.stream}[{self.partition}]@{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Return the position that `text` was written from by ``str``; None if it is not one."""
        found = _POSITION.fullmatch(text)
        return None if found is None else cls(found[1], int(found[2]), int(found[3]))


NOWHERE = Position("", 0, 0)
"""The position of an item that came from no source."""


class RefusedLabel(NamedTuple):
    """Why the label that came with an entry is not used; the entry itself is used."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a stream.

    Attributes
    ----------
    values : ndarray, (channels,), float64
        The measurements; NaN marks a missing one, and infinite values are refused earlier. Python
        code may also pass lists, rows of data frames, tensors and other types of
        docs/numbers.md; a pipeline converts them.
    time : int, ns since the Unix epoch
        Event time. From Python also a float (seconds), a `datetime` or a `numpy.datetime64`.
    id : str
        Labels refer to an entry by its id; unique among the entries that still wait for a label.
    key : str
        The sub-stream within the topic (a sensor, a user); empty if there is none.
    label : ndarray, (outputs,), float64, or None
        The label that came with the entry itself. It is learned only after the entry was
        predicted. Classification: one value, the class's index; `Supervised.label` makes it of a
        class's name.
    position : Position
        The entry's position in its source; it is also the id of its prediction.
    refused : RefusedLabel or None
        Why the label in its record could not be read. A task that learns from labels refuses the
        label, not the entry.
    or_time : int or None, ns since the Unix epoch
        Set for a local time without an offset, until `streamadapt.engine.local_time` has decided.
        If the local time can mean two times, it is the later one; otherwise it equals `time`.

    Examples
    --------
    >>> Entry([20.5, 3.1], time=1_700_000_000_000_000_000, id="a-17").id
    'a-17'
    """

    values: FloatArray
    time: int
    id: str = ""
    key: str = ""
    label: FloatArray | None = None
    position: Position = NOWHERE
    refused: RefusedLabel | None = None
    or_time: int | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """A label that arrived apart from its entry.

    Attributes
    ----------
    id : str
        The `Entry.id` it belongs to.
    value : ndarray, (outputs,), float64
        NaN marks an output that this label says nothing about. Classification: one value, the
        class's index.
    time : int, ns since the Unix epoch
        When the label became known (not when its entry was measured).
    or_time : int or None
        As of `Entry`.

    Examples
    --------
    >>> Label("a-17", 21.0, time=1_700_000_600_000_000_000).id
    'a-17'
    """

    id: str
    value: FloatArray
    time: int
    position: Position = NOWHERE
    or_time: int | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A pipeline's prediction for one entry.

    Attributes
    ----------
    served : ndarray, (rows, columns), float64
        The prediction to use: the guarded mixture. Rows are forecast steps (1 for supervised
        tasks), columns are channels, outputs or class probabilities. NaN only for a channel that
        was never observed, or where the base predicted no finite number.
    base : ndarray, (rows, columns), float64
        The prediction of the frozen model alone.
    experts : mapping of str to ndarray, (rows, columns)
        Every expert's prediction, the base's included.
    weights : mapping of str to float
        Each expert's share of `served`, averaged over the cells. The shares sum to 1; in a
        stacked mixture a share may be negative.
    drifts : tuple of str
        ``detector:signal`` of each detector that fired on this arrival.
    reactions : tuple of str
        The reactions to drifts since the previous prediction: ``adwin:loss>reset bias-0.02``;
        ``refit-kept ...`` or ``refit-dropped ...`` at the end of a refit.
    ask, ask_probability : bool, float, or None
        Whether the entry's label is asked for, and the probability of asking; None without a
        label budget.
    estimated_loss : float or None
        The expected loss of `served`, in the task's loss; None if there are no data to estimate
        it from.
    scores : mapping of str to float
        The learners' scores of the entry itself, such as ``dictionary-error``: a drift signal and
        an anomaly score.
    low, high : ndarray, (rows, columns), float64, or None
        The bounds of the interval that contains the target with the requested coverage; None
        without `streamadapt.pipeline.intervals.Intervals`, NaN in cells without a known error yet.
    columns : tuple of str
        For a panel: the sensor of each column; empty for a free column.
    classes : tuple
        For a classification with named classes: the class of each column's probability.
    raw_key : bytes or None
        The key of the entry's record, if its bytes differ from the text in `key`.
    headers : tuple of (str, bytes or None)
        The headers of the entry's record; a panel's row has none, since it combines many records.

    Examples
    --------
    >>> from streamadapt import Forecast, Persistence, Pipeline
    >>> (prediction,) = Pipeline(Forecast(1, 2), Persistence(2)).observe([Entry([3.0], time=0)])
    >>> prediction.served.tolist()
    [[3.0], [3.0]]
    """

    position: Position
    id: str
    key: str
    time: int
    served: FloatArray
    base: FloatArray
    experts: Mapping[str, FloatArray] = field(repr=False)
    weights: Mapping[str, float]
    drifts: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    reactions: tuple[str, ...] = ()
    ask: bool | None = None
    ask_probability: float | None = None
    estimated_loss: float | None = None
    columns: tuple[str, ...] = ()
    low: FloatArray | None = None
    high: FloatArray | None = None
    classes: tuple[str | bool | int | float, ...] = ()
    raw_key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Columns of history, oldest first: the data for fitting a base and for a backtest.

    Attributes
    ----------
    values : ndarray, (n, channels), float64 or float32
        NaN marks a missing value. Other types that numpy can convert to numbers become float64.
    times : ndarray, (n,), int64, ns
    labels : ndarray, (n, outputs), float64 or float32, or None
        NaN rows are unlabelled.
    channels : tuple of str
        Names of the columns of `values`; may be empty.

    Examples
    --------
    >>> batch = Batch(np.zeros((10, 2), np.float32), np.arange(10), channels=("a", "b"))
    >>> len(batch.values)
    10
    """

    values: FloatArray
    times: npt.NDArray[np.int64]
    labels: FloatArray | None = None
    channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("values", "labels"):
            given: Any = getattr(self, name)
            if given is not None and not (
                isinstance(given, np.ndarray) and given.dtype in (np.float32, np.float64)
            ):
                object.__setattr__(self, name, np.asarray(given, np.float64))
        if self.values.ndim != 2 or len(self.times) != len(self.values):
            raise ShapeError(
                f"values must be (n, channels) with n times, got {self.values.shape}, "
                f"{self.times.shape}"
            )
        if self.labels is not None and (
            self.labels.ndim != 2 or len(self.labels) != len(self.values)
        ):
            raise ShapeError(
                f"labels must be ({len(self.values)}, outputs), got {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.values)

    def entries(self, stream: str = "history") -> Iterator[Entry]:
        """Yield the rows as entries, ids being the row numbers."""
        for i in range(len(self)):
            label = (
                None if self.labels is None or np.isnan(self.labels[i]).all() else self.labels[i]
            )
            yield Entry(
                self.values[i], int(self.times[i]), str(i), "", label, Position(stream, 0, i)
            )


class StreamPartition(NamedTuple):
    """One partition of one stream (a Kafka topic, a file)."""

    stream: str
    partition: int

    def __str__(self) -> str:
        return f"{self.stream}[{self.partition}]"


@dataclass(frozen=True, slots=True)
class Record:
    """One raw record, as the source delivered it.

    Attributes
    ----------
    key, value : bytes or None
        Unchanged bytes; None if the source had none (a Kafka tombstone).
    time : int, ns since the Unix epoch
        The source's own time stamp (Kafka's record time stamp); the codec may prefer a field of
        the value.
    headers : tuple of (str, bytes or None)
        Other data of the record in the source (Kafka's record headers), in order.
    """

    position: Position
    key: bytes | None
    value: bytes | None
    time: int
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that was refused, or whose label was refused, and why.

    Nothing was learned from the refused part.

    Attributes
    ----------
    reason : str
        A value of `streamadapt.errors.Reason`.
    stage : str
        ``decode``, ``process`` or ``write``; ``label`` if only the label in an entry was refused,
        and the entry itself was predicted.
    detail : str
        One line for a person.
    """

    record: Record
    reason: str
    stage: str
    detail: str


class Skipped(DeadLetter):
    """A record that is skipped on purpose: nothing is learned from it, and it is written
    nowhere."""
