"""``streamadapt run`` on Kafka: signals, and an absent broker."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from cli_helpers import CONFIG, ROWS, lines, logging_as_before, prepare, rows
from kafka_helpers import produce, until
from kafka_tail import read_until

from benchmarks.faults.proxy import Proxy
from streamadapt.app.commands import run_command
from streamadapt.app.demo.broker import EmbeddedBroker, create_topics
from streamadapt.records import StreamPartition
from streamadapt.state.store import CheckpointStore

AWAY = ("no broker answers", "cannot be reached")


@pytest.fixture(autouse=True)
def _logging():
    yield from logging_as_before()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return prepare(tmp_path)


def entries_and_labels(n=ROWS):
    table = rows(n)
    entries = [json.dumps({"id": i, "time": t, "x": x}).encode() for i, t, x, _ in table]
    labels = [json.dumps({"id": i, "time": t + 3000, "y": y}).encode() for i, t, _, y in table]
    return entries, labels


class Run:
    """``streamadapt run`` on topics, in a separate process."""

    def __init__(self, folder, servers, entries, labels, predictions):
        self.folder = folder
        self.source = entries, labels
        self.predictions = predictions
        source = (
            f'kind = "kafka"\nservers = "{servers}"\ntopic = "{entries}"\nlabel_topic = "{labels}"'
        )
        sink = f'kind = "kafka"\ntopic = "{predictions}"'
        (folder / "config.toml").write_text(CONFIG.format(source=source, sink=sink))
        self.process = None

    def start(self):
        with (self.folder / "log.jsonl").open("ab") as log:
            command = [
                sys.executable,
                "-m",
                "streamadapt",
                "run",
                "config.toml",
                "--json",
                "--log-json",
            ]
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=subprocess.PIPE, stderr=log
            )
        return self

    def log(self):
        return [line["message"] for line in lines(self.folder / "log.jsonl")]

    def wait_for(self, *texts):
        """Wait until one of the texts is in the log."""

        def found():
            assert self.process.poll() is None, self.log()
            return any(text in line for line in self.log() for text in texts)

        until(found, lambda: time.sleep(0.05))

    def wait_for_checkpoint(self, offset=1):
        """Wait until a checkpoint has reached a number of entries."""

        def reached():
            assert self.process.poll() is None, self.log()
            return self.position() >= offset

        until(reached, lambda: time.sleep(0.05))

    def checkpoint(self):
        folder = self.folder / "state" / f"{self.source[0]}-0"
        return CheckpointStore(folder).load_latest() if folder.is_dir() else None

    def position(self):
        found = self.checkpoint()
        return 0 if found is None else found.positions.get(StreamPartition(self.source[0], 0), 0)

    def end(self, number):
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out.decode()

    def __enter__(self):
        return self.start()

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def offsets_of(servers, topic, count):
    """Return the source offsets of a topic's predictions, once at least `count` are written."""
    values = [
        json.loads(r.value) for r in read_until(servers, topic, lambda found: len(found) >= count)
    ]
    return [int(value["id"].rpartition("@")[2]) for value in values]


@contextmanager
def signal_when(holds, number):
    """Send this process a signal once a condition holds: a run within it treats it as its own."""
    give_up = threading.Event()

    def watch():
        while not give_up.wait(0.05):
            if holds():
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        give_up.set()
        thread.join()


