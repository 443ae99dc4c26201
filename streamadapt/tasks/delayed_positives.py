"""Positives that come late: what has no label counts as a negative, with the weights that make up
for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamadapt.records import Array

__all__ = ["DelayedPositives"]

DECAY = 0.999
"""How fast the late share follows the positives, per positive."""
PRIOR = 1.0
"""Positives that it starts with, all of them late: the published form, in which every positive was
a negative first."""


class DelayedPositives:
    """Weights of examples where every late positive has been learned as a negative before.

    An entry is learned as a negative when nobody has called it a positive for so long, and as a
    positive if that comes later. What is learned from is then not the stream p but one with too
    many examples, and too many negatives: with r the share of the positives that come late,
    ``b(1|x) = p / (1 + r p)`` and ``b(0|x) = (1 - p + r p) / (1 + r p)``. The expectation of a
    loss over p is that over b with the importance weights::

        positive: 1 + r p
        negative: (1 + r p) (1 - p) / (1 - p + r p)

    For r = 1, where nothing is waited for, they are those of the fake negative weighted loss [1]_,
    ``1 + p`` and ``(1 - p)(1 + p)``; the elapsed-time form [2]_ has the same with a model of its
    own for ``r p``. p is what was served when the entry was predicted: with a mixture of learners
    that is the best there is, and all weights are alike for all learners. r is followed from the
    stream.

    Fake negative calibration, which learns b without weights and serves ``b / (1 - b)`` (for r =
    1), is the choice for one model whose output nobody mixes: here the guard would judge a
    prediction of b by what the others say of p.

    References
    ----------
    .. [1] Ktena et al. (2019), Addressing delayed feedback for continuous training with neural
       networks in CTR prediction, RecSys, equations 4 to 7.
    .. [2] Yang et al. (2021), Capturing delayed feedback in conversion rate prediction via
       elapsed-time sampling, AAAI.
    """

    def __init__(self) -> None:
        self.late = self.all = PRIOR

    @property
    def late_share(self) -> float:
        """r: which share of the positives comes when their entry has been learned as a
        negative."""
        return self.late / self.all

    def saw_positive(self, late: bool) -> None:
        """Count one."""
        self.late = DECAY * self.late + float(late)
        self.all = DECAY * self.all + 1.0

    def weight(self, own: Array, base: Array, *, certain: bool) -> float:
        """Return the weight of an example.

        Parameters
        ----------
        own : ndarray, (aggregators, 1, 2)
            What the guard said of the entry, the served prediction last.
        base : ndarray, (1, 2)
        certain : bool
            Whether a label said it; False for a negative that nobody has said.
        """
        p = float((own[-1] if len(own) else base)[0, 1])
        if not np.isfinite(p):
            return 1.0
        p = min(max(p, 0.0), 1.0)
        r = self.late_share
        left = 1.0 - p + r * p
        return (1.0 + r * p) * (1.0 if certain else (1.0 - p) / left if left > 0.0 else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"late": self.late, "all": self.all}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.late, self.all = float(state["late"]), float(state["all"])
