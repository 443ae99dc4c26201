"""Partitions whose transaction was lost: when to begin each again, and when that is hopeless."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Final

from streamadapt.engine.partition import Lane
from streamadapt.errors import ConnectorError, Loss, TransactionLostError

__all__ = ["LostPartitions"]

_LOG = logging.getLogger("streamadapt")

MOST_LOSSES: Final = 5
"""Losses in a row, without a commit in between, that the broker itself caused.

Two engines that write under one name would otherwise go on taking the transaction from each other.
"""
FIRST_WAIT_S: Final = 0.1
LAST_WAIT_S: Final = 5.0


@dataclass
class _Lost:
    lane: Lane
    not_before: float
    wait_s: float = FIRST_WAIT_S
    fresh: Lane | None = None
    why: str = ""


class LostPartitions:
    """What waits to be begun again. Bounded by the partitions of this engine."""

    def __init__(self) -> None:
        self._lost: dict[int, _Lost] = {}
        self._losses: Counter[int] = Counter()
        self._said: set[int] = set()

    def __len__(self) -> int:
        return len(self._lost)

    @property
    def trouble(self) -> str:
        """Why a partition cannot begin again, since the other side does not answer; empty if there
        is none."""
        for partition, lost in list(self._lost.items()):
            if lost.why:
                return (
                    f"partition {partition} waits to begin again from its last commit: {lost.why}"
                )
        return ""

    @property
    def lanes(self) -> list[Lane]:
        """The lanes as they were; their checkpoint folders are still this engine's."""
        return [lost.lane for lost in self._lost.values()]

    def add(self, lane: Lane, error: TransactionLostError, now: float) -> None:
        """Take note of a loss.

        Parameters
        ----------
        now : float, s
            Monotonic.

        Raises
        ------
        ConnectorError
            After `MOST_LOSSES` in a row that were neither missing answers nor records that are not
            sent again.
        """
        why = str(error) if error.cause == Loss.NO_ANSWER else ""
        self._lost[lane.partition] = _Lost(lane, now, why=why)
        if error.cause not in (Loss.NO_ANSWER, Loss.REFUSED):
            self._losses[lane.partition] += 1
        if self._losses[lane.partition] > MOST_LOSSES:
            raise ConnectorError(
                f"partition {lane.partition}: its transaction was lost "
                f"{self._losses[lane.partition]} times in a row "
                f"without a commit in between, the last time: {error}"
            ) from error
        said = lane.partition in self._said
        self._said.add(lane.partition)
        level = (
            logging.DEBUG if said else logging.WARNING
        )  # where it is lost again and again, a line would say no more
        _LOG.log(
            level, "partition %d: %s; it begins again from its last commit", lane.partition, error
        )

    def get(self, partition: int) -> Lane | None:
        """Return a partition's lane as it was; None if it is not lost."""
        lost = self._lost.get(partition)
        return None if lost is None else lost.lane

    def due(self, now: float) -> Lane | None:
        """Return the lane to begin again next, if it is time for one."""
        return next((lost.lane for lost in self._lost.values() if now >= lost.not_before), None)

    def fresh(self, partition: int) -> Lane | None:
        """Return the lane that was made for a try before, and not used: a pipeline can be
        large."""
        return self._lost[partition].fresh

    def failed(self, partition: int, fresh: Lane, error: TransactionLostError, now: float) -> None:
        """It could not be begun: wait a little longer than the last time, and let the others try
        first."""
        lost = self._lost.pop(partition)
        _LOG.debug("partition %d: cannot begin yet: %s", partition, error)
        wait_s = min(LAST_WAIT_S, 2.0 * lost.wait_s)
        unused = None if fresh.positions else fresh
        self._lost[partition] = _Lost(lost.lane, now + lost.wait_s, wait_s, unused, str(error))

    def pop(self, partition: int) -> Lane | None:
        """Forget a partition that has begun again; return its lane."""
        lost = self._lost.pop(partition, None)
        return None if lost is None else lost.lane

    def forget(self, partition: int) -> Lane | None:
        """The partition is another engine's now; return its lane, if it was lost."""
        self.committed(partition)
        return self.pop(partition)

    def committed(self, partition: int) -> None:
        """A commit went through: whatever was wrong is over."""
        self._losses.pop(partition, None)
        self._said.discard(partition)
