"""River's drift detectors by name: their input (numbers or errors), and their confidence level.

`streamadapt.drift.compiled` has two of them as functions.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from typing import Any, Literal

from streamadapt.drift.adwin import adwin_settings
from streamadapt.errors import ConfigError

__all__ = [
    "BINARY",
    "DETECTORS",
    "LEVELS",
    "DetectorName",
    "corrected",
    "detector_class",
    "make_detector",
    "update",
]

DetectorName = Literal[
    "adwin", "page-hinkley", "kswin", "ddm", "eddm", "hddm-a", "hddm-w", "fhddm"
]

BINARY = "binary."
DETECTORS: dict[str, str] = {
    "adwin": "ADWIN",
    "page-hinkley": "PageHinkley",
    "kswin": "KSWIN",
    "ddm": f"{BINARY}DDM",
    "eddm": f"{BINARY}EDDM",
    "hddm-a": f"{BINARY}HDDMA",
    "hddm-w": f"{BINARY}HDDMW",
    "fhddm": f"{BINARY}FHDDM",
}
"""Name in the config -> class in `river.drift`; those in `binary` take booleans."""

LEVELS = {
    "adwin": "delta",
    "kswin": "alpha",
    "hddm-a": "drift_confidence",
    "hddm-w": "drift_confidence",
    "fhddm": "confidence_level",
}
"""The argument that bounds the probability of a false alarm of one test; the other detectors have
none."""


def detector_class(name: str) -> Any:
    """Return river's class."""
    from river import drift  # here, since it loads pandas and scikit-learn

    return operator.attrgetter(DETECTORS[name])(drift)


def make_detector(name: str, params: Mapping[str, Any]) -> Any:
    """Make river's detector; KSWIN's random sample is seeded with 0 unless `params` has a seed.

    Raises
    ------
    ConfigError
        If river's class does not take the arguments.
    """
    seeded = {"seed": 0} if name == "kswin" else {}
    try:
        return detector_class(name)(**{**seeded, **params})
    except TypeError as exc:
        raise ConfigError(
            "drift.params", dict(params), f"arguments of river.drift's class ({exc})"
        ) from exc


def corrected(name: str, params: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Return arguments with the level of one test divided among `channels` tests.

    By Bonferroni's inequality the probability of a false alarm in any channel is then at most that
    of one test with the whole level, however the channels depend on each other (Dunn 1961, Journal
    of the American Statistical Association 56).
    """
    level = LEVELS[name]
    maker = adwin_settings if name == "adwin" else detector_class(name)
    given = params.get(level, inspect.signature(maker).parameters[level].default)
    return {**params, level: given / channels}


def update(name: str, detector: Any, value: float) -> bool:
    """Update a detector with one finite value; return whether it detects a drift."""
    x: float | bool = value
    if DETECTORS[name].startswith(BINARY):
        is_error = value > 0.5
        x = not is_error if name == "fhddm" else is_error  # river's FHDDM takes correctness
    detector.update(x)
    return bool(detector.drift_detected)
