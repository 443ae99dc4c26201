"""Which targets are known, in kernels."""

from __future__ import annotations

from typing import Any

from streamadapt.compiled import compiled

__all__ = ["all_known", "some_known"]


@compiled
def all_known(known: Any) -> bool:
    """Return whether every cell of `known` (rows, columns) is True."""
    for h in range(known.shape[0]):
        for j in range(known.shape[1]):
            if not known[h, j]:
                return False
    return True


@compiled
def some_known(known: Any) -> bool:
    """Return whether a cell of `known` (rows, columns) is True."""
    for h in range(known.shape[0]):
        for j in range(known.shape[1]):
            if known[h, j]:
                return True
    return False
