"""Recalibration of the base's output: a line, refitted with forgetting in every cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.errors import ConfigError
from streamadapt.learners.base import INNOVATION_RATE, Maturity, one_or_more
from streamadapt.learners.compiled import CompiledLearner, NoRoom, Steps
from streamadapt.learners.least_squares import boosted, clipped
from streamadapt.learners.masks import all_known
from streamadapt.learners.probabilities import ClassRoom, class_room, log_odds
from streamadapt.models.contract import Spec
from streamadapt.numbers import softmax
from streamadapt.records import Array

__all__ = ["Calibration"]

RELATIVE_RIDGE: Final = 1e-13
"""The least determinant of M, in units of the product of its diagonal: where less is left than
rounding makes, it would be anything, zero, or of the wrong sign."""


class CalibrationSettings(NamedTuple):
    """`forgetting` is (experts,)."""

    forgetting: Array
    clip: float
    ridge: float


class LineState(NamedTuple):
    """Per key, with cells = (experts, rows, columns): `moments` (3, *cells), the numbers of
    ``M = [[m0, m1], [m1, m2]]``; `weights` (2, *cells), v; `innovation` (*cells), the mean size of
    e."""

    moments: Array
    weights: Array
    innovation: Array


@compiled
def predict(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = base + scale (v_1 u + v_2)``."""
    experts, rows, columns = out.shape
    for e in range(experts):
        for h in range(rows):
            for j in range(columns):
                correction = line(s.weights[key, :, e, h, j], scaled(c, x, h, j))
                out[e, h, j] = x.base[h, j] + c.output_scale[j] * correction


