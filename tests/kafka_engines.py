"""``streamadapt run`` as processes on a topic of numbers, for tests of events on a broker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewPartitions, NewTopic
from kafka_helpers import PATIENCE_S, consume

from streamadapt.app.demo.broker import free_port

CONFIG = """
guarantee = "{guarantee}"
[source]
kind = "kafka"
servers = "{servers}"
topic = "{topic}"
session_timeout = "6s"
{source}
[fields]
time = "time"
time_format = "unix_s"
values = ["x"]
[task]
kind = "forecast"
window = 2
horizon = 1
[base]
kind = "module"
factory = "slow_base:make"
[[learners]]
kind = "bias"
rate = 0.1
[sink]
kind = "kafka"
topic = "{topic}-out"
[dead_letters]
kind = "kafka"
topic = "{topic}-dead"
[checkpoint]
path = "state"
every = "1s"
[metrics]
port = {port}
host = "127.0.0.1"
"""

SLOW_BASE = """
import os, time
from torch import nn
class Slow(nn.Module):
    def forward(self, x):
        time.sleep(float(os.environ.get("SLOW_S", "0")) * len(x))
        return x[:, -1:]
def make():
    return Slow()
"""


def admin(servers: str) -> contextlib.closing[KafkaAdminClient]:
    return contextlib.closing(KafkaAdminClient(bootstrap_servers=servers))


def create(servers: str, *topics: str, partitions: int = 1) -> None:
    """Create topics, and wait until they exist."""
    with admin(servers) as client:
        client.create_topics([NewTopic(topic, partitions, 1) for topic in topics])
        client.wait_for_topics(list(topics))


def delete(servers: str, *topics: str) -> None:
    with admin(servers) as client:
        client.delete_topics(list(topics))


def grow(servers: str, topic: str, partitions: int) -> None:
    with admin(servers) as client:
        client.create_partitions({topic: NewPartitions(partitions)})


def fill(
    servers: str, topic: str, count: int, partitions: int = 1, first: int = 0, **configs: Any
) -> None:
    """Write `count` entries to each partition."""
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=20, **configs)
    try:
        if "transactional_id" in configs:
            producer.init_transactions()
            producer.begin_transaction()
        for i in range(first, first + count):
            value = json.dumps({"time": 1.7e9 + 60 * i, "x": i % 7}).encode()
            for partition in range(partitions):
                producer.send(topic, value, partition=partition)
        if "transactional_id" in configs:
            producer.commit_transaction()
        producer.flush(PATIENCE_S)
    finally:
        producer.close()


class Job:
    """A topic's config and state in a folder; `start` runs engines on it."""

    def __init__(
        self,
        folder: Path,
        servers: str,
        topic: str,
        guarantee: str = "at-least-once",
        source: str = "",
    ) -> None:
        self.folder, self.servers, self.topic = folder, servers, topic
        self._settings = {
            "guarantee": guarantee,
            "servers": servers,
            "topic": topic,
            "source": source,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "slow_base.py").write_text(SLOW_BASE)

    @contextlib.contextmanager
    def start(self, name: str, slow_s: float = 0.0) -> Iterator[Engine]:
        port = free_port()
        (self.folder / f"{name}.toml").write_text(CONFIG.format(port=port, **self._settings))
        path = os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")])
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "SLOW_S": str(slow_s),
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "streamadapt", "run", f"{name}.toml"],
                cwd=self.folder, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        engine = Engine(process, port, self.folder / f"{name}.log")
        try:
            yield engine
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def offsets(self) -> dict[int, Counter[int]]:
        """Return how often the output has each entry's prediction, by partition and offset."""
        found: dict[int, Counter[int]] = {}
        for record in consume(self.servers, f"{self.topic}-out", isolation_level="read_committed"):
            _, place, offset = (
                json.loads(record.value)["id"].rpartition("@")[0],
                *split(record.value),
            )
            found.setdefault(place, Counter())[offset] += 1
        return found


def split(value: bytes) -> tuple[int, int]:
    """Return partition and offset in the id of a prediction."""
    from streamadapt.records import Position

    at = Position.parse(json.loads(value)["id"])
    assert at is not None
    return at.partition, at.offset


class Engine:
    """One process of ``streamadapt run``."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self._log = process, port, log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def metrics(self) -> dict[str, float]:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as page,
        ):
            lines = [
                line.rpartition(" ")
                for line in page.read().decode().splitlines()
                if line[:1] != "#"
            ]
            return {name: float(value) for name, _, value in lines}
        return {}

    def predictions(self) -> dict[str, float]:
        """Return the number of predictions by partition."""
        name = 'streamadapt_predictions_total{partition="'
        return {
            k.removeprefix(name).partition('"')[0]: v
            for k, v in self.metrics().items()
            if k.startswith(name)
        }

    def ready(self) -> int:
        """Return the status of ``/ready``; 0 without an answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5) as page:
                return int(page.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def end(self) -> int:
        """Send SIGTERM; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)
