"""False alarms of a monitor of many channels, with and without dividing the level by their
number."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamadapt.drift.detectors import LEVELS, corrected
from streamadapt.drift.monitor import DriftMonitor

__all__ = ["INERTIA", "NOISES", "PLANS", "Family", "Plan", "families", "measure", "params_of"]


@dataclass(frozen=True, slots=True)
class Family:
    """False alarms on stationary noise.

    Attributes
    ----------
    level : float
        The level of one test, before the division.
    noise : str
        One of `NOISES`.
    corrected : bool
        Whether the level of each test was divided by the number of channels.
    entries, runs : int
        Entries per run; number of runs.
    any_alarm : float
        The share of the runs with at least one alarm.
    per_10000 : float
        Entries with an alarm, per 10,000.
    microseconds : float
        Time per entry, all channels.
    """

    detector: str
    level: float
    noise: str
    channels: int
    corrected: bool
    entries: int
    runs: int
    any_alarm: float
    per_10000: float
    microseconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the figures."""
        return asdict(self)


INERTIA = 0.9
"""Correlation of neighbours, for the correlated noise."""


def _heavy(rng: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    return rng.lognormal(size=shape)


def _inert(rng: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return first-order autoregressive noise, started in its stationary distribution."""
    made = rng.normal(size=shape)
    made[0] /= np.sqrt(1.0 - INERTIA**2)
    for i in range(1, len(made)):
        made[i] += INERTIA * made[i - 1]
    return np.abs(made)


NOISES: dict[str, Callable[[np.random.Generator, tuple[int, int]], npt.NDArray[np.float64]]] = {
    "independent": _heavy,
    "autocorrelated": _inert,
}
"""The loss of a base with unchanging errors: log-normal and independent; or the size of an
autoregression."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A measurement: a detector with a level on a noise, and the number of runs for each number of
    channels."""

    detector: str
    noise: str
    runs: dict[int, int]
    entries: int = 1000
    level: float | None = None


PLANS = (
    Plan("adwin", "independent", {1: 400, 10: 200, 100: 40}),
    Plan("adwin", "independent", {1: 400, 10: 200, 100: 40}, level=0.1),
    Plan("adwin", "autocorrelated", {1: 400, 10: 100, 100: 20}),
    Plan("kswin", "independent", {1: 60, 10: 8, 100: 1}, entries=300),
)


def families(
    plans: Sequence[Plan] = PLANS, progress: Callable[[str], None] = lambda _: None
) -> list[Family]:
    """Measure every plan."""
    found = []
    for plan in plans:
        for channels, runs in plan.runs.items():
            ways = (False, True) if channels > 1 else (True,)
            found += [measure(plan, channels, runs, divided=divided) for divided in ways]
        progress(
            f"{plan.detector} on {plan.noise} noise, {', '.join(map(str, plan.runs))} channels"
        )
    return found


def measure(plan: Plan, channels: int, runs: int, *, divided: bool) -> Family:
    """Let one monitor of all channels watch independent channels."""
    # The same noise with and without the correction.
    rng = np.random.default_rng([channels, plan.entries])
    level = params_of(plan)[LEVELS[plan.detector]]
    given = (
        params_of(plan) if divided else {LEVELS[plan.detector]: min(level * channels, 1.0 - 1e-9)}
    )
    firing, hit, seconds = 0, 0, 0.0
    for _ in range(runs):
        noise = NOISES[plan.noise](rng, (plan.entries, channels))
        monitor = DriftMonitor(plan.detector, "loss", channels="each", params=given)  # type: ignore[arg-type]
        start = time.process_time()
        alarms = sum(monitor.update(row) for row in noise)
        seconds += time.process_time() - start
        firing += alarms
        hit += alarms > 0
    total = plan.entries * runs
    return Family(
        plan.detector, level, plan.noise, channels, divided, plan.entries, runs,
        hit / runs, 1e4 * firing / total, 1e6 * seconds / total,
    )  # fmt: skip


def params_of(plan: Plan) -> dict[str, float]:
    """Return the level of one test: the plan's or river's own.

    The monitor divides it by the number of channels.
    """
    name = LEVELS[plan.detector]
    return corrected(plan.detector, {} if plan.level is None else {name: plan.level}, 1)
