"""A process that is paused until its group considers it dead, and that continues when another one
has its partition."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from pathlib import Path

from benchmarks.faults.clusters import keep, skipped
from benchmarks.faults.counts import Counts
from benchmarks.faults.scenes import SETTLED_S, Done, Scene, works
from benchmarks.faults.services import Service
from benchmarks.faults.trials import Ended, Setting, Trials
from benchmarks.kafka_broker import ApacheKafka, start_script
from streamadapt.engine.guarantees import GUARANTEES

__all__ = ["zombie", "zombie_trials"]

FAULT = "paused beyond the session time-out"
SETTINGS = [Setting(guarantee, 2) for guarantee in GUARANTEES]
SESSION_S = 6
PAUSES_S = (1.25 * SESSION_S, 2.2 * SESSION_S)
WATCHED_S = 12.0
"""Time watched after the process goes on: by then it has written, flushed and committed, and it
has seen the outcome."""


def zombie(quick: bool, trials: Path) -> Counts:
    """Run the trials that are missing in a folder's file."""
    return zombie_trials(Trials(trials / "faults-zombie.jsonl"), quick=quick)


def zombie_trials(trials: Trials, *, quick: bool = False) -> Counts:
    """Pause a member of a group of two under each guarantee at the same time; return the figures
    of all trials."""
    if start_script() is None:
        return skipped()
    if _missing(trials, quick=quick):
        with (
            tempfile.TemporaryDirectory(prefix="streamadapt-zombie-") as folder,
            ApacheKafka(Path(folder)) as kafka,
            Scene(kafka, Path(folder) / "jobs", SETTINGS, f"{SESSION_S}s") as scene,
        ):
            while _missing(trials, quick=quick):
                keep(trials, scene, scene.trials(FAULT, paused))
    return trials.counts([FAULT])


def _missing(trials: Trials, *, quick: bool) -> int:
    return sum(trials.missing(FAULT, setting, quick=quick) for setting in SETTINGS)


def paused(scene: Scene) -> Done:
    """Send SIGSTOP to one member of each group, and SIGCONT when the other has taken over its
    partition.

    The paused member may notice it and rejoin, or be fenced, end with exit code 1, and be started
    again.
    """
    _wait_until_shared(scene)
    time.sleep(random.uniform(0.0, 1.5))
    victims = {service: random.choice(sorted(service.members)) for service in scene.services}
    begin = time.monotonic()
    _signal(victims, signal.SIGSTOP)
    try:
        time.sleep(random.uniform(*PAUSES_S))
    finally:
        _signal(victims, signal.SIGCONT)
    length_s = time.monotonic() - begin
    ended: dict[Setting, list[Ended]] = {service.setting: [] for service in victims}
    deadline = time.monotonic() + WATCHED_S
    while time.monotonic() < deadline:
        for service, member in victims.items():
            already = any(one.member == member for one in ended[service.setting])
            ended[service.setting] += service.restart_ended(None if already else member)
        time.sleep(0.2)
    return Done(length_s, {}, ended)


def _signal(victims: dict[Service, str], number: signal.Signals) -> None:
    for service, member in victims.items():
        os.kill(service.members[member].process.pid, number)


def _wait_until_shared(scene: Scene) -> None:
    deadline = time.monotonic() + SETTLED_S
    while not all(map(works, scene.services)):
        if time.monotonic() > deadline:
            raise RuntimeError("the members of a group did not share their partitions out")
        time.sleep(0.5)
