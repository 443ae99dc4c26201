"""Weight branches by the confidence and the variety of their outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from streamadapt.learners.tta.parts import StatefulPart

__all__ = ["Selection", "SelectionResult"]

SLOWEST = 0.004
SHARPNESS = 20.0
WARM = 16.0
STAY_RATE = 0.03
SORTED = 0.5
"""Labels count as sorted above this rate of equal predictions in a row."""


class SelectionResult(NamedTuple):
    """The mixed output, (classes,), and the values to commit."""

    answer: Tensor
    new: dict[str, Tensor]


class Selection(StatefulPart):
    """Mixes branches by the mutual information between entry and output, estimated from each
    branch's outputs.

    Per branch, over the unfamiliar entries since the stream changed:
    ``MI = (H(mean p) - mean H(p)) min(1, t / 16)``, ``w = softmax(20 MI)``. A branch with a
    constant output, or with uncertain outputs only, has MI near 0. If labels come sorted, branches
    that follow only the newest entries are excluded.

    Parameters
    ----------
    follows : tuple of bool
        For each branch, whether it follows only the newest entries.
    """

    mean: Tensor
    doubt: Tensor
    count: Tensor
    stay: Tensor
    last: Tensor

    def __init__(self, follows: tuple[bool, ...], classes: int, device: torch.device) -> None:
        super().__init__()
        k = len(follows)
        self._follows = torch.tensor(follows, dtype=torch.bool, device=device)
        zero, none = (
            torch.zeros((), dtype=torch.float32, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )
        self.register(
            mean=torch.zeros(k, classes, dtype=torch.float32, device=device),
            doubt=torch.zeros(k, dtype=torch.float32, device=device),
            count=none,
        )
        self.register(stay=zero, last=none)

    def reset(self) -> None:
        """Restart the statistics of the branches; the statistics about runs of labels are kept,
        because they do not depend on the appearance of entries."""
        self.count.zero_()

    def evaluate(self, p: Tensor, fresh: bool) -> SelectionResult:
        """Mix (branches, classes); `fresh`: the stream has just changed."""
        count = torch.ones_like(self.count) if fresh else self.count + 1
        rate = max(SLOWEST, 1.0 / int(count))
        mean = torch.lerp(self.mean, p, rate)
        doubt = torch.lerp(self.doubt, _entropy(p), rate)
        information = (_entropy(mean) - doubt) * min(1.0, int(count) / WARM)
        scores = torch.where(
            self._follows & (self.stay > SORTED), -torch.inf, SHARPNESS * information
        )
        answer: Tensor = scores.softmax(0) @ p
        label = answer.argmax()
        stay = torch.lerp(self.stay, (label == self.last).float(), STAY_RATE)
        return SelectionResult(
            answer, {"mean": mean, "doubt": doubt, "count": count, "stay": stay, "last": label}
        )


def _entropy(p: Tensor) -> Tensor:
    terms: Tensor = torch.special.entr(p)
    return terms.sum(-1)
