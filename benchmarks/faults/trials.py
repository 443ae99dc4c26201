"""One fault of the brokers under one setting: the observations, the verdict, and a file of such
trials."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults.counts import Counts

__all__ = [
    "Arrival",
    "Ended",
    "Partition",
    "Setting",
    "Trial",
    "Trials",
    "judge",
    "longest_gap",
    "wanted_trials",
]

MOST_GAP_S = 15.0
"""Predictions must resume at most this time after the end of a fault."""
FENCED_EXIT = 1


class Setting(NamedTuple):
    """A service's guarantee and number of processes."""

    guarantee: str
    members: int

    def __str__(self) -> str:
        return (
            f"{self.guarantee}, {'alone' if self.members == 1 else f'a group of {self.members}'}"
        )


class Arrival(NamedTuple):
    """A prediction that a reader of committed records has received."""

    at: float
    """Time when the reader received it, s of the reader's clock."""
    offset: int
    """Offset of its entry."""
    value: bytes
    appended: float
    """Time when the broker appended it, s since the Unix epoch."""


@dataclass(frozen=True)
class Partition:
    """The entries fed to one partition during a trial, and all its predictions up to the end of
    the trial.

    Attributes
    ----------
    wanted : range
        The offsets of the entries that were fed.
    fed_at : mapping
        The time when a reader of the input received each entry, by offset, s.
    arrivals : sequence of Arrival
        In the order of receipt; those of earlier trials too.
    """

    wanted: range
    fed_at: Mapping[int, float]
    arrivals: Sequence[Arrival]


class Ended(NamedTuple):
    """A process that ended without being stopped."""

    member: str
    exit: int | None
    fenced: bool
    """It was the paused process, and it reported that another engine had fenced it."""
    why: str


@dataclass(frozen=True)
class Trial:
    """One fault under one setting.

    Attributes
    ----------
    fault, guarantee : str
    members : int
        Processes of the service; those of two share a group.
    hit : bool
        Whether the faulty broker mattered to this service: it led a partition, or was one of its
        coordinators; also true for a service without a coordinator. A service that was not hit
        counts as tried, but not towards the required trials.
    length_s : float
        From the fault's beginning until the brokers (or the process) were back. For a rolling
        restart the longest absence of one broker.
    lost, doubled, values_differ : int
        Entries without a prediction; repeated predictions; those of them with another
        value.
    gap_s : float
        The longest time without a new prediction at a reader of committed records, of any
        partition.
    gap_appended_s : float
        The same by the time at which the broker appended them.
    gap_input_s : float
        The longest time without a new entry at a reader of the input.
    lag_s : float
        The longest time from an entry's arrival at a reader to its prediction's.
    fed : int
        Entries.
    ended : list of Ended
    load : float
        The machine's load average of the last minute, at the end.
    broker, version, began : str
        The broker, streamadapt's version, when the fault began.
    """

    fault: str
    guarantee: str
    members: int
    hit: bool = True
    length_s: float = 0.0
    lost: int = 0
    doubled: int = 0
    values_differ: int = 0
    gap_s: float = 0.0
    gap_appended_s: float = 0.0
    gap_input_s: float = 0.0
    lag_s: float = 0.0
    fed: int = 0
    ended: list[Ended] = field(default_factory=list)
    load: float = 0.0
    broker: str = ""
    version: str = ""
    began: str = ""

    @property
    def setting(self) -> Setting:
        """Return the guarantee and the number of processes."""
        return Setting(self.guarantee, self.members)

    @property
    def survived(self) -> bool:
        """Whether every bar is met."""
        return (
            self.fed > 0
            and self.lost == self.values_differ == 0
            and (self.doubled == 0 or self.guarantee == "at-least-once")
            and self.gap_s <= self.length_s + MOST_GAP_S
            and all(one.fenced and one.exit == FENCED_EXIT for one in self.ended)
        )


