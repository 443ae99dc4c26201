"""Running statistics that restart from the source's statistics whenever the stream changes."""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.learners.tta.parts import StatefulPart

__all__ = ["Running"]

SLOWEST = 0.01
FIRST = 4.0


class Running(StatefulPart):
    """Mean and variance of every batch normalisation, updated by each unfamiliar entry.

    The rate at the k-th entry since the stream changed (from 0) is ``r = max(.01, 1 / (4 + k))``.
    `DrivenBatchNorm` has the formulas; it uses and returns the updated values.

    Parameters
    ----------
    mean, var : Tensor, (features,)
        The statistics of the source.
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
        """Return mean, var, the update rate for the next entry, and the count that includes it."""
        count = torch.zeros_like(self.count) if fresh else self.count
        mean, var = self._source if fresh else (self.mean, self.var)
        return mean, var, max(SLOWEST, 1.0 / (FIRST + int(count))), count + 1
