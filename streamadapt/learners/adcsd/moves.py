"""Steps of the optimisers, on rows of float32 numbers; `streamadapt.learners.optimizer` has their
formulas."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.learners.adcsd.rows import ONE, ZERO
from streamadapt.learners.optimizer import DEFAULTS, OPTIMISERS

__all__ = ["Pace", "move", "pace_of"]

ADAM: Final = OPTIMISERS.index("adam")
SGD: Final = OPTIMISERS.index("sgd")
LION: Final = OPTIMISERS.index("lion")
BETA_1, BETA_2 = DEFAULTS["adam"]["betas"]
ADAM_1, ADAM_2 = (np.float32(1.0 - beta) for beta in DEFAULTS["adam"]["betas"])
KEEP_2 = np.float32(BETA_2)
ADAM_EPS: Final = np.float32(DEFAULTS["adam"]["eps"])
BELIEF_EPS: Final = np.float32(DEFAULTS["adabelief"]["eps"])
LION_1, LION_2 = (np.float32(1.0 - beta) for beta in DEFAULTS["lion"]["betas"])


class Pace(NamedTuple):
    """How far one step goes.

    Attributes
    ----------
    rate : float32
        The learning rate, of this step.
    first : float32
        The rate over ``1 - b1^t``.
    second : float32
        ``1 - b2^t``.
    """

    rate: Any
    first: Any
    second: Any


@compiled
def pace_of(rate: float, steps: int) -> Any:
    """Return the pace of step number `steps`, from 1 on; Adam and AdaBelief have the same
    betas."""
    t = np.float64(steps)
    first, second = 1.0 - math.pow(BETA_1, t), 1.0 - math.pow(BETA_2, t)
    return Pace(np.float32(rate), np.float32(rate / first), np.float32(second))


@compiled
def move(p: Any, pace: Any, weights: Any, b: int, row: int, gradient: Any) -> None:
    """Make a step in a row of weights; `weights` has them and their moments, (S, 2, rows,
    numbers)."""
    if p.optimiser == ADAM:
        adam(pace, weights[0, b, row], weights[1, b, row], weights[2, b, row], gradient)
    elif p.optimiser == SGD:
        sgd(pace, weights[0, b, row], gradient)
    elif p.optimiser == LION:
        lion(pace, weights[0, b, row], weights[1, b, row], gradient)
    else:
        adabelief(pace, weights[0, b, row], weights[1, b, row], weights[2, b, row], gradient)


@compiled
def adam(pace: Any, theta: Any, m: Any, v: Any, gradient: Any) -> None:
    """``m <- b1 m + (1 - b1) g``, ``v <- b2 v + (1 - b2) g^2``,
    ``theta <- theta - lr m' / (sqrt(v') + eps)``."""
    root = ONE / np.float32(math.sqrt(pace.second))
    for j in range(theta.shape[0]):
        g = gradient[j]
        m[j] += ADAM_1 * (g - m[j])
        v[j] = KEEP_2 * v[j] + ADAM_2 * g * g
        theta[j] -= pace.first * m[j] / (np.float32(math.sqrt(v[j])) * root + ADAM_EPS)


@compiled
def sgd(pace: Any, theta: Any, gradient: Any) -> None:
    """``theta <- theta - lr g``."""
    for j in range(theta.shape[0]):
        theta[j] -= pace.rate * gradient[j]


@compiled
def lion(pace: Any, theta: Any, m: Any, gradient: Any) -> None:
    """``theta <- theta - lr sign(b1 m + (1 - b1) g)``, ``m <- b2 m + (1 - b2) g``."""
    for j in range(theta.shape[0]):
        g = gradient[j]
        c = m[j] + LION_1 * (g - m[j])
        sign = ONE if c > ZERO else (-ONE if c < ZERO else ZERO)
        theta[j] -= pace.rate * sign
        m[j] += LION_2 * (g - m[j])


@compiled
def adabelief(pace: Any, theta: Any, m: Any, s: Any, gradient: Any) -> None:
    """``m <- b1 m + (1 - b1) g``, ``s <- b2 s + (1 - b2) (g - m)^2 + eps``,
    ``theta <- theta - lr m' / (sqrt(s') + eps)``."""
    for j in range(theta.shape[0]):
        g = gradient[j]
        m[j] += ADAM_1 * (g - m[j])
        surprise = g - m[j]
        s[j] = KEEP_2 * s[j] + ADAM_2 * surprise * surprise + BELIEF_EPS
        root = np.float32(math.sqrt(s[j] / pace.second))
        theta[j] -= pace.first * m[j] / (root + BELIEF_EPS)