def judge(
    trial: Trial, partitions: Iterable[Partition], since: float, until: float, clock: float = 0.0
) -> Trial:
    """Return `trial` with the observations in its partitions between two times of the reader's
    clock, s.

    Parameters
    ----------
    clock : float
        Added to a time of the reader's clock to get the seconds since the Unix epoch.
    """
    for one in partitions:
        seen: Counter[int] = Counter()
        first: dict[int, Arrival] = {}
        doubled = differ = 0
        for arrival in one.arrivals:
            again = arrival.offset in seen
            seen[arrival.offset] += 1
            known = first.setdefault(arrival.offset, arrival)
            if again and arrival.at >= since:
                doubled += 1
                differ += arrival.value != known.value
        new = [a for a in first.values() if a.at >= since]
        lags = [first[i].at - one.fed_at[i] for i in one.wanted if i in first and i in one.fed_at]
        trial = replace(
            trial,
            fed=trial.fed + len(one.wanted),
            lost=trial.lost + sum(i not in seen for i in one.wanted),
            doubled=trial.doubled + doubled,
            values_differ=trial.values_differ + differ,
            gap_s=max(trial.gap_s, longest_gap([a.at for a in new], since, until)),
            gap_appended_s=max(
                trial.gap_appended_s,
                longest_gap([a.appended for a in new], since + clock, until + clock),
            ),
            gap_input_s=max(trial.gap_input_s, longest_gap(one.fed_at.values(), since, until)),
            lag_s=max([trial.lag_s, *lags]),
        )
    return trial


def longest_gap(times: Iterable[float], start: float, end: float) -> float:
    """Return the longest time between two neighbours of `times`, and from `start` and to `end`,
    s."""
    inside = sorted(time for time in times if start <= time <= end)
    return max(later - earlier for earlier, later in pairwise([start, *inside, end]))


def wanted_trials(setting: Setting, *, quick: bool) -> int:
    """Return the smallest number of trials of each fault for a setting."""
    if quick:
        return 1
    return 10 if setting == Setting("exactly-once", 2) else 3


class Trials:
    """A file to which each trial is appended as a line of JSON, so that a later run continues it.

    Parameters
    ----------
    path : Path
        Need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.all = [_trial(json.loads(line)) for line in lines if line.strip()]

    def append(self, trials: Iterable[Trial]) -> None:
        """Append these trials."""
        new = list(trials)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(
                json.dumps(asdict(one) | {"survived": one.survived}) + "\n" for one in new
            )
        self.all += new

    def missing(self, fault: str, setting: Setting, *, quick: bool) -> int:
        """Return how many trials are still missing."""
        done = sum(one.fault == fault and one.setting == setting and one.hit for one in self.all)
        return max(0, wanted_trials(setting, quick=quick) - done)

    def counts(self, faults: Sequence[str]) -> Counts:
        """Return the figures over all trials of these faults, with a row for each fault and
        setting."""
        these = [one for one in self.all if one.fault in faults]
        counts = Counts(tried=len(these), survived=sum(one.survived for one in these))
        counts.lost = sum(one.lost for one in these)
        counts.doubled = sum(one.doubled for one in these if one.guarantee != "at-least-once")
        counts.more = {
            "broker": ", ".join(sorted({one.broker for one in these})),
            "doubled_at_least_once": sum(
                one.doubled for one in these if one.guarantee == "at-least-once"
            ),
            "values_differ": sum(one.values_differ for one in these),
            "longest_gap_s": round(max((one.gap_s for one in these), default=0.0), 1),
            "ended": sum(len(one.ended) for one in these),
            "rows": [row for fault in faults for row in _rows(fault, these)],
        }
        return counts


def _trial(line: dict[str, Any]) -> Trial:
    line.pop("survived")
    return Trial(**line | {"ended": [Ended(*one) for one in line["ended"]]})


def _rows(fault: str, trials: Sequence[Trial]) -> Iterable[dict[str, Any]]:
    settings = sorted({one.setting for one in trials if one.fault == fault})
    for setting in settings:
        these = [one for one in trials if one.fault == fault and one.setting == setting]
        yield {
            "fault": fault,
            "setting": str(setting),
            "tried": len(these),
            "survived": sum(one.survived for one in these),
            "lost": sum(one.lost for one in these),
            "doubled": sum(one.doubled for one in these),
            "values_differ": sum(one.values_differ for one in these),
            "longest_gap_s": round(max(one.gap_s for one in these), 1),
            "longest_after_s": round(max(one.gap_s - one.length_s for one in these), 1),
            "ended": sum(len(one.ended) for one in these),
        }
