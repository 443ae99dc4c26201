"""A small job for every fault: one stream, one pipeline, and the results of an undisturbed run."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.faults.counts import Counts
from benchmarks.faults.states import differing
from streamadapt import (
    RLS,
    Bias,
    DriftMonitor,
    Entry,
    Label,
    Pipeline,
    Position,
    River,
    Supervised,
)
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.settings import EngineSettings
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.records import Prediction
from streamadapt.testing import (
    CRASH,
    IdentityCodec,
    ManualClock,
    MemoryDeadLetters,
    MemorySink,
    MemorySource,
)

__all__ = ["STREAMS", "Job", "final_state", "make_keyed", "make_plain", "written_by"]

HOUR_NS = 3600 * 10**9
STREAMS = ("entries", "labels")
WINDOW = 3
LABEL_DELAY = 6
KEYS = 5
RESIDENT_KEYS = 2

PipelineMaker = Callable[[], "Pipeline | KeyedPipeline"]


def _base(inputs: torch.Tensor) -> torch.Tensor:
    return inputs[-1:, :1] * 2.0


def make_plain() -> Pipeline:
    """Return a pipeline with every kind of state: tensors, river's objects, a detector, a
    guard."""
    learners = [Bias((0.1, 0.01)), RLS(0.98), River("linear_model.LinearRegression")]
    return Pipeline(
        Supervised(WINDOW), _base, learners, drift=[DriftMonitor("adwin", "loss", "boost")]
    )


def make_keyed() -> KeyedPipeline:
    """Return a pipeline for each key, most of them on disk at any time.

    Without river's objects: the checksums of evicted keys are part of the state, and these
    objects' bytes also depend on which equal strings are one object, which is not state.
    """

    def make() -> Pipeline:
        return Pipeline(Supervised(WINDOW), _base, [Bias((0.1, 0.01)), RLS(0.98)])

    return KeyedPipeline(make, max_keys=RESIDENT_KEYS)


class Job:
    """A stream of `n` entries and their labels, and engines that run it through a pipeline, all in
    memory.

    Parameters
    ----------
    n : int
        Entries.
    make : callable () -> Pipeline or KeyedPipeline
    every : int
        Records between two checkpoints.
    """

    def __init__(self, n: int, make: PipelineMaker = make_plain, every: int = 75) -> None:
        rng = np.random.default_rng(n)
        x = rng.normal(size=n).astype(np.float32)
        y = (2.0 * x + np.where(np.arange(n) < n // 2, 1.0, 5.0)).astype(np.float32)
        self.n = n
        self.make = make
        self.every = every
        self.keys = [f"k{rng.integers(KEYS)}" if make is make_keyed else "" for _ in range(n)]
        self.entries = [Entry(x[i : i + 1], i * HOUR_NS, f"e{i}", self.keys[i]) for i in range(n)]
        self.labels = [Label(f"e{i}", y[i : i + 1], (i + LABEL_DELAY) * HOUR_NS) for i in range(n)]

    @cached_property
    def wanted(self) -> dict[str, None]:
        """Names of all required predictions: each entry's, once its key's window is full."""
        met: Counter[str] = Counter()
        wanted: dict[str, None] = {}
        for i, key in enumerate(self.keys):
            met[key] += 1
            if met[key] >= WINDOW:
                wanted[str(Position(STREAMS[0], 0, i))] = None
        return wanted

    def engine(
        self, path: Path | None, *, crash_at: int | None = None, metrics: Metrics | None = None
    ) -> tuple[Engine, MemorySink]:
        """Return an engine over the whole stream, with checkpoints in `path`, and its sink.

        ``crash_at``: after how many entries the process crashes (`SimulatedCrash`), once.
        """
        entries: list[Any] = list(self.entries)
        if crash_at is not None:
            entries.insert(crash_at, CRASH)
        sink, letters = MemorySink(), MemoryDeadLetters()
        settings = EngineSettings(
            checkpoint_path=path, checkpoint_every_entries=self.every, label_wait_s=1.0
        )
        source = MemorySource(entries, self.labels, streams=STREAMS)
        engine = Engine(
            source,
            self.make,
            sink,
            IdentityCodec(),
            letters,
            settings=settings,
            clock=ManualClock(),
            metrics=metrics,
        )
        return engine, sink

    @cached_property
    def undisturbed(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The final state, and every prediction's value by name, of an undisturbed run."""
        with tempfile.TemporaryDirectory() as folder:
            engine, sink = self.engine(Path(folder))
            engine.run()
            return final_state(engine), {
                str(p.position): p.served.tobytes() for p in sink.predictions
            }

    def judge(
        self, counts: Counts, state: dict[str, Any], message: Iterable[tuple[str, bytes]]
    ) -> bool:
        """Compare a trial's final state, and the (name, value) of every prediction it wrote,
        with the undisturbed run.

        Adds every error to `counts` and returns whether there is none; a repeated prediction with
        the same value is only counted.
        """
        right_state, right_values = self.undisturbed
        values: defaultdict[str, list[bytes]] = defaultdict(list)
        for name, value in message:
            values[name].append(value)
        lost = counts.lost
        counts.compare(self.wanted, {name: len(found) for name, found in values.items()})
        differs = bool(differing(right_state, state))
        counts.state_differs += differs
        wrong = sum(
            1
            for name, found in values.items()
            for value in found
            if value != right_values.get(name)
        )
        counts.more["values_differ"] = counts.more.get("values_differ", 0) + wrong
        return not differs and not wrong and counts.lost == lost


def final_state(engine: Engine) -> dict[str, Any]:
    """Return the final state of partition 0."""
    return engine.runners[0].pipeline.state_dict()


def written_by(*sinks: MemorySink) -> list[tuple[str, bytes]]:
    """Return (name, value) of all written predictions, in order."""
    predictions: Sequence[Prediction] = [p for sink in sinks for p in sink.predictions]
    return [(str(p.position), p.served.tobytes()) for p in predictions]
