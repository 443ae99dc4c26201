"""Two sides of a comparison, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Measured", "Round", "Rounds", "Side", "alternate", "seconds"]

Round = Callable[[], float]
"""Does the work of one round; returns the CPU time in seconds of one entry."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison.

    Attributes
    ----------
    name : str
    start : callable
        Prepares the work; returns a context manager that gives a `Round`.
    """

    name: str
    start: Callable[[], AbstractContextManager[Round]]

    @classmethod
    def of(cls, name: str, prepare: Callable[[], Round]) -> Side:
        """Return a side that has nothing to release."""
        return cls(name, lambda: nullcontext(prepare()))


@dataclass(slots=True)
class Rounds:
    """The times of all rounds, in seconds of one entry.

    Attributes
    ----------
    ours : list of float
    rivals : dict of str to list of float
        In each place the time next to that of `ours`.
    failed : dict of str to str
        Rivals that could not be measured, with the reason.
    """

    ours: list[float] = field(default_factory=list)
    rivals: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def ratios(self, rival: str) -> list[float]:
        """Return each round's ratio: the rival's time divided by ours."""
        return [theirs / own for own, theirs in zip(self.ours, self.rivals[rival], strict=True)]

    @property
    def fastest(self) -> str | None:
        """The rival with the least time; None if none was measured."""
        return min(
            self.rivals, key=lambda name: statistics.median(self.rivals[name]), default=None
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of one scenario.

    Attributes
    ----------
    name : str
    unit : str
        Of the times: ``us`` or ``s``, and what is counted.
    protocol : str
        What was measured, and what is in the time of each side.
    rounds : Rounds or None
        None if nothing was measured.
    problem : str
        What was not measured, and why.
    skipped : bool
        Whether something that the scenario needs is not there: no failure.
    more : dict
        Further figures, by name.
    """

    name: str
    unit: str
    protocol: str
    rounds: Rounds | None = None
    problem: str = ""
    skipped: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether a side that should have been measured was not."""
        return not self.skipped and (self.rounds is None or bool(self._problems()))

    def _problems(self) -> list[str]:
        failed = {} if self.rounds is None else self.rounds.failed
        own = [self.problem] if self.problem else []
        return own + [f"{name}: {why}" for name, why in failed.items()]

    def as_json(self) -> dict[str, Any]:
        """Return the figures: ``ratio`` is against the fastest rival."""
        figures: dict[str, Any] = dict.fromkeys(("ratio", "ours", "rival", "rival_name"))
        figures |= {"unit": self.unit, "quartiles": None, "protocol": self.protocol}
        if self.rounds is None:
            return figures | {"skipped" if self.skipped else "error": self.problem}
        factor, rounds = 1e6 if self.unit.startswith("us") else 1.0, self.rounds
        times = {"ours": [factor * t for t in rounds.ours]}
        figures["ours"] = statistics.median(times["ours"])
        others = {rival: _against(rounds, rival, factor) for rival in rounds.rivals}
        if rounds.fastest is not None:
            chosen = others.pop(rounds.fastest)
            times["rival"] = [factor * t for t in rounds.rivals[rounds.fastest]]
            times["ratio"] = rounds.ratios(rounds.fastest)
            figures |= {**chosen, "rival_name": rounds.fastest}
        figures["quartiles"] = {name: _quartiles(values) for name, values in times.items()}
        if others:
            figures["others"] = others
        if self.failed:
            figures["error"] = "; ".join(self._problems())
        return figures | self.more


def _against(rounds: Rounds, rival: str, factor: float) -> dict[str, float]:
    return {
        "ratio": statistics.median(rounds.ratios(rival)),
        "rival": factor * statistics.median(rounds.rivals[rival]),
    }


def _quartiles(values: Sequence[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, (0.25, 0.75))]


def seconds(work: Callable[[], Any], entries: int) -> float:
    """Return the process's CPU time of some work, in seconds of one entry."""
    start = time.process_time()
    work()
    return (time.process_time() - start) / entries


def alternate(
    ours: Side, rivals: Sequence[Side], rounds: int, progress: Callable[[str], None]
) -> Rounds:
    """Measure both sides in turns, after one round of each that does not count.

    The order changes from round to round. A rival that raises an exception is listed in
    `Rounds.failed`, and the others go on; an exception of our own side is raised.
    """
    found = Rounds()
    with ExitStack() as stack:
        own = stack.enter_context(ours.start())
        own()
        running: dict[str, Round] = {}
        for rival in rivals:
            progress(f"preparing {rival.name}")
            try:
                running[rival.name] = stack.enter_context(rival.start())
                running[rival.name]()
            except Exception as exc:
                _leave_out(found, running, rival.name, exc)
        found.rivals = {name: [] for name in running}
        for i in range(rounds):
            progress(f"round {i + 1} of {rounds}")
            _one_round(found, own, running, first=i % 2 == 0)
    return found


def _one_round(found: Rounds, own: Round, running: dict[str, Round], *, first: bool) -> None:
    if first:
        found.ours.append(own())
    for name, work in list(running.items()):
        try:
            found.rivals[name].append(work())
        except Exception as exc:
            _leave_out(found, running, name, exc)
    if not first:
        found.ours.append(own())


def _leave_out(found: Rounds, running: dict[str, Round], name: str, exc: Exception) -> None:
    found.failed[name] = f"{type(exc).__name__}: {exc}"
    running.pop(name, None)
    found.rivals.pop(name, None)
