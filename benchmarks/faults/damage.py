"""A newest checkpoint that is torn, truncated, altered or mixed up on the disk."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.faults.counts import Counts
from benchmarks.faults.memory_job import STREAMS, Job, final_state, written_by
from streamadapt.engine.metrics import Metrics
from streamadapt.errors import StreamadaptError
from streamadapt.records import StreamPartition
from streamadapt.state.store import CheckpointStore
from streamadapt.testing import MemorySink, SimulatedCrash

__all__ = ["DAMAGES", "checkpoint"]

ENTRIES = 220
EVERY = 75
CRASH_AT = 200
TRIALS = 60
QUICK_TRIALS = 4
SEED = 5
FILES = ("manifest.json", "state.json", "state.safetensors")
DAMAGED = "streamadapt_damaged_checkpoints_total"

Damage = Callable[[random.Random, Path, Path], None]


def checkpoint(quick: bool) -> Counts:
    """Damage the newest of several checkpoints, in every way of `DAMAGES`, at random places.

    A trial survives if the previous checkpoint is used, a warning and the metric report it, and
    the run ends as an undisturbed one. A change without effect (white space in the manifest) may
    leave the newest in use.
    """
    counts, rng = Counts(), random.Random(SEED)
    counts.more |= {"loud": 0, "harmless": 0}
    job = Job(ENTRIES, every=EVERY)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        engine, before = job.engine(whole, crash_at=CRASH_AT)
        with suppress(SimulatedCrash):
            engine.run()
        newest_at = (
            CheckpointStore(next(whole.iterdir()))
            .list()[-1]
            .positions.get(StreamPartition(STREAMS[0], 0), 0)
        )
        for damage in DAMAGES.values():
            for i in range(QUICK_TRIALS if quick else TRIALS):
                hurt = Path(folder) / f"{damage.__name__}-{i}"
                shutil.copytree(whole, hurt)
                older, newest = sorted(hurt.glob("*/0*"))[-2:]
                damage(rng, newest, older)
                counts.tried += 1
                counts.survived += _one(job, counts, hurt, before, newest_at)
                shutil.rmtree(hurt)
    return counts


def _one(job: Job, counts: Counts, hurt: Path, before: MemorySink, newest_at: int) -> bool:
    engine, sink = job.engine(hurt, metrics=(metrics := Metrics()))
    with _warnings() as warnings:
        try:
            engine.run()
        except StreamadaptError as error:
            counts.more.setdefault("unexpected", []).append(repr(error))
            return False
    counted = sum(
        value for _, value in metrics.samples()[DAMAGED] if isinstance(value, float | int)
    )
    loud = any("damaged" in text for text in warnings) and counted == 1
    counts.more["loud" if loud else "harmless"] += 1
    # The engine predicts again what the older checkpoint had not seen: the reader has both.
    fine = job.judge(counts, final_state(engine), written_by(before, sink))
    if loud:
        return fine
    silent = not warnings and counted == 0
    # The newest checkpoint is intact, and in use.
    return fine and silent and sink.predictions[0].position.offset >= newest_at


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect log messages of level warning or higher."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("streamadapt")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def bit_flip(rng: random.Random, newest: Path, older: Path) -> None:
    """Flip one bit of one file."""
    del older
    file = newest / rng.choice(FILES)
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def truncated(rng: random.Random, newest: Path, older: Path) -> None:
    """Truncate one file at any length, 0 too."""
    del older
    file = newest / rng.choice(FILES)
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])


def zeroed(rng: random.Random, newest: Path, older: Path) -> None:
    """Overwrite the end of one file with zeros: its length reached the disk, its last blocks did
    not."""
    del older
    file = newest / rng.choice(FILES)
    data = file.read_bytes()
    kept = rng.randrange(len(data) - 2)
    file.write_bytes(data[:kept] + bytes(len(data) - kept))


def longer(rng: random.Random, newest: Path, older: Path) -> None:
    """Append foreign bytes."""
    del older
    with (newest / rng.choice(FILES)).open("ab") as file:
        file.write(b"\x01" + rng.randbytes(rng.randrange(100)))


def torn(rng: random.Random, newest: Path, older: Path) -> None:
    """Remove some files of the folder, or all."""
    del older
    for name in rng.sample(FILES, rng.randint(1, len(FILES))):
        (newest / name).unlink()


def swapped(rng: random.Random, newest: Path, older: Path) -> None:
    """Replace one or two files by those of the previous checkpoint."""
    for name in rng.sample(FILES, rng.randint(1, len(FILES) - 1)):
        shutil.copyfile(older / name, newest / name)


def another(rng: random.Random, newest: Path, older: Path) -> None:
    """Replace the whole checkpoint by the previous one, or one of its files by another."""
    if rng.random() < 0.5:
        shutil.rmtree(newest)
        shutil.copytree(older, newest)
    else:
        one, two = rng.sample(FILES, 2)
        shutil.copyfile(newest / one, newest / two)


DAMAGES: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (bit_flip, truncated, zeroed, longer, torn, swapped, another)
}
"""Every kind of damage, by its name."""
