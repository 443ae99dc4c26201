"""An Apache Kafka that a test may kill, started by the script that STREAMADAPT_KAFKA_START names,
if there is one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.kafka_broker import BESIDE, PATIENCE_S, runs, start_script


def free_ports(count: int) -> list[int]:
    """Return free TCP ports of 127.0.0.1, all different; the port after the first is free too."""
    with ExitStack() as held:  # all at once: a closed port may be assigned again

        def bound(port: int) -> int | None:
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return None
            return int(probe.getsockname()[1])

        first = next(port for _ in range(100) if (port := bound(0)) and bound(port + 1))
        others = (bound(0) for _ in range(count - 1))
        return [first, *(port for port in others if port)]


class OwnBroker:
    """One broker with its data below a folder.

    Parameters
    ----------
    folder : Path
    lines : sequence of str
        Further lines of ``server.properties``; a later line replaces an earlier one of the same
        name.
    port : int or None
        Port of the listener without TLS and password; None takes a free one. The next port is the
        controller's.
    """

    def __init__(self, folder: Path, lines: Sequence[str] = (), port: int | None = None) -> None:
        script = start_script()
        if script is None:
            named = os.environ.get("STREAMADAPT_KAFKA_START", BESIDE)
            pytest.skip(
                f"no start script of Apache Kafka: {named} (STREAMADAPT_KAFKA_START names another)"
            )
        self._start = script
        self._folder = folder / "kafka"
        self._port = free_ports(1)[0] if port is None else port
        self._lines = list(lines)
        self.servers = f"127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Start the broker, also with the data of an earlier run; return once it answers."""
        command = [str(self._start), str(self._folder), str(self._port), "1", *self._lines]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)

    @property
    def pid(self) -> int:
        return int((self._folder / "broker.0" / "pid").read_text())

    def kill(self) -> None:
        """Send SIGKILL, like a power failure."""
        self.signal(signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while runs(self.pid):
            assert time.monotonic() < deadline, "the killed broker still runs"
            time.sleep(0.05)
        # The start script looks for its last line: the line of the previous run must not be
        # mistaken for the next one's.
        (self._folder / "broker.0" / "broker.log").unlink(missing_ok=True)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        if runs(self.pid):
            os.kill(self.pid, signal.SIGCONT)
            self.kill()
