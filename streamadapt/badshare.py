"""The brake: when nearly everything is refused, that is a wrong config and not bad records."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from streamadapt.errors import StreamadaptError
from streamadapt.ports import DeadLetter

__all__ = ["BAD_SHARE_OF", "BadShare"]

BAD_SHARE_OF = 5000
"""Records over which the share of bad ones is judged: a sensor that is out for days is no wrong config."""


class BadShare:
    """Counts the refused ones among the last `BAD_SHARE_OF` records.

    Parameters
    ----------
    limit : float, in (0, 1]
        The share that is still borne.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._recent: deque[bool] = deque(maxlen=BAD_SHARE_OF)
        self._bad = 0  # of those: counted as they come and go, since this runs for every lot of records

    def add(self, count: int, letters: Sequence[DeadLetter]) -> None:
        """Count records, `letters` of them refused.

        Raises
        ------
        StreamadaptError
            If too many are, with what was wrong with the newest.
        """
        for refused in [False] * (count - len(letters)) + [True] * len(letters):
            if len(self._recent) == BAD_SHARE_OF:
                self._bad -= self._recent[0]  # about to be forgotten
            self._recent.append(refused)
            self._bad += refused
        if len(self._recent) == BAD_SHARE_OF and self._bad > self.limit * BAD_SHARE_OF:
            newest = letters[-1] if letters else None
            raise StreamadaptError(
                f"{self._bad} of the last {BAD_SHARE_OF} records were refused (limit {self.limit:.0%}); the "
                f"config does not fit the topic: {newest.reason + ': ' + newest.detail if newest else ''}"
            )
