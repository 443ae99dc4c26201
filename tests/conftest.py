"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

import pytest
import torch
from fault_counts import IN_FULL
from hypothesis import settings

from streamadapt.app.demo.broker import create_topics
from streamadapt.config import secrets as masking

# `make test-slow` uses the other profile. A property with another number sets it at its test.
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("full", max_examples=200, deadline=None)
settings.load_profile("quick")


def pytest_configure(config: pytest.Config) -> None:
    # Small steps: a second thread costs more than it saves.
    torch.set_num_threads(1)
    # kafka-python 3.0 drops the socket of a refused connection, and garbage collection closes it
    # at any time.
    config.addinivalue_line(
        "filterwarnings", "ignore:unclosed <socket.socket.*laddr=.'0.0.0.0':ResourceWarning"
    )
    # It also loads its protocol schemas through a deprecated function of importlib.resources.
    config.addinivalue_line(
        "filterwarnings", "ignore:(read_text|open_text) is deprecated:DeprecationWarning"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that only Apache Kafka passes if no such broker is named: the embedded one
    behaves differently."""
    if os.environ.get("STREAMADAPT_TEST_BROKER"):
        return
    for item in items:
        if item.get_closest_marker("apache_kafka"):
            item.add_marker(
                pytest.mark.skip(reason="needs Apache Kafka, named by STREAMADAPT_TEST_BROKER")
            )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not IN_FULL:
        terminalreporter.write_line("fault tests ran at reduced counts; in full: make test-faults")


@pytest.fixture(autouse=True)
def _secrets_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process forgets none of its secrets; a secret in one test may be any word in the next."""
    monkeypatch.setattr(masking, "_REMEMBERED", type(masking._REMEMBERED)())


@pytest.fixture(scope="session")
def kafka_servers() -> Iterator[str]:
    """``host:port`` of a broker: the one STREAMADAPT_TEST_BROKER names, otherwise an embedded
    one."""
    from benchmarks.faults.job import (
        brokers,
    )  # not above: the filters for kafka-python come first

    with brokers() as servers:
        yield servers


@pytest.fixture
def topic(kafka_servers: str) -> Callable[..., str]:
    """``topic(partitions=1)`` creates a topic with a name of its own and returns the name."""

    def create(partitions: int = 1, name: str = "t") -> str:
        unique = f"{name}-{uuid.uuid4().hex[:12]}"
        if partitions:
            create_topics(kafka_servers, {unique: partitions})
        return unique

    return create
