"""A sketch of keyed sums by signed random projections: constant memory and constant time, however
much was put in."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamadapt.learners.base import MOST_BOOSTED

__all__ = ["Sketch", "StoreShape"]


class StoreShape(NamedTuple):
    """What an error memory's store is given: keys (groups, features), values (groups, planes,
    cells).

    The planes of a cell are all known or all unknown.
    """

    groups: int
    features: int
    planes: int
    cells: int


class Sketch(nn.Module):
    """Decayed means of values by key, in K tables of 2^L buckets [1]_ [2]_.

    Table i maps a key x to the bucket whose number has the bits ``[<r_il, x> > 0]``, l = 0..L-1
    (bit l weighs 2^l), the r_il standard normal. Two keys at the angle a share it with probability
    ``(1 - a / pi)^L``. Each bucket of each group keeps, per cell, how many values were put in and
    their sums; both fade by `decay` with every entry that the group takes in. A read adds counts
    and sums over the K matched buckets and then divides::

        mean = sum_i S_i[b_i(x)] / sum_i N_i[b_i(x)]    known where sum_i N_i[b_i(x)] >= floor K

    which is the mean over all entries ever put in, weighted by how many tables they share with x
    and by their age.

    Fading is lazy: a bucket has the time it was last written at, and is multiplied by
    ``decay^(now - then)`` when it is written or read, so a write touches K buckets per group and
    no others. Time is the group's entries, counted in float64. Sums are float64: without decay,
    the count of a bucket is exact and its sum good to 9 digits after 1e7 entries.

    Costs O(K (L features + cells)) time per group for a read as for a write, and groups K 2^L (16
    to 24 cells + 8) bytes, all allocated at once.

    Parameters
    ----------
    shape : StoreShape
        The planes of a cell share its count.
    tables, bits : int, >= 1
        K and L.
    decay : float, in (0, 1]
        1 forgets nothing.
    floor : float, > 0
        Entries that a table must hold for the key on average, after fading, to say anything.
    generator : torch.Generator
        Draws the projections, which are the same for all groups.
    device : torch.device

    References
    ----------
    .. [1] Charikar (2002), Similarity estimation techniques from rounding algorithms, STOC.
    .. [2] Zhu et al. (2023), ReLoop2: building self-adaptive recommendation models via responsive
       error compensation loop, KDD: keeps such sums of labels and outputs; it resets them, where
       these fade.
    """

    projections: Tensor
    sums: Tensor
    written: Tensor
    clock: Tensor

    def __init__(
        self,
        shape: StoreShape,
        *,
        tables: int,
        bits: int,
        decay: float,
        floor: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        super().__init__()
        groups, features, planes, cells = self.shape = shape
        self.tables, self.bits, self.decay, self.floor = tables, bits, decay, floor
        self._log_decay = math.log(decay)
        drawn = torch.randn(features, tables * bits, generator=generator, dtype=torch.float64)
        buckets = groups * tables << bits
        self.register_buffer("projections", drawn.to(device))
        # A row per bucket: counts, then the sums of each plane. Group, then table, then bucket
        # number.
        self.register_buffer(
            "sums", torch.zeros(buckets, (1 + planes) * cells, dtype=torch.float64, device=device)
        )
        self.register_buffer("written", torch.zeros(buckets, dtype=torch.float64, device=device))
        self.register_buffer("clock", torch.zeros(groups, 1, dtype=torch.float64, device=device))
        self._powers = 2 ** torch.arange(bits, dtype=torch.int64, device=device)
        self._first = (
            torch.arange(groups * tables, dtype=torch.int64, device=device) << bits
        ).view(groups, tables)

    def buckets(self, keys: Tensor) -> Tensor:
        """Return the rows that keys (..., groups, features) belong to, (..., groups, tables),
        int64."""
        signs = (keys @ self.projections > 0.0).view(*keys.shape[:-1], self.tables, self.bits)
        return (signs * self._powers).sum(-1) + self._first

    def read(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Average what was put in under like keys.

        Parameters
        ----------
        keys : Tensor, (groups, features), float64

        Returns
        -------
        mean : Tensor, (groups, planes, cells), float32
            Anything where unknown.
        known : Tensor, (groups, cells), bool
        """
        rows = self.buckets(keys)
        faded = self._faded(self.clock - self.written[rows]).unsqueeze(1)  # (groups, 1, tables)
        groups, _, planes, cells = self.shape
        totals = torch.bmm(faded, self.sums[rows]).view(groups, 1 + planes, cells)
        counts = totals[:, :1]
        # Counts that are no numbers must be seen, not fall silent.
        known = ~(counts < self.floor * self.tables)
        return (totals[:, 1:] / counts).float(), known.squeeze(1)

    def _faded(self, age: Tensor) -> Tensor:
        return torch.exp(self._log_decay * age)

    def write(
        self,
        keys: Tensor,
        values: Tensor,
        known: Tensor,
        *,
        boost: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        """Put one entry in each group.

        Parameters
        ----------
        keys : Tensor, (groups, features), float64
        values : Tensor, (groups, planes, cells), float32
            NaN where unknown: neither counted nor summed.
        known : Tensor, (groups,), bool
            Groups to write to; for the others no time passes.
        boost : float, >= 1
            By how much the time of this entry is longer, within the limit that all learners have.
        weight : float, >= 0
            How many times it is put in.
        """
        groups = known.nonzero().squeeze(1)
        now = self.clock[groups] + self._passing(boost)
        rows = self.buckets(keys)[groups]  # (written groups, tables)
        faded = self._faded(now - self.written[rows]).unsqueeze(-1)
        added = self._with_counts(values[groups]).unsqueeze(1) * weight
        self.sums[rows] = self.sums[rows] * faded + added
        self.written[rows] = now.expand_as(rows)
        self.clock[groups] = now

    def forget(self, keep: float) -> None:
        """Fade counts and sums of all buckets alike."""
        self.sums.mul_(keep)

    def _passing(self, boost: float) -> float:
        if boost == 1.0 or self.decay == 1.0:
            return 1.0
        return min(boost, max(1.0, math.log(MOST_BOOSTED) / self._log_decay))

    def _with_counts(self, values: Tensor) -> Tensor:
        """(..., planes, cells) with NaN -> (..., (1 + planes) cells) with 0: what is added to a
        bucket's row."""
        first = values[..., :1, :]
        counts = (first == first).to(values.dtype)  # NaN differs from itself
        return torch.cat([counts, torch.nan_to_num(values)], dim=-2).flatten(-2).double()

    def write_many(self, keys: Tensor, values: Tensor) -> None:
        """Put many entries in, in order; the state is that of one `write` after the other, up to
        rounding.

        Parameters
        ----------
        keys : Tensor, (n, groups, features), float64
        values : Tensor, (n, groups, planes, cells), float32
            NaN where unknown; an entry without any value is left out of its group, as `write`
            leaves it out.
        """
        known = ~torch.isnan(values[:, :, 0]).all(-1)  # (n, groups)
        times = self.clock.T + known.double().cumsum(0)
        rows = self.buckets(keys)[known].flatten()  # (entries * tables,)
        times_of = times[known].repeat_interleave(self.tables)
        last = self.written.scatter_reduce(0, rows, times_of, "amax")
        # Every bucket is brought to the time of its last entry, the new entries each from its own
        # time.
        self.sums.mul_(self._faded(last - self.written).unsqueeze(-1))
        added = self._with_counts(values[known]).repeat_interleave(self.tables, 0)
        self.sums.index_add_(0, rows, added.mul_(self._faded(last[rows] - times_of).unsqueeze(-1)))
        self.written.copy_(last)
        self.clock.copy_(times[-1:].T)
