"""What all least squares with forgetting have in common, in kernels."""

from __future__ import annotations

import math

from streamadapt.compiled import compiled
from streamadapt.learners.base import MOST_BOOSTED

__all__ = ["boosted", "clipped"]


@compiled
def boosted(forgetting: float, boost: float) -> float:
    """Return the forgetting factor under a boost: the memory is shorter by the factor `boost`, but
    a boost takes it no lower than `MOST_BOOSTED`."""
    if boost == 1.0:
        return forgetting
    return min(forgetting, max(1.0 - (1.0 - forgetting) * boost, MOST_BOOSTED))


@compiled
def clipped(error: float, clip: float, size: float) -> float:
    """Return an error within `clip` sizes."""
    if math.isinf(clip):
        return error
    return min(max(error, -clip * size), clip * size)
