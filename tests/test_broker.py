"""The embedded broker starts, answers, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from streamadapt.app.demo.broker import EmbeddedBroker, create_topics
from streamadapt.errors import ConnectorError

pytestmark = pytest.mark.kafka

CHILD = """
import time
from streamadapt.app.demo.broker import EmbeddedBroker
print(EmbeddedBroker().start().port, flush=True)
time.sleep(600)
"""


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until_gone(port: int) -> None:
    deadline = time.monotonic() + 60  # a bound against hanging
    while answers(port):
        assert time.monotonic() < deadline, "the broker is still there"
        time.sleep(0.02)


def test_the_broker_answers_while_open_and_not_after() -> None:
    with EmbeddedBroker() as broker:
        assert broker.servers == f"127.0.0.1:{broker.port}"
        create_topics(broker.servers, {"a": 2})
        create_topics(broker.servers, {"a": 2})  # an existing topic is unchanged
    assert not answers(broker.port)
    broker.stop()


def test_a_taken_port_is_an_error() -> None:
    with (
        EmbeddedBroker() as other,
        pytest.raises(ConnectorError, match=f"port {other.port} .*cannot be used"),
    ):
        EmbeddedBroker(other.port).start()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl")
def test_the_broker_ends_with_its_killed_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        assert answers(port)
        os.kill(child.pid, signal.SIGKILL)
    wait_until_gone(port)


def test_creating_topics_without_a_broker_is_an_error() -> None:
    with EmbeddedBroker() as broker:
        servers = broker.servers
    with pytest.raises(ConnectorError, match="cannot create topics"):
        create_topics(servers, {"a": 1}, timeout_s=0.5)
