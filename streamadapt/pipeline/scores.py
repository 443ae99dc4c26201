"""The sums of losses of base, experts and what was served, as the statistics have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from streamadapt.compiled import Kernel
from streamadapt.pipeline.judging import empty_room, score
from streamadapt.pipeline.stats import Stats
from streamadapt.records import Array, Mask
from streamadapt.tasks.loss_kernels import loss_settings
from streamadapt.tasks.losses import Loss

__all__ = ["Scores"]


def _score(loss: Any, room: Any, experts: Any, served: Any, target: Any, mask: Any,  # noqa: PLR0913
           weight: float, sums: Any, counts: Any) -> bool:  # fmt: skip
    found: bool = score(loss, room, experts, served, target, mask, weight, sums, counts)
    return found


_SCORE: Final = Kernel(_score, "losses")


class Scores:
    """Scores matured predictions, and adds the losses to the statistics.

    Parameters
    ----------
    names : sequence of str
        Of the experts; the base is the first.
    rows, columns : int
    loss : Loss
    """

    def __init__(self, names: Sequence[str], rows: int, columns: int, loss: Loss) -> None:
        self.roles = (*names, "served")
        self.loss = loss_settings(loss)
        self.room = empty_room(len(names), rows, 1 if loss.row_wise else columns)
        self.sums = np.zeros(len(self.roles))
        self.counts = np.zeros(len(self.roles), np.int64)

    def go_on_from(self, stats: Stats) -> None:
        """Read the sums of the statistics."""
        self.sums[:] = [stats.loss_sum[role] for role in self.roles]
        self.counts[:] = [stats.loss_cells[role] for role in self.roles]

    def store(self, stats: Stats) -> None:
        """Write them back."""
        stats.loss_sum.update(zip(self.roles, self.sums.tolist(), strict=True))
        stats.loss_cells.update(zip(self.roles, self.counts.tolist(), strict=True))

    def add(self, stats: Stats, experts: Array, served: Array, target: Array, mask: Mask,
            weight: float) -> Array:  # fmt: skip
        """Add the losses of one matured arrival to the statistics.

        Returns
        -------
        ndarray, (experts,)
            The mean loss of each expert; NaN if they are not all known.
        """
        self.go_on_from(stats)
        given = np.array(experts), np.array(served), np.array(target), np.array(mask)
        known = _SCORE(self.loss, self.room, *given, float(weight), self.sums, self.counts)
        self.store(stats)
        return self.room.means.copy() if known else np.full(len(self.room.means), np.nan)
