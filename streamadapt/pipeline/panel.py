"""Panels in long form: one record per sensor and time, assembled into rows by event time."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from streamadapt.arguments import ShowsArguments
from streamadapt.config.durations import duration_ns
from streamadapt.errors import ConfigError, EntryError, Reason
from streamadapt.pipeline.watermark import Reading, Watermark
from streamadapt.records import Entry, FloatArray, Label, Position
from streamadapt.tasks import Supervised, Task
from streamadapt.tasks.base import check_size
from streamadapt.tasks.event_clock import DAY_NS

__all__ = ["Panel"]

INT64_MAX = 2**63 - 1
Rank = tuple[bool, int, float, bool]


class Panel(ShowsArguments):
    """Assembles records, each of one sensor (`Entry.key`) with one value, into entries of all
    sensors.

    A row is released when the watermark (the newest event time minus `lateness`) has passed the
    time of the row; later records of the row are refused. A sensor without a value in a row is NaN
    there, and may return at any time. The rows, their times, values and columns depend only on the
    set of accepted records, not on their order: for any order of arrival within `lateness`, the
    predictions are the same to the bit.

    In a row, the newest value of a sensor counts. If there are several values at one event time,
    the largest counts; a missing value (NaN) counts only if there is no other. So a repeated
    record changes nothing. A record does not show whether it corrects another record: a correction
    needs a later time.

    An assembled entry has the row's time, in ns, as its `id` and as the offset of its `position`;
    the stream and partition of the position are those of the records, and the `key` is empty.
    Predictions have the same ids. These are unique, increase within a partition, and are the same
    after every replay, in any order of the records.

    Parameters
    ----------
    sensors : sequence of str, optional
        The names of the sensors, one per column. Records of other sensors are refused.
    max_sensors : int, optional
        Instead of `sensors`: the largest number of columns. A sensor gets a permanent column when
        it first has a value in a released row; new sensors of one row get columns in the order of
        their names. Further sensors are refused.
    step : duration, optional
        The distance of rows on a regular grid: the row of time T has the values measured in
        (T - step, T], where T is a multiple of `step` since the Unix epoch. Without a `step` there
        is a row for every event time of a record (irregular steps; learners can use the times).
    lateness : duration
        How much older than the newest record an accepted record may be.
    max_gap : int, >= 0, in rows
        With a `step`: the largest number of rows of NaN for a gap in the stream; longer gaps are
        skipped. They are released together with the row that ends the gap.
    max_ahead : duration
        A record further ahead of the newest than this is doubted; see `Watermark`. At least
        `lateness`. Default: a day, or 16 steps if they are longer.
    max_waiting : int
        The largest number of waiting values; if there are more, the oldest row is released early.

    Raises
    ------
    ConfigError
        If a setting is out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> from streamadapt import Entry
    >>> panel = Panel(sensors=["north", "south"], step="10s", lateness="5s")
    >>> records = [("south", 12, 5.0), ("north", 11, 1.0), ("north", 19, 2.0), ("south", 26, 6.0)]
    >>> for sensor, t, value in records:
    ...     for row in panel.take(Entry(np.array([value], np.float32), t * 10**9, key=sensor)):
    ...         print(row.time // 10**9, row.values.tolist())
    20 [2.0, 5.0]
    """

    def __init__(
        self,
        sensors: Sequence[str] | None = None,
        max_sensors: int | None = None,
        step: str | None = None,
        lateness: str = "10m",
        max_gap: int = 100,
        max_ahead: str | None = None,
        max_waiting: int = 100_000,
    ) -> None:
        _check_sensors(sensors, max_sensors)
        for name, value, low in (
            ("max_sensors", max_sensors, 1),
            ("max_gap", max_gap, 0),
            ("max_waiting", max_waiting, 1),
        ):
            if value is not None and not low <= value <= 10**9:
                raise ConfigError(f"panel.{name}", value, f"a whole number >= {low}")
        self.open_ended = sensors is None
        self.columns: tuple[str, ...] = tuple(sensors or ("",) * (max_sensors or 0))
        self.step_ns = None if step is None else duration_ns("panel.step", step)
        if self.step_ns == 0:
            raise ConfigError("panel.step", step, "a duration > 0")
        self.max_gap = max_gap
        self.max_waiting = max_waiting
        ahead_ns = (
            max(DAY_NS, 16 * (self.step_ns or 0))
            if max_ahead is None
            else duration_ns("panel.max_ahead", max_ahead)
        )
        self.clock = Watermark(duration_ns("panel.lateness", lateness), ahead_ns)
        if self.clock.max_ahead_ns < self.clock.lateness_ns:
            raise ConfigError(
                "panel.max_ahead", max_ahead, f"a duration >= panel.lateness, {lateness}"
            )
        # Reason -> number of records that were dropped after `take`; the pipeline's counter.
        self.lost: Counter[str] = Counter()
        self._at: dict[str, int] = {name: i for i, name in enumerate(self.columns) if name}
        self._open: dict[int, dict[str, Reading]] = {}  # row time -> sensor -> its reading
        self._times: list[int] = []  # heap of the open rows' times
        self._waiting = 0
        self._last: int | None = None  # time of the last released row
        self._place = ("", 0)  # stream and partition

    def check(self, task: Task, channels: int | None) -> None:
        """Raise `ConfigError` if task and base do not fit the panel."""
        if isinstance(task, Supervised):
            raise ConfigError(
                "task.kind", task.name, "forecast or unlabelled: a panel's records have no labels"
            )
        if channels not in (None, len(self.columns)):
            name = "panel.max_sensors" if self.open_ended else "panel.sensors"
            raise ConfigError(
                name,
                len(self.columns),
                f"{channels} sensors, the number on which the base was fitted",
            )

    # -- records in, rows out

    def take(self, item: Entry | Label) -> Iterator[Entry]:
        """Add one record; yield the rows that it completes, oldest first.

        Raises
        ------
        EntryError
            If the record is invalid or late, or its sensor has no column; then nothing changes.
        """
        reading = self._reading(item)
        if not self._place[0]:
            self._place = item.position.stream, item.position.partition
        for admitted in self.clock.admit(reading):
            self._put(admitted)
        self._count(Reason.BAD_TIME, self.clock.dropped)
        self.clock.dropped = 0
        while self._times and (
            self._waiting > self.max_waiting or self._times[0] < (self.clock.passed or 0)
        ):
            yield from self._release()

    def flush(self) -> Iterator[Entry]:
        """Yield all waiting rows at the end of the stream."""
        for reading in self.clock.finish():
            self._put(reading)
        self._count(Reason.BAD_TIME, self.clock.dropped)
        self.clock.dropped = 0
        while self._times:
            yield from self._release()

    def _reading(self, item: Entry | Label) -> Reading:
        at = item.position
        if isinstance(item, Label):
            detail = "a panel takes no labels: the targets of a forecast are its own records"
            raise EntryError(Reason.UNKNOWN_LABEL, detail, at)
        if item.values.shape != (1,):
            raise EntryError(
                Reason.WRONG_WIDTH, f"expected 1 value of one sensor, got {item.values.shape}", at
            )
        check_size(item.values, "value", at)
        if item.key not in self._at:
            self._check_new(item)
        row = self._row_of(item.time)
        if row > INT64_MAX:
            raise EntryError(Reason.BAD_TIME, "its row would be after the year 2262", at)
        passed = self.clock.passed
        if (passed is not None and row < passed) or (self._last is not None and row <= self._last):
            behind = ((self.clock.newest or 0) - item.time) / 1e9
            detail = f"its row was closed: {behind:g} s behind the newest (panel.lateness)"
            raise EntryError(Reason.LATE_RECORD, detail, at)
        return Reading(item.time, item.key, float(item.values[0]))

    def _check_new(self, item: Entry) -> None:
        if not item.key:
            detail = "no key, so its sensor is unknown"
            raise EntryError(Reason.MISSING_FIELD, detail, item.position)
        if not self.open_ended:
            raise EntryError(
                Reason.UNKNOWN_SENSOR, f"{item.key[:60]!r} is not in panel.sensors", item.position
            )
        if len(self._at) == len(self.columns):
            detail = (
                f"{item.key[:60]!r}: all {len(self.columns)} columns are taken (panel.max_sensors)"
            )
            raise EntryError(Reason.TOO_MANY_SENSORS, detail, item.position)

    def _row_of(self, time: int) -> int:
        return time if self.step_ns is None else -(-time // self.step_ns) * self.step_ns

    def _put(self, reading: Reading) -> None:
        time = self._row_of(reading.time)
        # The record was in doubt, and its row was released early.
        if self._last is not None and time <= self._last:
            self._count(Reason.LATE_RECORD, 1)
            return
        row = self._open.get(time)
        if row is None:
            row = self._open[time] = {}
            heapq.heappush(self._times, time)
        known = row.get(reading.sensor)
        self._waiting += known is None
        if known is None or _rank(reading) > _rank(known):
            row[reading.sensor] = reading

    def _release(self) -> Iterator[Entry]:
        """Yield the oldest open row, after the rows of NaN for a gap before it."""
        time = heapq.heappop(self._times)
        readings = self._open.pop(time)
        self._waiting -= len(readings)
        self._settle(readings)
        values = np.full(len(self.columns), np.nan)
        placed = [reading for sensor, reading in readings.items() if sensor in self._at]
        for reading in placed:
            values[self._at[reading.sensor]] = reading.value
        lost = sum(
            not math.isnan(reading.value)
            for reading in readings.values()
            if reading.sensor not in self._at
        )
        self._count(Reason.TOO_MANY_SENSORS, lost)
        if placed:  # otherwise no sensor of this panel has a value
            last, self._last = self._last, time
            if last is not None and self.step_ns is not None:
                for i in range(1, min((time - last) // self.step_ns, self.max_gap + 1)):
                    yield self._entry(last + i * self.step_ns, np.full(len(self.columns), np.nan))
            yield self._entry(time, values)

    def _settle(self, readings: dict[str, Reading]) -> None:
        """Assign free columns to sensors with their first value."""
        new = sorted(
            s
            for s, reading in readings.items()
            if s not in self._at and not math.isnan(reading.value)
        )
        for sensor in new[: len(self.columns) - len(self._at)]:
            i = len(self._at)
            self._at[sensor] = i
            self.columns = (*self.columns[:i], sensor, *self.columns[i + 1 :])

    def _entry(self, time: int, values: FloatArray) -> Entry:
        return Entry(values, time, str(time), position=Position(*self._place, time))

    def _count(self, reason: Reason, n: int) -> None:
        if n:
            self.lost[reason.value] += n

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return columns, watermark and open rows."""
        rows = [
            (time, *reading)
            for time in sorted(self._open)
            for _, reading in sorted(self._open[time].items())
        ]
        return {
            "columns": list(self.columns),
            "clock": self.clock.state_dict(),
            "rows": np.array([row[0] for row in rows], np.int64),
            "times": np.array([row[1] for row in rows], np.int64),
            "sensors": [row[2] for row in rows],
            "values": np.array([row[3] for row in rows], np.float64),
            "last": self._last,
            "place": list(self._place),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        self.columns = tuple(state["columns"])
        self._at = {name: i for i, name in enumerate(self.columns) if name}
        self.clock.load_state_dict(state["clock"])
        self._open, self._times, self._waiting = {}, [], 0
        for time, sensor, value in zip(
            state["times"], state["sensors"], state["values"], strict=True
        ):
            self._put(Reading(int(time), sensor, float(value)))
        self._last = None if state["last"] is None else int(state["last"])
        self._place = str(state["place"][0]), int(state["place"][1])


def _check_sensors(sensors: Sequence[str] | None, max_sensors: int | None) -> None:
    """Raise `ConfigError` unless exactly one of them is set, and the names can be columns."""
    if (sensors is None) == (max_sensors is None):
        raise ConfigError("panel.sensors", sensors, "a list of sensors, or else panel.max_sensors")
    if isinstance(sensors, str) or (sensors is not None and _bad_names(sensors)):
        raise ConfigError(
            "panel.sensors", sensors, "different names, one at least, none of them empty"
        )


def _bad_names(sensors: Sequence[str]) -> bool:
    return (
        not sensors
        or len(set(sensors)) < len(sensors)
        or not all(isinstance(s, str) and s for s in sensors)
    )


def _rank(reading: Reading) -> Rank:
    """Return the rank of a reading: if a sensor has two readings in a row, the reading with the
    larger rank counts, in any order of arrival."""
    if math.isnan(reading.value):
        return False, reading.time, 0.0, False
    return True, reading.time, reading.value, math.copysign(1.0, reading.value) > 0
