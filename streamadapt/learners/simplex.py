"""Log odds of distributions over classes, for learners in torch."""

from __future__ import annotations

from torch import Tensor

from streamadapt.learners.probabilities import FLOOR

__all__ = ["log_odds"]


def log_odds(output: Tensor) -> Tensor:
    """Return ``ln p_c`` less its mean over the classes, (..., classes); p floored at `FLOOR`."""
    logs = output.clamp_min(FLOOR).log_()
    return logs - logs.mean(-1, keepdim=True)
