"""A long run that checks whether memory, open files, threads or the time per entry grow with the
stream."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.counts import Counts
from benchmarks.faults.soak_jobs import JOBS, KEY_RUN, KEYS, CountingSink, GeneratedSource, SoakJob
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.settings import EngineSettings
from streamadapt.testing import IdentityCodec, MemoryDeadLetters

__all__ = ["ENTRIES", "MOST_RSS_GROWTH", "MOST_TIME_RATIO", "measure", "soak"]

ENTRIES = 2_000_000
QUICK_ENTRIES = 20_000
SAMPLES = 100
CHECKPOINT_EVERY = 2000  # records
MOST_RSS_GROWTH = 0.05
MOST_TIME_RATIO = 1.10


@dataclass(frozen=True)
class Sample:
    """The resources of the process at one moment.

    Attributes
    ----------
    entries : int
        Processed so far.
    cpu_s : float, s
        Processor time, so other work of the machine does not count.
    rss : int, bytes
    fds, threads : int
    """

    entries: int
    cpu_s: float
    rss: int
    fds: int
    threads: int


def soak(quick: bool) -> Counts:
    """Run all jobs in turn; each limit counts as one trial.

    The limits: resident memory after the first tenth grows by less than `MOST_RSS_GROWTH`, open
    files and threads do not grow, and an entry of the last tenth takes at most `MOST_TIME_RATIO`
    times one of the second.
    """
    return measure(QUICK_ENTRIES if quick else ENTRIES)


def measure(entries: int) -> Counts:
    """Run `entries` entries in total, divided among the jobs."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            Run(name, job, round(entries * job.share), Path(folder) / name)
            for name, job in JOBS.items()
        ]
        samples = [sample(0)]
        while unfinished := [run for run in runs if not run.ended]:
            # The job that is furthest behind: each part of the run then has the same mixture.
            min(unfinished, key=lambda run: run.done / run.n).step()
            done = sum(run.done for run in runs)
            if done >= samples[-1].entries + entries / SAMPLES:
                samples.append(sample(done))
                if len(samples) % (SAMPLES // 20) == 0:
                    rss_mib = samples[-1].rss / 2**20
                    print(
                        f"  soak: {done:,} of {entries:,} entries, {rss_mib:.0f} MiB",
                        file=sys.stderr,
                        flush=True,
                    )
        samples.append(sample(sum(run.done for run in runs)))
        for run in runs:
            run.close()
    return _judge(runs, samples)


class Run:
    """One job's engine.

    Parameters
    ----------
    name : str
    job : SoakJob
    n : int
        Entries.
    path : Path
        Folder for its checkpoints.
    """

    def __init__(self, name: str, job: SoakJob, n: int, path: Path) -> None:
        self.name = name
        self.job = job
        self.n = n
        self.ended = False
        self.cpu_s = 0.0
        self.sink = CountingSink()
        self.letters = MemoryDeadLetters()
        settings = EngineSettings(checkpoint_path=path, checkpoint_every_entries=CHECKPOINT_EVERY)
        source = GeneratedSource(name, job, n)
        self.engine = Engine(
            source,
            job.keyed,
            self.sink,
            IdentityCodec(),
            self.letters,
            settings=settings,
            metrics=Metrics(),
        )
        source.open(self.engine)

    @property
    def done(self) -> int:
        """The number of processed entries."""
        return self.engine.runners[0].pipeline.stats.entries

    @property
    def wanted(self) -> int:
        """The number of required predictions: one for each entry, once its key's window is
        full."""
        met = Counter(i // KEY_RUN % KEYS for i in range(min(self.n, KEY_RUN * KEYS)))
        return self.n - sum(min(count, self.job.window - 1) for count in met.values())

    def step(self) -> None:
        """Process the records of one poll."""
        start = time.process_time()
        self.ended = self.engine.step()
        self.cpu_s += time.process_time() - start

    def close(self) -> None:
        """Checkpoint and close."""
        self.engine.stop()
        self.engine.run()


def sample(entries: int) -> Sample:
    """Measure this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    rss = pages * resource.getpagesize()
    fds, threads = (len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))
    return Sample(entries, time.process_time(), rss, fds, threads)


def _judge(runs: list[Run], samples: list[Sample]) -> Counts:
    total = samples[-1].entries

    def at(share: float) -> Sample:
        return next(one for one in samples if one.entries >= share * total)

    def per_entry(first: float, last: float) -> float:
        start, end = at(first), at(last)
        return (end.cpu_s - start.cpu_s) / (end.entries - start.entries)

    settled = at(0.1)
    after = samples[samples.index(settled) :]
    rss_growth = max(one.rss for one in after) / settled.rss - 1.0
    fds_growth = after[-1].fds - settled.fds
    threads_growth = after[-1].threads - settled.threads
    time_ratio = per_entry(0.9, 1.0) / per_entry(0.1, 0.2)
    held = (
        rss_growth < MOST_RSS_GROWTH,
        fds_growth <= 0,
        threads_growth <= 0,
        time_ratio <= MOST_TIME_RATIO,
    )
    counts = Counts(tried=len(held), survived=sum(held))
    for run in runs:
        counts.lost += max(0, run.wanted - run.sink.count)
        counts.doubled += run.sink.again
    refused = sum(len(run.letters.letters) for run in runs)
    counts.more = {
        "entries": total,
        "rss_growth": round(rss_growth, 4),
        "rss_mib": round(settled.rss / 2**20),
        "fds_growth": fds_growth,
        "threads_growth": threads_growth,
        "time_ratio": round(time_ratio, 3),
        "entries_by_job": {run.name: run.n for run in runs},
        "us_per_entry": {run.name: round(1e6 * run.cpu_s / run.n) for run in runs},
        "refused": refused,
        "rss_by_tenth": [round(at(tenth / 10).rss / 2**20, 1) for tenth in range(1, 11)],
    }
    return counts
