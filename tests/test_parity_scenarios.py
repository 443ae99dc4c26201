"""The scenarios of `benchmarks.quality` have the recorded predictions and figures.

Their bases are trained anew, so only the machine that wrote the files can compare.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from parity import tolerances
from parity.comparing import differences
from parity.machine import machine
from parity.scenario_pipelines import MEASURED
from parity.scenarios import (
    COPIES,
    FOLDER,
    MANIFEST,
    NAMES,
    data_folder,
    figures,
    measured,
    recorded,
)

MADE = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {"scenarios": {}, "machine": {}}


BEYOND_THE_BAR = {
    "etth1-weak": {
        "expert": tolerances.Tolerance(2e-6),
        "served beside adcsd": tolerances.Tolerance(5e-5),
        "choice": tolerances.Tolerance(2e-6),
    },
    "etth1-strong": {
        "expert": tolerances.Tolerance(5e-6),
        "served beside adcsd": tolerances.Tolerance(5e-5),
        "choice": tolerances.Tolerance(5e-6),
    },
}
"""4 of 54 served predictions are up to 2.9e-5 off, above the bar of 1e-5. 4 of the memory's are up
to 1.8e-6 off: the torch form subtracted float32 numbers to get the base's errors, and added the
correction in float32; in float64 it gives the present predictions to the last bit. The base, and
with it all experts, is up to 3.2e-6 off in 8 of 52 predictions of etth1-strong: torch added up
float32 products, and the kernel adds them up in float64. Both are as far from exact arithmetic as
the last rounding to float32 makes them."""
COPIES_OF_THE_BASE = ("etth1-weak", "etth1-strong", "los-strong")
"""Where the base is a ridge regression: the value of the day before is the base's until a day has
passed, and its last bits are others."""


NOT_YET = {
    "los-weak": "adcsd-share-norm is up to 1.9e-4 off in 1 of 12 predictions, served 3.1e-5 in 3: "
    "an error that is nearly zero has another sign",
    "elec2": "the last value is copied as a probability with other last bits",
}
"""Scenarios that do not hold the bar yet."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason=NOT_YET[name]))
        if name in NOT_YET
        else name
        for name in NAMES
    ],
)
def test_a_scenario_is_as_recorded(name):
    if name in MEASURED and not data_folder().is_dir():
        pytest.skip("needs ETTh1.csv, los_speed.csv, elec.csv: set STREAMADAPT_DATA")
    if MADE["machine"] != machine():
        pytest.skip("the bases are trained, and on this machine they may be others")
    wanted, found = recorded(name), measured(name, data_folder())
    assert wanted.facts["stream"] == found.facts["stream"], "the stream differs"
    if name in COPIES_OF_THE_BASE:
        for facts in (wanted.facts, found.facts):
            del facts["copies"]["seasonal-1d"]
    table = tolerances.PARITY | BEYOND_THE_BAR.get(name, {})
    assert differences(wanted, found, table) == []


def test_every_scenario_has_its_file():
    assert set(MADE["scenarios"]) == set(NAMES)
    assert {path.stem for path in FOLDER.glob("*.zip")} == set(NAMES)
    assert all(len(made["commit"]) == 40 for made in MADE["scenarios"].values())
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3_000_000


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_those_of_the_file(name):
    found = figures(recorded(name))
    assert found == MADE["scenarios"][name]["figures"]
    assert all(np.isfinite(list(found.values())))


@pytest.mark.parametrize("name", MEASURED)
def test_values_of_the_data_are_not_in_the_files(name):
    """An expert that repeats them is there as a checksum."""
    arrays, copies = recorded(name).arrays, recorded(name).facts["copies"]
    assert copies
    assert not {f"expert:{copy}" for copy in COPIES} & set(arrays)
