"""Drift: which signal is watched, by which detector, and what is done when it fires.

The detectors are river's own, behind a door that refuses non-finite values: one NaN makes river's ADWIN miss every
later drift without a word.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, Literal

from streamadapt.errors import ConfigError
from streamadapt.unpickle import dumps_river, loads_river

__all__ = ["BINARY", "DETECTORS", "SIGNALS", "Boost", "DetectorName", "DriftMonitor", "Reaction"]

Reaction = Literal["alert", "boost"]
DetectorName = Literal["adwin", "page-hinkley", "kswin", "ddm", "eddm", "hddm-a", "hddm-w", "fhddm"]

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

SIGNALS = ("loss", "error", "input")
"""What the pipeline itself can watch; learners may offer more."""
REACTIONS = ("alert", "boost")


@dataclass(slots=True)
class Boost:
    """A learning-rate factor that jumps at a drift and decays back to one.

    Attributes
    ----------
    factor : float, >= 1
        Right after a drift.
    half_life : float, > 0, in entries
        Of what the factor is above one.
    level : float, >= 1
        Now.
    """

    factor: float = 5.0
    half_life: float = 100.0
    level: float = 1.0

    def __post_init__(self) -> None:
        if not 1.0 <= self.factor < math.inf:
            raise ConfigError("drift.factor", self.factor, "a finite number >= 1")
        if not 0.0 < self.half_life < math.inf:
            raise ConfigError("drift.half_life", self.half_life, "a finite number of entries > 0")

    def fire(self) -> None:
        """Jump."""
        self.level = self.factor

    def decay(self) -> None:
        """Let one entry pass."""
        self.level = 1.0 + (self.level - 1.0) * 0.5 ** (1.0 / self.half_life)


class DriftMonitor:
    """One detector on one signal, and its reaction.

    Parameters
    ----------
    detector : {"adwin", "page-hinkley", "kswin", "ddm", "eddm", "hddm-a", "hddm-w", "fhddm"}
        river's. For numbers: ADWIN (Bifet & Gavalda 2007), O(log n) per entry; Page-Hinkley (Page 1954), O(1); KSWIN
        (Raab et al. 2020), O(w log w) for a window of w, its random sample seeded with 0 unless `params` has a seed.
        For right and wrong, O(1) each: DDM (Gama et al. 2004), EDDM (Baena-Garcia et al. 2006), HDDM by averages and by
        weighted averages (Frias-Blanco et al. 2015), FHDDM (Pesaranghader & Viktor 2016).
    signal : str
        ``loss``: the base's mean loss over the cells that matured at an arrival, in units of the guard's scale at that
        time (so that one threshold suits every unit). ``error``: whether the base was wrong: another class than the
        label, or a loss above that scale; 1 or 0, and all that the detectors of right and wrong can watch. ``input``:
        the mean over channels of the newest scaled values. Or one of a learner's `signal_names`, such as
        ``dictionary-error``.
    reaction : {"alert", "boost"}
        ``alert``: say so (prediction, metric, log). ``boost``: also learn faster for a while.
    params : dict
        Arguments of river's class.
    factor, half_life
        Of the `Boost`.
    cool_down : int, >= 0
        So many values after an alarm no other is told: a detector whose window still holds the change would tell it
        again. The detector itself goes on.
    """

    def __init__(
        self,
        detector: DetectorName = "adwin",
        signal: str = "loss",
        reaction: Reaction = "alert",
        *,
        params: dict[str, Any] | None = None,
        factor: float = 5.0,
        half_life: float = 100.0,
        cool_down: int = 0,
    ) -> None:
        for path, value, allowed in (
            ("detector", detector, tuple(DETECTORS)),
            ("reaction", reaction, REACTIONS),
        ):
            if value not in allowed:
                raise ConfigError(f"drift.{path}", value, "one of " + ", ".join(allowed))
        self._binary = DETECTORS[detector].startswith(BINARY)
        if self._binary and signal != "error":
            raise ConfigError("drift.signal", signal, f"error: {detector} watches what is right or wrong")
        if isinstance(cool_down, bool) or not isinstance(cool_down, int) or cool_down < 0:
            raise ConfigError("drift.cool_down", cool_down, "a whole number of values, 0 or more")
        self.detector = detector
        self.signal = signal
        self.reaction = reaction
        self.params = dict(params or {})
        self.boost = Boost(factor, half_life) if reaction == "boost" else None
        self.cool_down = cool_down
        self.refused = 0
        self._quiet = 0  # values still to pass before the next alarm
        self._river = self._fresh()

    @property
    def name(self) -> str:
        """``adwin:loss``."""
        return f"{self.detector}:{self.signal}"

    def _fresh(self) -> Any:
        from river import drift  # here, since it loads pandas and scikit-learn

        seeded = {"seed": 0} if self.detector == "kswin" else {}
        try:
            return operator.attrgetter(DETECTORS[self.detector])(drift)(**seeded | self.params)
        except TypeError as exc:
            raise ConfigError("drift.params", self.params, f"arguments of river.drift's class ({exc})") from exc

    def update(self, value: float) -> bool:
        """Take one value of the signal; True if this is a drift. Non-finite values are counted and refused."""
        if self.boost is not None:
            self.boost.decay()
        if not math.isfinite(value):
            self.refused += 1
            return False
        self._river.update(self._told(value))
        fired = bool(self._river.drift_detected) and self._quiet == 0
        self._quiet = self.cool_down if fired else max(self._quiet - 1, 0)
        if fired and self.boost is not None:
            self.boost.fire()
        return fired

    def _told(self, value: float) -> float | bool:
        if not self._binary:
            return value
        wrong = value > 0.5
        return not wrong if self.detector == "fhddm" else wrong  # river's FHDDM counts what was right

    def state_dict(self) -> dict[str, Any]:
        """Return the detector's and the reaction's state."""
        level = None if self.boost is None else self.boost.level
        return {"detector": dumps_river(self._river), "refused": self.refused, "quiet": self._quiet, "boost": level}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._river = loads_river(state["detector"])
        self.refused = int(state["refused"])
        self._quiet = int(state["quiet"])
        if self.boost is not None:
            self.boost.level = float(state["boost"])
