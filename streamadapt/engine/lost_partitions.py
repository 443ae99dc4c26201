"""Partitions whose transaction was lost: when to restart each of them, and when to give up."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Final

from streamadapt.engine.partition import PartitionRunner
from streamadapt.errors import ConnectorError, Loss, TransactionLostError

__all__ = ["LostPartitions"]

_LOG = logging.getLogger("streamadapt")

MOST_LOSSES: Final = 5
"""Losses in a row, without a commit in between, before the engine gives up.

Without this limit, two engines that write under one name would take the transaction from each
other forever.
"""
FIRST_WAIT_S: Final = 0.1
LAST_WAIT_S: Final = 5.0


@dataclass
class _Lost:
    runner: PartitionRunner
    not_before: float
    wait_s: float = FIRST_WAIT_S
    fresh: PartitionRunner | None = None
    why: str = ""


class LostPartitions:
    """The partitions that wait for a restart. Bounded by the partitions of this engine."""

    def __init__(self) -> None:
        self._lost: dict[int, _Lost] = {}
        self._losses: Counter[int] = Counter()
        self._logged: set[int] = set()

    def __len__(self) -> int:
        return len(self._lost)

    @property
    def trouble(self) -> str:
        """Why a partition cannot restart (the other side does not answer); empty if none
        waits."""
        for partition, lost in list(self._lost.items()):
            if lost.why:
                return (
                    f"partition {partition} waits to begin again from its last commit: {lost.why}"
                )
        return ""

    @property
    def runners(self) -> list[PartitionRunner]:
        """The old runners; this engine still owns their checkpoint folders."""
        return [lost.runner for lost in self._lost.values()]

    def add(self, runner: PartitionRunner, error: TransactionLostError, now: float) -> None:
        """Record the loss of a partition's transaction.

        Parameters
        ----------
        now : float, s
            Monotonic.

        Raises
        ------
        ConnectorError
            After more than `MOST_LOSSES` losses in a row. Losses with the causes ``NO_ANSWER``
            and ``REFUSED`` do not count.
        """
        why = str(error) if error.cause == Loss.NO_ANSWER else ""
        self._lost[runner.partition] = _Lost(runner, now, why=why)
        if error.cause not in (Loss.NO_ANSWER, Loss.REFUSED):
            self._losses[runner.partition] += 1
        if self._losses[runner.partition] > MOST_LOSSES:
            raise ConnectorError(
                f"partition {runner.partition}: its transaction was lost "
                f"{self._losses[runner.partition]} times in a row "
                f"without a commit in between, the last time: {error}"
            ) from error
        logged = runner.partition in self._logged
        self._logged.add(runner.partition)
        # One warning: further losses of this partition repeat it.
        level = logging.DEBUG if logged else logging.WARNING
        _LOG.log(
            level,
            "partition %d: %s; it begins again from its last commit",
            runner.partition,
            error,
        )

    def get(self, partition: int) -> PartitionRunner | None:
        """Return a partition's old runner; None if the partition is not lost."""
        lost = self._lost.get(partition)
        return None if lost is None else lost.runner

    def due(self, now: float) -> PartitionRunner | None:
        """Return the runner to restart next; None if none is due."""
        return next((lost.runner for lost in self._lost.values() if now >= lost.not_before), None)

    def fresh(self, partition: int) -> PartitionRunner | None:
        """Return the unused runner of an earlier attempt, or None: it is reused, since a pipeline
        can be large."""
        return self._lost[partition].fresh

    def failed(
        self, partition: int, fresh: PartitionRunner, error: TransactionLostError, now: float
    ) -> None:
        """Record a failed restart: wait longer than the last time, and try the other partitions
        first."""
        lost = self._lost.pop(partition)
        _LOG.debug("partition %d: cannot begin yet: %s", partition, error)
        wait_s = min(LAST_WAIT_S, 2.0 * lost.wait_s)
        unused = None if fresh.positions else fresh
        self._lost[partition] = _Lost(lost.runner, now + lost.wait_s, wait_s, unused, str(error))

    def pop(self, partition: int) -> PartitionRunner | None:
        """Remove a partition that has restarted; return its old runner."""
        lost = self._lost.pop(partition, None)
        return None if lost is None else lost.runner

    def forget(self, partition: int) -> PartitionRunner | None:
        """Remove a partition that another engine owns now; return its runner if it was lost."""
        self.committed(partition)
        return self.pop(partition)

    def committed(self, partition: int) -> None:
        """Reset the count of losses after a successful commit."""
        self._losses.pop(partition, None)
        self._logged.discard(partition)
