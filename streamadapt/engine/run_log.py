"""The log lines of a long run: dead letters, and a progress line once a minute."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamadapt.clock import Clock
from streamadapt.records import DeadLetter

__all__ = ["EVERY_S", "RunLog"]

_LOG = logging.getLogger("streamadapt")

EVERY_S = 60.0


class RunLog:
    """Logs the first dead letter of each reason at once, then at most one line a minute for each
    reason, and one progress line a minute.

    Parameters
    ----------
    clock : Clock
        A minute is measured by its `monotonic` time.

    Attributes
    ----------
    quiet : bool
        Whether to log nothing, for short runs whose user waits for the result.
    """

    def __init__(self, clock: Clock) -> None:
        self.quiet = False
        self._clock = clock
        self._beat_at = clock.monotonic()
        self._said_at: dict[str, float] = {}  # reason -> when it was last logged
        self._since: Counter[str] = Counter()  # reason -> refused since then
        self._newest: dict[str, DeadLetter] = {}
        self._refused = 0
        self._before: Mapping[str, Any] = {}

    def refused(self, letters: Sequence[DeadLetter]) -> None:
        """Count refused records; the first of each reason is logged at once."""
        self._refused += len(letters)
        for letter in letters:
            reason = str(letter.reason)
            if reason in self._said_at:
                self._since[reason] += 1
                self._newest[reason] = letter
            elif not self.quiet:
                self._said_at[reason] = self._clock.monotonic()
                _LOG.warning("refused %s as %s: %s", letter.record.position, reason, letter.detail)

    def tick(self, figures: Callable[[], Mapping[str, Any]]) -> None:
        """Log the lines that are due; called between two polls.

        Parameters
        ----------
        figures : callable () -> mapping
            ``entries``, ``predictions``: counts so far; ``lag``: records not yet processed, or
            None; ``losses``: role -> sum so far and the number of matured cells in the sum.
        """
        if self.quiet:
            return
        now = self._clock.monotonic()
        for reason in [
            r for r, n in self._since.items() if n and now - self._said_at[r] >= EVERY_S
        ]:
            self._say_refused(reason, now)
        if now - self._beat_at >= EVERY_S:
            self._say_beat(figures(), now)

    def _say_refused(self, reason: str, now: float) -> None:
        letter, count = self._newest.pop(reason), self._since.pop(reason)
        since_s = now - self._said_at[reason]
        self._said_at[reason] = now
        at, detail = letter.record.position, letter.detail
        _LOG.warning(
            "refused %d more as %s in %.0f s, the newest %s: %s",
            count,
            reason,
            since_s,
            at,
            detail,
        )

    def _say_beat(self, figures: Mapping[str, Any], now: float) -> None:
        # After a restart from the last commit a partition's counts are lower than before.
        fresh = {
            name: max(0, figures[name] - self._before.get(name, 0))
            for name in ("entries", "predictions")
        }
        parts = [f"{count} {name}" for name, count in fresh.items()]
        parts.append(f"{self._refused} dead letters in {now - self._beat_at:.0f} s")
        lag = figures["lag"]
        parts.append("lag unknown" if lag is None else f"lag {lag}")
        means = {
            role: mean
            for role in ("served", "base")
            if (mean := self._fresh_mean(figures, role)) is not None
        }
        if means:
            parts.append(
                "mean loss " + ", ".join(f"{role} {mean:.4g}" for role, mean in means.items())
            )
        _LOG.info("%s", ", ".join(parts))
        self._before = dict(figures)
        self._refused = 0
        self._beat_at = now

    def _fresh_mean(self, figures: Mapping[str, Any], role: str) -> float | None:
        total, cells = figures["losses"].get(role, (0.0, 0))
        total_before, cells_before = self._before.get("losses", {}).get(role, (0.0, 0))
        count = cells - cells_before
        return (total - total_before) / count if count > 0 else None
