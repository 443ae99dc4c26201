"""Services on Apache Kafka that run side by side through one fault after the other, and the
verdict on each."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from benchmarks.faults.services import PARTITIONS, Service, create_services
from benchmarks.faults.trials import Ended, Setting, Trial, judge
from benchmarks.faults.watching import Feeder, Reader
from benchmarks.kafka_broker import ApacheKafka, broker_name
from streamadapt import __version__

__all__ = ["Done", "Scene"]

RATE = 8.0
"""Entries per second and partition."""
QUIET_S = 4.0
AFTER_S = 4.0
SILENT_S, LATEST_S = 60.0, 300.0
"""An entry without a prediction is lost if no missing prediction has arrived for this time, or
this time after the last entry of a trial: a service that lags on a busy machine has lost
nothing."""
REPEATS_S = 2.0
SETTLED_S = 120.0


@dataclass(frozen=True)
class Done:
    """A finished fault.

    Attributes
    ----------
    length_s : float
    hit : mapping
        Whether the fault affected a setting; settings left out were hit.
    ended : mapping
        Processes that ended during the fault, if the fault itself has restarted them.
    """

    length_s: float
    hit: Mapping[Setting, bool]
    ended: Mapping[Setting, list[Ended]]


Fault = Callable[["Scene"], Done]


class Scene:
    """A service for each setting, all fed and read all the time; a context manager.

    Parameters
    ----------
    kafka : ApacheKafka
        Running.
    folder : Path
    settings : sequence of Setting
    session_timeout : str or None
        Session timeout of the groups; None keeps the default.

    Attributes
    ----------
    missing : dict of Setting to int
        How many trials of the next fault are still missing: a fault that cannot hit all settings
        chooses by this number.
    """

    def __init__(
        self,
        kafka: ApacheKafka,
        folder: Path,
        settings: Sequence[Setting],
        session_timeout: str | None = None,
    ) -> None:
        self.kafka, self.folder = kafka, folder
        replicas = 1 if kafka.brokers < 3 else 3
        self.services = create_services(kafka.servers, folder, settings, replicas, session_timeout)
        self.reader = Reader(kafka.servers, self.services)
        self.feeder = Feeder(kafka.servers, self.services, RATE)
        self._broker = broker_name(kafka.servers)
        self.missing: dict[Setting, int] = {}
        self._judged = {service.setting: [1] * PARTITIONS for service in self.services}

    def __enter__(self) -> Scene:
        try:
            for service in self.services:
                service.start()
            self.reader.start()
            self.feeder.start()
            self._settle()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the services, then the threads."""
        for service in self.services:
            for ended in service.stop():
                say(f"{service.setting}: {ended}")
        self.feeder.stop()
        self.reader.stop()
        if self.feeder.renewed or self.reader.renewed > 1:
            say(
                f"producer made again {self.feeder.renewed} times, reader "
                f"{self.reader.renewed - 1}"
            )

    def trials(self, name: str, fault: Fault) -> list[Trial]:
        """Make a fault, and return a trial for each setting."""
        self._wait_for(self._wanted())
        time.sleep(QUIET_S)
        before = {service.setting: service.restart_ended() for service in self.services}
        for setting, ended in before.items():
            if ended:  # between two trials: it belongs to no trial, but is reported
                say(f"{setting}: ended before the fault: {ended}")
        since, began = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        done = fault(self)
        time.sleep(AFTER_S)
        wanted = self._wanted()
        self._wait_for(wanted)
        time.sleep(REPEATS_S)
        until, clock = time.monotonic(), time.time() - time.monotonic()
        found = []
        for service in self.services:
            setting = service.setting
            ended = [*before[setting], *done.ended.get(setting, []), *service.restart_ended()]
            trial = Trial(
                name, *setting, hit=done.hit.get(setting, True), length_s=done.length_s,
                ended=ended, load=os.getloadavg()[0], broker=self._broker, version=__version__,
                began=began,
            )  # fmt: skip
            trial = judge(
                trial, self.reader.partitions(service, wanted[setting]), since, until, clock
            )
            self._judged[setting] = [offsets.stop for offsets in wanted[setting]]
            found.append(_rounded(trial))
        return found

    def _wanted(self) -> dict[Setting, list[range]]:
        """Return the entries fed since the last verdict; the first entry fills the window and gets
        no prediction."""
        return {
            service.setting: [
                range(first, max(first, end))
                for first, end in zip(
                    self._judged[service.setting], self.reader.ends(service), strict=True
                )
            ]
            for service in self.services
        }

    def _wait_for(self, wanted: Mapping[Setting, Sequence[range]]) -> None:
        """Wait until these entries have their predictions, or the missing ones are lost."""
        begin = moved = time.monotonic()
        before = None
        while any(missing := [self.reader.missing(s, wanted[s.setting]) for s in self.services]):
            now = time.monotonic()
            if missing != before:
                before, moved = missing, now
            if now - moved > SILENT_S or now - begin > LATEST_S:
                return
            time.sleep(0.2)

    def _settle(self) -> None:
        """Wait until every process works; entries fed until then belong to no trial."""
        deadline = time.monotonic() + SETTLED_S
        while not (
            all(map(works, self.services))
            and all(all(offsets) for offsets in self._wanted().values())
        ):
            if time.monotonic() > deadline:
                stories = "\n".join(
                    one.log_tail() for service in self.services for one in service.members.values()
                )
                raise RuntimeError(f"the services did not begin to work:\n{stories}")
            time.sleep(0.5)
        self._wait_for(self._wanted())


def works(service: Service) -> bool:
    """Return whether each process of a service has a partition of its own."""
    held = [running.partitions() for running in service.members.values()]
    return all(held) and len(set().union(*held)) == sum(map(len, held))


def say(line: str) -> None:
    """Write a line of progress."""
    print(f"  {line}", file=sys.stderr, flush=True)


def _rounded(trial: Trial) -> Trial:
    names = ("length_s", "gap_s", "gap_appended_s", "gap_input_s", "lag_s", "load")
    return replace(trial, **{name: round(getattr(trial, name), 2) for name in names})
