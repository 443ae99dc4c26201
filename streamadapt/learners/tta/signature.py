"""Whether an entry looks like the source's, and whether the stream has just changed: from the
first layer alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from streamadapt.learners.tta.norms import moments
from streamadapt.learners.tta.parts import StatefulPart, shifted

__all__ = ["Signature", "SignatureResult"]

RECENT = 8
"""Entries that a decision averages over."""
KEPT = 4
"""Of them are kept at a drift: the change was seen in the newest."""
SHRINK = 4.0
"""Prior weight of variance one, and the number of older entries from which a drift can be told."""
PASSES = 5
"""Label-sorted passes over the source that the thresholds are the maxima of."""
QUANTILE = 0.995
DRIFT_MARGIN = 1.5
"""A drift is so many times what the sorted source shows at most."""
MEAN_MARGIN, SINGLE_MARGIN = 0.1, 0.3
"""Added to the largest log scores of the source."""
GLITCH = math.log(1e4)
"""An entry whose z-scores are a hundred times those of the one before is a glitch, unless the next
is like it."""
FLAT = 1e-3
"""Added to a channel's variance before its logarithm, in units of the source's mean variance
there."""


class SignatureResult(NamedTuple):
    """What an entry looks like.

    Attributes
    ----------
    score : float
        Log mean squared z-score; about 0 for a source entry.
    familiar : bool
        It looks like the source's: the frozen model is to answer.
    drift : bool
        The stream has just changed.
    usable : bool
        False for a glitch, from which nothing is to be learned.
    new : dict
        What to commit.
    """

    score: float
    familiar: bool
    drift: bool
    usable: bool
    new: dict[str, Tensor]


class Signature(StatefulPart):
    """Per-entry statistics of what reaches the first normalisation layer, in z-scores of the
    source's.

    With mean m and variance v over the positions, per channel: ``s = [m, ln(v + c)]``,
    ``z = (s - mean) / sd``, ``q = ln mean(z^2)``. An entry is familiar if q is under the .995
    quantile of the source's, or if the mean of the last 8 q is hardly above what label-sorted
    source entries reach, and q hardly above the largest of the source's.

    Drift: with b the mean of the last 8 z, and m, v, n those of the older ones since the last
    drift::

        D = mean_j (b_j - m_j)^2 / max(v_j n / (n + 4), 1)

    above 1.5 times the largest D of five label-sorted passes over the source. All thresholds are
    the source's.

    A glitch, a single entry with z-scores a hundred times those of the one before it, or without
    finite ones, leaves only its score behind: a second one in a row is believed.

    Costs O(channels) per entry after the first layer's input is known.

    Parameters
    ----------
    x : Tensor, (samples, channels, ...)
        What the source samples are when they reach the first layer.
    labels : Tensor, (samples,), int64
        The source model's own answers.
    generator : torch.Generator
        Of the order within a label.
    """

    centre: Tensor
    spread: Tensor
    floor: Tensor
    limits: Tensor
    recent: Tensor
    scores: Tensor
    older: Tensor
    counts: Tensor

    def __init__(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        floor = FLAT * moments(x)[1].mean(0) + 1e-12
        s = _features(x, floor)
        centre, spread = s.mean(0), s.std(0)
        spread = spread.clamp_min(1e-2 * float(spread.mean()) + 1e-12)
        z = (s - centre) / spread
        q = _score(z)
        limits = torch.stack(
            [
                q.quantile(QUANTILE),
                q.max() + SINGLE_MARGIN,
                *_sorted_limits(z, q, labels, generator),
            ]
        )
        width = z.shape[1]
        self.register(centre=centre, spread=spread, floor=floor, limits=limits)
        self.register(recent=z.new_zeros(RECENT, width), scores=z.new_zeros(RECENT))
        self.register(
            older=z.new_zeros(2, width), counts=torch.zeros(2, dtype=torch.int64, device=z.device)
        )

    def evaluate(self, x: Tensor) -> SignatureResult:
        """Judge one entry, (1, channels, ...), as it reaches the first layer."""
        z = (_features(x, self.floor)[0] - self.centre) / self.spread
        q = _score(z)
        score = float(q)
        if not score < float(self.scores[-1]) + GLITCH:  # NaN and infinity too
            new = {"scores": shifted(self.scores, q)} if math.isfinite(score) else {}
            return SignatureResult(score, familiar=False, drift=False, usable=False, new=new)
        held, n = self.counts.tolist()
        older = self.older
        if held == RECENT:  # the oldest of the recent ones becomes an older one
            n += 1
            step = self.recent[0] - older[0]
            mean = older[0] + step / n
            older = torch.stack([mean, older[1] + step * (self.recent[0] - mean)])
        recent, scores = shifted(self.recent, z), shifted(self.scores, q)
        held = min(held + 1, RECENT)
        typical, largest, usual, most = self.limits.tolist()
        familiar = score < typical or (float(scores[-held:].mean()) < usual and score < largest)
        drift = (
            n >= SHRINK and float(_change(recent[-held:].mean(0), older[0], older[1], n)) > most
        )
        if drift:
            held, n, older = min(held, KEPT), 0, torch.zeros_like(older)
        counts = torch.tensor([held, n], dtype=torch.int64, device=z.device)
        new = {"recent": recent, "scores": scores, "older": older, "counts": counts}
        return SignatureResult(score, familiar, drift, usable=True, new=new)


def _features(x: Tensor, floor: Tensor) -> Tensor:
    mean, var = moments(x)
    return mean if x.ndim == 2 else torch.cat([mean, (var + floor).log()], 1)


def _score(z: Tensor) -> Tensor:
    return (z.square().mean(-1) + 1e-12).log()


def _change(recent: Tensor, mean: Tensor, squares: Tensor, n: int) -> Tensor:
    """D of recent means (..., features) against older ones, with `squares` the sum of squared
    deviations."""
    var = squares / (n + SHRINK)  # v n / (n + 4)
    return ((recent - mean).square() / var.clamp_min(1.0)).mean(-1)


def _sorted_limits(
    z: Tensor, q: Tensor, labels: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """Largest mean of recent scores, and largest change, over label-sorted passes; with their
    margins."""
    usual, most = [], []
    for _ in range(PASSES):
        order = torch.randperm(len(z), generator=generator).to(z.device)
        order = order[labels[order].argsort(stable=True)]
        rows, scores = z[order].double(), q[order]
        usual.append(scores.unfold(0, RECENT, 1).mean(1).max())
        recent = rows.unfold(0, RECENT, 1).mean(2)[1:]  # of entries t-7..t, for t >= 8
        n = torch.arange(1, len(recent) + 1, device=z.device, dtype=torch.float64).unsqueeze(1)
        sums, squares = rows.cumsum(0)[: len(recent)], rows.square().cumsum(0)[: len(recent)]
        var = ((squares - sums.square() / n) / (n + SHRINK)).clamp_min(1.0)
        change = ((recent - sums / n).square() / var).mean(1)
        most.append(change[int(SHRINK) - 1 :].max())
    return [
        torch.stack(usual).max() + MEAN_MARGIN,
        (torch.stack(most).max() * DRIFT_MARGIN).float(),
    ]
