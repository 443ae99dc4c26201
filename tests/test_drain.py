"""The end of a run: after a complete drain nothing counts as a failure, and a blocked call is
given up after a while."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from cli_helpers import logging_as_before
from streamadapt_connectors.files import JsonlSink
from streamadapt_connectors.kafka import KafkaDeadLetters, KafkaSink

from streamadapt.app import running, tables
from streamadapt.app.commands import run_command
from streamadapt.engine.engine import Engine
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import ConnectorError
from streamadapt.testing import IdentityCodec, MemoryDeadLetters, MemorySink, MemorySource

CONFIG = """
[source]
kind = "files"
path = "data.jsonl"
[fields]
time = "t"
time_format = "unix_s"
values = ["x"]
[task]
kind = "forecast"
window = 2
horizon = 1
[base]
kind = "module"
factory = "drained_model:make"
[[learners]]
kind = "bias"
rate = 0.1
[sink]
kind = "files"
path = "out.jsonl"
[checkpoint]
path = "state"
"""
MODEL = """
import os, signal
calls = 0
def make():
    def model(x):
        global calls
        calls += 1
        if calls == 50:
            os.kill(os.getpid(), signal.SIGTERM)
        return x[-1:]
    return model
"""


@pytest.fixture(autouse=True)
def _logging():
    yield from logging_as_before()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run that sends itself SIGTERM at its 50th prediction.

    Only the alarms of the tests ever arrive.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(running, "DRAIN_S", 3600.0)
    Path("drained_model.py").write_text(MODEL)
    Path("c.toml").write_text(CONFIG)
    Path("data.jsonl").write_text(
        "".join(json.dumps({"t": i, "x": i % 7}) + "\n" for i in range(500))
    )
    yield tmp_path
    sys.modules.pop("drained_model", None)


def with_alarms(monkeypatch, of, name, count):
    """Send `count` alarms of the drain during a call; after them the call does its normal work."""
    real = getattr(of, name)

    def alarmed(*args, **more):
        try:
            for _ in range(count):
                os.kill(os.getpid(), signal.SIGALRM)
        finally:
            found = real(*args, **more)
        return found

    monkeypatch.setattr(of, name, alarmed)


def written():
    return len(Path("out.jsonl").read_text().splitlines())


def test_alarms_after_a_complete_drain_are_not_a_failure(folder, monkeypatch, capsys):
    """While sinks and stores close, and while the summary is printed: everything is saved, and the
    code is 0."""
    with_alarms(monkeypatch, JsonlSink, "close", 3)
    with_alarms(monkeypatch, tables, "summary_text", 100)
    assert run_command(["run", "c.toml"]).code == 0
    output = capsys.readouterr()
    assert "SIGTERM: draining" in output.err
    assert "served" in output.out
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    first = written()
    assert 0 < first < 499
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    assert run_command(["run", "c.toml"]).code == 0
    assert written() == 499, "the next run resumes behind it"


def test_a_close_that_hangs_is_abandoned_without_a_failure(folder, monkeypatch, capsys):
    """Everything was saved before; the process must end without waiting for the hanging call."""
    with_alarms(monkeypatch, JsonlSink, "close", 1000)
    outcome = run_command(["run", "c.toml"])
    assert (outcome.code, outcome.stuck) == (0, True)
    said = capsys.readouterr()
    assert "closing was interrupted; everything had been saved" in said.err
    assert "served" in said.out


def test_an_incomplete_drain_is_a_failure(folder, monkeypatch, capsys):
    with_alarms(monkeypatch, JsonlSink, "flush", 1)
    assert run_command(["run", "c.toml"]).code == 1
    assert "a restart replays from the last checkpoint" in capsys.readouterr().err


def test_a_signal_after_a_complete_drain_is_too_late(folder, monkeypatch, capsys):
    """A supervisor that sends a second signal while the summary is printed does not cause a
    failure."""
    real = tables.summary_text

    def signalled(summary):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        return real(summary)

    monkeypatch.setattr(tables, "summary_text", signalled)
    assert run_command(["run", "c.toml"]).code == 0
    assert "served" in capsys.readouterr().out


# -- in process: another thread stops the engine


def entries(n):
    return [json.dumps({"time": i, "values": [float(i % 5)]}).encode() for i in range(n)]


def pipeline():
    from streamadapt import Bias, Forecast, Persistence, Pipeline

    return Pipeline(Forecast(1, 1), Persistence(1), [Bias(0.1)])


class Ended(threading.Thread):
    """An engine in a thread, and its outcome."""

    def __init__(self, engine):
        super().__init__(daemon=True)
        self.engine, self.error = engine, None

    def run(self):
        try:
            self.engine.run()
        except ConnectorError as error:
            self.error = error


@pytest.mark.parametrize("which", ["predictions", "dead letters"])
def test_stop_works_while_a_kafka_sink_waits_for_its_broker(which):
    """No broker listens there.

    The sink gives up, and the engine ends with an error that says what a restart does.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        servers = f"127.0.0.1:{probe.getsockname()[1]}"
    waits = KafkaSink(servers, "t") if which == "predictions" else KafkaDeadLetters(servers, "t")
    sinks = (waits, MemoryDeadLetters()) if which == "predictions" else (MemorySink(), waits)
    items = entries(50) if which == "predictions" else [b"nonsense"] * 50
    settings = EngineSettings(drain_s=0.1)
    engine = Engine(
        MemorySource(items, finite=False),
        pipeline,
        sinks[0],
        IdentityCodec(),
        sinks[1],
        settings=settings,
    )
    thread = Ended(engine)
    thread.start()
    while engine.heartbeat < 3:  # it processes the first batch, which cannot be delivered
        time.sleep(0.01)
    engine.stop()
    thread.join(120.0)
    assert not thread.is_alive()
    assert "the engine is to stop; a restart replays from the last checkpoint" in str(thread.error)


def test_a_sink_can_ask_whether_the_engine_gives_up():
    """A third-party sink, too: it gets the function to ask when the engine is made."""

    class Waiting(MemorySink):
        def break_off_when(self, given_up):
            self.given_up = given_up

        def write(self, predictions):
            while not self.given_up():
                time.sleep(0.01)
            raise ConnectorError("waited long enough")

    engine = Engine(
        MemorySource(entries(50), finite=False), pipeline, Waiting(), IdentityCodec(),
        MemoryDeadLetters(), settings=EngineSettings(drain_s=0.05),
    )  # fmt: skip
    thread = Ended(engine)
    thread.start()
    engine.stop()
    thread.join(120.0)
    assert not thread.is_alive()
