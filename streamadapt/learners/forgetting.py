"""The forgetting factor of least squares, in kernels."""

from __future__ import annotations

from streamadapt.compiled import compiled
from streamadapt.learners.base import MOST_BOOSTED

__all__ = ["boosted"]


@compiled
def boosted(forgetting: float, boost: float) -> float:
    """Return the forgetting factor under a boost: the memory is shorter by the factor `boost`, but
    a boost takes it no lower than `MOST_BOOSTED`."""
    if boost == 1.0:
        return forgetting
    return min(forgetting, max(1.0 - (1.0 - forgetting) * boost, MOST_BOOSTED))
