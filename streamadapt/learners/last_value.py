"""The plainest predictions: the last value again, the last label again."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from streamadapt.learners.base import Learner, Maturity, require_shape
from streamadapt.models.contract import BaseOutput, Spec

__all__ = ["LastValue"]

DISCOUNT = 0.999
"""Of the counts that tell how often the class changes: about 1,000 labels are remembered."""
NEVER = -(2**63)


class LastValue(Learner):
    """What was last seen, whatever the base says; named apart from the base `Persistence`, which
    forecasts alike.

    Forecasts: the last value of every channel, at every step. Regression: the newest label known
    of each output; the base's output before the first. Classification ("no-change"): the newest
    label known, with probability ``1 - e``, the other classes sharing e evenly; e is the rate at
    which a label differed from the one known before it, Laplace-smoothed and slowly forgotten::

        changes <- .999 changes + [label differs]      count <- .999 count + 1
        e = (changes + 1) / (count + 2), at most that of the even distribution

    The newest label is that of the latest entry, not the one that arrived last. With labels that
    come many entries late e is too small, since the rate is that from label to label.

    Costs O(rows x columns) time, columns + 3 numbers.

    Examples
    --------
    >>> LastValue().names
    ('persistence',)
    """

    kind: ClassVar[str] = "persistence"
    matures: ClassVar[Maturity] = "rows"
    last: Tensor
    seen: Tensor
    newest: Tensor
    changes: Tensor
    count: Tensor

    def allocate(self, spec: Spec) -> None:
        """Start with no label known; forecasts need no state."""
        if spec.kind == "forecast":
            return
        self.register_buffer(
            "last", torch.zeros(1, spec.columns, dtype=torch.float32, device=spec.device)
        )
        self.register_buffer(
            "seen", torch.zeros(1, spec.columns, dtype=torch.bool, device=spec.device)
        )
        self.register_buffer(
            "newest", torch.full((1, spec.columns), NEVER, dtype=torch.int64, device=spec.device)
        )  # event times
        if spec.kind == "classification":
            for name in ("changes", "count"):
                self.register_buffer(
                    name, torch.zeros((), dtype=torch.float64, device=spec.device)
                )

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Say it again."""
        if self.spec.kind == "forecast":
            return inputs[-1:].repeat(self.spec.rows, 1)
        if self.spec.kind == "regression":
            return torch.where(self.seen, self.last, base.output)
        others = self.spec.columns - 1
        rate = (
            ((self.changes + 1.0) / (self.count + 2.0)).clamp_max(others / (others + 1.0)).float()
        )
        return torch.where(
            self.seen, self.last * (1.0 - rate) + (1.0 - self.last) * (rate / others), base.output
        )

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Remember the label, unless that of a later entry is known already."""
        del inputs
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        if self.spec.kind == "forecast":
            return  # targets are entries, which are inputs in their turn
        if self.spec.kind == "classification":
            if not bool(mask.all()):
                return
            if bool(self.seen.all()):
                differs = (target.argmax() != self.last.argmax()).double()
                self.changes.mul_(DISCOUNT).add_(differs)
                self.count.mul_(DISCOUNT).add_(1.0)
        if base.times is not None:
            mask = mask & (base.times[-1] >= self.newest)
            self.newest.masked_fill_(mask, int(base.times[-1]))
        self.last.copy_(torch.where(mask, target, self.last))
        self.seen.logical_or_(mask)
