"""Waiting predictions in arrays, one row each, so that kernels read and write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamadapt.models.contract import BaseOutput
from streamadapt.records import Array, Entry
from streamadapt.tasks.issued import Issued

__all__ = ["Place", "Places", "moved_out"]

FIRST_ROWS = 8
"""The number of rows that are allocated first; it doubles when they are used up."""


class Places:
    """Rows of arrays for predictions that wait for their targets.

    A row that becomes free is not used again before `recycle`: kernels may still read it.

    Parameters
    ----------
    window, channels, rows, columns : int
    experts, own : int
        The numbers of experts, and of the aggregators' outputs with the rows of an interval.
    features, note : int
        The sizes of an embedding and of a note; 0 if there is none.

    Attributes
    ----------
    windows : ndarray, (places, window, channels), float32
    times : ndarray, (places, window), int64, ns
    embeddings : ndarray, (places, features), float32
    bases : ndarray, (places, rows, columns), float64
        What learners get as the base's output.
    experts : ndarray, (places, experts, rows, columns), float64
        The predictions as they were issued; the base's is the first.
    own : ndarray, (places, own, rows, columns), float64
    notes : ndarray, (places, note), float64
    """

    windows: Any
    times: Any
    embeddings: Any
    bases: Array
    experts: Array
    own: Array
    notes: Array

    def __init__(self, window: int, channels: int, rows: int, columns: int, experts: int,
                 own: int, features: int, note: int) -> None:  # fmt: skip
        self._shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "windows": ((window, channels), np.float32),
            "times": ((window,), np.int64),
            "embeddings": ((features,), np.float32),
            "bases": ((rows, columns), np.float64),
            "experts": ((experts, rows, columns), np.float64),
            "own": ((own, rows, columns), np.float64),
            "notes": ((note,), np.float64),
        }
        self.size = 0
        self._free: list[int] = []
        self._released: list[int] = []
        self.grow(FIRST_ROWS)

    @property
    def bytes_each(self) -> int:
        """The bytes of one place."""
        return sum(
            int(np.prod(shape)) * np.dtype(dtype).itemsize
            for shape, dtype in self._shapes.values()
        )

    def grow(self, size: int) -> None:
        """Make room for `size` places in all."""
        for name, (shape, dtype) in self._shapes.items():
            array = np.zeros((size, *shape), dtype)
            array[: self.size] = getattr(self, name, array[:0])
            setattr(self, name, array)
        self._free[:0] = range(size - 1, self.size - 1, -1)
        self.size = size

    def reserve(self, count: int) -> bool:
        """Make sure that `count` rows are free; return whether the arrays were replaced."""
        if len(self._free) >= count:
            return False
        self.grow(max(2 * self.size, self.size + count))
        return True

    def take(self) -> int:
        """Return a free row; `reserve` has made sure that there is one."""
        return self._free.pop()

    def release(self, row: int) -> None:
        """Say that a row is no longer needed."""
        self._released.append(row)

    def recycle(self) -> None:
        """Let released rows be used again."""
        if self._released:
            self._free += self._released
            self._released.clear()

    def put(self, row: int, issued: Issued) -> None:
        """Copy a prediction into a row."""
        base = issued.base
        self.windows[row] = issued.inputs.cpu().numpy()
        if base.times is not None:
            self.times[row] = base.times.cpu().numpy()
        if base.embedding is not None:
            self.embeddings[row] = base.embedding.cpu().numpy()
        self.bases[row] = base.output.cpu().numpy()
        self.experts[row], self.own[row] = issued.experts, issued.aggregator_outputs
        self.notes[row] = issued.note if len(issued.note) == self.notes.shape[1] else np.nan


class Place:
    """A waiting prediction in a row of `Places`, with the attributes of `Issued`.

    Parameters
    ----------
    places : Places
    row : int
    id : str
        The entry's.
    time : int, ns
        Its event time.
    """

    __slots__ = ("id", "places", "row", "time")

    def __init__(self, places: Places, row: int, id_: str, time: int) -> None:
        self.places, self.row, self.id, self.time = places, row, id_, time

    @property
    def entry(self) -> Entry:
        """An entry with the id and the time only: nothing else is needed any more."""
        return Entry(np.zeros(0), self.time, self.id)

    @property
    def inputs(self) -> Tensor:
        """A view of the window."""
        return torch.from_numpy(self.places.windows[self.row])

    @property
    def base(self) -> BaseOutput:
        """What learners get as the base's output."""
        places, row = self.places, self.row
        embedding = (
            torch.from_numpy(places.embeddings[row]) if places.embeddings.shape[1] else None
        )
        output = torch.from_numpy(places.bases[row].astype(np.float32))
        return BaseOutput(output, embedding, torch.from_numpy(places.times[row]))

    @property
    def experts(self) -> Array:
        """A view of the experts' predictions."""
        found: Array = self.places.experts[self.row]
        return found

    @property
    def aggregator_outputs(self) -> Array:
        """A view of the aggregators' outputs."""
        found: Array = self.places.own[self.row]
        return found

    @property
    def note(self) -> tuple[float, ...]:
        """The note."""
        return tuple(self.places.notes[self.row].tolist())


def moved_out(issued: Issued | Place) -> Issued:
    """Return a prediction that is in no place; its row is released."""
    if isinstance(issued, Issued):
        return issued
    output, *rest = (None if part is None else part.clone() for part in issued.base)
    assert output is not None
    base = BaseOutput(output, *rest)
    copied = Issued(
        issued.entry,
        issued.inputs.clone(),
        base,
        issued.experts.copy(),
        issued.aggregator_outputs.copy(),
        issued.note,
    )
    issued.places.release(issued.row)
    return copied
