"""Probabilities in kernels: log odds, softmax."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.numbers import softmax
from streamadapt.records import Array

__all__ = [
    "FLOOR",
    "SHARE",
    "ClassRoom",
    "add_to_log_odds",
    "class_room",
    "clip_to_simplex",
    "corrected",
    "log_odds",
]

FLOOR: Final = 1e-6
"""Smaller probabilities count as this one: a class that the base rules out can still be
learned."""
SHARE: Final = 0.02
"""The part of the even distribution that `clip_to_simplex` leaves every class at least, before it
divides by the sum."""


class ClassRoom(NamedTuple):
    """Room to work in: `log_odds` is (classes,), `out` (experts, 1, classes)."""

    log_odds: Array
    out: Array


def class_room(experts: int, classes: int) -> ClassRoom:
    """Return room for the predictions of an example."""
    return ClassRoom(np.zeros(classes), np.zeros((experts, 1, classes)))


@compiled
def add_to_log_odds(p: Any, b: Any, out: Any) -> None:
    """``out = softmax(ln p + b)``, all three (classes,)."""
    for j in range(p.shape[0]):
        out[j] = math.log(max(p[j], FLOOR)) + b[j]
    softmax(out)


@compiled
def corrected(c: Any, base: Any, b: Any, out: Any) -> None:
    """``out = base + b``, for classes ``softmax(ln base + b)``; all three (columns,)."""
    if c.classify:
        add_to_log_odds(base, b, out)
    else:
        for j in range(base.shape[0]):
            out[j] = base[j] + b[j]


@compiled
def log_odds(p: Any, out: Any) -> None:
    """``out = ln p`` less its mean, both (classes,)."""
    mean = 0.0
    for j in range(p.shape[0]):
        out[j] = math.log(max(p[j], FLOOR))
        mean += out[j]
    mean /= p.shape[0]
    for j in range(p.shape[0]):
        out[j] -= mean


@compiled
def clip_to_simplex(scores: Any) -> None:
    """Bring least-squares scores (classes,) to the simplex: clip from below, divide by the sum.

    The nearest point of the simplex (the Euclidean projection) has zeros, for which the log loss
    knows no limit; here no class is ever ruled out. Scores that are on the simplex already, above
    the floor, stay as they are.
    """
    total = 0.0
    for j in range(scores.shape[0]):
        scores[j] = max(scores[j], SHARE / scores.shape[0])
        total += scores[j]
    for j in range(scores.shape[0]):
        scores[j] /= total
