"""What a run tells the other parts of a pipeline: intervals, drift monitors, loss estimates and
statistics. None of them changes learners or guard."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamadapt.drift.signal_kernels import empty_usual
from streamadapt.learners.lots import ENTRY, LEARN
from streamadapt.pipeline.intervals import Intervals
from streamadapt.pipeline.label_requests import LabelFields, put_sums, sums_of
from streamadapt.pipeline.lots.host import Host
from streamadapt.pipeline.lots.matching import ForecastEvents, LotEvents
from streamadapt.pipeline.lots.room import Room
from streamadapt.pipeline.lots.tell_loops import interval_loop, note_loop, signal_loop
from streamadapt.pipeline.origin import scaled_newest
from streamadapt.records import Array
from streamadapt.tasks import Matured
from streamadapt.tasks.loss_kernels import loss_settings
from streamadapt.tasks.places import Place

__all__ = ["Tell", "Told"]


class Told:
    """What a lot predicted.

    Parameters
    ----------
    count : int
        How many items were processed.

    Attributes
    ----------
    items : list of int
        The number of each predicted entry among the items.
    experts, served, weights, low, high : list of ndarray
        Of each run, with a leading axis of entries.
    estimates : list of float
        The expected losses; empty if they are not estimated, NaN where not known.
    fields : list of LabelFields
        With a label budget, of each entry.
    drifts : dict of int to (tuple of str, tuple of str)
        Drifts and reactions by the number of the prediction.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.items: list[int] = []
        self.experts: list[Array] = []
        self.served: list[Array] = []
        self.weights: list[Array] = []
        self.low: list[Array] = []
        self.high: list[Array] = []
        self.estimates: list[float] = []
        self.fields: list[LabelFields] = []
        self.drifts: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {}


