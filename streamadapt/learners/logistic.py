"""Softmax regression on the window, one gradient step a label, each coordinate with a step of its
own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.errors import ConfigError
from streamadapt.learners.base import Maturity, one_or_more
from streamadapt.learners.compiled import CompiledLearner, Steps
from streamadapt.learners.masks import all_known
from streamadapt.learners.probabilities import log_odds
from streamadapt.learners.rls.features import scale_window
from streamadapt.models.contract import Spec, TaskKind
from streamadapt.numbers import softmax
from streamadapt.records import Array

__all__ = ["Logistic"]

SMALLEST_DEVIATION: Final = 1e-4
"""Inputs that vary less count as varying by this much, in scaled units: else the rounding of a
constant would become an input."""
SMALLEST_SLOPE: Final = 1e-6
"""Gradients that are usually smaller than this make smaller steps: nothing is left to learn."""
FARTHEST: Final = 5.0
"""An input counts as at most this many standard deviations from its mean."""
MOST_RATE: Final = 5.0
"""The largest rate, boosts included."""


class LogisticSettings(NamedTuple):
    """`rate` is (experts,)."""

    rate: Array
    decay: float
    forgetting: float


class LogisticState(NamedTuple):
    """Per key, with d inputs, the constant included.

    Attributes
    ----------
    weights : (experts, classes, d)
        V.
    squares : (experts, classes, d)
        s, the sums of squared gradients.
    learned : ()
        m, the sum of their weights.
    mean, variance : (d - 1,)
        Of the inputs without the constant.
    seen : ()
        n, how many entries they are worth.
    """

    weights: Array
    squares: Array
    learned: Array
    mean: Array
    variance: Array
    seen: Array


class LogisticRoom(NamedTuple):
    """`scaled` is (window, channels); `u` (classes,), the base's log odds; `z` (d,); `error`
    (classes,)."""

    scaled: Array
    u: Array
    z: Array
    error: Array


@compiled
def predict(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = softmax(u + V z)``."""
    fill_inputs(c, w, x)
    standardise(s.mean[key], s.variance[key], w.z)
    for e in range(out.shape[0]):
        classify(s.weights[key, e], w, out[e, 0])


