"""The scenarios by name; the names are permanent."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import data
from benchmarks.scenarios import forecast, glucose
from benchmarks.scenarios.measure import Measured, Progress

__all__ = ["SCENARIOS"]

Scenario = Callable[[Path, Progress], Measured]


def _glucose(setting: glucose.Setting, folder: Path, progress: Progress) -> Measured:
    del folder  # the readings ship in a package
    return glucose.measure(setting, data.glucose(), progress)


def _forecast(setting: forecast.Setting, folder: Path, progress: Progress) -> Measured:
    return forecast.measure(setting, setting.load(folder), progress)


SCENARIOS: dict[str, Scenario] = {
    **{setting.name: partial(_glucose, setting) for setting in glucose.SENSORS},
    **{setting.name: partial(_forecast, setting) for setting in forecast.FORECASTS},
}
