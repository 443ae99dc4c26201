"""What a run tells the other parts of a pipeline: intervals, drift monitors, loss estimates and
statistics. None of them changes learners or guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamadapt.drift.signal_kernels import (
    SignalSettings,
    empty_signals,
    empty_usual,
    signal_room,
)
from streamadapt.learners.lots import LEARN
from streamadapt.pipeline.interval_kernels import empty_intervals
from streamadapt.pipeline.intervals import Intervals
from streamadapt.pipeline.label_requests import LabelFields, put_sums, sums_of
from streamadapt.pipeline.lots.events import Predicted
from streamadapt.pipeline.lots.room import Room
from streamadapt.pipeline.lots.tell_loops import interval_loop, note_loop, signal_loop
from streamadapt.records import Array, Prediction
from streamadapt.tasks import Matured
from streamadapt.tasks.loss_kernels import loss_settings
from streamadapt.tasks.places import Place

if TYPE_CHECKING:  # the pipeline imports this package
    from streamadapt.pipeline.pipeline import Pipeline

__all__ = ["Tell"]

NO_FIELDS = LabelFields()


class Tell:
    """Tells the other parts of a pipeline about a run of events.

    Parameters
    ----------
    pipeline : Pipeline
    room : Room
        The run, after learners and guard.
    events : list
        Of the run.
    """

    def __init__(self, pipeline: Pipeline, room: Room, events: list[Any]) -> None:
        self.pipeline, self.room, self.events = pipeline, room, events
        self.size = len(events)
        self.watched = bool(pipeline.monitors.drift_monitors)
        requests = pipeline.label_requests
        self.budgeted = requests.budget is not None
        self.alarms: dict[int, list[Any]] = {}

    def all(self) -> None:
        """Tell of all events."""
        requests = self.pipeline.label_requests
        if self.watched:
            self._signals()
        if self.room.kept:
            self._intervals()
        if requests.estimate is not None and not self.budgeted:
            self._notes()

    def _notes(self) -> None:
        """Estimate losses, and learn from those that are known."""
        requests, room = self.pipeline.label_requests, self.room
        estimate, stats = requests.estimate, self.pipeline.stats
        assert estimate is not None
        sums = sums_of(stats, requests.measures)
        if room.estimate_room is None:
            room.estimate_room = estimate.room(room.experts, room.spec.columns)
        steps = estimate.steps
        note_loop(steps.estimate.function, steps.learn.function).call(
            loss_settings(requests.loss), estimate.settings, estimate.state, room.estimate_room,
            sums, room.guard_box, room.places.notes, room.unit, self.size,
        )  # fmt: skip
        put_sums(stats, requests.measures, sums)

    def _intervals(self) -> None:
        """Issue intervals, and judge those whose targets are known."""
        intervals, room, stats = self.pipeline.intervals, self.room, self.pipeline.stats
        assert isinstance(intervals, Intervals)
        shape = (room.spec.rows, room.spec.columns)
        if intervals.state is None:
            intervals.state = empty_intervals(1, shape, intervals.first)
        counts = np.zeros((1, 2), np.int64)
        kept = np.zeros((room.kept, *shape))
        interval_loop.call(
            intervals.settings, intervals.state, room.guard_box, kept, counts, self.size
        )
        stats.interval_cells += int(counts[0, 0])
        stats.interval_hits += int(counts[0, 1])

    def _signals(self) -> None:
        """Update the monitors of losses."""
        pipeline, room, monitors = self.pipeline, self.room, self.pipeline.monitors
        at = np.flatnonzero(room.lot.kinds[: self.size] == LEARN)
        if not len(at):
            return
        spec, loss, usual = room.spec, pipeline.task.loss, monitors.usual
        if usual.state.mean.shape[1:] != (spec.rows, spec.columns):
            usual.state = empty_usual(1, spec.rows, spec.columns)
        judged = 1 if loss.row_wise else spec.columns
        means = np.zeros((len(at), 3))
        losses, residuals = np.zeros((len(at), judged)), np.zeros((len(at), judged))
        signal_loop.call(
            SignalSettings(loss_settings(loss), spec.kind == "classification"), usual.state,
            signal_room(spec.rows, judged), empty_signals(judged), room.guard_box,
            np.zeros((1, spec.rows, spec.columns)), means, losses, residuals, self.size,
        )  # fmt: skip
        for i, monitor in monitors.alarms(means, losses, residuals):
            self.alarms.setdefault(int(at[i]), []).append(monitor)

    # -- predictions

    def predictions(self) -> list[Prediction]:
        """Count the events in their order; return the predictions."""
        rows = [event.row for event in self.events if isinstance(event, Predicted)]
        places, stats = self.room.places, self.pipeline.stats
        self.experts, self.served = places.experts[rows], places.own[rows, -1]
        found: list[Prediction] = []
        for n, event in enumerate(self.events):
            if isinstance(event, Predicted):
                found.append(self._entry(n, event, len(found)))
                continue
            for monitor in self.alarms.get(n, ()):
                self.pipeline.monitors.alarm(monitor)
            if self.budgeted:
                self._budgeted_label(n, event)
        if found:
            stats.weights, stats.signals = dict(found[-1].weights), {}
            stats.predictions += len(found)
        return found

    def _entry(self, n: int, event: Predicted, i: int) -> Prediction:
        pipeline, entry, stats = self.pipeline, event.entry, self.pipeline.stats
        stats.entries += 1
        stats.last_time = event.time
        experts, served = self.experts[i], self.served[i]
        if self.watched:
            self._watch(event)
        low, high = self._interval(event) if self.room.kept else (None, None)
        drifts, reactions = pipeline.monitors.drain() if self.watched else ((), ())
        names = pipeline.names
        shares = dict(zip(names, self.room.guard_lot.shares[n].tolist(), strict=True))
        return Prediction(
            entry.position, entry.id, entry.key, entry.time, served, experts[0],
            dict(zip(names, experts, strict=True)), shares, drifts, {}, reactions,
            *self._fields(n, event), (), low, high, pipeline.task.class_names,
        )  # fmt: skip

    def _watch(self, event: Predicted) -> None:
        """Update the monitors of entries."""
        pipeline, spec = self.pipeline, self.room.spec
        monitors = pipeline.monitors
        if not monitors.watches_entries:
            return
        newest = self.room.places.windows[event.row, -1]
        scaled = (newest - spec.input_loc.numpy()) / spec.input_scale.numpy()
        scaled = np.where(np.isnan(event.entry.values), np.nan, scaled.astype(np.float64))
        base = Place(self.room.places, event.row, event.entry.id, event.time).base
        pipeline.contain("signals", monitors.take_in_entry, scaled, base)

    def _interval(self, event: Predicted) -> tuple[Array, Array]:
        served, half = self.room.places.own[event.row, :2]
        return served - half, served + half

    def _fields(self, n: int, event: Predicted) -> LabelFields:
        requests, places = self.pipeline.label_requests, self.room.places
        if requests.silent:
            return NO_FIELDS
        if not self.budgeted:
            loss = float(places.notes[event.row, 1])
            return LabelFields(None, None, loss if loss == loss else None)
        row = event.row
        given = places.experts[row], places.own[row, -1], self.room.guard_lot.scales[n]
        with np.errstate(over="ignore", invalid="ignore"):
            note = self.pipeline.contain("labelling", lambda: requests.record(*given, commit=True))
        note = requests.blank() if note is None else note
        places.notes[row] = note
        return requests.fields(note, commit=True)

    def _budgeted_label(self, n: int, event: Any) -> None:
        """Tell a label budget of a label: whether the next ones are requested depends on it."""
        places, guard = self.room.places, self.room.guard_lot
        row = int(guard.rows_at[n, 0])
        note = places.notes[row]
        told: Any = Matured(
            None, None, places.experts[row], places.own[row], guard.targets[n], guard.known[n],  # type: ignore[arg-type]
            float(guard.weights[n]), () if np.isnan(note).all() else tuple(note.tolist()),
            event[1].issued.id,
        )  # fmt: skip
        self.pipeline.contain("labelling", self.pipeline.label_requests.learn, told)
