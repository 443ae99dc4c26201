"""Every detector on every signal of every stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.drift import measured, synthetic
from benchmarks.drift.score import Tally, score
from benchmarks.drift.signals import ALWAYS, MOVING, NEVER, Alarms, Stream, record, watch
from streamadapt.drift.detectors import BINARY, DETECTORS

__all__ = ["DUMMIES", "GROUPS", "SEEDS", "SLOW", "Compared", "Row", "compare", "made", "rows_for"]

SEEDS = (0, 1, 2)
SLOW = ("kswin",)
"""Signals that are watched on the first seed's streams only: they cost a hundred times the
others."""
DUMMIES = (ALWAYS, NEVER)
EVERY = ("loss", MOVING, "error", "input")
"""Signals on which every numeric detector is tried."""
EVERY_SLOW = ("loss", "error", "input")
FURTHER = ("residual", "confidence", "embedding")
"""Signals that are tried with the first detector only."""
GROUPS = {
    "abrupt": "classification, abrupt changes",
    "gradual": "classification, gradual changes",
    "creeping": "classification, a drift that begins and goes on",
    "regression": "regression, river's FriedmanDrift",
    "stationary": "controls that never change",
    "linkload": "forecast of link loads, links fail",
    "linkload-still": "the same, no link fails",
    "glucose": "calibration of a glucose sensor that is changed",
}

Row = tuple[str, str]
"""Detector and signal."""
Progress = Callable[[str], None]


@dataclass(slots=True)
class Compared:
    """The counts.

    Attributes
    ----------
    raw, quiet : dict of (group, stream, seed, row) to Tally
        Without and with the cool-down.
    seconds, values : dict of Row
        Process time of all updates, and their number.
    """

    raw: dict[tuple[str, str, int, Row], Tally] = field(default_factory=dict)
    quiet: dict[tuple[str, str, int, Row], Tally] = field(default_factory=dict)
    seconds: dict[Row, float] = field(default_factory=dict)
    values: dict[Row, int] = field(default_factory=dict)

    def add(self, stream: Stream, row: Row, alarms: Alarms) -> None:
        """Add one detector's alarms on one stream."""
        key = (stream.group, stream.name, stream.seed, row)
        self.raw[key] = score(alarms.raw, stream.changes, stream.horizon, stream.entries)
        self.quiet[key] = score(alarms.quiet, stream.changes, stream.horizon, stream.entries)
        self.seconds[row] = self.seconds.get(row, 0.0) + alarms.seconds
        self.values[row] = self.values.get(row, 0) + alarms.values

    def groups(self) -> list[str]:
        """Return the groups that were run, in the page's order."""
        return [g for g in GROUPS if any(key[0] == g for key in self.raw)]

    def rows(self, group: str | None = None) -> list[Row]:
        """Return the rows that were tried on a group, or at all."""
        return list(dict.fromkeys(key[3] for key in self.raw if group in (None, key[0])))

    def total(
        self, row: Row, group: str, name: str | None = None, *, quiet: bool = False
    ) -> Tally:
        """Sum a row's counts over a group's streams, or over the seeds of one stream."""
        of = self.quiet if quiet else self.raw
        return Tally.total(
            t
            for key, t in of.items()
            if key[3] == row and key[0] == group and name in (None, key[1])
        )

    def cost(self, row: Row) -> float:
        """Return the microseconds per update."""
        return 1e6 * self.seconds[row] / self.values[row]

    def as_json(self) -> dict[str, Any]:
        """Return every stream's counts, those of the groups, and the costs."""
        streams: dict[str, Any] = {}
        for (group, name, seed, row), tally in self.raw.items():
            quiet = self.quiet[group, name, seed, row]
            entry = {"alarms": tally.as_json(), "with_cool_down": quiet.as_json()}
            streams.setdefault(name, {}).setdefault(str(seed), {})[":".join(row)] = entry
        groups = {
            group: {
                ":".join(row): {
                    "alarms": _flat(self.total(row, group)),
                    "with_cool_down": _flat(self.total(row, group, quiet=True)),
                }
                for row in self.rows(group)
            }
            for group in self.groups()
        }
        return {
            "groups": groups,
            "microseconds": {":".join(row): self.cost(row) for row in self.rows()},
            "streams": streams,
        }


def _flat(tally: Tally) -> dict[str, Any]:
    """Return the counts without the single delays."""
    figures = tally.as_json()
    figures["kinds"] = {
        k: {"changes": v["changes"], "detected": v["detected"]}
        for k, v in figures["kinds"].items()
    }
    return figures


def rows_for(stream: Stream, slow: bool) -> list[Row]:
    """Return the detectors and the signals of a stream that they watch."""
    rows: list[Row] = [(name, "loss") for name in DUMMIES]
    for name, place in DETECTORS.items():
        if name in SLOW and not slow:
            continue
        if place.startswith(BINARY):
            rows.append((name, "error"))
            continue
        tried = (
            (*EVERY, *FURTHER) if name == "adwin" else EVERY if name not in SLOW else EVERY_SLOW
        )
        rows += [(name, signal) for signal in tried if signal in stream.signals]
    return rows


def made(seeds: Sequence[int] = SEEDS) -> Iterator[tuple[str, int, Callable[[], Stream]]]:
    """Yield the name and seed of every stream, and its factory."""
    for seed in seeds:
        for name, make in (*synthetic.streams(seed), *measured.streams(seed)):
            yield name, seed, make


def compare(
    streams: Sequence[tuple[str, int, Callable[[], Stream]]], progress: Progress
) -> Compared:
    """Run all detectors on all streams."""
    compared = Compared()
    slowly = min((seed for _, seed, _ in streams), default=0)
    for name, seed, make in streams:
        start = time.process_time()
        stream = make()
        traces = record(stream)
        for row in rows_for(stream, slow=seed == slowly):
            compared.add(stream, row, watch(*row, traces[row[1]], stream.horizon))
        progress(
            f"{name}, seed {seed}: {stream.entries} entries, {time.process_time() - start:.0f} s"
        )
    return compared
