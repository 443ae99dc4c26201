"""A drift monitor: a signal, its detector, and the reaction to an alarm.

The detectors are river's. Non-finite values are refused before they reach a detector: one NaN
makes river's ADWIN miss every later drift silently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamadapt.arguments import ShowsArguments
from streamadapt.config.renamed import accepts_old_names
from streamadapt.drift.detectors import (
    BINARY,
    DETECTORS,
    LEVELS,
    DetectorName,
    corrected,
    make_detector,
    update,
)
from streamadapt.drift.reactions import REACTIONS, Boost, Reaction
from streamadapt.drift.signals import BY_CHANNEL
from streamadapt.errors import ConfigError
from streamadapt.state.river_pickle import dumps_river, loads_river

__all__ = ["DriftMonitor"]

FARTHEST = 30.0
"""A value is clipped at this many mean sizes of the signal, or at this number if that is larger: a
single outlier would dominate ADWIN's variance for thousands of values."""
SIZE_RATE = 0.01
"""How fast the mean size follows the values."""
MOST = 1e6
"""Every value is clipped at this number, also while the mean size is not known yet."""


@accepts_old_names("drift")
class DriftMonitor(ShowsArguments):
    """One detector on one signal, and its reaction.

    Parameters
    ----------
    detector : {"adwin", "page-hinkley", "kswin", "ddm", "eddm", "hddm-a", "hddm-w", "fhddm"}
        A detector of river. For numbers: ADWIN (Bifet & Gavalda 2007), O(log n) per entry;
        Page-Hinkley (Page 1954), O(1); KSWIN (Raab et al. 2020), O(w log w) for a window of w, its
        random sample seeded with 0 unless `params` has a seed. For right and wrong, O(1) each: DDM
        (Gama et al. 2004), EDDM (Baena-Garcia et al. 2006), HDDM by averages and by weighted
        averages (Frias-Blanco et al. 2015), FHDDM (Pesaranghader & Viktor 2016).
    signal : str
        ``loss``, ``error``, ``residual``, ``input``, ``confidence`` or ``embedding``
        (`streamadapt.drift.signals` explains them), or a signal of a learner, such as
        ``dictionary-error``. The detectors for right and wrong take ``error`` only.
    reaction : {"alert", "boost", "forget", "reset", "refit"}
        ``alert``: report the drift (prediction, metric, log). ``boost``: also learn faster for a
        while. ``forget``: reduce the weight of everything learned so far to `keep_fraction`
        (`Learner.forget`). ``reset``: reset the learners to their start. ``refit``: train a new
        copy of each learner next to it, and replace the learner if the copy was better in the
        second half of `refit_trial` matured examples; twice the cost during the trial.
        docs/reactions.md compares the reactions.
    params : dict
        Arguments of river's class.
    factor : float, >= 1
        With ``boost``: how many times faster learners learn right after an alarm.
    half_life : float, > 0, in entries
        With ``boost``: the number of entries after which half of the additional speed is left.
    cool_down : int, >= 0
        The number of values after an alarm in which no further alarm is raised: a detector whose
        window still contains the change would raise it again. The detector itself continues.
    channels : {"mean", "each"}
        ``each``: one detector per channel of the signal (``loss``, ``residual``, ``input``), and
        an alarm if any of them fires. The level of each test is divided by the number of channels
        (Bonferroni), so that the rate of false alarms does not grow with the channels. For
        detectors with such a level: adwin, kswin, hddm-a, hddm-w, fhddm. Costs one detector per
        channel.
    keep_fraction : float, in [0, 1)
        With ``forget``: the share of the learned state's weight that is kept.
    refit_trial : int, >= 2, matured examples
        With ``refit``: how long the new copy is compared with the learner.
    learners : sequence of str, optional
        Kinds of the learners that ``forget``, ``reset`` and ``refit`` apply to. Default: all.

    Attributes
    ----------
    refused : int
        The number of values that were not finite.
    fired_channels : tuple of int
        The channels that fired at the last alarm.

    Examples
    --------
    >>> DriftMonitor("adwin", "loss", "boost", factor=3.0).name
    'adwin:loss'
    """

    def __init__(  # noqa: PLR0913 - each is a key of its table
        self,
        detector: DetectorName = "adwin",
        signal: str = "loss",
        reaction: Reaction = "alert",
        *,
        params: dict[str, Any] | None = None,
        factor: float = 5.0,
        half_life: float = 100.0,
        cool_down: int = 0,
        channels: Literal["mean", "each"] = "mean",
        keep_fraction: float = 0.1,
        refit_trial: int = 200,
        learners: Sequence[str] | None = None,
    ) -> None:
        for path, value, allowed in (
            ("detector", detector, tuple(DETECTORS)),
            ("reaction", reaction, REACTIONS),
            ("channels", channels, ("mean", "each")),
        ):
            if value not in allowed:
                raise ConfigError(f"drift.{path}", value, "one of " + ", ".join(allowed))
        if DETECTORS[detector].startswith(BINARY) and signal != "error":
            raise ConfigError(
                "drift.signal", signal, f"error: {detector} watches right or wrong only"
            )
        self._check_numbers(cool_down, keep_fraction, refit_trial)
        self.detector = detector
        self.signal = signal
        self.reaction: Reaction = reaction
        self.params = dict(params or {})
        self.boost = Boost(factor, half_life) if reaction == "boost" else None
        self.cool_down = cool_down
        self.each = channels == "each"
        if self.each:
            self._check_each()
        self.keep_fraction = keep_fraction
        self.refit_trial = refit_trial
        self.learners = None if learners is None else tuple(learners)
        self.refused = 0
        self.fired_channels: tuple[int, ...] = ()
        self._quiet = 0  # values still to pass before the next alarm
        # by channel: the number of values so far, up to 1 / SIZE_RATE, and their mean size
        self._sizes: list[tuple[int, float]] = []
        first = make_detector(detector, self.params)  # raises if river refuses the arguments
        self._rivers: list[Any] = [] if self.each else [first]

    @staticmethod
    def _check_numbers(cool_down: int, keep_fraction: float, refit_trial: int) -> None:
        for name, value, least in (("cool_down", cool_down, 0), ("refit_trial", refit_trial, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"drift.{name}", value, f"a whole number, {least} or more")
        if not 0.0 <= keep_fraction < 1.0:
            raise ConfigError("drift.keep_fraction", keep_fraction, "a number in [0, 1)")

    def _check_each(self) -> None:
        if self.signal not in BY_CHANNEL:
            raise ConfigError(
                "drift.signal", self.signal, "a signal with channels: " + ", ".join(BY_CHANNEL)
            )
        if self.detector not in LEVELS:
            raise ConfigError(
                "drift.detector",
                self.detector,
                "one whose level can be divided: " + ", ".join(LEVELS),
            )

    @property
    def name(self) -> str:
        """``adwin:loss``."""
        return f"{self.detector}:{self.signal}"

    def update(self, value: float | npt.NDArray[np.float64]) -> bool:
        """Update the detector with one value of the signal; return whether this is a drift.

        Non-finite values are counted and refused.

        Parameters
        ----------
        value : float, or ndarray, (channels,), float64, for ``channels="each"``
        """
        if self.boost is not None:
            self.boost.decay()
        values = np.atleast_1d(np.asarray(value, np.float64)).tolist()
        if self.each and not self._rivers:
            params = corrected(self.detector, self.params, len(values))
            self._rivers = [make_detector(self.detector, params) for _ in values]
        seen = [i for i, one in enumerate(values) if math.isfinite(one)]
        self.refused += len(values) - len(seen)
        if not seen:
            return False
        firing = tuple(
            i for i in seen if update(self.detector, self._rivers[i], self._bounded(i, values[i]))
        )
        fired = bool(firing) and self._quiet == 0
        self._quiet = self.cool_down if fired else max(self._quiet - 1, 0)
        if fired:
            self.fired_channels = firing
            if self.boost is not None:
                self.boost.fire()
        return fired

    def _bounded(self, i: int, value: float) -> float:
        """Return a value of channel `i`, clipped by the sizes of the values before it."""
        while len(self._sizes) <= i:
            self._sizes.append((0, 0.0))
        count, size = self._sizes[i]
        bound = min(FARTHEST * max(size, 1.0), MOST) if count else MOST
        bounded = min(max(value, -bound), bound)
        count = min(count + 1, round(1.0 / SIZE_RATE))
        self._sizes[i] = count, size + (abs(bounded) - size) / count
        return bounded

    def restart(self) -> None:
        """Start the detectors again from nothing."""
        self._rivers = [] if self.each else [make_detector(self.detector, self.params)]

    def begin_again(self) -> None:
        """Start the detectors again, because the unit of the signal has changed."""
        self._rivers = [] if self.each else [make_detector(self.detector, self.params)]

    def state_dict(self) -> dict[str, Any]:
        """Return the detectors' and the reaction's state."""
        return {
            "detectors": [dumps_river(one) for one in self._rivers],
            "refused": self.refused,
            "quiet": self._quiet,
            "boost": None if self.boost is None else self.boost.level,
            "fired_channels": list(self.fired_channels),
            "sizes": [list(size) for size in self._sizes],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._rivers = [loads_river(one) for one in state["detectors"]]
        self.refused = int(state["refused"])
        self._quiet = int(state["quiet"])
        self.fired_channels = tuple(int(i) for i in state["fired_channels"])
        # "sizes" is absent in older states
        self._sizes = [(int(count), float(size)) for count, size in state.get("sizes", ())]
        if self.boost is not None:
            self.boost.level = float(state["boost"])
