"""Streams that are not river's: a glucose sensor that is replaced, and link loads with failing
links."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks import data
from benchmarks.drift.score import Change
from benchmarks.drift.signals import MOVING, Stream
from benchmarks.scenarios import glucose, linkload
from benchmarks.scenarios.linkload_stream import Loads, generate, nobel_eu
from streamadapt import Batch, Forecast, FrozenModel, Linear, NoGuard, Pipeline, Supervised
from streamadapt.drift.monitor import DriftMonitor

__all__ = [
    "HOUR_NS",
    "PAUSE",
    "Sureness",
    "failing",
    "sensor",
    "sensor_changes",
    "streams",
    "sureness",
]

HOUR_NS = 3_600_000_000_000
PAUSE = 2 * HOUR_NS
"""A new sensor of this kind gives no values for its first two hours."""
SENSOR_HORIZON = 360
"""Horizon in entries (30 h): the label delay of 6 h, and a day."""
FAILURE_HORIZON = 72
"""Horizon in entries (6 h), half the way to the next failure."""
SIGNALS = ("loss", MOVING, "error", "residual", "input")
SHIFT = 0.15
"""A change of the sensor's gain (logarithm) above this value counts as large."""
HALF_DAY = 144


def streams(seed: int) -> Iterator[tuple[str, Callable[[], Stream]]]:
    """Yield the name of every stream and its factory; the sensor is the same for every seed."""
    yield "linkload", partial(failing, seed, fails=True)
    yield "linkload-still", partial(failing, seed, fails=False)
    if seed == 0:
        yield "glucose", sensor


def sensor_changes(times: npt.NDArray[np.int64], pause: int = PAUSE) -> list[int]:
    """Return the first rows after pauses of at least the given number of nanoseconds."""
    return [int(i) + 1 for i in np.flatnonzero(np.diff(times) >= pause)]


def sensor(batch: Batch | None = None) -> Stream:
    """The stream of `cgm-6h`: a frozen linear calibration with labels six hours late."""
    setting = glucose.Setting("glucose")
    batch = batch or data.glucose()
    first = setting.split(batch)
    changes = tuple(
        Change(row - first) for row in sensor_changes(batch.times) if row >= first + setting.window
    )
    items = glucose.items_of(setting, batch)
    made = partial(_supervised, setting.window, setting.fit(batch))
    return Stream("glucose", "glucose", 0, items, made, changes, SENSOR_HORIZON, SIGNALS)


class Sureness(NamedTuple):
    """How the sensor's gain (glucose over current) differs between the half days before and after
    a row.

    Attributes
    ----------
    marks, elsewhere : int
        Rows taken as changes; rows a half day away from every pause of half an hour.
    large, large_elsewhere : float
        The share of them where the medians' logarithms differ by more than `SHIFT`.
    three_days : float
        The share of the times between neighbouring marks that are 3 or 6 days, within a
        quarter of a day.
    """

    marks: int
    elsewhere: int
    large: float
    large_elsewhere: float
    three_days: float


def sureness(batch: Batch | None = None) -> Sureness:
    """Measure what the definition of a change does not use: the gain, and how long sensors were
    worn."""
    batch = batch or data.glucose()
    assert batch.labels is not None
    gain = np.log(batch.labels[:, 0].astype(float) / batch.values[:, 0].astype(float))
    first = glucose.Setting("glucose").split(batch)
    marks = [row for row in sensor_changes(batch.times) if first <= row < len(gain) - HALF_DAY]
    pauses = np.array(sensor_changes(batch.times, HOUR_NS // 2))
    far = [
        row
        for row in range(first, len(gain) - HALF_DAY, HALF_DAY // 4)
        if np.abs(pauses - row).min(initial=len(gain)) > HALF_DAY
    ]

    def large(rows: Sequence[int]) -> float:
        shifts = [
            np.median(gain[r : r + HALF_DAY]) - np.median(gain[r - HALF_DAY : r]) for r in rows
        ]
        return float(np.mean(np.abs(shifts) > SHIFT)) if rows else 0.0

    days = np.diff(batch.times[marks]) / (24 * HOUR_NS)
    near = np.minimum(np.abs(days - 3.0), np.abs(days - 6.0)) <= 0.25
    return Sureness(
        len(marks), len(far), large(marks), large(far), float(near.mean()) if len(near) else 0.0
    )


def failing(seed: int, *, fails: bool, setting: linkload.Setting = linkload.LINKLOAD) -> Stream:
    """The stream of `linkload`, or the same demands without link failures."""
    traffic = setting.traffic if fails else replace(setting.traffic, failing=0)
    loads = generate(nobel_eu(), traffic, seed)
    base = _network(setting, seed)
    items = linkload.stream_of(setting, loads)
    first = len(loads.batch) - len(items)
    changes = tuple(Change(at - first) for at in loads.events) if fails else ()
    name = "linkload" if fails else "linkload-still"
    made = partial(_forecast, setting.window, base)
    return Stream(name, name, seed, items, made, changes, FAILURE_HORIZON, SIGNALS)


@lru_cache(maxsize=1)
def _network(setting: linkload.Setting, seed: int) -> FrozenModel:
    """Fit the base; it is the same with and without failures, which begin after its training
    days."""
    loads: Loads = generate(nobel_eu(), setting.traffic, seed)
    return linkload.frozen(linkload.fit(setting, loads, seed), loads.batch.values.shape[1])


def _supervised(window: int, base: Linear, monitors: Sequence[DriftMonitor]) -> Pipeline:
    return Pipeline(Supervised(window), base, [], NoGuard(), monitors, device="cpu")


def _forecast(window: int, base: FrozenModel, monitors: Sequence[DriftMonitor]) -> Pipeline:
    return Pipeline(
        Forecast(window, 1, loss="squared"), base, [], NoGuard(), monitors, device="cpu"
    )
