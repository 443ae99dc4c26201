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
    """Where a record stands in its source; totally ordered within one partition.

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
        """Return what ``str`` made `text` of; None if it is none such."""
        found = _POSITION.fullmatch(text)
        return None if found is None else cls(found[1], int(found[2]), int(found[3]))


NOWHERE = Position("", 0, 0)
"""The position of what came from no source."""


class RefusedLabel(NamedTuple):
    """Why the label that came with an entry is not used; the entry is."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a stream.

    Attributes
    ----------
    values : ndarray, (channels,), float64
        The measurements; NaN marks a missing one, infinite values never get here. From Python also
        lists, rows of data frames, tensors and what else docs/numbers.md names: a pipeline turns
        them into this.
    time : int, ns since the Unix epoch
        Event time. From Python also a float (seconds), a `datetime` or a `numpy.datetime64`.
    id : str
        What labels refer to; unique among the entries that still wait for a label.
    key : str
        The stream it belongs to within its topic (a sensor, a user); empty where there is none.
    label : ndarray, (outputs,), float64, or None
        The label that came with the entry itself. It is learned only after the entry was
        predicted. Classification: one value, the class's index; `Supervised.label` makes it of a
        class's name.
    position : Position
        Where it stands in its source; the id of its prediction.
    refused : RefusedLabel or None
        Why the label in its record could not be read. A task that learns from labels refuses the
        label, not the entry.
    or_time : int or None, ns since the Unix epoch
        Of a local time without an offset, until `streamadapt.engine.local_time` has decided:
        `time` again, or the later one of the two times that it can mean.

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
    """What a pipeline says about one entry.

    Attributes
    ----------
    served : ndarray, (rows, columns), float64
        The guarded mixture: what to use. Rows are forecast steps (1 for supervised tasks), columns
        are channels, outputs or class probabilities. NaN only where the task knows nothing (a
        channel never observed) or the base said nothing finite.
    base : ndarray, (rows, columns), float64
        What the frozen model alone says.
    experts : mapping of str to ndarray, (rows, columns)
        Every expert's prediction, the base's included.
    weights : mapping of str to float
        Each expert's share of `served`, averaged over the cells. They sum to 1; a stacked mixture
        may hold one against another (a negative share).
    drifts : tuple of str
        ``detector:signal`` of each detector that fired on this arrival.
    reactions : tuple of str
        What drifts did since the prediction before: ``adwin:loss>reset bias-0.02``;
        ``refit-kept ...`` or ``refit-dropped ...`` at the end of a refit.
    ask, ask_probability : bool, float, or None
        Whether its label is asked for, and with what probability that came out; None without a
        budget of labels.
    estimated_loss : float or None
        What the loss of `served` is expected to be, in the task's loss; None where nothing is
        known to tell it from.
    scores : mapping of str to float
        What learners tell about the entry itself, such as ``dictionary-error``: a drift signal and
        an anomaly score.
    low, high : ndarray, (rows, columns), float64, or None
        The interval that holds the target with the coverage asked for; None without
        `streamadapt.pipeline.intervals.Intervals`, NaN in cells of which no error is known yet.
    columns : tuple of str
        Of a panel: which sensor each column is, empty for a column that is still free.
    classes : tuple
        Of a classification whose classes have names: which class each column is the probability
        of.
    raw_key : bytes or None
        The key of the entry's record, where `key` does not say it byte for byte.
    headers : tuple of (str, bytes or None)
        Those of the entry's record; a panel's row has none, since many records are in it.

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
    """Columns of history, oldest first: what a base is fitted on and what a backtest reads.

    Attributes
    ----------
    values : ndarray, (n, channels), float64 or float32
        NaN marks a missing value. Anything else that numpy can make numbers of becomes float64.
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
        Untouched bytes; None where the source had none (a Kafka tombstone).
    time : int, ns since the Unix epoch
        The source's own time stamp (Kafka's record time stamp); the codec may prefer a field of
        the value.
    headers : tuple of (str, bytes or None)
        What else the source has about it (Kafka's record headers), in order.
    """

    position: Position
    key: bytes | None
    value: bytes | None
    time: int
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that was refused, or the label in it, and why. Nothing was learned from that.

    Attributes
    ----------
    reason : str
        A value of `streamadapt.errors.Reason`.
    stage : str
        ``decode``, ``process`` or ``write``; ``label`` where only the label in an entry was
        refused, and the entry itself was predicted.
    detail : str
        One line for a person.
    """

    record: Record
    reason: str
    stage: str
    detail: str


class Skipped(DeadLetter):
    """A record that is passed over on purpose: nothing is learned from it, and it goes nowhere."""
