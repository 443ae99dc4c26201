"""Positives that come late: an entry without a label counts as a negative, and weights correct for
that."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamadapt.records import Array

__all__ = ["DelayedPositives"]

DECAY = 0.999
"""How fast the late share follows the positives, per positive."""
PRIOR = 1.0
"""The positives that the counts start with, all of them late: in the published form every positive
was a negative first."""


class DelayedPositives:
    """Weights of examples for a stream in which late positives are first learned as negatives.

    An entry is learned as a negative if no label says within the waiting time that it is a
    positive; if that label comes later, the entry is learned as a positive too. The examples then
    do not follow the distribution p of the stream: there are too many examples, and too many
    negatives. With r the share of the positives that come late, they follow
    ``b(1|x) = p / (1 + r p)`` and ``b(0|x) = (1 - p + r p) / (1 + r p)``. The expected loss over p
    equals the expected loss over b with the importance weights::

        positive: 1 + r p
        negative: (1 + r p) (1 - p) / (1 - p + r p)

    For r = 1, a waiting time of zero, these are the weights of the fake negative weighted loss
    [1]_, ``1 + p`` and ``(1 - p)(1 + p)``; the elapsed-time form [2]_ has the same weights, with a
    separate model for ``r p``. p is the prediction that was served for the entry: the best
    estimate from a mixture of learners, and the same for all learners. r is estimated from the
    stream.

    Fake negative calibration learns b without weights and serves ``b / (1 - b)`` (for r = 1). It
    suits a single model whose output is not mixed. Here the guard would compare predictions of b
    with predictions of p.

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
        """The share r of the positives whose entry had been learned as a negative before."""
        return self.late / self.all

    def saw_positive(self, late: bool) -> None:
        """Count one positive; `late`: its entry had been learned as a negative before."""
        self.late = DECAY * self.late + float(late)
        self.all = DECAY * self.all + 1.0

    def weight(self, aggregator_outputs: Array, base: Array, *, certain: bool) -> float:
        """Return the weight of an example.

        Parameters
        ----------
        aggregator_outputs : ndarray, (aggregators, 1, 2)
            The outputs of the guard's aggregators for the entry, the served prediction last.
        base : ndarray, (1, 2)
            The base's output for the entry.
        certain : bool
            Whether a label gave the class; False for an assumed negative.
        """
        p = float((aggregator_outputs[-1] if len(aggregator_outputs) else base)[0, 1])
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