@compiled
def learn(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """Make a step of least squares in the known cells, with the error clipped at `clip` times its
    mean size."""
    _, experts, rows, columns = s.innovation.shape
    for e in range(experts):
        for h in range(rows):
            for j in range(columns):
                if y.known[h, j]:
                    u, v = scaled(c, x, h, j), s.weights[key, :, e, h, j]
                    error = (y.target[h, j] - x.base[h, j]) / c.output_scale[j] - line(v, u)
                    size = s.innovation[key, e, h, j]
                    size += INNOVATION_RATE * (abs(error) - size)
                    s.innovation[key, e, h, j] = size
                    error = clipped(error, p.clip, size)
                    move(p, e, s.moments[key, :, e, h, j], v, u, error, y)


@compiled
def forget(c: Any, p: Any, s: Any, key: int, w: Any, keep: float) -> None:
    """Inflate the covariance: ``M <- keep M + (1 - keep) ridge I``; the line itself stays."""
    _, _, experts, rows, columns = s.moments.shape
    leak = (1.0 - keep) * p.ridge
    for e in range(experts):
        for h in range(rows):
            for j in range(columns):
                s.moments[key, 0, e, h, j] = keep * s.moments[key, 0, e, h, j] + leak
                s.moments[key, 1, e, h, j] *= keep
                s.moments[key, 2, e, h, j] = keep * s.moments[key, 2, e, h, j] + leak


@compiled
def scaled(c: Any, x: Any, h: int, j: int) -> float:
    """Return u, the base's output in scaled units."""
    u: float = (x.base[h, j] - c.output_loc[j]) / c.output_scale[j]
    return u


@compiled
def line(v: Any, u: float) -> float:
    """Return ``v_1 u + v_2``."""
    correction: float = v[0] * u + v[1]
    return correction


@compiled
def move(p: Any, e: int, moments: Any, v: Any, u: float, error: float, y: Any) -> None:
    """``M <- forgetting M + x x^T + (1 - forgetting) ridge I``, then ``v <- v + M^-1 x error``, of
    an example that counts `Target.weight` times."""
    forgetting = boosted(p.forgetting[e], y.boost)
    leak = (1.0 - forgetting) * p.ridge
    m0 = forgetting * moments[0] + leak + y.weight * u * u
    m1 = forgetting * moments[1] + y.weight * u
    m2 = forgetting * moments[2] + leak + y.weight
    determinant = max(m0 * m2 - m1 * m1, RELATIVE_RIDGE * (m0 * m2))
    step = y.weight * error / determinant
    slope, offset = v[0] + step * (m2 * u - m1), v[1] + step * (m0 - m1 * u)
    # Numbers beyond all others teach nothing.
    if math.isfinite(slope) and math.isfinite(offset):
        moments[0], moments[1], moments[2] = m0, m1, m2
        v[0], v[1] = slope, offset


class ScoreState(NamedTuple):
    """Per key, with cells = (experts, 1, classes): `moments` (3, *cells) and `weights` (2, *cells)
    as in `LineState`."""

    moments: Array
    weights: Array


@compiled
def predict_classes(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = softmax(u + v_1 u + v_2)``."""
    experts, _, classes = out.shape
    log_odds(x.base[0], w.log_odds)
    for e in range(experts):
        for j in range(classes):
            u = w.log_odds[j]
            out[e, 0, j] = u + line(s.weights[key, :, e, 0, j], u)
        softmax(out[e, 0])


@compiled
def learn_class(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """Make a Newton step for every class."""
    if not all_known(y.known):
        return
    experts, _, classes = w.out.shape
    predict_classes(c, p, s, key, w, x, w.out)
    for e in range(experts):
        for j in range(classes):
            error = 2.0 * (y.target[0, j] - w.out[e, 0, j])
            moments, v = s.moments[key, :, e, 0, j], s.weights[key, :, e, 0, j]
            move(p, e, moments, v, w.log_odds[j], error, y)


class Calibration(CompiledLearner):
    """``prediction = base + scale (v_1 u + v_2)`` with u the scaled base output: gain and offset
    at once.

    Each cell runs recursive least squares with forgetting [1]_ on x = (u, 1)::

        M <- forgetting M + x x^T + (1 - forgetting) ridge I
        v <- v + M^-1 x clip(e)        e = target - base - scale x^T v, in scaled units

    which is `RLS` with two features, its leak included. Two numbers are learned from few labels
    where a whole window's weights cannot be. Innovations are clipped at `clip` times their running
    mean size.

    Classification: ``prediction = softmax(u + v_1 u + v_2)`` with u the base's log-odds (floored
    at 1e-6, less their mean) and v_1, v_2 per class: vector scaling [2]_. The same recursion on
    the log loss, whose gradient is target minus prediction and whose curvature in the scores is at
    most 1/2 [3]_: an online Newton step with e = 2 (target - prediction), which is bounded as it
    is and not clipped.

    Costs O(rows x columns) time, and 6 float64 numbers a cell, per forgetting.

    Parameters
    ----------
    forgetting : float or sequence of floats, in (0, 1]
        Per matured example: .9 remembers about 10. Several: one expert each.
    clip : float, > 0
        Errors are clipped at this many times their running mean size; ``inf`` clips nothing. Not
        used for classes.
    ridge : float, > 0
        Weight of the prior, "no correction", in squared scaled units. Default: .1; 10 for classes,
        where u is not scaled.

    References
    ----------
    .. [1] Ljung & Soderstrom (1983), Theory and practice of recursive identification, chapter 2.
    .. [2] Guo et al. (2017), On calibration of modern neural networks, ICML 34.
    .. [3] Böhning (1992), Multinomial logistic regression algorithm, Annals of the Institute of
       Statistical Mathematics 44.

    Examples
    --------
    >>> Calibration(0.98).names
    ('calibration-0.98',)
    """

    kind: ClassVar[str] = "calibration"
    matures: ClassVar[Maturity] = "rows"

    def __init__(
        self,
        forgetting: float | Sequence[float] = 0.98,
        *,
        clip: float = 2.0,
        ridge: float | None = None,
    ) -> None:
        super().__init__()
        self.forgetting = one_or_more("forgetting", forgetting, 0.0, 1.0)
        for name, value in (("clip", clip), ("ridge", ridge)):
            if value is not None and not value > 0.0:
                raise ConfigError(name, value, "a number > 0")
        self.clip, self.ridge = float(clip), ridge

    @property
    def names(self) -> tuple[str, ...]:
        """``calibration-0.98`` and its siblings."""
        return tuple(f"{self.kind}-{forgetting:g}" for forgetting in self.forgetting)

    def steps_for(self, spec: Spec) -> Steps:
        """Return the steps of lines, or of scores."""
        if spec.kind == "classification":
            return Steps(predict_classes, learn_class, forget=forget)
        return Steps(predict, learn, forget=forget)

    def settings(self, spec: Spec) -> CalibrationSettings:
        """Return forgetting, clip and ridge."""
        return CalibrationSettings(np.array(self.forgetting), self.clip, self._ridge(spec))

    def _ridge(self, spec: Spec) -> float:
        if self.ridge is None:
            return 10.0 if spec.kind == "classification" else 0.1
        return float(self.ridge)

    def start(self, spec: Spec) -> LineState | ScoreState:
        """Start without a correction."""
        cells = (len(self.forgetting), spec.rows, spec.columns)
        moments, weights = np.full((3, *cells), self._ridge(spec)), np.zeros((2, *cells))
        moments[1] = 0.0
        if spec.kind == "classification":
            return ScoreState(moments, weights)
        return LineState(moments, weights, np.full(cells, 0.3))

    def room(self, spec: Spec) -> NoRoom | ClassRoom:
        """Return room for the predictions of an example with classes."""
        if spec.kind == "classification":
            return class_room(len(self.forgetting), spec.columns)
        none: NoRoom = super().room(spec)
        return none
