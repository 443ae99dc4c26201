"""The scenarios by name; the names are permanent."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import data
from benchmarks.scenarios import dictionary, digits, elec2, forecast, glucose, linkload, plain
from benchmarks.scenarios.measure import Measured, Progress

__all__ = ["SCENARIOS"]

Scenario = Callable[[Path, Progress], Measured]


def _glucose(setting: glucose.Setting, folder: Path, progress: Progress) -> Measured:
    del folder  # the readings are in a package
    return glucose.measure(setting, data.glucose(), progress)


def _forecast(setting: forecast.Setting, folder: Path, progress: Progress) -> Measured:
    return forecast.measure(setting, setting.load(folder), progress)


def _elec2(setting: elec2.Setting, folder: Path, progress: Progress) -> Measured:
    return elec2.measure(setting, data.elec2(folder), progress)


def _linkload(setting: linkload.Setting, folder: Path, progress: Progress) -> Measured:
    del folder  # the loads are generated
    return linkload.measure(setting, progress)


SCENARIOS: dict[str, Scenario] = {
    **{setting.name: partial(_glucose, setting) for setting in glucose.SENSORS},
    **{setting.name: partial(_forecast, setting) for setting in forecast.FORECASTS},
    elec2.ELEC2.name: partial(_elec2, elec2.ELEC2),
    linkload.LINKLOAD.name: partial(_linkload, linkload.LINKLOAD),
    **{name: partial(plain.of_digits, name) for name in digits.NAMES},
    **{name: partial(plain.of_dictionary, name) for name in dictionary.NAMES},
}
