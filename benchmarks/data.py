"""The measured data sets, read in their published form."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamadapt import Batch

__all__ = ["elec2", "etth1", "glucose", "los_speed"]

MINUTE_NS = 60_000_000_000


def etth1(folder: Path) -> Batch:
    """Transformer load and oil temperature, hourly: 17,420 rows of 7 columns (ETDataset, CC BY-ND
    4.0)."""
    header, rows = _read(folder / "ETTh1.csv")
    return Batch(
        _numbers(row[1:] for row in rows),
        _times(row[0] for row in rows),
        channels=tuple(header[1:]),
    )


def los_speed(folder: Path) -> Batch:
    """Mean speeds (mph) of 207 loop detectors in Los Angeles, every 5 minutes: 2,016 rows
    (METR-LA, first week)."""
    header, rows = _read(folder / "los_speed.csv")
    # The file has no times: they are counted from midnight of its first day.
    start = int(np.datetime64("2012-03-01", "ns").astype(np.int64))
    times = start + 5 * MINUTE_NS * np.arange(len(rows), dtype=np.int64)
    return Batch(_numbers(rows), times, channels=tuple(header))


def elec2(folder: Path) -> Batch:
    """New South Wales electricity market, every 30 minutes: 45,312 rows of 6 features and whether
    the price goes up.

    M. Harries (1999), as published with scikit-multiflow; labels are 0 and 1, (rows, 1).
    """
    header, rows = _read(folder / "elec.csv")
    numbers = _numbers(rows)
    # The file has no times: they are counted from the first day of the measurements.
    start = int(np.datetime64("1996-05-07", "ns").astype(np.int64))
    times = start + 30 * MINUTE_NS * np.arange(len(rows), dtype=np.int64)
    return Batch(numbers[:, :-1], times, numbers[:, -1:], tuple(header[:-1]))


def glucose() -> Batch:
    """A glucose sensor's current (nA) and the meter's glucose (mg/dL), every 5 minutes, March to
    October 2010.

    Rows whose current is not a number (``nil``: the sensor was dirty) are left out; the others are
    sorted by time. It ships in the package bokeh_sampledata, a dependency of the demo.
    """
    packed = files("bokeh_sampledata").joinpath("_data", "CGM.csv.gz")
    with packed.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8", newline="") as text:
        rows = [row for row in csv.DictReader(text) if row["isig"] != "nil"]
    times = _times(row["datetime"] for row in rows)
    order = np.argsort(times, kind="stable")
    values = _numbers([row["isig"]] for row in rows)[order]
    labels = _numbers([row["glucose"]] for row in rows)[order]
    return Batch(values, times[order], labels, ("isig",))


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


def _numbers(rows: Iterable[list[str]]) -> npt.NDArray[np.float32]:
    return np.array([[float(cell) for cell in row] for row in rows], np.float32)


def _times(stamps: Iterable[str]) -> npt.NDArray[np.int64]:
    return np.array(list(stamps), "datetime64[ns]").astype(np.int64)
