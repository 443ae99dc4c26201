"""The exact store of an error memory: rings of keys and values, read by their nearest
neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamadapt.learners.error_memory.sketch import StoreShape

__all__ = ["Ring"]

TIE = 1e-10
"""Of two entries at the same squared distance the newer is the nearer, by so much per entry of
age. It is above the rounding errors of keys up to a length of some hundred; of longer ones, ties
go to anyone."""
SAME = 1e-12
"""Squared distances below this, relative to one plus the key's own square, are rounding errors of
zero."""


class Ring(nn.Module):
    """A ring of (key, value) per group; the newest overwrites the oldest.

    With d_j the Euclidean distances of the k nearest keys (ties go to the newer entry), a read is
    the mean of their values with weights

    * ``exp(-2 d_j / d_k)``, d_k the largest of them, where `tau` is None;
    * ``softmax(s_j / tau)``, s_j the keys' inner product, otherwise: the cosine similarity of keys
      of length one.

    Distances are found for all groups at once by one batched product, in float64, since expanding
    the square would leave too few digits of a float32. A value may be NaN in part: such a cell
    joins no mean.

    Costs O(groups capacity (features + log k)) time a read, O(groups (features + cells)) a write,
    and groups capacity (8 features + 4 planes cells + 12) bytes, all allocated at once.

    Parameters
    ----------
    shape : StoreShape
    capacity, k : int
        Entries per group, and how many of them a read takes; k <= capacity.
    floor : float
        A group with fewer entries says nothing.
    tau : float, optional
    device : torch.device
    """

    keys: Tensor
    rank: Tensor
    values: Tensor
    worth: Tensor
    count: Tensor

    def __init__(
        self,
        shape: StoreShape,
        *,
        capacity: int,
        k: int,
        floor: float,
        tau: float | None,
        device: torch.device,
    ) -> None:
        super().__init__()
        groups, features, planes, cells = self.shape = shape
        self.capacity, self.k, self.floor, self.tau = capacity, k, floor, tau
        # One column per entry: the product with a query then runs along the entries, 10 times as
        # fast as across them.
        self.register_buffer(
            "keys", torch.zeros(groups, features, capacity, dtype=torch.float64, device=device)
        )
        # What the product is added to: the key's square, less TIE for every entry written before;
        # inf: empty.
        rank = torch.full((groups, 1, capacity), torch.inf, dtype=torch.float64, device=device)
        self.register_buffer("rank", rank)
        self.register_buffer(
            "values",
            torch.zeros(groups, capacity, planes * cells, dtype=torch.float32, device=device),
        )
        self.register_buffer(
            "worth", torch.ones(groups, capacity, dtype=torch.float32, device=device)
        )
        self.register_buffer("count", torch.zeros(groups, 1, dtype=torch.int64, device=device))
        self._each = torch.arange(groups, dtype=torch.int64, device=device).unsqueeze(1)

    def read(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Average the nearest entries' values.

        Parameters
        ----------
        keys : Tensor, (groups, features), float64

        Returns
        -------
        mean : Tensor, (groups, planes, cells), float32
            Anything where unknown.
        known : Tensor, (groups, cells), bool
            Where any of the nearest has a value, and the group has `floor` entries.
        """
        groups, _, planes, cells = self.shape
        squares = self._squares(keys)
        # (groups, capacity)
        ranks = torch.baddbmm(self.rank, keys.unsqueeze(1), self.keys, alpha=-2.0).squeeze(1)
        near, at = ranks.topk(self.k, dim=1, largest=False, sorted=False)
        newest = self.count - 1
        # Entries that were written before it.
        written = newest - torch.remainder(newest - at, self.capacity)
        distances = near + (squares + TIE * written)
        distances.masked_fill_(distances < SAME * (1.0 + squares), 0.0)
        values = self.values[self._each, at]  # (groups, k, planes * cells)
        weights = (self._weights(distances).float() * self.worth[self._each, at]).unsqueeze(1)
        present = values[..., :cells] == values[..., :cells]  # NaN differs from itself
        mass = torch.bmm(weights, present.float())  # (groups, 1, cells)
        known = (mass > 0.0) & (self.count >= self.floor).unsqueeze(-1)
        total = torch.bmm(weights, torch.nan_to_num(values)).view(groups, planes, cells)
        return total / mass, known.squeeze(1)

    def _squares(self, keys: Tensor) -> Tensor:
        # A cosine takes every key to be of length one, the zero key too: its similarity to any
        # other is then 0.
        return (
            torch.ones_like(keys[:, :1])
            if self.tau is not None
            else keys.square().sum(1, keepdim=True)
        )

    def _weights(self, distances: Tensor) -> Tensor:
        """Squared distances, inf where empty -> weights, (groups, k); all 0 where the whole group
        is empty."""
        if self.tau is not None:
            nearest = distances.amin(1, keepdim=True).clamp_max(4.0)  # s = 1 - d^2 / 2
            return torch.exp((nearest - distances) / (2.0 * self.tau))
        distances = distances.sqrt_()
        farthest = distances.masked_fill(torch.isinf(distances), 0.0).amax(1, keepdim=True)
        return torch.exp(distances * (-2.0 / farthest.masked_fill_(farthest == 0.0, 1.0)))

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
            NaN where unknown.
        known : Tensor, (groups,), bool
            Groups to write to; the others stay as they are.
        boost : float
            Changes nothing: a new entry is put in whole anyhow.
        weight : float, >= 0
            What it counts in a mean.
        """
        del boost
        groups = known.nonzero().squeeze(1)
        keys, values, count = keys[groups], values[groups].flatten(1), self.count[groups, 0]
        at = torch.remainder(count, self.capacity)
        self.keys[groups, :, at] = keys
        self.rank[groups, 0, at] = self._squares(keys).squeeze(1) - TIE * count.float()
        self.values[groups, at] = values
        self.worth[groups, at] = weight
        self.count[groups, 0] = count + 1

    def forget(self, keep: float) -> None:
        """Empty all but the newest `keep` of the entries that each group holds."""
        newest = self.count - 1  # (groups, 1)
        age = torch.remainder(
            newest - torch.arange(self.capacity, dtype=torch.int64, device=newest.device),
            self.capacity,
        )
        held = torch.isfinite(self.rank[:, 0])
        kept = (keep * held.sum(1, keepdim=True)).floor()
        self.rank[:, 0].masked_fill_(age >= kept, torch.inf)

    def write_many(self, keys: Tensor, values: Tensor) -> None:
        """Put many entries in, in order; the state is that of one `write` after the other.

        Parameters
        ----------
        keys : Tensor, (n, groups, features), float64
        values : Tensor, (n, groups, planes, cells), float32
            NaN where unknown; an entry without any value is left out of its group.
        """
        known = ~torch.isnan(values[:, :, 0]).all(-1)  # (n, groups)
        for group in range(self.shape.groups):
            entries = known[:, group].nonzero().squeeze(1)
            kept = entries[-self.capacity :]
            count = (
                self.count[group]
                + (len(entries) - len(kept))
                + torch.arange(len(kept), dtype=torch.int64, device=keys.device)
            )
            at = torch.remainder(count, self.capacity)
            self.keys[group, :, at] = keys[kept, group].T
            self.rank[group, 0, at] = (
                self._squares(keys[kept, group]).squeeze(1) - TIE * count.float()
            )
            self.values[group, at] = values[kept, group].flatten(1)
            self.worth[group, at] = 1.0
            self.count[group] += len(entries)
