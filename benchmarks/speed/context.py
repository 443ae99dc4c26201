"""What every scenario of the speed benchmark gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed.processes import OldCommit
from benchmarks.speed.rounds import Rounds, Side, alternate

__all__ = ["Context", "NotThereError"]


class NotThereError(Exception):
    """Something that a scenario needs is not on this machine: it is skipped."""


@dataclass(frozen=True, slots=True)
class Context:
    """What every scenario gets.

    Attributes
    ----------
    data : Path
        The folder of the data sets.
    folder : Path
        A folder for files that do not last.
    old : OldCommit
    progress : callable
    rounds : int
    share : float
        The share of the usual number of entries in a round and in a warm-up.
    """

    data: Path
    folder: Path
    old: OldCommit
    progress: Callable[[str], None]
    rounds: int = 15
    share: float = 1.0

    def many(self, entries: int) -> int:
        """Return the share of a number of entries, at least 2."""
        return max(2, round(self.share * entries))

    def file(self, name: str) -> Path:
        """Return a file of the data folder.

        Raises
        ------
        NotThereError
            If it is not there.
        """
        path = self.data / name
        if not path.is_file():
            raise NotThereError(f"no {path}: --data or STREAMADAPT_DATA names its folder")
        return path

    def compare(self, ours: Side, rivals: Sequence[Side]) -> Rounds:
        """Measure both sides in turns."""
        return alternate(ours, rivals, self.rounds, self.progress)
