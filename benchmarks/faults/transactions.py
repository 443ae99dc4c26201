"""exactly-once on the transactional log in memory: the process crashes at every step."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.faults.counts import Counts
from benchmarks.faults.states import flat
from streamadapt import RLS, Bias, DriftMonitor, Entry, Label, Pipeline, Supervised
from streamadapt.engine.engine import Engine
from streamadapt.engine.settings import EngineSettings
from streamadapt.testing import (
    IdentityCodec,
    LogSink,
    ManualClock,
    MemoryDeadLetters,
    MemorySource,
    SimulatedCrash,
    TransactionalLog,
)

__all__ = ["killed_at_every_step"]

ENTRIES, DELAY, EVERY = 300, 6, 37
QUICK_EVERY = 12
HOUR_NS = 3600 * 10**9

Hook = Callable[[str], None]


def killed_at_every_step(quick: bool) -> Counts:
    """Crash once for each time that a step of a checkpoint or of a transaction is reached in an
    undisturbed run.

    The crash comes before a step, or after the broker has committed and before the engine knows.
    After a restart, a reader of committed records must see each prediction once, with the
    undisturbed run's value, and the final state must equal that of the undisturbed run.
    """
    counts = Counts()
    with tempfile.TemporaryDirectory(prefix="streamadapt-steps-") as folder:
        reached: Counter[str] = Counter()
        log = TransactionalLog()
        undisturbed = _run(Path(folder) / "calm", log, lambda name: reached.update([name]))
        expected = dict(_seen(log))
        points = [(step, time) for step, times in reached.items() for time in range(1, times + 1)]
        for i, (step, time) in enumerate(points[:: QUICK_EVERY if quick else 1]):
            log = TransactionalLog()
            try:
                _run(Path(folder) / str(i), log, _crash_at(step, time))
            except SimulatedCrash:
                pass
            else:
                raise RuntimeError(f"{step} was not reached {time} times")
            state = _run(Path(folder) / str(i), log, lambda name: None)
            seen = _seen(log)
            before = counts.lost, counts.doubled
            counts.tried += 1
            counts.compare(expected, Counter(name for name, _ in seen))
            counts.state_differs += state != undisturbed
            fine = (
                state == undisturbed
                and (counts.lost, counts.doubled) == before
                and dict(seen) == expected
            )
            counts.survived += fine
    return counts


def _seen(log: TransactionalLog) -> list[tuple[str, str]]:
    return [(name, value) for value, name in LogSink(log).seen(0)]


def _crash_at(step: str, time: int) -> Hook:
    reached: Counter[str] = Counter()

    def hook(name: str) -> None:
        reached[name] += 1
        if name == step and reached[name] == time:
            raise SimulatedCrash(f"{step}, time {time}")

    return hook


def _run(folder: Path, log: TransactionalLog, hook: Hook) -> dict[str, Any]:
    """Run to the end of the stream; return the state's leaves."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=ENTRIES).astype(np.float32)
    y = (2.0 * x + np.where(np.arange(ENTRIES) > ENTRIES // 2, 5.0, 1.0)).astype(np.float32)
    entries = [Entry(x[i : i + 1], i * HOUR_NS, f"e{i}") for i in range(ENTRIES)]
    labels = [Label(f"e{i}", y[i : i + 1], (i + DELAY) * HOUR_NS) for i in range(ENTRIES)]
    engine = Engine(
        MemorySource(entries, labels, batch=30),
        _pipeline,
        LogSink(log, on_step=lambda name: hook(f"transaction: {name}")),
        IdentityCodec(),
        MemoryDeadLetters(),
        settings=EngineSettings(
            checkpoint_path=folder, checkpoint_every_entries=EVERY, guarantee="exactly-once"
        ),
        clock=ManualClock(),
    )
    engine.on_checkpoint_step = lambda name: hook(f"checkpoint: {name}")
    engine.run()
    return dict(flat(engine.runners[0].pipeline.state_dict()))


def _pipeline() -> Pipeline:
    return Pipeline(
        Supervised(3),
        _base,
        [Bias((0.1, 0.01)), RLS(0.98)],
        drift=[DriftMonitor("adwin", "loss", "boost")],
    )


def _base(inputs: Tensor) -> Tensor:
    return inputs[-1:, :1] * 2.0
