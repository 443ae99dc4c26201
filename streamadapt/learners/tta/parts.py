"""State that is looked at first and committed later: `predict` is pure, `adapt` is not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["StatefulPart", "shifted"]


class StatefulPart(nn.Module):
    """A part of a learner's state, all of it buffers.

    What an entry makes of it is worked out without writing to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._start: dict[str, Tensor] = {}

    def register(self, **tensors: Tensor) -> None:
        """Register buffers that `clear` returns to what they are now."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.clone())
            self._start[name] = tensor

    def reset(self) -> None:
        """Return to the start."""
        self.commit(self._start)

    def commit(self, new: Mapping[str, Tensor]) -> None:
        """Write new values of buffers, by name."""
        for name, tensor in new.items():
            buffer = getattr(self, name)
            assert isinstance(buffer, Tensor)
            buffer.copy_(tensor)


def shifted(rows: Tensor, row: Tensor) -> Tensor:
    """Drop the first row and append one."""
    return torch.cat([rows[1:], row.unsqueeze(0)])
