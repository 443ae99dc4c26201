"""Running statistics that start at the source's whenever the stream changes."""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.learners.tta.parts import StatefulPart

__all__ = ["Running"]

SLOWEST = 0.01
FIRST = 4.0


class Running(StatefulPart):
    """Mean and variance of every batch normalisation, moved by each unfamiliar entry.

    At the k-th since the stream changed (from 0) by the rate ``r = max(.01, 1 / (4 + k))``; the
    formulas are `DrivenBatchNorm`'s, which uses and returns what they have moved to.

    Parameters
    ----------
    mean, var : Tensor, (features,)
        The source's.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, mean: Tensor, var: Tensor) -> None:
        super().__init__()
        self._source = (mean, var)
        self.register(
            mean=mean, var=var, count=torch.zeros((), dtype=torch.int64, device=mean.device)
        )

    def evaluate(self, fresh: bool) -> tuple[Tensor, Tensor, float, Tensor]:
        """Return mean, var, the rate that the next entry moves them by, and the count with it."""
        count = torch.zeros_like(self.count) if fresh else self.count
        mean, var = self._source if fresh else (self.mean, self.var)
        return mean, var, max(SLOWEST, 1.0 / (FIRST + int(count))), count + 1
