"""Choose the entries to request labels for, if only a limited share of labels can be obtained."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from streamadapt.arguments import ShowsArguments
from streamadapt.errors import ConfigError
from streamadapt.records import Array

__all__ = ["LabelBudget"]

MEAN_RATE = 0.01
"""How fast the running means of uncertainty and disagreement follow them, per prediction."""
CAP = 5.0
"""The largest disagreement that counts, in units of the guard's scale: one expert that diverges
must not use up the budget."""
STEER = 0.05
"""How fast the probabilities are adjusted to the rate."""
MOST_STEERED = 5.0
"""The largest logarithm of the factor that adjusts them."""
WORD = (1 << 64) - 1


class LabelBudget(ShowsArguments):
    """Requests the label of each prediction with a probability that grows with the information in
    the label.

    ::

        u = uncertainty / its mean + disagreement / its mean
        probability = rate (floor + (1 - floor) lambda u / mean u), at most 1
        ln lambda <- ln lambda + STEER (rate - probability)

    Uncertainty (classification): one minus the margin between the two likeliest classes as served.
    Disagreement: the mean distance of the experts from the served prediction, in units of the
    guard's scale. All means are running means. The random part keeps every probability above zero
    [1]_, so that a mean over the requested labels, each weighted by one over its probability, has
    no bias [2]_ [3]_; `LabelRequests` computes that mean. lambda compensates for the upper limit
    of 1: over n predictions the mean probability is within ``10 / (STEER n)`` of `rate`, unless
    lambda is at its bound.

    A label that was not requested is learned like any other.

    Parameters
    ----------
    rate : float, in (0, 1]
        The number of requested labels per prediction.
    floor : float, in (0, 1]
        The share of the requested labels that is chosen at random; 1: all.
    seed : int, >= 0

    References
    ----------
    .. [1] Zliobaite, Bifet, Pfahringer & Holmes (2014), Active learning with drifting streaming
       data, IEEE TNNLS 25.
    .. [2] Horvitz & Thompson (1952), A generalization of sampling without replacement from a
       finite universe, JASA 47.
    .. [3] Beygelzimer, Dasgupta & Langford (2009), Importance weighted active learning, ICML.
    """

    def __init__(self, rate: float = 0.1, floor: float = 0.2, seed: int = 0) -> None:
        for name, value in (("rate", rate), ("floor", floor)):
            if not 0.0 < value <= 1.0:
                raise ConfigError(f"labels.{name}", value, "a number in (0, 1]")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ConfigError("labels.seed", seed, "a whole number >= 0")
        self.rate = float(rate)
        self.floor = float(floor)
        self.seed = seed
        self.count = 0
        self.means = [0.0, 0.0, 0.0]  # of uncertainty, disagreement and u
        self.steer = 0.0  # ln lambda

    def decide(
        self, experts: Array, served: Array, unit: Array, *, classify: bool
    ) -> tuple[float, bool]:
        """Decide about one prediction.

        Parameters
        ----------
        experts : ndarray, (experts, rows, columns)
        served : ndarray, (rows, columns)
        unit : ndarray, (rows, columns) or (rows, 1)
            The guard's scale in the predictions' own unit.
        classify : bool
            Whether the predictions are distributions over classes.

        Returns
        -------
        float
            The probability of the request, in (0, 1].
        bool
            Whether the label is requested.
        """
        wanted = self._wanted(experts, served, unit, classify)
        share = self.floor + (1.0 - self.floor) * math.exp(self.steer) * wanted
        probability = min(1.0, self.rate * share)
        if self.floor < 1.0:
            steer = self.steer + STEER * (self.rate - probability)
            self.steer = min(max(steer, -MOST_STEERED), MOST_STEERED)
        drawn = _uniform(self.seed, self.count)
        self.count += 1
        return probability, drawn < probability

    def _wanted(self, experts: Array, served: Array, unit: Array, classify: bool) -> float:
        """Return u over its running mean; 1 if u is not finite."""
        spread = np.minimum(np.abs(experts - served) / unit, CAP)
        disagreement = float(spread.sum()) / spread.size
        uncertainty = 0.0
        if classify:
            first, second = np.partition(served[0], -2)[-2:][::-1].tolist()
            uncertainty = 1.0 - first + second
        if not (math.isfinite(disagreement) and math.isfinite(uncertainty)):
            return 1.0
        u = self._relative(0, uncertainty) + self._relative(1, disagreement)
        return self._relative(2, u)

    def _relative(self, which: int, value: float) -> float:
        """Return a value over its running mean, this one included; 0 while all were 0."""
        mean = self.means[which]
        mean += max(MEAN_RATE, 1.0 / (1 + self.count)) * (value - mean)
        self.means[which] = mean
        return value / mean if mean > 0.0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return counters and means."""
        return {"count": self.count, "means": list(self.means), "steer": self.steer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.count = int(state["count"])
        self.means = [float(mean) for mean in state["means"]]
        self.steer = float(state["steer"])


def _uniform(seed: int, number: int) -> float:
    """Return the random number in [0, 1) at position `number` of a seed's sequence.

    SplitMix64 (Steele, Lea & Flood 2014); its state is the position in the sequence.
    """
    z = (_mixed(seed) + (number + 1) * 0x9E3779B97F4A7C15) & WORD
    return (_mixed(z) >> 11) * 2.0**-53


def _mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)
