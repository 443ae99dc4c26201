"""The brake: when nearly everything is refused, that is a wrong config and not bad records."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from streamadapt.errors import BadShareError
from streamadapt.records import DeadLetter

__all__ = ["BAD_SHARE_OF", "BadShare"]

BAD_SHARE_OF = 5000
"""Records over which the share of bad ones is judged: a sensor that is out for days is no wrong
config."""


class BadShare:
    """Counts the refused ones among the last `BAD_SHARE_OF` records.

    Parameters
    ----------
    limit : float, in (0, 1]
        The share that is still borne.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._recent: deque[str] = deque(
            maxlen=BAD_SHARE_OF
        )  # the reasons; empty for those that were taken
        self._bad: Counter[str] = (
            Counter()
        )  # of those: counted as they come and go, as this runs for every lot
        self._newest: dict[str, DeadLetter] = {}  # by reason

    def add(self, count: int, letters: Sequence[DeadLetter]) -> None:
        """Count records, `letters` of them refused.

        Raises
        ------
        BadShareError
            If too many are: how many, why most of them were, an example, and what to do.
        """
        letters = [
            letter for letter in letters if letter.stage != "label"
        ]  # their entries were taken
        self._newest.update((letter.reason, letter) for letter in letters)
        for reason in [""] * (count - len(letters)) + [letter.reason for letter in letters]:
            if len(self._recent) == BAD_SHARE_OF and self._recent[0]:
                self._bad[self._recent[0]] -= 1  # about to be forgotten
            self._recent.append(reason)
            if reason:
                self._bad[reason] += 1
        bad = self._bad.total()
        if len(self._recent) == BAD_SHARE_OF and bad > self.limit * BAD_SHARE_OF:
            raise BadShareError(self._said(bad))

    def _said(self, bad: int) -> str:
        reason, often = self._bad.most_common(1)[0]
        newest = self._newest[reason]
        return (
            f"{bad} of the last {BAD_SHARE_OF} records were refused ({bad / BAD_SHARE_OF:.1%}; "
            f"limits.max_bad_share "
            f"bears {self.limit:.1%}), {often} as {reason}, for example "
            f"{newest.record.position}: {newest.detail}. So "
            "many are rarely bad records: check [fields] and [source] against what comes, which "
            "streamadapt dlq list "
            "CONFIG shows, and start again; if they are rightly refused, raise "
            "limits.max_bad_share"
        )
