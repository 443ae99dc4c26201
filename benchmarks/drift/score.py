"""The score of alarms, given the true changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Change", "Tally", "cooled", "score"]


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the stream.

    Attributes
    ----------
    at : int
        The first entry that can belong to the new concept, counted from 0.
    kind : str
        ``away`` from the concept on which the base was fitted, ``back`` to it, or ``event``.
    """

    at: int
    kind: str = "event"


@dataclass(slots=True)
class Tally:
    """Counts of one stream, or summed over several.

    Attributes
    ----------
    changes : dict of str to int
        Kind -> number of changes.
    delays : dict of str to list of int, in entries
        Kind -> delay from each detected change to the first alarm in its horizon.
    repeats : int
        Further alarms within the horizons.
    false : int
        Alarms outside of all horizons.
    quiet : int, entries
        Entries outside of all horizons, where an alarm is false.
    alarms, entries : int
        Totals.
    chance : float
        The expected number of detected changes if as many alarms were placed at random on the
        stream.
    """

    changes: dict[str, int] = field(default_factory=dict)
    delays: dict[str, list[int]] = field(default_factory=dict)
    repeats: int = 0
    false: int = 0
    quiet: int = 0
    alarms: int = 0
    entries: int = 0
    chance: float = 0.0

    def add(self, other: Tally) -> None:
        """Add another stream's counts."""
        for kind, count in other.changes.items():
            self.changes[kind] = self.changes.get(kind, 0) + count
            self.delays.setdefault(kind, []).extend(other.delays[kind])
        for name in ("repeats", "false", "quiet", "alarms", "entries", "chance"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """Return the sum over streams."""
        total = cls()
        for tally in tallies:
            total.add(tally)
        return total

    @property
    def count(self) -> int:
        """The number of changes of all kinds."""
        return sum(self.changes.values())

    @property
    def detected(self) -> int:
        """The number of changes with an alarm in their horizon."""
        return sum(map(len, self.delays.values()))

    @property
    def delay(self) -> float | None:
        """Median delay of the detected changes, in entries; None if there are none."""
        delays = [d for kind in self.delays.values() for d in kind]
        return float(np.median(delays)) if delays else None

    @property
    def false_rate(self) -> float | None:
        """False alarms per 10,000 entries outside of all horizons; None if there is no such
        entry."""
        return 1e4 * self.false / self.quiet if self.quiet else None

    @property
    def above_chance(self) -> float:
        """Detected changes minus those that as many random alarms would detect, as a share of all;
        0 if there are none."""
        return (self.detected - self.chance) / self.count if self.count else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return counts and rates."""
        kinds = {
            kind: {"changes": n, "detected": len(self.delays[kind]), "delays": self.delays[kind]}
            for kind, n in self.changes.items()
        }
        return {
            "changes": self.count, "detected": self.detected, "missed": self.count - self.detected,
            "median_delay": self.delay, "false": self.false, "false_per_10000": self.false_rate,
            "repeats": self.repeats, "alarms": self.alarms, "entries": self.entries,
            "by_chance": self.chance, "kinds": kinds,
        }  # fmt: skip


def score(alarms: Sequence[int], changes: Sequence[Change], horizon: int, entries: int) -> Tally:
    """Compare alarms with changes.

    Parameters
    ----------
    alarms : sequence of int, increasing
        The entries of the alarms; several at one entry count separately.
    changes : sequence of Change, in order
    horizon : int, in entries
        An alarm belongs to a change if it is less than `horizon` entries after it, and
        before the next one.
    entries : int
        The stream's length.
    """
    tally = Tally(alarms=len(alarms), entries=entries)
    left = list(alarms)
    covered = 0
    for i, change in enumerate(changes):
        end = min(
            change.at + horizon, changes[i + 1].at if i + 1 < len(changes) else entries, entries
        )
        own = [a for a in left if change.at <= a < end]
        left = [a for a in left if not change.at <= a < end]
        covered += end - change.at
        tally.changes[change.kind] = tally.changes.get(change.kind, 0) + 1
        delays = tally.delays.setdefault(change.kind, [])
        if own:
            delays.append(own[0] - change.at)
            tally.repeats += len(own) - 1
        tally.chance += 1.0 - (1.0 - min(len(alarms) / entries, 1.0)) ** (end - change.at)
    tally.false = len(left)
    tally.quiet = entries - covered
    return tally


def cooled(alarms: Sequence[int], cool_down: int) -> list[int]:
    """Leave out the alarms that a monitor's cool-down drops: those within `cool_down` values after
    a reported one.

    Parameters
    ----------
    alarms : sequence of int, increasing
        The values of the signal that fired, by number.
    """
    kept: list[int] = []
    for alarm in alarms:
        if not kept or alarm - kept[-1] > cool_down:
            kept.append(alarm)
    return kept
