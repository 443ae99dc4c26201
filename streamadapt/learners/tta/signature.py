"""Detect entries that differ from the source, and changes of the stream, from the first layer
alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from streamadapt.learners.tta.norms import moments
from streamadapt.learners.tta.parts import StatefulPart, shifted

__all__ = ["Signature", "SignatureResult"]

RECENT = 8
"""The number of recent entries that a decision averages over."""
KEPT_AT_DRIFT = 4
"""The number of recent entries that are kept at a drift: the newest entries show the change."""
SHRINK = 4.0
"""The prior weight of variance one, and the smallest number of older entries for a drift."""
PASSES = 5
"""The thresholds are the maxima of this number of label-sorted passes over the source."""
QUANTILE = 0.995
DRIFT_MARGIN = 1.5
"""A drift is this many times the largest change in the sorted source."""
MEAN_MARGIN, SINGLE_MARGIN = 0.1, 0.3
"""Added to the largest log scores of the source."""
GLITCH = math.log(1e4)
"""An entry whose z-scores are a hundred times those of the previous entry is a glitch, unless the
next entry is similar."""
FLAT = 1e-3
"""Added to a channel's variance before its logarithm, in units of that channel's mean variance in
the source."""


class SignatureResult(NamedTuple):
    """The evaluation of one entry.

    Attributes
    ----------
    score : float
        Log mean squared z-score; about 0 for a source entry.
    familiar : bool
        The entry is similar to the source: the frozen model predicts it.
    drift : bool
        The stream has just changed.
    usable : bool
        False for a glitch, which must not be learned.
    new : dict
        The values to commit.
    """

    score: float
    familiar: bool
    drift: bool
    usable: bool
    new: dict[str, Tensor]


class Signature(StatefulPart):
    """Per-entry statistics of the inputs of the first normalisation layer, as z-scores of the
    source.

    With mean m and variance v over the positions, per channel: ``s = [m, ln(v + c)]``,
    ``z = (s - mean) / sd``, ``q = ln mean(z^2)``. An entry is familiar in two cases: q is below
    the .995 quantile of the source's q; or the mean of the last 8 q is at most slightly above the
    largest such mean of label-sorted source entries, and q at most slightly above the largest q of
    the source.

    Let b be the mean of the last 8 z, and m, v, n the mean, variance and number of the older z
    since the last drift. There is a drift if::

        D = mean_j (b_j - m_j)^2 / max(v_j n / (n + 4), 1)

    is above 1.5 times the largest D of five label-sorted passes over the source. All thresholds
    are computed from the source samples.

    A glitch is a single entry whose z-scores are a hundred times those of the previous entry, or
    not finite. It changes only the scores: a second such entry in a row counts as a real change.

    Costs O(channels) per entry after the first layer's input is known.

    Parameters
    ----------
    x : Tensor, (samples, channels, ...)
        The inputs of the first layer for the source samples.
    labels : Tensor, (samples,), int64
        The source model's own predictions.
    generator : torch.Generator
        Draws the order of the samples within a label.
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
        """Evaluate one entry, (1, channels, ...), at the input of the first layer."""
        z = (_features(x, self.floor)[0] - self.centre) / self.spread
        q = _score(z)
        score = float(q)
        if not score < float(self.scores[-1]) + GLITCH:  # also true for NaN
            new = {"scores": shifted(self.scores, q)} if math.isfinite(score) else {}
            return SignatureResult(score, familiar=False, drift=False, usable=False, new=new)
        held, n = self.counts.tolist()
        older = self.older
        if held == RECENT:  # the oldest of the recent entries becomes an older entry
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
            held, n, older = min(held, KEPT_AT_DRIFT), 0, torch.zeros_like(older)
        counts = torch.tensor([held, n], dtype=torch.int64, device=z.device)
        new = {"recent": recent, "scores": scores, "older": older, "counts": counts}
        return SignatureResult(score, familiar, drift, usable=True, new=new)


def _features(x: Tensor, floor: Tensor) -> Tensor:
    mean, var = moments(x)
    return mean if x.ndim == 2 else torch.cat([mean, (var + floor).log()], 1)


def _score(z: Tensor) -> Tensor:
    return (z.square().mean(-1) + 1e-12).log()


def _change(recent: Tensor, mean: Tensor, squares: Tensor, n: int) -> Tensor:
    """Return D for recent means (..., features), given the mean of `n` older entries and the sum
    of their squared deviations, `squares`."""
    var = squares / (n + SHRINK)  # v n / (n + 4)
    return ((recent - mean).square() / var.clamp_min(1.0)).mean(-1)


def _sorted_limits(
    z: Tensor, q: Tensor, labels: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """Return the largest mean of recent scores and the largest change, over label-sorted passes,
    with their margins."""
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
