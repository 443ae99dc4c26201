"""A class-balanced memory of per-entry statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.learners.tta.parts import StatefulPart

__all__ = ["BalancedMemory"]

PRIOR = 4.0
"""The weight of the source's statistics, in entries."""


class BalancedMemory(StatefulPart):
    """Statistics of up to `size` entries, balanced over the classes.

    A new entry takes an empty slot. If there is none, it replaces the oldest entry of its own
    class if that is one of the largest classes, else the oldest entry of the largest classes (as
    in NOTE's prediction-balanced reservoir [1]_, but by age instead of at random). The resulting
    statistics give every class the same weight::

        w_i = 1 / n_c(i), normalised        mu_M = sum w m        var_M = sum w (v + (m - mu_M)^2)
        N = sum_c min(n_c, size / classes)        a = N / (N + 4)
        mu = (1-a) mu_s + a mu_M        var = (1-a) var_s + a var_M + a (1-a) (mu_M - mu_s)^2

    Costs O(size x features) per entry.

    Parameters
    ----------
    size, classes : int
    mean, var : Tensor, (features,)
        The statistics of the source.

    References
    ----------
    .. [1] Gong et al. (2022), NOTE: robust continual test-time adaptation against temporal
       correlation, NeurIPS.
    """

    means: Tensor
    variances: Tensor
    labels: Tensor
    ages: Tensor

    def __init__(self, size: int, classes: int, mean: Tensor, var: Tensor) -> None:
        super().__init__()
        self.size, self.classes = size, classes
        self._source = (mean, var)
        for name in ("means", "variances"):  # empty slots have no weight
            self.register_buffer(name, mean.new_zeros(size, len(mean)))
        empty = torch.full((size,), -1, dtype=torch.int64, device=mean.device)
        self.register(labels=empty, ages=empty)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance, (features,) each."""
        mean, var = self._source
        counts = self._counts()
        filled = self.labels >= 0
        weights = torch.where(filled, 1.0 / counts[self.labels.clamp_min(0)].clamp_min(1.0), 0.0)
        weights = weights / weights.sum().clamp_min(1.0)
        evidence = counts.clamp_max(self.size / self.classes).sum()
        a = evidence / (evidence + PRIOR)
        mean_m = weights @ self.means
        var_m = weights @ (self.variances + (self.means - mean_m).square())
        shift = mean_m - mean
        return mean + a * shift, torch.lerp(var, var_m, a) + a * (1.0 - a) * shift.square()

    def _counts(self) -> Tensor:
        counts = self.labels.new_zeros(self.classes + 1, dtype=torch.float32)
        # Empty slots have the label -1, which is counted at index 0.
        counts.index_add_(0, self.labels + 1, torch.ones_like(self.labels, dtype=torch.float32))
        return counts[1:]

    def add(self, label: Tensor, mean: Tensor, var: Tensor) -> None:
        """Add one entry: its label () int64 and its statistics (features,) each."""
        counts = self._counts()
        largest = counts == counts.max()
        same_class = self.labels == label
        allowed = torch.where(largest[label], same_class, largest[self.labels.clamp_min(0)])
        allowed = torch.where((self.labels < 0).any(), self.labels < 0, allowed)
        slot = torch.where(allowed, self.ages, torch.iinfo(torch.int64).max).argmin()
        self.means[slot], self.variances[slot] = mean, var
        self.ages[slot] = self.ages.max() + 1
        self.labels[slot] = label
