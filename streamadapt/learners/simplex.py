"""Distributions over classes: staying on the simplex."""

from __future__ import annotations

from torch import Tensor

__all__ = ["LEAST", "clipped", "log_odds"]

LEAST = 1e-6
"""Smaller probabilities count as this much: a class that the base rules out can still be
learned."""
SHARE = 0.02
"""What of the even distribution `clipped` leaves every class at least, before it sums to one
again."""


def log_odds(output: Tensor) -> Tensor:
    """Return ``ln p_c`` less its mean over the classes, (..., classes); p floored at `LEAST`."""
    logs = output.clamp_min(LEAST).log_()
    return logs - logs.mean(-1, keepdim=True)


def clipped(scores: Tensor) -> Tensor:
    """Bring least-squares scores (..., classes) to the simplex: clip from below, divide by the
    sum.

    The nearest point of the simplex (the Euclidean projection) has zeros, for which the log loss
    knows no limit; here no class is ever ruled out. Scores that are on the simplex already, above
    the floor, stay as they are.
    """
    kept = scores.clamp_min(SHARE / scores.shape[-1])
    return kept / kept.sum(-1, keepdim=True)
