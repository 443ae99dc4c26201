"""The entries of a lot: their windows, and the base's outputs for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamadapt.models.contract import BaseOutput, Spec
from streamadapt.models.device import is_fatal
from streamadapt.models.origin import less_origin
from streamadapt.pipeline.origin import finite_output
from streamadapt.pipeline.taking import Channels, Clock, take_entries
from streamadapt.records import Array, Entry
from streamadapt.tasks.places import Places

if TYPE_CHECKING:  # the pipeline imports this package
    from streamadapt.pipeline.pipeline import Pipeline

__all__ = ["Entries"]


class Entries:
    """Entries that follow what a pipeline has seen; nothing changes before `commit`.

    Parameters
    ----------
    pipeline : Pipeline
    entries : sequence of Entry
        Of the right width.

    Attributes
    ----------
    count : int
        How many of them are plain; the others are left out.
    values : ndarray, (entries, channels), float64
    times : ndarray, (entries,), int64, ns
        The event times that the plain ones get.
    """

    def __init__(self, pipeline: Pipeline, entries: Sequence[Entry]) -> None:
        self.pipeline = pipeline
        window = pipeline.task.window
        assert window is not None
        self.length, channels = window.values.shape
        self.values = np.empty((len(entries), channels))
        for i, entry in enumerate(entries):
            self.values[i] = entry.values
        self.own_times = np.array([entry.time for entry in entries], np.int64)
        self.count = len(entries)
        self._take()

    def _take(self) -> None:
        """Take in as many as are plain, on copies of the pipeline's state."""
        task, n, length = self.pipeline.task, self.count, self.length
        window, clock = task.window, task.clock
        assert window is not None
        self.rows, self.at = np.empty((length + n, self.values.shape[1])), np.empty(length + n, np.int64)
        self.rows[:length], self.at[:length] = window.values, window.times
        self.clock = Clock(
            np.array(clock.numbers, np.int64),
            np.array((clock.max_behind_ns, clock.max_ahead_ns), np.int64),
        )
        self.channels = Channels(*(array.copy() for array in self.pipeline.screen.channels))
        self.last, self.raised = window.last.copy(), np.zeros(1, np.int64)
        self.count = take_entries(
            self.clock, self.channels, self.values[:n], self.own_times[:n], self.last,
            self.rows, self.at, self.raised,
        )  # fmt: skip
        self.times = self.at[length : length + self.count]

    def shorten(self, count: int) -> None:
        """Leave out all entries but the first `count`."""
        if count < self.count:
            self.count = count
            self._take()

    def windows(self) -> Any:
        """Return a view of the windows, (entries, window, channels), float64."""
        seen = self.rows[1 : self.length + self.count]
        found = np.lib.stride_tricks.sliding_window_view(seen, self.length, axis=0)
        return found.transpose(0, 2, 1)

    def commit(self) -> None:
        """Let the pipeline have seen the entries."""
        pipeline, task, n = self.pipeline, self.pipeline.task, self.count
        window, clock = task.window, task.clock
        assert window is not None
        clock.numbers = self.clock.numbers.tolist()
        if self.raised[0]:
            clock.counts["raised"] += int(self.raised[0])
        for array, found in zip(pipeline.screen.channels, self.channels, strict=True):
            array[...] = found
        window.values, window.times = self.rows[n : n + self.length], self.at[n : n + self.length]
        window.last = self.last
        window.count += n
        pipeline.scales.entries += n

    def ask_base(self, places: Places, rows: Sequence[int]) -> int:
        """Write windows and the base's outputs to places; return how many entries have an answer
        before the first without one."""
        spec = self.pipeline.spec
        assert spec is not None
        windows, origin = self.windows(), spec.input_origin
        places.windows[rows] = less_origin(windows, None if origin is None else origin.numpy())
        at = np.lib.stride_tricks.sliding_window_view(self.at[1:], self.length)
        places.times[rows] = at[: self.count]
        for i, row in enumerate(rows):
            answer = self._answer(windows[i], spec)
            if answer is None:
                return i
            exact, base = answer
            places.experts[row, 0] = exact
            places.bases[row] = base.output.numpy()
            if base.embedding is not None:
                places.embeddings[row] = base.embedding.numpy()
        return len(rows)

    def _answer(self, window: Array, spec: Spec) -> tuple[Array, BaseOutput] | None:
        """Return the base's output, exact and as learners get it; None if it has none, or not
        every number of it."""
        pipeline = self.pipeline
        far = spec.input_origin is not None or spec.output_origin is not None
        dtype = pipeline.base.input_dtype(far=far)
        try:
            with torch.no_grad():
                given = torch.tensor(np.ascontiguousarray(window), dtype=dtype)
                output = pipeline.checked_output(pipeline.base(given), spec)
                exact, base, silent = finite_output(output, spec)
        except Exception as error:
            if is_fatal(error):
                raise
            return None  # the pipeline asks again for this entry alone, and reports the error
        return None if silent is not None else (exact, base)
