"""The entries of a lot: their windows, and the base's outputs for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from streamadapt.models.contract import BaseOutput, Spec
from streamadapt.models.steps import LotOfWindows, answer_loop
from streamadapt.pipeline.lots.host import Host
from streamadapt.pipeline.lots.room import Room
from streamadapt.pipeline.origin import finite_output
from streamadapt.pipeline.taking import Arriving, Channels, Clock, take_entries
from streamadapt.records import Array

__all__ = ["Entries"]


class Entries:
    """Entries that follow what a pipeline has seen; nothing but places changes before `commit`.

    Parameters
    ----------
    pipeline : Host
    room : Room
    values : ndarray, (entries, channels), float64
    times : ndarray, (entries,), int64, ns
        Their own event times.

    Attributes
    ----------
    count : int
        How many of them are taken; the others are left out.
    rows : ndarray, (entries,), int64
        The places of their predictions.
    times : ndarray, (entries,), int64, ns
        The event times that they get.
    """

    def __init__(self, pipeline: Host, room: Room, values: Array, times: Any) -> None:
        self.pipeline, self.room, self.count = pipeline, room, len(values)
        self.values, self.own_times = values, times
        room.places.reserve(self.count)
        self.rows = np.array([room.places.take() for _ in range(self.count)], np.int64)
        self._take()
        self.shorten(self.count)

    def _take(self) -> None:
        """Take in as many as are plain, on copies of the pipeline's state."""
        task, n, room = self.pipeline.task, self.count, self.room
        window, clock = task.window, task.clock
        assert window is not None
        length, channels = window.values.shape
        self.history = np.empty((length + n, channels))
        self.history_times = np.empty(length + n, np.int64)
        self.history[:length], self.history_times[:length] = window.values, window.times
        self.clock = Clock(
            np.array(clock.numbers, np.int64),
            np.array((clock.max_behind_ns, clock.max_ahead_ns), np.int64),
        )
        self.channels = Channels(*(array.copy() for array in self.pipeline.screen.channels))
        self.last, self.raised = window.last.copy(), np.zeros(1, np.int64)
        self.count = take_entries(
            self.clock,
            self.channels,
            Arriving(
                self.values[:n], self.own_times[:n], self.history, self.history_times, self.last,
                room.known, self.raised, self.rows, room.places.windows, room.places.times,
                room.input_origin,
            ),
        )  # fmt: skip
        self.times = self.history_times[length : length + self.count]

    def shorten(self, count: int) -> None:
        """Leave out all entries but the first `count`."""
        if count < self.count:
            self.count = count
            self._take()
        for row in self.rows[self.count :].tolist():
            self.room.places.release(row)
        self.rows = self.rows[: self.count]

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
        newest = slice(n, n + len(window.values))
        window.values, window.times = self.history[newest], self.history_times[newest]
        window.last = self.last
        window.count += n
        pipeline.scales.entries += n

    # -- the base

    def ask_base(self) -> int:
        """Write the base's outputs to places; return how many entries have one, before the first
        that has none."""
        spec, room = self.room.spec, self.room
        steps, rows = self.room.base_steps(), self.rows[: self.count]
        far = spec.input_origin is not None or spec.output_origin is not None
        if steps is not None:
            lot = LotOfWindows(
                self.history, spec.window, rows, room.places.experts, room.places.bases,
                room.judging.origin, room.answer,
            )  # fmt: skip
            found: int = answer_loop(steps.predict)(steps.settings, steps.room, far, lot)
            return found
        dtype = self.pipeline.base.input_dtype(far=far)
        for i, row in enumerate(rows.tolist()):
            window = self.history[i + 1 : i + 1 + spec.window]
            answer = self._answer(torch.tensor(window, dtype=dtype), spec)
            if answer is None:
                return i
            exact, base = answer
            room.places.experts[row, 0], room.places.bases[row] = exact, base.output.numpy()
            if base.embedding is not None:
                room.places.embeddings[row] = base.embedding.numpy()
        return len(rows)

    def _answer(self, inputs: Any, spec: Spec) -> tuple[Array, BaseOutput] | None:
        """Return the base's output, exact and as learners get it; None if it has none, or not
        every number of it: the pipeline then takes this entry alone, with the answer that is
        kept."""
        pipeline = self.pipeline
        try:
            with torch.no_grad():
                output = pipeline.checked_output(pipeline.base(inputs), spec)
                exact, base, silent = finite_output(output, spec)
        except Exception as error:
            pipeline.lots.answer = inputs, error
            return None
        if silent is not None:
            pipeline.lots.answer = inputs, output
            return None
        return exact, base
