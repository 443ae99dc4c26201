"""The soak's jobs: keyed jobs that together have every learner, over streams generated during the
run.

A pipeline with all learners takes milliseconds per entry, which is hours for two million. So each
job has a few, and the jobs whose entries are cheap have more of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from streamadapt import (
    ADCSD,
    EATA,
    RLS,
    Bias,
    Calibration,
    Dictionary,
    DriftMonitor,
    Entry,
    ErrorMemory,
    Forecast,
    FrozenModel,
    Holt,
    Label,
    Liquid,
    PerEntry,
    Persistence,
    Pipeline,
    Position,
    Refit,
    River,
    Seasonal,
    SlotBias,
    Supervised,
    Tent,
)
from streamadapt.engine.ports import PartitionOwner, Sink, Source
from streamadapt.learners import Gain, LastValue, Learner
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.records import Prediction, Record, StreamPartition
from streamadapt.testing import encode

__all__ = ["JOBS", "CountingSink", "GeneratedSource", "SoakJob"]

STEP_NS = 300 * 10**9
KEYS, RESIDENT_KEYS = 4, 3
KEY_RUN = (
    250  # entries of one key in a row: after each such run a key is evicted, and another returns
)
LABEL_DELAY = 20
# drawn once and used in a cycle; a prime, so that the phase differs each time
NOISE = 4099
SHIFT_EVERY = 3000
CHANNELS, CLASSES, IMAGE = 2, 3, 8


@dataclass(frozen=True)
class SoakJob:
    """One of the jobs.

    Attributes
    ----------
    make : callable () -> Pipeline
        For one key.
    channels : int
    share : float
        Share of all entries.
    window : int
        The number of a key's first entries without a prediction, plus one.
    target : callable (int, float) -> float, or None
        The label of an entry by its number and its first value; None for forecasts, which need
        none.
    """

    make: Callable[[], Pipeline]
    share: float
    channels: int
    window: int
    target: Callable[[int, float], float] | None = None

    def keyed(self) -> KeyedPipeline:
        """Return the keyed pipeline that the engine runs."""
        return KeyedPipeline(self.make, max_keys=RESIDENT_KEYS)


class GeneratedSource(Source):
    """The stream of a job, generated as it is read: entries, and their labels `LABEL_DELAY`
    entries later.

    Parameters
    ----------
    stream : str
        Its name.
    job : SoakJob
    n : int
        Entries; the labels of the last ones never arrive.
    batch : int
        Records per poll.
    """

    def __init__(self, stream: str, job: SoakJob, n: int, batch: int = 100) -> None:
        self._stream = stream
        self._job = job
        self._end = n if job.target is None else max(n, 2 * n - LABEL_DELAY)
        self._batch = batch
        self._next = 0
        self._paused = False
        self._noise = (
            np.random.default_rng(0).normal(size=(NOISE, job.channels)).astype(np.float32)
        )

    @property
    def streams(self) -> Sequence[str]:
        """The one stream."""
        return (self._stream,)

    def open(self, owner: PartitionOwner) -> None:
        """Start at the positions of `owner`."""
        self._next = owner.partitions_assigned([0])[StreamPartition(self._stream, 0)] or 0

    def poll(self, timeout_s: float) -> list[Record]:
        """Return the next records; never waits."""
        del timeout_s
        first = self._next
        self._next = first if self._paused else min(self._end, first + self._batch)
        return [self._record(offset) for offset in range(first, self._next)]

    def pause(self, partitions: Collection[StreamPartition]) -> None:
        """Pause or resume the stream."""
        self._paused = bool(partitions)

    def lag(self) -> dict[StreamPartition, int]:
        """Records not yet delivered."""
        return {StreamPartition(self._stream, 0): self._end - self._next}

    @property
    def state(self) -> str:
        """``ended`` once everything is delivered."""
        return "ended" if self._next == self._end else "connected"

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        """Do nothing: commits are not used."""

    def close(self) -> None:
        """Nothing is open."""

    def _record(self, offset: int) -> Record:
        item = self._item(offset)
        key = item.key.encode() if isinstance(item, Entry) else None
        return Record(Position(self._stream, 0, offset), key, encode(item), item.time)

    def _item(self, offset: int) -> Entry | Label:
        """Return the next item: first only entries, then a label and an entry in turn."""
        since = offset - LABEL_DELAY
        if self._job.target is None or since < 0:
            return self._entry(offset)
        if since % 2:
            return self._entry(LABEL_DELAY + since // 2)
        i = since // 2
        target = np.float32([self._job.target(i, float(self._values(i)[0]))])
        return Label(str(i), target, (i + LABEL_DELAY) * STEP_NS)

    def _entry(self, i: int) -> Entry:
        return Entry(self._values(i), i * STEP_NS, str(i), f"key-{i // KEY_RUN % KEYS}")

    def _values(self, i: int) -> np.ndarray:
        wave = np.float32(np.sin(i / 50.0))
        values: np.ndarray = wave + self._noise[i % NOISE]
        return values


class CountingSink(Sink):
    """Keeps nothing; counts the predictions, and those out of order or repeated."""

    def __init__(self) -> None:
        self.count = 0
        self.again = 0
        self._last = -1

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Count."""
        for p in predictions:
            self.again += p.position.offset <= self._last
            self._last = max(self._last, p.position.offset)
        self.count += len(predictions)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def _shift(i: int) -> float:
    return 3.0 * (i // SHIFT_EVERY % 2)


def _regression(
    learners: Callable[[], list[Learner]], *drift: tuple[str, str, str]
) -> Callable[[], Pipeline]:
    def make() -> Pipeline:
        monitors = [DriftMonitor(*settings) for settings in drift]
        return Pipeline(Supervised(3), lambda x: x[-1:, :1] * 2.0, learners(), drift=monitors)

    return make


def _calibrating() -> list[Learner]:
    return [
        Calibration(0.9),
        Gain(0.1),
        LastValue(),
        SlotBias(0.1),
        River("linear_model.LinearRegression"),
    ]


def _remembering() -> list[Learner]:
    return [
        Dictionary(),
        ErrorMemory(capacity=60, k=5),
        ErrorMemory(store="sketch", tables=8, bits=4),
        Refit(60, memory=60, hidden=8),
    ]


def _forecast() -> Pipeline:
    learners = [
        ADCSD(),
        Holt(),
        Seasonal("1d"),
        RLS(0.99, loss="l1"),
        ErrorMemory(scope="panel", capacity=60, k=5),
    ]
    drift = [
        DriftMonitor("adwin", "input", "reset", channels="each"),
        DriftMonitor("adwin", "loss", "refit"),
    ]
    return Pipeline(Forecast(4, 2), Persistence(2), learners, drift=drift)


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(IMAGE, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x[:, -1])
        return out


def _classification() -> Callable[[], Pipeline]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = FrozenModel(_Network(), softmax=True)
        images = torch.randn(64, 1, IMAGE)

    def make() -> Pipeline:
        learners = [
            Bias(0.1),
            EATA(8, 1e-2, fisher=images),
            PerEntry(images, memory=16),
            River("linear_model.LogisticRegression"),
            RLS(0.98),
            Tent(8, 1e-2),
        ]
        names = ("ddm", "eddm", "hddm-a", "hddm-w", "fhddm")
        drift = [DriftMonitor(name, "error", "alert") for name in names]
        drift.append(DriftMonitor("adwin", "confidence", "reset"))
        return Pipeline(Supervised(1, classes=CLASSES), base, learners, drift=drift)

    return make


def _line(i: int, x: float) -> float:
    return 2.0 * x + _shift(i)


def _class(i: int, x: float) -> float:
    return float((x > 0.0) + (i // SHIFT_EVERY % 2)) % CLASSES


_squares = _regression(lambda: [Bias((0.1, 0.01)), RLS(0.99)], ("adwin", "loss", "boost"))
_plain = _regression(_calibrating, ("page-hinkley", "residual", "forget"))
_memory = _regression(_remembering, ("kswin", "input", "alert"))
_liquid = _regression(lambda: [Liquid(units=4, unroll=2)], ("adwin", "loss", "reset"))

JOBS = {
    "squares": SoakJob(_squares, 0.80, CHANNELS, 3, _line),
    "plain": SoakJob(_plain, 0.08, CHANNELS, 3, _line),
    "memory": SoakJob(_memory, 0.05, CHANNELS, 3, _line),
    "liquid": SoakJob(_liquid, 0.02, CHANNELS, 3, _line),
    "forecast": SoakJob(_forecast, 0.03, CHANNELS, 4),
    "classification": SoakJob(_classification(), 0.02, IMAGE, 1, _class),
}
"""The jobs by name. Sizes are small so that millions of entries can be run; each learner is in the
job that suits it."""
