"""Three brokers that are killed, restarted and frozen while services run on them.

Each fault is caused once for all settings at the same time: the three guarantees, each with a
single process and with a group of two. Every trial is appended to a file, and a later run makes
the missing trials.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from benchmarks.faults.counts import Counts
from benchmarks.faults.scenes import Done, Fault, Scene, say
from benchmarks.faults.trials import Setting, Trial, Trials
from benchmarks.kafka_broker import ApacheKafka, start_script
from streamadapt.engine.guarantees import GUARANTEES

__all__ = ["FAULTS", "cluster", "cluster_trials"]

T = TypeVar("T")

SETTINGS = [Setting(guarantee, members) for guarantee in GUARANTEES for members in (1, 2)]
DOWN_S, TWO_DOWN_S, FROZEN_S = 6.0, 20.0, 15.0
IN_SYNC_S = 60.0
BROKERS = 3


def cluster(quick: bool, trials: Path) -> Counts:
    """Make the trials that are missing in a folder's file; a broker that cannot start is an
    error."""
    return cluster_trials(Trials(trials / "faults-cluster.jsonl"), quick=quick)


def cluster_trials(
    trials: Trials,
    faults: Sequence[str] = (),
    settings: Sequence[Setting] = (),
    *,
    quick: bool = False,
) -> Counts:
    """Make the missing trials of these faults and settings, and return the figures of all.

    Parameters
    ----------
    faults, settings : sequence
        All, if none is named.
    """
    names, settings = list(faults or FAULTS), list(settings or SETTINGS)

    def missing(name: str) -> dict[Setting, int]:
        return {setting: trials.missing(name, setting, quick=quick) for setting in settings}

    if start_script() is None:
        return skipped()
    # Settings without missing trials would only use CPU time that the others need.
    settings = [
        one for one in settings if any(trials.missing(name, one, quick=quick) for name in names)
    ]
    if settings:
        with (
            tempfile.TemporaryDirectory(prefix="streamadapt-cluster-") as folder,
            ApacheKafka(Path(folder), BROKERS) as kafka,
            Scene(kafka, Path(folder) / "jobs", settings) as scene,
        ):
            while (name := _next_fault(names, missing)) is not None:
                _spread(scene)
                scene.missing = missing(name)
                keep(trials, scene, scene.trials(name, FAULTS[name]))
    return trials.counts(names)


def keep(trials: Trials, scene: Scene, found: Sequence[Trial]) -> None:
    """Append trials to their file, and report them; keep the logs beside the file if one has not
    survived."""
    trials.append(found)
    if not all(one.survived for one in found):
        kept = trials.path.with_suffix("") / f"{found[0].began} {found[0].fault}".replace(
            " ", "-"
        ).replace(":", "")
        shutil.copytree(scene.folder, kept, ignore=shutil.ignore_patterns("state"))
    say(f"{found[0].fault}: {sum(one.survived for one in found)} of {len(found)} survived")
    for one in found:
        if not one.survived:
            say(f"    {one}")


def skipped() -> Counts:
    """Return no trial, and report why."""
    say(
        "left out: there is no script that starts Apache Kafka (STREAMADAPT_KAFKA_START names one)"
    )
    return Counts(more={"left_out": "no script that starts Apache Kafka"})


def _next_fault(
    names: Sequence[str], missing: Callable[[str], Mapping[Setting, int]]
) -> str | None:
    """Return the fault with the most missing trials, the first of several; None if none is
    missing."""
    most = {name: max(missing(name).values()) for name in names}
    name = max(most, key=most.__getitem__)
    return name if most[name] else None


# -- the faults


def leader_killed(scene: Scene) -> Done:
    """SIGKILL for the broker that leads the most partitions."""
    leads = asked(scene, lambda admin: _leaders(admin, scene))
    node = Counter(node for nodes in leads.values() for node in nodes).most_common(1)[0][0]
    length_s = _killed(scene, [node])
    return Done(length_s, {setting: node in nodes for setting, nodes in leads.items()}, {})


def coordinator_killed(scene: Scene) -> Done:
    """SIGKILL for the broker that coordinates the groups and the transactions of the most
    services."""
    node, hit = _coordinator(scene)
    return Done(_killed(scene, [node]), hit, {})


def rolling_restart(scene: Scene) -> Done:
    """SIGTERM for one broker after the other; the next when the previous one is back and in
    sync."""
    longest = 0.0
    for broker in range(BROKERS):
        begin = time.monotonic()
        scene.kafka.end(broker, signal.SIGTERM)
        scene.kafka.start()
        longest = max(longest, time.monotonic() - begin)
        _wait_in_sync(scene)
    return Done(longest, {}, {})


def two_of_three_down(scene: Scene) -> Done:
    """SIGKILL for two brokers, which are away for 20 s: no writes and no leader elections are
    possible."""
    nodes = random.sample(range(1, BROKERS + 1), 2)
    return Done(_killed(scene, nodes, TWO_DOWN_S), {}, {})


def coordinator_frozen(scene: Scene) -> Done:
    """SIGSTOP for 15 s for the broker that coordinates the most services."""
    node, hit = _coordinator(scene)
    begin = time.monotonic()
    scene.kafka.send(node - 1, signal.SIGSTOP)
    try:
        time.sleep(FROZEN_S)
    finally:
        scene.kafka.send(node - 1, signal.SIGCONT)
    length_s = time.monotonic() - begin
    _wait_in_sync(scene)
    return Done(length_s, hit, {})


FAULTS: dict[str, Fault] = {
    "leader killed": leader_killed,
    "coordinator killed": coordinator_killed,
    "rolling restart": rolling_restart,
    "two of three down": two_of_three_down,
    "coordinator frozen": coordinator_frozen,
}


def _killed(scene: Scene, nodes: Sequence[int], down_s: float = DOWN_S) -> float:
    """Kill brokers, start them again after a while, and return how long they were away, s."""
    time.sleep(random.uniform(0.0, 1.5))
    begin = time.monotonic()
    for node in nodes:
        scene.kafka.end(node - 1)
    time.sleep(down_s)
    scene.kafka.start()
    length_s = time.monotonic() - begin
    _wait_in_sync(scene)
    return length_s


def _coordinator(scene: Scene) -> tuple[int, dict[Setting, bool]]:
    """Return the node that coordinates the most settings, and which settings it coordinates."""
    found = asked(scene, lambda admin: {s.setting: s.coordinators(admin) for s in scene.services})
    weights: Counter[int] = Counter()
    for setting, nodes in found.items():
        # Settings with missing trials decide; the others choose among the remaining nodes.
        weights.update(dict.fromkeys(nodes, 1 + 10 * scene.missing.get(setting, 0)))
    most = max(weights.values())
    node = random.choice([node for node, weight in weights.items() if weight == most])
    return node, {setting: not nodes or node in nodes for setting, nodes in found.items()}


# -- requests to the cluster


def asked(scene: Scene, question: Callable[[KafkaAdminClient], T]) -> T:
    """Return the answer of a new admin client, retried while the brokers come and go."""
    deadline = time.monotonic() + IN_SYNC_S
    while True:
        try:
            with contextlib.closing(
                KafkaAdminClient(bootstrap_servers=scene.kafka.servers.split(","))
            ) as admin:
                return question(admin)
        except KafkaError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _leaders(admin: KafkaAdminClient, scene: Scene) -> dict[Setting, list[int]]:
    """Return the node that leads each partition of a setting's input and output."""
    return {
        service.setting: [
            partition["leader_id"]
            for topic in admin.describe_topics([service.entries, service.predictions])
            for partition in topic["partitions"]
        ]
        for service in scene.services
    }


def _in_sync(admin: KafkaAdminClient) -> bool:
    """Whether every partition of every topic, the brokers' own too, has all its replicas."""
    partitions = [
        partition for topic in admin.describe_topics() for partition in topic["partitions"]
    ]
    return all(set(one["isr_nodes"]) == set(one["replica_nodes"]) for one in partitions)


def _wait_in_sync(scene: Scene) -> None:
    deadline = time.monotonic() + IN_SYNC_S
    while not asked(scene, _in_sync):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the brokers were not in sync within {IN_SYNC_S:.0f} s")
        time.sleep(0.3)


def _spread(scene: Scene) -> None:
    """Spread the leaders over the brokers again, so that each fault meets the same cluster."""
    _wait_in_sync(scene)
    asked(scene, lambda admin: admin.elect_leaders(0, raise_errors=False))
