"""State with two steps: `predict` evaluates it without a change, `adapt` commits the change."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["StatefulPart", "shifted"]


class StatefulPart(nn.Module):
    """A part of a learner's state that consists of buffers.

    The effect of an entry is computed without writing to the buffers, and committed later.
    """

    def __init__(self) -> None:
        super().__init__()
        self._start: dict[str, Tensor] = {}

    def register(self, **tensors: Tensor) -> None:
        """Register buffers; `reset` restores the values that they have now."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.clone())
            self._start[name] = tensor

    def reset(self) -> None:
        """Restore the initial values of the buffers."""
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
