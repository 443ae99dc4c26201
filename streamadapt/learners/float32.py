"""Numbers that are kept as float32, in kernels."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from streamadapt.compiled import compiled

__all__ = ["LARGEST", "scale_input", "to_float32"]

LARGEST: Final = 3.4e38
"""A little less than the largest float32."""


@compiled
def to_float32(value: float) -> Any:
    """Return the nearest finite float32."""
    return np.float32(min(max(value, -LARGEST), LARGEST))


@compiled
def scale_input(value: Any, loc: Any, scale: Any) -> float:
    """``(value - loc) / scale`` of float32 numbers; the difference is a float32, the result is
    not."""
    return np.float64(to_float32(np.float64(value) - np.float64(loc))) / np.float64(scale)
