"""What a run tells the other parts of a pipeline, event by event: intervals, drift monitors, label
requests and statistics. None of them changes learners or guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamadapt.guard.base import Mixture
from streamadapt.pipeline.label_requests import LabelFields
from streamadapt.pipeline.lots.events import Actual, Predicted
from streamadapt.pipeline.lots.room import Room
from streamadapt.records import Array, Prediction
from streamadapt.tasks import Matured
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
        self.monitored = bool(pipeline.monitors.drift_monitors)
        self.noted = not pipeline.label_requests.silent
        self.told = self.monitored or self.noted or room.kept > 0

    def predictions(self) -> list[Prediction]:
        """Tell of all events in their order; return the predictions."""
        rows = [event.row for event in self.events if isinstance(event, Predicted)]
        places, stats = self.room.places, self.pipeline.stats
        self.experts, self.served = places.experts[rows], places.own[rows, -1]
        found: list[Prediction] = []
        for n, event in enumerate(self.events):
            if isinstance(event, Predicted):
                found.append(self._entry(n, event, len(found)))
            elif self.told:
                self._matured(n, event)
        if found:
            stats.weights, stats.signals = dict(found[-1].weights), {}
            stats.predictions += len(found)
        return found

    # -- targets that became known

    def _matured(self, n: int, event: Any) -> None:
        pipeline, guard = self.pipeline, self.room.guard_lot
        experts, own, note, id_ = self._as_issued(n, event)
        told = Matured(
            None, None, experts, own, guard.targets[n], guard.known[n], float(guard.weights[n]),
            note, id_,
        )  # type: ignore[arg-type]  # fmt: skip
        if self.room.kept:
            told = pipeline.judge_interval(told)
        if self.monitored:
            pipeline.contain(
                "signals", pipeline.monitors.take_in_matured, told, pipeline.task.loss
            )
        if self.noted:
            pipeline.contain("labelling", pipeline.label_requests.learn, told)

    def _as_issued(self, n: int, event: Any) -> tuple[Array, Array, tuple[float, ...], str]:
        """Return the base's prediction (and perhaps others), the aggregators' outputs, the note
        and the id."""
        places, rows_at = self.room.places, self.room.guard_lot.rows_at[n]
        if len(rows_at) == 1:
            row = int(rows_at[0])
            note = places.notes[row]
            known = len(note) > 0 and not np.isnan(note).all()
            id_ = "" if isinstance(event, Actual) else event[1].issued.id
            return places.experts[row], places.own[row], tuple(note.tolist()) if known else (), id_
        at = np.arange(len(rows_at))
        base = places.experts[rows_at, 0, at][None]
        base[:, rows_at < 0] = 0.0
        own = places.own[rows_at, :, at].transpose(1, 0, 2) if self.room.kept else base[:0]
        return base, own, (), ""

    # -- entries

    def _entry(self, n: int, event: Predicted, i: int) -> Prediction:
        pipeline, entry, stats = self.pipeline, event.entry, self.pipeline.stats
        stats.entries += 1
        stats.last_time = event.time
        experts, served = self.experts[i], self.served[i]
        if self.monitored:
            self._watch(event)
        fields = self._note(n, event) if self.noted else NO_FIELDS
        low, high = self._interval(n, event) if self.room.kept else (None, None)
        drifts, reactions = pipeline.monitors.drain() if self.monitored else ((), ())
        names = pipeline.names
        shares = dict(zip(names, self.room.guard_lot.shares[n].tolist(), strict=True))
        return Prediction(
            entry.position, entry.id, entry.key, entry.time, served, experts[0],
            dict(zip(names, experts, strict=True)), shares, drifts, {}, reactions, *fields, (),
            low, high, pipeline.task.class_names,
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

    def _note(self, n: int, event: Predicted) -> LabelFields:
        pipeline, places = self.pipeline, self.room.places
        requests, row = pipeline.label_requests, event.row
        given = places.experts[row], places.own[row, -1], self.room.guard_lot.scales[n]
        with np.errstate(over="ignore", invalid="ignore"):
            note = pipeline.contain("labelling", lambda: requests.record(*given, commit=True))
        note = requests.blank() if note is None else note
        places.notes[row] = note
        return requests.fields(note, commit=True)

    def _interval(self, n: int, event: Predicted) -> tuple[Any, Any]:
        pipeline, places, kept = self.pipeline, self.room.places, self.room.kept
        row, intervals = event.row, self.pipeline.intervals
        mixture = Mixture(places.own[row, -1], places.own[row, kept:], self.room.guard_lot.shares[n])
        issued = pipeline.contain("intervals", intervals.issue, mixture)
        places.own[row, :kept] = np.nan if issued is None else issued[:kept]
        return pipeline.contain("intervals", intervals.bounds, places.own[row]) or (None, None)
