"""River's drift detectors by name: which watch numbers and which a yes or no, and how sure each
wants to be."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from typing import Any, Literal

from streamadapt.errors import ConfigError

__all__ = [
    "BINARY",
    "DETECTORS",
    "LEVELS",
    "DetectorName",
    "corrected",
    "detector_class",
    "make_detector",
    "tell",
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
"""Name in the config -> class in `river.drift`; those in `binary` watch a yes or no."""

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

    By Bonferroni's inequality the probability that any of them is a false alarm is then at most
    what it was for one, however the channels depend on each other (Dunn 1961, Journal of the
    American Statistical Association 56).
    """
    level = LEVELS[name]
    given = params.get(level, inspect.signature(detector_class(name)).parameters[level].default)
    return {**params, level: given / channels}


def tell(name: str, detector: Any, value: float) -> bool:
    """Give a detector one finite value; True if it says drift."""
    told: float | bool = value
    if DETECTORS[name].startswith(BINARY):
        wrong = value > 0.5
        told = not wrong if name == "fhddm" else wrong  # river's FHDDM counts what was right
    detector.update(told)
    return bool(detector.drift_detected)
