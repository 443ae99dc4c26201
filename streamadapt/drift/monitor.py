"""A drift monitor: a signal, its detector, and the reaction to an alarm.

The detectors are river's, or compiled functions equal to river's. Non-finite values are refused
before they reach a detector: one NaN makes river's ADWIN miss every later drift silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamadapt.arguments import ShowsArguments
from streamadapt.config.renamed import accepts_old_names
from streamadapt.drift.compiled import Detectors, make_detectors
from streamadapt.drift.detectors import BINARY, DETECTORS, LEVELS, DetectorName, corrected
from streamadapt.drift.reactions import REACTIONS, Boost, Reaction
from streamadapt.drift.signals import BY_CHANNEL
from streamadapt.drift.watch_kernels import WatchSettings, WatchState, empty_watch
from streamadapt.errors import ConfigError
from streamadapt.records import Mask

__all__ = ["DriftMonitor"]


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
        self._detectors: Detectors | None = make_detectors(detector, self.params, 1)
        if self.each:
            self._detectors = None  # made when the number of channels is known
        self._watch_settings = WatchSettings(cool_down)
        self._watch = empty_watch(1, 0 if self.each else 1)

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

    @property
    def refused(self) -> int:
        """The number of values that were not finite."""
        return int(self._watch.refused[0])

    @property
    def fired_channels(self) -> tuple[int, ...]:
        """The channels that fired at the last alarm."""
        return tuple(np.flatnonzero(self._watch.fired[0]).tolist())

    @property
    def detectors(self) -> Detectors | None:
        """The detector of each channel; None before the number of channels is known."""
        return self._detectors

    def update(self, value: float | npt.NDArray[np.float64]) -> bool:
        """Update the detector with one value of the signal; return whether this is a drift.

        Non-finite values are counted and refused.

        Parameters
        ----------
        value : float, or ndarray, (channels,), float64, for ``channels="each"``
        """
        return bool(self.update_many(np.atleast_1d(np.asarray(value, np.float64))[None])[0])

    def update_many(self, values: npt.NDArray[np.float64]) -> Mask:
        """Update the detector with many values, one after the other; return which are drifts,
        (events,).

        Parameters
        ----------
        values : ndarray, (events, channels), float64
            One channel, unless ``channels="each"``.
        """
        events, channels = values.shape
        if self._detectors is None:
            params = corrected(self.detector, self.params, channels)
            self._detectors = make_detectors(self.detector, params, channels)
        if len(self._detectors) != channels:
            raise ValueError(f"{self.name}: {channels} channels, {len(self._detectors)} before")
        if self._watch.counts.shape[1] != channels:
            self._watch = _of_channels(self._watch, channels)
        flags = self._detectors.watch(
            self._watch_settings, self._watch, np.array(values, np.float64, order="C")
        )
        if self.boost is not None:
            for e in range(events):
                self.boost.decay()
                if flags[e]:
                    self.boost.fire()
        return flags

    def restart(self) -> None:
        """Start the detectors again from nothing."""
        self._detectors = None if self.each else make_detectors(self.detector, self.params, 1)

    def begin_again(self) -> None:
        """Start the detectors again, because the unit of the signal has changed."""
        self._detectors = None if self.each else make_detectors(self.detector, self.params, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the detectors' and the reaction's state."""
        s = self._watch
        sizes = [[int(n), float(size)] for n, size in zip(s.counts[0], s.sizes[0], strict=True)]
        while sizes and sizes[-1][0] == 0:
            del sizes[-1]
        return {
            "detectors": [] if self._detectors is None else self._detectors.state_dict(),
            "refused": self.refused,
            "quiet": int(s.quiet[0]),
            "boost": None if self.boost is None else self.boost.level,
            "fired_channels": list(self.fired_channels),
            "sizes": sizes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        saved, sizes = state["detectors"], state.get("sizes", ())  # absent in older states
        channels = max(len(saved), len(sizes))
        fired = [int(i) for i in state["fired_channels"] if 0 <= i < channels]
        self._detectors = None
        if saved:
            params = (
                corrected(self.detector, self.params, len(saved)) if self.each else self.params
            )
            self._detectors = make_detectors(self.detector, params, len(saved))
            self._detectors.load_state_dict(saved)
        s = self._watch = empty_watch(1, channels)
        s.refused[0], s.quiet[0] = state["refused"], state["quiet"]
        for i, (count, size) in enumerate(sizes):
            s.counts[0, i], s.sizes[0, i] = count, size
        s.fired[0, fired] = True
        if self.boost is not None:
            self.boost.level = float(state["boost"])


def _of_channels(s: WatchState, channels: int) -> WatchState:
    """Return the same state with another number of channels."""
    made = empty_watch(1, channels)
    known = min(channels, s.counts.shape[1])
    made.refused[0], made.quiet[0] = s.refused[0], s.quiet[0]
    for old, new in ((s.counts, made.counts), (s.sizes, made.sizes), (s.fired, made.fired)):
        new[0, :known] = old[0, :known]
    return made
