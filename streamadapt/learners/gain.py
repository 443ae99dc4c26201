"""A multiplicative correction, for outputs whose unit has drifted (an ageing sensor)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.errors import ConfigError
from streamadapt.learners.base import Maturity, one_or_more
from streamadapt.learners.compiled import CompiledLearner, NoRoom, Steps
from streamadapt.learners.masks import all_known
from streamadapt.learners.probabilities import FLOOR, ClassRoom, class_room, log_odds
from streamadapt.models.contract import Spec
from streamadapt.numbers import softmax
from streamadapt.records import Array

__all__ = ["Gain"]

SMALLEST: Final = 0.01
"""A base that is closer to zero than this share of the output's scale gives no ratio."""


class GainSettings(NamedTuple):
    """`rate` is (experts,)."""

    rate: Array
    limit: float


class GainState(NamedTuple):
    """`gain` is (experts, rows, columns) per key."""

    gain: Array


@compiled
def predict(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = g base`` in original units: a gain is about zero, not about the origin."""
    experts, rows, columns = out.shape
    for e in range(experts):
        for h in range(rows):
            for j in range(columns):
                g = s.gain[key, e, h, j]
                out[e, h, j] = g * x.base[h, j] + (g - 1.0) * c.output_origin[j]


@compiled
def learn(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """``g <- g + rate (clip(target / base) - g)`` in the known cells."""
    _, experts, rows, columns = s.gain.shape
    for h in range(rows):
        for j in range(columns):
            base = x.base[h, j] + c.output_origin[j]
            if y.known[h, j] and abs(base) > SMALLEST * c.output_scale[j]:
                target = y.target[h, j] + c.output_origin[j]
                ratio = min(max(target / base, 1.0 / p.limit), p.limit)
                for e in range(experts):
                    rate = min(p.rate[e] * y.weight * y.boost, 1.0)
                    s.gain[key, e, h, j] += rate * (ratio - s.gain[key, e, h, j])


@compiled
def forget(c: Any, p: Any, s: Any, key: int, w: Any, keep: float) -> None:
    """Bring g towards one, on a logarithmic scale."""
    _, experts, rows, columns = s.gain.shape
    for e in range(experts):
        for h in range(rows):
            for j in range(columns):
                s.gain[key, e, h, j] = math.pow(s.gain[key, e, h, j], keep)


class TemperatureState(NamedTuple):
    """The inverse temperature `gain` and F, `curvature`: (experts, 1, 1) per key."""

    gain: Array
    curvature: Array


@compiled
def predict_classes(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = softmax(g ln base)``."""
    experts, _, classes = out.shape
    for e in range(experts):
        for j in range(classes):
            out[e, 0, j] = s.gain[key, e, 0, 0] * math.log(max(x.base[0, j], FLOOR))
        softmax(out[e, 0])


@compiled
def learn_class(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """Make a step in ``ln g``, by the slope s of the log loss and its curvature F."""
    if not all_known(y.known):
        return
    log_odds(x.base[0], w.log_odds)
    predict_classes(c, p, s, key, w, x, w.out)
    for e in range(w.out.shape[0]):
        rate = min(p.rate[e] * y.weight * y.boost, 1.0)
        g, curvature = s.gain[key, e, 0, 0], s.curvature[key, e, 0, 0]
        variance = variance_of(w.out[e, 0], w.log_odds)
        slope = 0.0
        for j in range(w.log_odds.shape[0]):
            slope += (y.target[0, j] - w.out[e, 0, j]) * w.log_odds[j]
        curvature += rate * (g * g * variance - curvature)
        step = min(max(g * slope / max(curvature, 1.0), -1.0), 1.0)
        s.curvature[key, e, 0, 0] = curvature
        s.gain[key, e, 0, 0] = min(max(g * math.exp(rate * step), 1.0 / p.limit), p.limit)


@compiled
def variance_of(p: Any, u: Any) -> float:
    """Return the variance of u under the probabilities p, both (classes,)."""
    mean, variance = 0.0, 0.0
    for j in range(p.shape[0]):
        mean += p[j] * u[j]
    for j in range(p.shape[0]):
        variance += p[j] * (u[j] - mean) * (u[j] - mean)
    return variance


class Gain(CompiledLearner):
    """``prediction = g base``, with ``g <- g + rate (clip(target / base) - g)`` in every cell.

    Cells whose base is closer to zero than a hundredth of the output's scale say nothing about g
    and are skipped. Costs O(rows x columns) time and floats per rate.

    Classification: g is an inverse temperature [1]_, ``prediction = softmax(g ln base)``, one for
    all classes, for a base whose confidence has drifted. With u the base's log-odds (floored at
    1e-6, less their mean), p the prediction and y the target, the online natural gradient of the
    log loss in ln g is::

        s    = g sum_c (y_c - p_c) u_c            F <- F + rate (g^2 var_p(u) - F), F = 1 at first
        ln g <- clip(ln g + rate clip(s / max(F, 1), +-1), +-ln limit)

    Parameters
    ----------
    rate : float or sequence of floats, in (0, 1]
        Per matured example. Several rates: one expert each.
    limit : float, > 1
        The ratio is clipped to [1 / limit, limit]; a negative ratio counts as 1 / limit. So is the
        inverse temperature.

    References
    ----------
    .. [1] Guo et al. (2017), On calibration of modern neural networks, ICML 34; for the steps,
       Amari (1998), Natural gradient works efficiently in learning, Neural Computation 10.

    Examples
    --------
    >>> Gain(0.05).names
    ('gain-0.05',)
    """

    kind: ClassVar[str] = "gain"
    matures: ClassVar[Maturity] = "rows"

    def __init__(self, rate: float | Sequence[float] = 0.02, *, limit: float = 3.0) -> None:
        super().__init__()
        self.rates = one_or_more("rate", rate, 0.0, 1.0)
        if not 1.0 < limit < math.inf:
            raise ConfigError("limit", limit, "a finite number > 1")
        self.limit = limit

    @property
    def names(self) -> tuple[str, ...]:
        """``gain-0.02`` and its siblings."""
        return tuple(f"{self.kind}-{rate:g}" for rate in self.rates)

    def steps_for(self, spec: Spec) -> Steps:
        """Return the steps of a ratio, or of a temperature."""
        if spec.kind == "classification":
            return Steps(predict_classes, learn_class, forget=forget)
        return Steps(predict, learn, forget=forget)

    def settings(self, spec: Spec) -> GainSettings:
        """Return rates and limit."""
        return GainSettings(np.array(self.rates), float(self.limit))

    def start(self, spec: Spec) -> GainState | TemperatureState:
        """Start with a gain of one."""
        experts = len(self.rates)
        if spec.kind == "classification":
            return TemperatureState(np.ones((experts, 1, 1)), np.ones((experts, 1, 1)))
        return GainState(np.ones((experts, spec.rows, spec.columns)))

    def room(self, spec: Spec) -> NoRoom | ClassRoom:
        """Return room for the predictions of an example with classes."""
        if spec.kind == "classification":
            return class_room(len(self.rates), spec.columns)
        none: NoRoom = super().room(spec)
        return none
