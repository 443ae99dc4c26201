"""A stuck loop is detected from outside; a loop that moves or waits for records is not."""

from __future__ import annotations

import logging
import threading
import urllib.error
import urllib.request

import pytest
from kafka_helpers import until
from prometheus_client import CollectorRegistry

from streamadapt.app.exposition import MetricsCollector, serve
from streamadapt.app.watchdog import Watchdog
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics
from streamadapt.testing import IdentityCodec, MemoryDeadLetters, MemorySink, MemorySource

STUCK_S = 1.0


class BlockedSink(MemorySink):
    """A sink that blocks until the test releases it."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.free = threading.Event(), threading.Event()

    def write(self, predictions):
        self.entered.set()
        self.free.wait()
        super().write(predictions)


def ask(port, path="ready"):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_blocked_sink_is_reported_with_stacks_and_recovers(caplog):
    from test_engine import make_pipeline, stream

    entries, labels = stream(50)
    sink, metrics, registry = BlockedSink(), Metrics(), CollectorRegistry()
    engine = Engine(
        MemorySource(entries, labels, finite=False), make_pipeline, sink, IdentityCodec(),
        MemoryDeadLetters(), metrics=metrics,
    )  # fmt: skip
    MetricsCollector(metrics, registry)
    loop = threading.Thread(target=engine.run)
    loop.start()
    sink.entered.wait()  # earlier steps may be slow on a busy machine
    watchdog = Watchdog(engine, metrics, STUCK_S)
    with (
        caplog.at_level(logging.WARNING, "streamadapt"),
        watchdog,
        serve(registry, 0, "127.0.0.1", watchdog.ready) as at,
    ):
        try:
            until(lambda: watchdog.stalled, lambda: threading.Event().wait(0.01))
            assert ask(at.port)[0] == 503
            assert "has not moved" in ask(at.port)[1]
            assert "streamadapt_loop_stalled 1.0" in ask(at.port, "metrics")[1]
            assert "free.wait()" in caplog.text, "the log shows the line where the loop is blocked"
            sink.free.set()
            until(lambda: not watchdog.stalled, lambda: threading.Event().wait(0.01))
            assert ask(at.port) == (200, "ready: source is connected\n")
            assert "streamadapt_loop_stalled 0.0" in ask(at.port, "metrics")[1]
        finally:
            sink.free.set()
            engine.stop()
            loop.join()
        assert ask(at.port) == (503, "not ready: draining\n")


@pytest.mark.parametrize("looks", [12])
def test_a_loop_that_waits_for_records_is_not_stuck(looks):
    engine = Engine(
        MemorySource([], finite=False),
        lambda: None,
        MemorySink(),
        IdentityCodec(),
        MemoryDeadLetters(),
    )
    watchdog = Watchdog(engine, Metrics(), STUCK_S)
    with watchdog:
        for _ in range(looks):
            engine.heartbeat += 1
            threading.Event().wait(STUCK_S / 4)
        assert not watchdog.stalled
