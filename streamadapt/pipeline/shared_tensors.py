"""Tensors that several parts see: what one of them writes into is put back for the others."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Lent"]


class Lent:
    """Keeps copies of tensors that are given to learners.

    Writing in place is noticed by the tensors' version counters, so that asking costs next to
    nothing.

    Parameters
    ----------
    *tensors : Tensor or None
        None is left out.
    """

    def __init__(self, *tensors: Tensor | None) -> None:
        self._tensors = [t for t in tensors if t is not None]
        self._copies = [t.clone() for t in self._tensors]
        self._versions = [_version(t) for t in self._tensors]

    def put_back(self) -> bool:
        """Undo what was written since the last call; tell whether anything was."""
        written = False
        for i, tensor in enumerate(self._tensors):
            if _version(tensor) != self._versions[i]:
                tensor.copy_(self._copies[i])
                self._versions[i] = _version(tensor)
                written = True
        return written


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to; always 0 for one made in inference mode, which
    does not count."""
    return 0 if tensor.is_inference() else tensor._version
