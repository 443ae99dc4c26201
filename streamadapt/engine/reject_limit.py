"""The limit on refused records: if nearly all are refused, the config is wrong."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from streamadapt.errors import BadShareError
from streamadapt.records import DeadLetter

__all__ = ["BAD_SHARE_WINDOW", "RejectLimit"]

BAD_SHARE_WINDOW = 5000
"""Number of recent records over which the share of refused ones is measured. It is large because
a sensor that fails for days is not a wrong config."""


class RejectLimit:
    """Counts the refused records among the last `BAD_SHARE_WINDOW`, and stops the engine above a
    limit.

    Parameters
    ----------
    limit : float, in (0, 1]
        The largest share of refused records that is tolerated.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        # The reasons; empty for accepted records.
        self._recent: deque[str] = deque(maxlen=BAD_SHARE_WINDOW)
        # refused records in `_recent` by reason, updated step by step since `add` runs for every
        # batch
        self._bad: Counter[str] = Counter()
        self._newest: dict[str, DeadLetter] = {}  # by reason

    def add(self, count: int, letters: Sequence[DeadLetter]) -> None:
        """Count `count` records, of which `letters` were refused.

        Raises
        ------
        BadShareError
            If too many were refused. Its message has the number, the most frequent reason, an
            example, and what to do.
        """
        # stage "label": only the label was refused, the entry was accepted
        letters = [letter for letter in letters if letter.stage != "label"]
        self._newest.update((letter.reason, letter) for letter in letters)
        for reason in [""] * (count - len(letters)) + [letter.reason for letter in letters]:
            if len(self._recent) == BAD_SHARE_WINDOW and self._recent[0]:
                self._bad[self._recent[0]] -= 1  # about to be forgotten
            self._recent.append(reason)
            if reason:
                self._bad[reason] += 1
        bad = self._bad.total()
        if len(self._recent) == BAD_SHARE_WINDOW and bad > self.limit * BAD_SHARE_WINDOW:
            raise BadShareError(self._message(bad))

    def _message(self, bad: int) -> str:
        reason, often = self._bad.most_common(1)[0]
        newest = self._newest[reason]
        return (
            f"{bad} of the last {BAD_SHARE_WINDOW} records were refused "
            f"({bad / BAD_SHARE_WINDOW:.1%}; limits.max_bad_share tolerates {self.limit:.1%}), "
            f"{often} as {reason}, for example "
            f"{newest.record.position}: {newest.detail}. A share this large usually means a wrong "
            "config: check [fields] and [source] against the refused records, which "
            "streamadapt dlq list CONFIG shows, and start again; if they are rightly refused, "
            "raise limits.max_bad_share"
        )