@compiled
def learn(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """Make a step of every expert."""
    if y.weight == 0.0 or not all_known(y.known):
        return
    fill_inputs(c, w, x)
    standardise(s.mean[key], s.variance[key], w.z)
    share = min((1.0 - p.decay) * y.weight, 1.0)
    s.learned[key] += share * (1.0 - s.learned[key])
    for e in range(p.rate.shape[0]):
        classify(s.weights[key, e], w, w.error)
        for j in range(w.error.shape[0]):
            w.error[j] -= y.target[0, j]
        rate = min(p.rate[e] * y.weight * y.boost, MOST_RATE) / w.z.shape[0]
        descend(s.weights[key, e], s.squares[key, e], s.learned[key], share, rate, w)


@compiled
def adapt(c: Any, p: Any, s: Any, key: int, w: Any, x: Any) -> None:
    """Let the means and variances follow an entry's inputs."""
    fill_inputs(c, w, x)
    s.seen[key] = p.forgetting * s.seen[key] + 1.0
    share = 1.0 / s.seen[key]
    for i in range(s.mean.shape[1]):
        away = w.z[i] - s.mean[key, i]
        s.mean[key, i] += share * away
        s.variance[key, i] = (1.0 - share) * (s.variance[key, i] + share * away * away)


@compiled
def forget(c: Any, p: Any, s: Any, key: int, w: Any, keep: float) -> None:
    """Shrink V, and count less on what was seen."""
    _, experts, classes, d = s.weights.shape
    for e in range(experts):
        for j in range(classes):
            for i in range(d):
                s.weights[key, e, j, i] *= keep
                s.squares[key, e, j, i] *= keep
    s.learned[key] *= keep
    s.seen[key] = 1.0 + keep * (s.seen[key] - 1.0)


@compiled
def fill_inputs(c: Any, w: Any, x: Any) -> None:
    """Write the scaled window, oldest first, the base's log odds and a 1 to ``w.z``, and the log
    odds to ``w.u``."""
    scale_window(c, x.window, w.scaled)
    log_odds(x.base[0], w.u)
    at = 0
    for t in range(w.scaled.shape[0]):
        for i in range(w.scaled.shape[1]):
            w.z[at] = w.scaled[t, i]
            at += 1
    for j in range(w.u.shape[0]):
        w.z[at + j] = w.u[j]
    w.z[w.z.shape[0] - 1] = 1.0


@compiled
def standardise(mean: Any, variance: Any, z: Any) -> None:
    """``z <- clip((z - mean) / deviation)``, all but the constant."""
    for i in range(mean.shape[0]):
        deviation = max(math.sqrt(variance[i]), SMALLEST_DEVIATION)
        z[i] = min(max((z[i] - mean[i]) / deviation, -FARTHEST), FARTHEST)


@compiled
def classify(v: Any, w: Any, out: Any) -> None:
    """``out = softmax(u + V z)``; `v` is (classes, d)."""
    for j in range(out.shape[0]):
        out[j] = w.u[j]
        for i in range(w.z.shape[0]):
            out[j] += v[j, i] * w.z[i]
    softmax(out)


@compiled
def descend(v: Any, squares: Any, learned: float, share: float, rate: float, w: Any) -> None:
    """``s <- s + share (g^2 - s)``, ``V <- V - rate g / sqrt(s / m)``, with ``g = error z^T``."""
    for j in range(v.shape[0]):
        for i in range(v.shape[1]):
            slope = w.error[j] * w.z[i]
            squares[j, i] += share * (slope * slope - squares[j, i])
            size = math.sqrt(squares[j, i] / learned)
            v[j, i] -= rate * slope / (size + SMALLEST_SLOPE)


class Logistic(CompiledLearner):
    """``prediction = softmax(u + V z)``: multinomial logistic regression that starts at the base.

    u are the base's log odds (its probabilities floored at 1e-6, their logarithms less the mean);
    z are d inputs: the scaled window and u, standardised, and a 1. With V = 0 the prediction is
    the base's. With y the one-hot target and p the prediction from the newest V, every label makes
    one step down the gradient of the log loss, each coordinate in units of its own gradients'
    size::

        g = (p - y) z^T
        s <- decay s + (1 - decay) g^2              m <- decay m + (1 - decay)
        V <- V - (rate / d) g / (sqrt(s / m) + 1e-6)

    RMSprop [1]_ with the correction of Adam [2]_ for the first steps, which is Adam without
    momentum. A step does not shrink with time, so V follows a drift; what one label changes the
    scores of its own z by is about `rate`, however many inputs there are. An example's weight and
    the boost multiply the rate; a weight also multiplies ``1 - decay``.

    Means and variances follow every entry right after it was predicted, with weights that fall by
    the factor `forgetting` from one entry to the next; they start as if one entry of mean 0 and
    variance 1, in scaled units, had been seen. So z tells a value's place among the last 1 / (1 -
    `forgetting`) entries; it is clipped at 5.

    Costs O(experts x classes x d) time and twice as many float64 numbers.

    Parameters
    ----------
    rate : float or sequence of floats, in (0, 5]
        About how much a label changes the scores, in nats. Several rates: one expert each.
    decay : float, in [0, 1)
        What the mean of the squared gradients keeps at a label.
    forgetting : float, in (0, 1]
        What the means and variances of the inputs keep at an entry: .99 remembers about 100; 1
        all.

    References
    ----------
    .. [1] Tieleman & Hinton (2012), Lecture 6.5: RMSProp, Coursera: Neural networks for machine
       learning.
    .. [2] Kingma & Ba (2015), Adam: a method for stochastic optimization, ICLR, section 3.

    Examples
    --------
    >>> Logistic((1.0, 0.3)).names
    ('logistic-1', 'logistic-0.3')
    """

    kind: ClassVar[str] = "logistic"
    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    matures: ClassVar[Maturity] = "rows"
    steps = Steps(predict, learn, adapt, forget)
    state: LogisticState

    def __init__(
        self,
        rate: float | Sequence[float] = 0.1,
        *,
        decay: float = 0.95,
        forgetting: float = 0.999,
    ) -> None:
        super().__init__()
        self.rates = one_or_more("rate", rate, 0.0, MOST_RATE)
        if not 0.0 <= decay < 1.0:
            raise ConfigError("decay", decay, "a number in [0, 1)")
        if not 0.0 < forgetting <= 1.0:
            raise ConfigError("forgetting", forgetting, "a number in (0, 1]")
        self.decay, self.forgetting = float(decay), float(forgetting)

    @property
    def names(self) -> tuple[str, ...]:
        """``logistic-0.1`` and its siblings."""
        return tuple(f"{self.kind}-{rate:g}" for rate in self.rates)

    def settings(self, spec: Spec) -> LogisticSettings:
        """Return rates, decay and forgetting."""
        return LogisticSettings(np.array(self.rates), self.decay, self.forgetting)

    def start(self, spec: Spec) -> LogisticState:
        """Start at the base."""
        d = spec.window * spec.channels + spec.columns + 1
        shape = (len(self.rates), spec.columns, d)
        mean, variance = np.zeros(d - 1), np.ones(d - 1)
        return LogisticState(
            np.zeros(shape), np.zeros(shape), np.array(0.0), mean, variance, np.array(1.0)
        )

    def room(self, spec: Spec) -> LogisticRoom:
        """Return room for an example."""
        d = spec.window * spec.channels + spec.columns + 1
        return LogisticRoom(
            np.zeros((spec.window, spec.channels), np.float32),
            np.zeros(spec.columns),
            np.zeros(d),
            np.zeros(spec.columns),
        )
