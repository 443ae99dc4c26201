"""Reads the demo's data: the readings of a continuous glucose monitor, from bokeh_sampledata.

There are 52,281 rows, five minutes apart, with the sensor's current `isig` (or a text where the
sensor failed) and the blood glucose. Sensors age and are replaced, so a calibration that is fitted
once becomes wrong.
"""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files

from streamadapt.errors import ConfigError

__all__ = ["LABEL_DELAY", "Reading", "labelled", "read_glucose"]

LABEL_DELAY = timedelta(hours=6)
SPARSE_EVERY = 72
"""In the sparse form, one reading in 72 has a label: four per day."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One row of the data.

    Attributes
    ----------
    time : datetime
        Event time (the file has no time zone; UTC is assumed).
    isig : float or str
        Sensor current, nA; a text if the sensor failed.
    glucose : float
        mg/dL.
    """

    id: str
    time: datetime
    isig: float | str
    glucose: float

    def entry(self) -> bytes:
        """Return the record of the entries topic."""
        return json.dumps(
            {"id": self.id, "time": self.time.isoformat(), "isig": self.isig}
        ).encode()

    def label(self) -> bytes:
        """Return the record of the labels topic; its time is the time when the label became
        known."""
        known = (self.time + LABEL_DELAY).isoformat()
        return json.dumps({"id": self.id, "time": known, "glucose": self.glucose}).encode()


def read_glucose() -> list[Reading]:
    """Read all rows, oldest first.

    Raises
    ------
    ConfigError
        If bokeh_sampledata is not installed.
    """
    try:
        packed = files("bokeh_sampledata").joinpath("_data/CGM.csv.gz").read_bytes()
    except ModuleNotFoundError as exc:
        raise ConfigError(
            "demo", "bokeh_sampledata is not installed", 'pip install "streamadapt[demo]"'
        ) from exc
    rows = csv.DictReader(gzip.decompress(packed).decode().splitlines())
    readings = []
    for number, row in enumerate(rows):
        time = datetime.fromisoformat(row["datetime"]).replace(tzinfo=UTC)
        readings.append(
            Reading(f"cgm-{number}", time, _number_or_text(row["isig"]), float(row["glucose"]))
        )
    return readings


def _number_or_text(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def labelled(readings: list[Reading], *, sparse: bool) -> list[Reading]:
    """Return the readings whose labels are sent."""
    return readings[::SPARSE_EVERY] if sparse else readings
