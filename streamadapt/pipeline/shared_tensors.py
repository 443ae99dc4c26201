"""Tensors that several parts share: a write by one part is undone for the others."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Lent"]


class Lent:
    """Keeps copies of tensors that are passed to learners.

    The tensors' version counters show a write in place, so that the check costs almost nothing.

    Parameters
    ----------
    *tensors : Tensor or None
        None is ignored.
    """

    def __init__(self, *tensors: Tensor | None) -> None:
        self._tensors = [t for t in tensors if t is not None]
        self._copies = [t.clone() for t in self._tensors]
        self._versions = [_version(t) for t in self._tensors]

    def put_back(self) -> bool:
        """Undo all writes since the last call; return whether there were any."""
        written = False
        for i, tensor in enumerate(self._tensors):
            if _version(tensor) != self._versions[i]:
                tensor.copy_(self._copies[i])
                self._versions[i] = _version(tensor)
                written = True
        return written


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to; always 0 for a tensor made in inference mode,
    which has no counter."""
    return 0 if tensor.is_inference() else tensor._version
