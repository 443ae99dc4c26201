"""The product's own signals of a stream, recorded once, so that every detector receives the same
values."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.drift.score import Change, cooled
from streamadapt import Entry, Label, Pipeline
from streamadapt.drift.monitor import DriftMonitor

__all__ = [
    "ALWAYS",
    "CLASSIFICATION",
    "MOVING",
    "NEVER",
    "RATE",
    "Alarms",
    "Monitor",
    "Stream",
    "Trace",
    "record",
    "watch",
]

ALWAYS, NEVER = "always-fire", "never-fire"
MOVING = "loss/moving"
"""Not a signal of the product: the base's loss relative to its running mean, which has this
rate."""
RATE = 0.01
WARM = 20
"""The number of losses whose mean starts the running mean."""
CLASSIFICATION = ("loss", "error", "residual", "input", "confidence", "embedding")


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream with known changes, and the pipeline that predicts it.

    Attributes
    ----------
    group : str
        The name of streams that are counted together.
    items : sequence of Entry or Label
        In the order of arrival.
    pipeline : callable (sequence of DriftMonitor) -> Pipeline
        Makes a pipeline with a frozen base and these monitors.
    changes : tuple of Change
        Their positions count the entries among the items.
    horizon : int, in entries
        The time after a change in which an alarm counts; also the cool-down.
    signals : tuple of str
        The signals of this pipeline.
    """

    group: str
    name: str
    seed: int
    items: Sequence[Entry | Label]
    pipeline: Callable[[Sequence[DriftMonitor]], Pipeline]
    changes: tuple[Change, ...]
    horizon: int
    signals: tuple[str, ...] = CLASSIFICATION

    @property
    def entries(self) -> int:
        """The number of entries."""
        return sum(isinstance(item, Entry) for item in self.items)


class Trace(NamedTuple):
    """A signal.

    Attributes
    ----------
    at : ndarray, (values,), int
        The newest entry when the value became known.
    values : ndarray, (values,), float64
    """

    at: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


class Recorder(DriftMonitor):
    """A monitor that records every value it receives and never fires."""

    def __init__(self, signal: str) -> None:
        super().__init__("adwin", signal)
        self.entry = -1
        self.at: list[int] = []
        self.values: list[float] = []

    def update(self, value: float | npt.NDArray[np.float64]) -> bool:
        """Record the value."""
        self.at.append(self.entry)
        self.values.append(float(value))
        return False


class Plain(Recorder):
    """Records the base's mean loss over matured cells, as the pipeline's statistics count it."""

    def __init__(self) -> None:
        super().__init__("loss")
        self.pipeline: Pipeline | None = None
        self.seen = (0.0, 0)

    def update(self, value: float | npt.NDArray[np.float64]) -> bool:
        """Record the change of the sum; nothing if no cell matured."""
        del value
        assert self.pipeline is not None
        before, stats = self.seen, self.pipeline.stats
        self.seen = stats.loss_sum["base"], stats.loss_cells["base"]
        if self.seen[1] > before[1]:
            super().update((self.seen[0] - before[0]) / (self.seen[1] - before[1]))
        return False

    def trace(self) -> Trace:
        """Return the values relative to their running mean before each."""
        usual, relative = float(np.mean(self.values[:WARM])), []
        for value in self.values:
            relative.append(value / usual)
            usual += RATE * (value - usual)
        return Trace(np.array(self.at, np.int64), np.array(relative))


class Monitor(Protocol):
    """An object that can be compared: a `DriftMonitor`, or one of the dummies."""

    def update(self, value: float) -> bool: ...


@dataclass(frozen=True, slots=True)
class Always:
    """Fires at every value."""

    fires: bool = True

    def update(self, value: float) -> bool:
        """Return True, or always False."""
        del value
        return self.fires


@dataclass(slots=True)
class Alarms:
    """A monitor's alarms on a trace.

    Attributes
    ----------
    raw, quiet : list of int
        The entries at which it fired, without and with the cool-down.
    seconds : float
        Process time of all its updates.
    values : int
        The number of values.
    """

    raw: list[int] = field(default_factory=list)
    quiet: list[int] = field(default_factory=list)
    seconds: float = 0.0
    values: int = 0


def record(stream: Stream) -> dict[str, Trace]:
    """Run the stream through its pipeline; return every signal."""
    recorders = [Recorder(signal) for signal in stream.signals if signal != MOVING]
    plain = Plain()
    monitors = [*recorders, plain]
    plain.pipeline = pipeline = stream.pipeline(monitors)
    entry = -1
    for item in stream.items:
        if isinstance(item, Entry):
            entry += 1
            for recorder in monitors:
                recorder.entry = entry
        pipeline.observe([item])
    traces = {r.signal: Trace(np.array(r.at, np.int64), np.array(r.values)) for r in recorders}
    return traces if MOVING not in stream.signals else {**traces, MOVING: plain.trace()}


def monitor(detector: str, signal: str, **settings: Any) -> Monitor:
    """Make a monitor with river's defaults, or a dummy."""
    if detector in (ALWAYS, NEVER):
        return Always(detector == ALWAYS)
    named = "loss" if signal == MOVING else signal
    return DriftMonitor(detector, named, **settings)  # type: ignore[arg-type]


def watch(detector: str, signal: str, trace: Trace, cool_down: int) -> Alarms:
    """Let a detector watch a trace."""
    update = monitor(detector, signal).update
    values = trace.values.tolist()
    start = time.process_time()
    fired = [i for i, value in enumerate(values) if update(value)]
    seconds = time.process_time() - start
    raw, quiet = (
        trace.at[np.array(which, int)].tolist() for which in (fired, cooled(fired, cool_down))
    )
    return Alarms(raw, quiet, seconds, len(values))
