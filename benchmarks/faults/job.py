"""A complete job for the kill tests: topics full of entries and late labels, a config, and a
process that runs it.

Processes are forked from one that has imported everything: a start takes a tenth of a second, so
hundreds of kills are affordable. They run ``streamadapt run`` all the same.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from streamadapt.app.demo.broker import EmbeddedBroker, create_topics, free_port
from streamadapt.app.demo.view import scrape
from streamadapt.app.fitting import fit_base
from streamadapt.errors import CheckpointError
from streamadapt.state.store import CheckpointStore, Loaded

__all__ = [
    "SESSION_S",
    "Job",
    "Running",
    "Topics",
    "brokers",
    "ids",
    "launch",
    "read_all",
    "rows",
    "wait",
]

LABEL_DELAY = timedelta(hours=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
DIRTY_EVERY = 97
PATIENCE_S = 180.0
MORE_MS = 400
SESSION_S = 6
"""A group member without a heartbeat for this time is considered dead."""

CONFIG = """
guarantee = "{guarantee}"
[source]
kind = "kafka"
servers = "{servers}"
topic = "{entries}"
label_topic = "{labels}"
label_wait = "10m"
{source}
[fields]
id = "id"
time = "time"
values = ["x"]
label = "y"
[task]
kind = "supervised"
window = 3
[base]
kind = "linear"
weights = "{folder}/base.safetensors"
[[learners]]
kind = "bias"
rate = [0.1, 0.01]
[[learners]]
kind = "rls"
forgetting = 0.98
[[learners]]
kind = "river"
model = "linear_model.LinearRegression"
[[drift]]
detector = "adwin"
reaction = "boost"
[sink]
kind = "kafka"
topic = "{predictions}"
[dead_letters]
kind = "kafka"
topic = "{letters}"
[checkpoint]
path = "{state}"
every = "200ms"
[metrics]
port = {port}
host = "127.0.0.1"
"""

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["streamadapt.app.running", "streamadapt_connectors.kafka", "river.linear_model"]
)


def rows(count: int, seed: int = 7) -> list[tuple[datetime, float, float]]:
    """Return time, value and target of a stream with a jump half way."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.normal(size=count)) * 0.1
    y = 2.0 * x + np.where(np.arange(count) < count // 2, 0.0, 3.0) + rng.normal(size=count) * 0.1
    times = [START + timedelta(minutes=5 * i) for i in range(count)]
    return list(zip(times, x.tolist(), y.tolist(), strict=True))


@contextmanager
def brokers() -> Iterator[str]:
    """Yield ``host:port`` of the broker that STREAMADAPT_TEST_BROKER names, or of an embedded
    one."""
    named = os.environ.get("STREAMADAPT_TEST_BROKER")
    if named:
        yield named
        return
    with EmbeddedBroker() as broker:
        yield broker.servers


class Topics:
    """The input of all compared jobs: in each partition the same number of entries, some invalid,
    and labels.

    Parameters
    ----------
    servers : str
    count : int
        Entries per partition.
    name : str
        The prefix of the topics' names; new each time.
    partitions : int
    filled : bool
        Whether the topics are filled at the start; otherwise `fill` writes the records.
    """

    def __init__(
        self, servers: str, count: int, name: str, partitions: int = 1, *, filled: bool = True
    ) -> None:
        self.servers = servers
        self.partitions = partitions
        self.entries, self.labels = f"{name}-entries", f"{name}-labels"
        create_topics(servers, {self.entries: partitions, self.labels: partitions})
        self.count = count
        self.good = partitions * (count - len(range(0, count, DIRTY_EVERY)))
        if filled:
            self.fill(0, count)

    def fill(self, start: int, stop: int) -> None:
        """Write the entries of these numbers, and their labels, to every partition.

        The last records are followed by an entry with a much later time: labels are processed
        when the entries have reached their time, so without it those of the last hour would wait.
        It is not processed itself, since it waits for labels.
        """
        producer = KafkaProducer(bootstrap_servers=self.servers, linger_ms=20)
        for partition in range(self.partitions):
            for i, (at, x, y) in list(enumerate(rows(self.count, 7 + partition)))[start:stop]:
                value = "dirty" if i % DIRTY_EVERY == 0 else x
                entry = {"id": str(i), "time": at.isoformat(), "x": value}
                label = {"id": str(i), "time": (at + LABEL_DELAY).isoformat(), "y": y}
                producer.send(self.entries, json.dumps(entry).encode(), partition=partition)
                producer.send(self.labels, json.dumps(label).encode(), partition=partition)
            if stop == self.count:
                end = {"id": "end", "time": (at + 3 * LABEL_DELAY).isoformat(), "x": x}
                producer.send(self.entries, json.dumps(end).encode(), partition=partition)
        producer.flush()
        producer.close()


def launch(config: Path, log: Path) -> Any:
    """Start ``streamadapt run CONFIG`` as a separate process, and return the process."""
    process = _forks.Process(target=_run, args=(str(config), str(log)), daemon=True)
    process.start()
    return process


def _run(config: str, log: str) -> None:
    """Run in the process; its log goes to a file."""
    logging.basicConfig(
        filename=log,
        level=logging.INFO,
        format="%(asctime)s %(process)d %(levelname)s %(message)s",
    )
    from streamadapt.app.running import run_config

    try:
        run_config(Path(config))
    except BaseException:
        logging.exception("ended")
        raise


class Job:
    """One config in a folder of its own, with an output topic of its own.

    Parameters
    ----------
    topics : Topics
    folder : Path
        Created here.
    guarantee : str
    group : str or None
        With a group, several processes may run the job.
    """

    def __init__(
        self,
        topics: Topics,
        folder: Path,
        guarantee: str = "at-least-once",
        group: str | None = None,
    ) -> None:
        self.topics = topics
        self.folder = folder
        folder.mkdir(parents=True)
        self.state_path = folder / "state"
        self.predictions = f"{topics.entries}-{folder.name}"
        create_topics(
            topics.servers, {self.predictions: topics.partitions, f"{self.predictions}-dead": 1}
        )
        self.guarantee = guarantee
        self._source = (
            "" if group is None else f'group = "{group}"\nsession_timeout = "{SESSION_S}s"'
        )
        self.log = folder / "engine.log"
        history = folder / "history.csv"
        lines = [f"{i},{t.isoformat()},{x},{y}" for i, (t, x, y) in enumerate(rows(300))]
        history.write_text("\n".join(["id,time,x,y", *lines]) + "\n")
        fit_base(
            self._config(0)[0], history, None, ridge=0.1, subtract_last=True, shared_scale=False
        )

    def _config(self, member: int) -> tuple[Path, int]:
        port = free_port()
        path = self.folder / f"config-{member}.toml"
        names = {
            "entries": self.topics.entries,
            "labels": self.topics.labels,
            "predictions": self.predictions,
        }
        path.write_text(
            CONFIG.format(
                guarantee=self.guarantee, servers=self.topics.servers, source=self._source,
                folder=self.folder, state=self.state_path, letters=f"{self.predictions}-dead",
                port=port, **names,
            )
        )  # fmt: skip
        return path, port

    def start(self, member: int = 0) -> Running:
        """Start a process."""
        config, port = self._config(member)
        return Running(launch(config, self.log), port, self.log)

    def finish(self, running: Running) -> bool:
        """Let the process finish, and stop it with SIGTERM; True if it ended well."""
        wait(
            lambda: running.entries() >= self.topics.good and running.labels() >= self.topics.good,
            running,
        )
        running.process.terminate()
        running.process.join(30)
        return running.process.exitcode == 0

    def states(self) -> dict[str, Loaded | None]:
        """Return the newest checkpoint of each partition."""
        return {
            folder.name: CheckpointStore(folder).load_latest()
            for folder in sorted(self.state_path.iterdir())
        }

    def reached(self, stream: str) -> int:
        """Return how many records of a stream the newest checkpoints hold, over all partitions."""
        total = 0
        for folder in self.state_path.iterdir() if self.state_path.exists() else ():
            store = CheckpointStore(folder)
            # A checkpoint may be replaced while it is read.
            with contextlib.suppress(CheckpointError, IndexError):
                positions = store.info(store.sequences()[-1]).positions
                total += sum(offset for at, offset in positions.items() if at.stream == stream)
        return total

    def read(self, *, committed: bool = False) -> list[dict[str, Any]]:
        """Return the predictions that a reader sees: once all are written, and those that follow
        directly."""
        # Two entries fill the first window and get no prediction.
        wanted = self.topics.good - 2 * self.topics.partitions
        return read_all(
            self.topics.servers,
            self.predictions,
            self.topics.partitions,
            wanted,
            committed=committed,
        )


class Running:
    """A process of a job."""

    def __init__(self, process: Any, port: int, log: Path) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._log = log

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.process.kill()
        self.process.join()

    def _samples(self) -> dict[str, dict[str, float]]:
        try:
            return scrape(self._url) or {}
        except (OSError, urllib.error.URLError):
            return {}

    def entries(self) -> float:
        """Return the number of entries in its partitions' states."""
        return sum(self._samples().get("entries_total", {}).values())

    def labels(self) -> float:
        """Return the number of labels in its partitions' states."""
        return sum(v for k, v in self._samples().get("labels_total", {}).items() if k != "expired")

    def partitions(self) -> set[str]:
        """Return the partitions that it owns and has predicted."""
        try:
            with urllib.request.urlopen(self._url, timeout=2.0) as page:
                text = page.read().decode()
        except OSError:
            return set()
        return set(
            re.findall(r'^streamadapt_predictions_total\{partition="(\d+)"', text, re.MULTILINE)
        )

    def log_tail(self) -> str:
        """Return the end of its log."""
        return self._log.read_text()[-3000:] if self._log.exists() else ""


def wait(holds: Callable[[], bool], *running: Running) -> None:
    """Wait until `holds`; raise `RuntimeError`, with the log, if a process ends before or it takes
    too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        for one in running:
            if not one.process.is_alive():
                raise RuntimeError(
                    f"the engine ended (exit {one.process.exitcode}):\n{one.log_tail()}"
                )
        if time.monotonic() > deadline:
            raise RuntimeError(
                "the engine did not get there:\n" + "\n".join(one.log_tail() for one in running)
            )
        time.sleep(0.1)


def read_all(
    servers: str, topic: str, partitions: int, wanted: int, *, committed: bool = False
) -> list[dict[str, Any]]:
    """Return the predictions of a topic once `wanted` different ids are written, and those that
    follow directly."""
    level = "read_committed" if committed else "read_uncommitted"
    consumer = KafkaConsumer(
        bootstrap_servers=servers,
        enable_auto_commit=False,
        fetch_max_bytes=64 << 20,
        isolation_level=level,
    )
    places = [TopicPartition(topic, p) for p in range(partitions)]
    found: list[dict[str, Any]] = []
    try:
        consumer.assign(places)
        for at in places:
            consumer.seek(at, 0)
        deadline = time.monotonic() + PATIENCE_S
        quiet = 0
        while quiet < 2 and time.monotonic() < deadline:
            records = [record for batch in consumer.poll(MORE_MS).values() for record in batch]
            found += [json.loads(record.value) for record in records]
            if not records:
                quiet += len({one["id"] for one in found}) >= wanted
    finally:
        consumer.close()
    return found


def ids(predictions: Sequence[dict[str, Any]]) -> Counter[str]:
    """Return how often each id was seen."""
    return Counter(one["id"] for one in predictions)
