"""A group of engines whose members join and leave while the stream runs.

One process starts, two join it (the second while the first is still receiving its partitions),
one is killed, one is paused for longer than the session timeout and continues (it may then
rejoin, or find itself fenced, end, and be started again), one rejoins, one leaves in good order.
The predictions that a reader sees, and the final state of every partition, are compared with one
undisturbed process.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.compare import compare
from benchmarks.faults.counts import Counts
from benchmarks.faults.job import SESSION_S, Job, Running, Topics, wait
from benchmarks.kafka_broker import broker_name, measured_broker

__all__ = ["rebalance", "rebalances"]

ROUNDS, PARTITIONS, STEPS, STEP = 3, 4, 8, 250


def rebalance(quick: bool) -> Counts:
    """Six changes of the group per round."""
    return rebalances(1 if quick else ROUNDS)


def rebalances(
    rounds: int, guarantee: str = "at-least-once", servers: str | None = None
) -> Counts:
    """Run the changes `rounds` times.

    Parameters
    ----------
    servers : str or None
        None uses the broker of `measured_broker`.
    """
    if servers is None:
        with measured_broker() as servers:
            return rebalances(rounds, guarantee, servers)
    counts = Counts(more={"broker": broker_name(servers), "rounds": rounds})
    with tempfile.TemporaryDirectory(prefix="streamadapt-group-") as folder:
        for i in range(rounds):
            name = f"group-{uuid.uuid4().hex[:8]}"
            group_run = GroupRun(servers, Path(folder) / str(i), name, guarantee)
            try:
                changes = group_run.play()
            finally:
                group_run.stop()
            counts.tried += changes
            counts.more["fenced"] = counts.more.get("fenced", 0) + group_run.fenced
            undisturbed = Job(group_run.topics, Path(folder) / str(i) / "calm")
            if not undisturbed.finish(undisturbed.start()):
                raise RuntimeError("the undisturbed run failed")
            expected = {one["id"]: one for one in undisturbed.read()}
            counts.survived += (
                changes if compare(counts, group_run.job, undisturbed, expected) else 0
            )
            print(f"  {counts.as_json()}", file=sys.stderr, flush=True)
    return counts


class GroupRun:
    """One group, from its first member to the end of the stream."""

    def __init__(self, servers: str, folder: Path, name: str, guarantee: str) -> None:
        self._steps = 0
        self.fenced = 0
        self.topics = Topics(servers, STEPS * STEP, name, PARTITIONS, filled=False)
        self.job = Job(self.topics, folder / "group", guarantee, group=name)
        self._members: dict[str, Running] = {}

    def play(self) -> int:
        """Return how many changes the group has gone through."""
        changes: list[Callable[[], object]] = [
            lambda: self._join("a"),
            lambda: [self._join(name) for name in "bc"],
            lambda: self._kill("b"),
            lambda: self._pause("c"),
            lambda: [self._join("d"), self._settle("d")],
            lambda: self._leave("a"),
        ]
        for change in changes:
            change()
            self._more()
        while self._steps < STEPS:
            self._more()
        labels = PARTITIONS * self.topics.count
        wait(lambda: self._tend() and self.job.reached(self.topics.labels) >= labels)
        for name in list(self._members):
            self._leave(name)
        return len(changes)

    def stop(self) -> None:
        """End every process that still runs."""
        for running in self._members.values():
            running.kill()

    def _more(self) -> None:
        """Write the next part of the stream, and wait until the checkpoints have reached its
        end."""
        start = STEP * self._steps
        self.topics.fill(start, start + STEP)
        self._steps += 1
        self._wait_for()

    def _wait_for(self) -> None:
        wanted = PARTITIONS * STEP * self._steps
        wait(lambda: self._tend() and self.job.reached(self.topics.entries) >= wanted)

    def _tend(self) -> bool:
        """Act as a supervisor: start each process again that ended because it was fenced."""
        for name, running in self._members.items():
            if not running.process.is_alive():
                if "FencedError" not in running.log_tail():
                    raise RuntimeError(
                        f"{name} ended with {running.process.exitcode}:\n{running.log_tail()}"
                    )
                self.fenced += 1
                self._join(name)
        return True

    def _join(self, name: str) -> None:
        self._members[name] = self.job.start(len(self._members))

    def _settle(self, name: str) -> None:
        """Wait until the process has received a partition.

        If a process leaves in the round in which it hands over a partition, the embedded broker's
        group sometimes stops: nothing is lost, but no member receives its partitions. The cause
        is not known.
        """
        given = f" {self._members[name].process.pid} INFO partition "
        wait(lambda: self._tend() and given in self.job.log.read_text())

    def _kill(self, name: str) -> None:
        self._members.pop(name).kill()

    def _leave(self, name: str) -> None:
        running = self._members.pop(name)
        running.process.terminate()
        running.process.join(30)
        if running.process.exitcode != 0:
            raise RuntimeError(
                f"{name} ended with {running.process.exitcode}:\n{running.log_tail()}"
            )

    def _pause(self, name: str) -> None:
        """Pause a process until others take over its partitions; when it continues it does not
        know that."""
        process = self._members[name].process
        os.kill(process.pid, signal.SIGSTOP)
        try:
            start = STEP * self._steps
            self.topics.fill(start, start + STEP)
            self._steps += 1
            time.sleep(2 * SESSION_S)
            self._wait_for()
        finally:
            os.kill(process.pid, signal.SIGCONT)
