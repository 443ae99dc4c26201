"""Services that stay up while their brokers fail: processes of ``streamadapt run`` on topics of
their own."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.protocol.metadata.find_coordinator import CoordinatorType

from benchmarks.faults.job import Running, launch
from benchmarks.faults.trials import Ended, Setting
from streamadapt.app.demo.broker import free_port

__all__ = ["PARTITIONS", "Service", "create_services"]

PARTITIONS = 2
END_S = 60.0

CONFIG = """
guarantee = "{guarantee}"
[source]
kind = "kafka"
servers = "{servers}"
topic = "{entries}"
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
kind = "persistence"
[[learners]]
kind = "bias"
rate = 0.1
[limits]
max_behind = "1h"
[sink]
kind = "kafka"
topic = "{predictions}"
[dead_letters]
kind = "kafka"
topic = "{letters}"
[checkpoint]
path = "{state}"
every = "1s"
[metrics]
port = {port}
host = "127.0.0.1"
"""


class Service:
    """One config, run by one process or by a group of two.

    Parameters
    ----------
    servers : str
    folder : Path
        A new folder.
    setting : Setting
    session_timeout : str or None
        Session timeout of the group; None keeps the default.
    """

    def __init__(
        self, servers: str, folder: Path, setting: Setting, session_timeout: str | None = None
    ) -> None:
        folder.mkdir(parents=True)
        name = f"{setting.guarantee}-{setting.members}-{time.time_ns() // 1_000_000}"
        self.setting = setting
        self.entries, self.predictions, self.letters = name, f"{name}-out", f"{name}-dead"
        self.group = name if setting.members > 1 else None
        self._servers, self._folder = servers, folder
        self._source = f'group = "{name}"' if self.group else ""
        if session_timeout is not None:
            self._source += f'\nsession_timeout = "{session_timeout}"'
        self.members: dict[str, Running] = {}
        self._starts = 0

    @property
    def transactional_ids(self) -> list[str]:
        """Return the ids of its producers, which are also the names of its groups of committed
        positions."""
        if self.setting.guarantee != "exactly-once":
            return []
        return [f"streamadapt/{self.predictions}/{self.entries}/{p}" for p in range(PARTITIONS)]

    def coordinators(self, admin: KafkaAdminClient) -> set[int]:
        """Return the node ids of the brokers that coordinate its group and its transactions."""
        ids = self.transactional_ids
        groups = [*([self.group] if self.group else []), *ids]
        found: set[int] = set()
        for names, kind in ((groups, CoordinatorType.GROUP), (ids, CoordinatorType.TRANSACTION)):
            if names:  # kafka-python has no public request for it
                found |= {
                    int(n)
                    for n in admin._manager.run(admin._find_coordinator_ids, names, kind).values()
                }
        return found

    def start(self) -> None:
        """Start every process that does not run."""
        for member in "ab"[: self.setting.members]:
            if member not in self.members:
                self.members[member] = self._launch(member)

    def _launch(self, member: str) -> Running:
        port = free_port()
        self._starts += 1
        config, log = (
            self._folder / f"{member}.toml",
            self._folder / f"{member}-{self._starts}.log",
        )
        config.write_text(
            CONFIG.format(
                guarantee=self.setting.guarantee, servers=self._servers, source=self._source,
                entries=self.entries, predictions=self.predictions, letters=self.letters,
                state=self._folder / "state", port=port,
            )
        )  # fmt: skip
        return Running(launch(config, log), port, log)

    def restart_ended(self, paused: str | None = None) -> list[Ended]:
        """Start ended processes again, and return them.

        Parameters
        ----------
        paused : str or None
            The member that may have been fenced.
        """
        found = []
        for member, running in list(self.members.items()):
            if not running.process.is_alive():
                log_tail = running.log_tail()
                fenced = member == paused and "FencedError" in log_tail
                found.append(Ended(member, running.process.exitcode, fenced, _why(log_tail)))
                del self.members[member]
        self.start()
        return found

    def stop(self) -> list[Ended]:
        """End every process by SIGTERM; return those that did not end with exit code 0."""
        for running in self.members.values():
            with contextlib.suppress(OSError):
                os.kill(running.process.pid, signal.SIGCONT)
            running.process.terminate()
        found = []
        for member, running in self.members.items():
            running.process.join(END_S)
            if running.process.is_alive():
                running.kill()
            if running.process.exitcode != 0:
                found.append(
                    Ended(
                        member,
                        running.process.exitcode,
                        fenced=False,
                        why=_why(running.log_tail()),
                    )
                )
        self.members = {}
        return found


def create_services(
    servers: str,
    folder: Path,
    settings: Sequence[Setting],
    replicas: int,
    session_timeout: str | None = None,
) -> list[Service]:
    """Return a service for each setting, with its topics; no process runs yet."""
    services = [
        Service(servers, folder / f"{s.guarantee}-{s.members}", s, session_timeout)
        for s in settings
    ]
    broker_time = {"message.timestamp.type": "LogAppendTime"}
    topics = [
        NewTopic(s.entries, PARTITIONS, replicas, topic_configs=broker_time) for s in services
    ]
    topics += [
        NewTopic(s.predictions, PARTITIONS, replicas, topic_configs=broker_time) for s in services
    ]
    topics += [NewTopic(s.letters, 1, replicas) for s in services]
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=servers.split(","))) as admin:
        admin.create_topics(topics)
        admin.wait_for_topics([topic.name for topic in topics])
    return services


def _why(log_tail: str) -> str:
    """Return the last line of a log that reports a problem."""
    lines = [line for line in log_tail.splitlines() if line.strip() and " INFO " not in line]
    return lines[-1][-400:] if lines else ""