@pytest.mark.kafka
@pytest.mark.slow
def test_a_signal_drains_and_checkpoints(folder, kafka_servers, topic, capsys):
    """SIGTERM, then SIGINT: exit code 0, and the checkpoint is exactly behind the written
    predictions."""
    entries, labels = entries_and_labels(2000)
    run = Run(folder, kafka_servers, topic(), topic(), topic())
    produce(kafka_servers, run.source[0], [entries])
    produce(kafka_servers, run.source[1], [labels])
    with run:
        run.wait_for_checkpoint()
        code, out = run.end(signal.SIGTERM)
    assert code == 0, run.log()
    assert "SIGTERM: draining" in run.log()
    first = run.position()
    assert json.loads(out)["entries"] == first < 2000
    assert offsets_of(kafka_servers, run.predictions, first - 2) == list(range(2, first)), (
        "every prediction up to the checkpoint"
    )
    capsys.readouterr()
    with signal_when(lambda: run.position() > first, signal.SIGINT):
        assert run_command(["run", "config.toml", "--json"]).code == 0
    output = capsys.readouterr()
    assert "SIGINT: draining" in output.err
    assert json.loads(output.out)["entries"] == run.position() > first
    second = run.position()
    assert offsets_of(kafka_servers, run.predictions, second - 2) == list(range(2, second)), (
        "and no prediction twice"
    )


@pytest.mark.kafka
@pytest.mark.slow
def test_a_signal_while_the_broker_is_away_and_a_restart_when_it_is_back(folder):
    """The process ends by itself, reports that a restart replays, and the restart loses
    nothing."""
    proxy = Proxy()
    with EmbeddedBroker(advertised_port=proxy.port) as broker:
        proxy.target_port = broker.port
        servers = f"127.0.0.1:{proxy.port}"
        create_topics(servers, {"entries": 1, "labels": 1, "predictions": 1})
        entries, labels = entries_and_labels(900)
        produce(servers, "entries", [entries])
        produce(servers, "labels", [labels])
        run = Run(folder, servers, "entries", "labels", "predictions")
        with run:
            run.wait_for_checkpoint(100)
            proxy.cut(refuse=True)
            run.wait_for(*AWAY)
            code, _ = run.end(signal.SIGTERM)
        assert code == 1, run.log()
        assert "a restart replays from the last checkpoint" in run.log()[-1]
        assert run.position() < 900
        proxy.mend()
        with run:
            run.wait_for_checkpoint(900)
            assert run.end(signal.SIGTERM)[0] == 0
        by_id = {}
        for record in read_until(
            servers, "predictions", lambda found: len({r.value for r in found}) >= 898
        ):
            prediction = json.loads(record.value)
            assert by_id.setdefault(prediction["id"], prediction) == prediction
        assert len(by_id) == 898
    proxy.close()


def test_a_signal_before_the_first_answer_of_the_broker_ends_the_run(folder):
    """It ends at once and without an error: there is nothing to lose."""
    proxy = Proxy()
    proxy.cut(refuse=True)
    Run(folder, f"127.0.0.1:{proxy.port}", "entries", "labels", "predictions")
    with signal_when((folder / "waiting").exists, signal.SIGTERM):
        logging.getLogger("streamadapt.kafka").addFilter(touch := Touch(folder / "waiting"))
        try:
            assert run_command(["run", "config.toml"]).code == 0
        finally:
            logging.getLogger("streamadapt.kafka").removeFilter(touch)
    proxy.close()


class Touch(logging.Filter):
    """Makes a file at the first message about waiting for the broker."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def filter(self, record):
        if "trying again" in record.getMessage():
            self.path.touch()
        return True


@pytest.mark.kafka
@pytest.mark.slow
def test_the_run_waits_for_a_broker_that_starts_later(folder):
    """A run that starts first reports it, and then works."""
    proxy = Proxy()
    proxy.cut(refuse=True)
    servers = f"127.0.0.1:{proxy.port}"
    with Run(folder, servers, "entries", "labels", "predictions") as run:
        run.wait_for("trying again until it works")
        with EmbeddedBroker(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            proxy.mend()
            create_topics(servers, {"entries": 1, "labels": 1, "predictions": 1})
            entries, labels = entries_and_labels(50)
            produce(servers, "entries", [entries])
            produce(servers, "labels", [labels])
            run.wait_for_checkpoint(50)
            assert run.end(signal.SIGTERM)[0] == 0, run.log()
            assert offsets_of(servers, "predictions", 48) == list(range(2, 50))
    proxy.close()