class Tell:
    """Tells the other parts of a pipeline about a run of events.

    Parameters
    ----------
    pipeline : Host
    room : Room
        The run, after learners and guard.
    events : LotEvents
    first, stop : int
        Which of them the run has.
    """

    def __init__(
        self, pipeline: Host, room: Room, events: LotEvents, first: int, stop: int
    ) -> None:
        self.pipeline, self.room, self.events = pipeline, room, events
        self.first, self.stop, self.size = first, stop, stop - first
        requests = pipeline.label_requests
        self.noted, self.budgeted = requests.estimate is not None, requests.budget is not None
        self.alarms: dict[int, list[Any]] = {}

    def all(self, told: Told) -> None:
        """Tell of all events, and add the predictions to `told`."""
        if self.pipeline.monitors.drift_monitors:
            self._signals()
        if self.room.kept:
            self._intervals()
        if self.noted and not self.budgeted:
            self._notes()
        self._collect(told)

    def _notes(self) -> None:
        """Estimate losses, and learn from those that are known."""
        requests, room = self.pipeline.label_requests, self.room
        estimate, stats = requests.estimate, self.pipeline.stats
        assert estimate is not None
        sums = sums_of(stats, requests.measures)
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
        assert intervals.state is not None
        counts = np.zeros((1, 2), np.int64)
        interval_loop.call(
            intervals.settings, intervals.state, room.guard_box, room.interval, counts, self.size
        )
        stats.interval_cells += int(counts[0, 0])
        stats.interval_hits += int(counts[0, 1])

    def _signals(self) -> None:
        """Update the monitors of losses."""
        room, monitors = self.room, self.pipeline.monitors
        at = np.flatnonzero(room.lot.kinds[: self.size] == LEARN)
        if not len(at):
            return
        spec, usual = room.spec, monitors.usual
        if usual.state.mean.shape[1:] != (spec.rows, spec.columns):
            usual.state = empty_usual(1, spec.rows, spec.columns)
        judged = len(room.signals.losses)
        means = np.zeros((len(at), 3))
        losses, residuals = np.zeros((len(at), judged)), np.zeros((len(at), judged))
        signal_loop.call(
            room.signal_settings, usual.state, room.signal_room, room.signals, room.guard_box,
            room.base_rows, means, losses, residuals, self.size,
        )  # fmt: skip
        for i, monitor in monitors.alarms(means, losses, residuals):
            self.alarms.setdefault(int(at[i]), []).append(monitor)

    # -- what is returned

    def _collect(self, told: Told) -> None:
        """Add the predictions of the run, and count them."""
        room, stats, first = self.room, self.pipeline.stats, self.first
        is_entry = np.flatnonzero(self.events.kinds[first : self.stop] == ENTRY)
        if not len(is_entry):
            self._report_alarms(told, is_entry)
            return
        rows, places = self.events.at[first + is_entry], room.places
        told.items += self.events.item[first + is_entry].tolist()
        told.experts.append(places.experts[rows])
        told.served.append(places.own[rows, -1])
        told.weights.append(room.guard_lot.shares[is_entry])
        if room.kept:
            served, half = places.own[rows, 0], places.own[rows, 1]
            told.low.append(served - half)
            told.high.append(served + half)
        self._report_alarms(told, is_entry)
        if self.noted and not self.budgeted:
            told.estimates += places.notes[rows, 1].tolist()
        stats.entries += len(rows)
        stats.last_time = self._time_of(int(is_entry[-1]))
        stats.predictions += len(rows)
        shares = room.guard_lot.shares[is_entry[-1]].tolist()
        stats.weights = dict(zip(self.pipeline.names, shares, strict=True))
        stats.signals = {}

    def _time_of(self, n: int) -> int:
        """Return the event time of entry event n."""
        events = self.events
        if isinstance(events, ForecastEvents):
            return int(events.entry_times[events.entry[self.first + n]])
        return int(events.entry_times[self.first + n])

    def _report_alarms(self, told: Told, is_entry: Any) -> None:
        """Report drifts at their events; what else must be done entry by entry is done here."""
        monitors, stats = self.pipeline.monitors, self.pipeline.stats
        each = self.budgeted or monitors.watches_entries
        if not (each or self.alarms or monitors.drifts or monitors.reactions):
            return
        entries = set(is_entry.tolist())
        for n in range(self.stop - self.first):
            for monitor in self.alarms.get(n, ()):
                monitors.alarm(monitor)
            if n in entries:
                stats.last_time = self._time_of(n)
                if monitors.watches_entries:
                    self._watch(n)
                if self.budgeted:
                    told.fields.append(self._request(n))
                if monitors.drifts or monitors.reactions:
                    at = len(told.items) - len(is_entry) + int(np.searchsorted(is_entry, n))
                    told.drifts[at] = monitors.drain()
            elif self.budgeted:
                self._budgeted_label(n)

    def _watch(self, n: int) -> None:
        """Update the monitors of entries."""
        pipeline, spec, places = self.pipeline, self.room.spec, self.room.places
        row, item = int(self.events.at[self.first + n]), int(self.events.item[self.first + n])
        place = Place(places, row, "", 0)
        newest = scaled_newest(place.inputs, spec, np.isnan(self.events.items.values[item]))
        pipeline.contain("signals", pipeline.monitors.take_in_entry, newest, place.base)

    def _request(self, n: int) -> LabelFields:
        """Decide whether the label of entry event n is requested."""
        requests, places = self.pipeline.label_requests, self.room.places
        row = int(self.events.at[self.first + n])
        given = places.experts[row], places.own[row, -1], self.room.guard_lot.scales[n]
        with np.errstate(over="ignore", invalid="ignore"):
            note = self.pipeline.contain("labelling", lambda: requests.record(*given, commit=True))
        note = requests.blank() if note is None else note
        places.notes[row] = note
        return requests.fields(note, commit=True)

    def _budgeted_label(self, n: int) -> None:
        """Tell a label budget of a label: whether the next ones are requested depends on it."""
        places, guard = self.room.places, self.room.guard_lot
        row = int(guard.rows_at[n, 0])
        note = places.notes[row]
        told: Any = Matured(
            None, None, places.experts[row], places.own[row], guard.targets[n], guard.known[n],  # type: ignore[arg-type]
            float(guard.weights[n]), () if np.isnan(note).all() else tuple(note.tolist()),
        )  # fmt: skip
        self.pipeline.contain("labelling", self.pipeline.label_requests.learn, told)
