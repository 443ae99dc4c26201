"""``kill -9`` of a real ``streamadapt run`` at random instants, on a real Kafka protocol broker."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from kafka import KafkaProducer
from kafka_tail import read_until
from states import assert_same_state

from streamadapt.app.broker import free_port
from streamadapt.app.demo_view import scrape
from streamadapt.app.fitting import fit_base
from streamadapt.checkpoint import CheckpointStore

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

ENTRIES = 2500
LABEL_DELAY = timedelta(hours=1)
START = datetime(2026, 1, 1, tzinfo=UTC)

CONFIG = """
[source]
kind = "kafka"
servers = "{servers}"
topic = "{entries}"
label_topic = "{labels}"
[fields]
id = "id"
time = "time"
values = ["x"]
label = "y"
[task]
kind = "supervised"
window = 3
[base]
kind = "linear"
weights = "{folder}/base.safetensors"
[[learners]]
kind = "bias"
rate = [0.1, 0.01]
[[learners]]
kind = "rls"
forgetting = 0.98
[[learners]]
kind = "river"
model = "linear_model.LinearRegression"
[[drift]]
detector = "adwin"
reaction = "boost"
[sink]
kind = "kafka"
topic = "{predictions}"
[dead_letters]
kind = "kafka"
topic = "{letters}"
[checkpoint]
path = "{folder}/state"
every = "200ms"
[metrics]
port = {port}
host = "127.0.0.1"
"""


def rows(n):
    rng = np.random.default_rng(7)
    x = np.cumsum(rng.normal(size=n)) * 0.1
    y = 2.0 * x + np.where(np.arange(n) < n // 2, 0.0, 3.0) + rng.normal(size=n) * 0.1
    times = [START + timedelta(minutes=5 * i) for i in range(n)]
    return list(zip(times, x.tolist(), y.tolist(), strict=True))


def produce(servers, entries, labels):
    producer = KafkaProducer(bootstrap_servers=servers)
    for i, (time_, x, y) in enumerate(rows(ENTRIES)):
        value = "dirty" if i % 97 == 0 else x
        producer.send(entries, json.dumps({"id": str(i), "time": time_.isoformat(), "x": value}).encode(), partition=0)
        known = (time_ + LABEL_DELAY).isoformat()
        producer.send(labels, json.dumps({"id": str(i), "time": known, "y": y}).encode(), partition=0)
    producer.flush()
    producer.close()


class Job:
    """One config in a folder of its own, over shared input topics."""

    def __init__(self, servers, folder, topic, entries, labels):
        self.folder = folder
        folder.mkdir()
        self.port = free_port()
        self.predictions = topic()
        self.config = folder / "config.toml"
        topics = {"entries": entries, "labels": labels, "predictions": self.predictions, "letters": topic()}
        self.config.write_text(CONFIG.format(servers=servers, folder=folder, port=self.port, **topics))
        history = folder / "history.csv"
        lines = [f"{i},{t.isoformat()},{x},{y}" for i, (t, x, y) in enumerate(rows(300))]
        history.write_text("\n".join(["id,time,x,y", *lines]) + "\n")
        fit_base(self.config, history, None, ridge=0.1, subtract_last=True, shared_scale=False)

    def start(self):
        with (self.folder / "engine.log").open("ab") as log:
            command = [sys.executable, "-m", "streamadapt", "run", str(self.config)]
            return subprocess.Popen(command, stdout=log, stderr=log)

    def done(self, process):
        """Records dealt with so far, from the metrics."""
        assert process.poll() is None, (self.folder / "engine.log").read_text()[-2000:]
        samples = scrape(f"http://127.0.0.1:{self.port}/metrics") or {}
        labels = sum(v for k, v in samples.get("labels_total", {}).items() if k != "expired")
        refused = sum(samples.get("rejected_total", samples.get("dead_letters_total", {})).values())
        return sum(samples.get("entries_total", {}).values()), labels, refused

    def state(self):
        return CheckpointStore(self.folder / "state" / os.listdir(self.folder / "state")[0]).load_latest()

    def finish(self, process, expected_entries, expected_labels):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            entries, labels, _ = self.done(process)
            if (entries, labels) == (expected_entries, expected_labels):
                break
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (self.folder / "engine.log").read_text()[-2000:]


def read_all(servers, topic, count):
    """Predictions of `count` different entries, repeats included."""

    def enough(records):
        return len({json.loads(record.value)["id"] for record in records}) >= count

    return [json.loads(record.value) for record in read_until(servers, topic, enough)]


def test_kill_minus_nine_leaves_no_trace(kafka_servers, topic, tmp_path):
    """Killed four times at random instants: the same final state to the bit, no entry missing, repeats equal."""
    entries, labels = topic(), topic()
    produce(kafka_servers, entries, labels)
    dirty = len(range(0, ENTRIES, 97))
    good = ENTRIES - dirty
    calm = Job(kafka_servers, tmp_path / "calm", topic, entries, labels)
    calm.finish(calm.start(), good, good)
    killed = Job(kafka_servers, tmp_path / "killed", topic, entries, labels)
    random_ = random.Random(time.time_ns())
    for _ in range(4):
        process = killed.start()
        before = -1.0
        target = random_.uniform(50, ENTRIES / 4)
        while True:
            reached = killed.done(process)[0]
            before = reached if before < 0 and reached > 0 else before
            if reached and reached >= min(before + target, good - 50):
                break
            time.sleep(0.02)
        time.sleep(random_.uniform(0.0, 0.3))
        process.kill()
        process.wait()
    killed.finish(killed.start(), good, good)
    one, two = calm.state(), killed.state()
    assert_same_state(one.state, two.state)
    assert one.positions == two.positions
    wanted = {p["id"]: p for p in read_all(kafka_servers, calm.predictions, good - 2)}
    assert len(wanted) == good - 2
    said = {}
    for prediction in read_all(kafka_servers, killed.predictions, good - 2):
        assert said.setdefault(prediction["id"], prediction) == prediction
    assert said == wanted
