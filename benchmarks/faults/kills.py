"""``kill -9`` of real processes at random instants, under each guarantee.

The stream is processed to its end again and again, each time with an output and checkpoints of its
own, until there were enough kills; the output seen by a reader and the final state are compared
with those of an undisturbed run.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path

from benchmarks.faults.compare import compare
from benchmarks.faults.counts import Counts
from benchmarks.faults.job import Job, Topics
from benchmarks.faults.transactions import killed_at_every_step
from benchmarks.kafka_broker import broker_name, measured_broker, start_script

__all__ = ["kill", "kill_effectively_once", "kill_exactly_once"]

KILLS, QUICK_KILLS = 200, 12
ENTRIES = 5000
LATEST_S = 1.5
"""The longest life of a process: some are killed before they have read anything, some after many
checkpoints."""


def kill(quick: bool) -> Counts:
    """At least once: no prediction is missing, and repeated ones have the same id and the same
    value."""
    return kills("at-least-once", QUICK_KILLS if quick else KILLS)


def kill_effectively_once(quick: bool) -> Counts:
    """Every prediction is written once."""
    return kills("effectively-once", QUICK_KILLS if quick else KILLS)


def kill_exactly_once(quick: bool) -> Counts:
    """Crashes at every step of checkpoint and transaction on the log in memory, and killed
    processes if the broker has transactions.

    The embedded broker shows the records of aborted transactions to readers of committed ones.
    """
    counts = killed_at_every_step(quick)
    counts.more["broker"] = "in-memory transactional log"
    if os.environ.get("STREAMADAPT_TEST_BROKER") or start_script() is not None:
        there = kills("exactly-once", QUICK_KILLS if quick else KILLS)
        for name in ("tried", "survived", "lost", "doubled", "state_differs"):
            setattr(counts, name, getattr(counts, name) + getattr(there, name))
        counts.more["broker"] += f", and {there.more['broker']}"
        counts.more["there"] = there.tried
    return counts


def kills(
    guarantee: str, wanted: int, entries: int = ENTRIES, servers: str | None = None
) -> Counts:
    """Kill a job the given number of times, over as many rounds as needed.

    Parameters
    ----------
    servers : str or None
        None uses the broker of `measured_broker`.
    """
    if servers is None:
        with measured_broker() as servers:
            return kills(guarantee, wanted, entries, servers)
    counts = Counts(more={"broker": broker_name(servers), "rounds": 0, "repeats_differ": 0})
    seed = time.time_ns()
    choose = random.Random(seed)
    committed = guarantee == "exactly-once"
    with tempfile.TemporaryDirectory(prefix="streamadapt-kills-") as folder:
        topics = Topics(servers, entries, f"kills-{uuid.uuid4().hex[:8]}")
        undisturbed = Job(topics, Path(folder) / "calm")
        if not undisturbed.finish(undisturbed.start()):
            raise RuntimeError("the undisturbed run failed")
        expected = {one["id"]: one for one in undisturbed.read()}
        while counts.tried < wanted:
            job = Job(topics, Path(folder) / f"round-{counts.more['rounds']}", guarantee)
            done = _round(job, choose, wanted - counts.tried)
            counts.tried += done
            counts.more["rounds"] += 1
            counts.survived += (
                done if compare(counts, job, undisturbed, expected, committed=committed) else 0
            )
            print(f"  {guarantee}: {counts.as_json()} (seed {seed})", file=sys.stderr, flush=True)
    return counts


def _round(job: Job, choose: random.Random, most: int) -> int:
    """Kill a job until it has reached the end of the stream, then let it end well; return the
    number of kills."""
    done = 0
    while done < most:
        running = job.start()
        time.sleep(choose.uniform(0.0, LATEST_S))
        finished = running.entries() >= job.topics.good
        running.kill()
        done += 1
        if finished:
            break
    if not job.finish(job.start()):
        raise RuntimeError(f"the last run failed:\n{job.log.read_text()[-3000:]}")
    return done
