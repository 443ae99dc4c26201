"""The cost of each guarantee in time: ``python -m benchmarks.delivery --json FILE``.

The three guarantees run one after the other over the same slow stream of entries, in several
interleaved rounds, on the broker that STREAMADAPT_TEST_BROKER names, or else on an Apache Kafka of
its own, or else on the embedded one. The latency is the time from handing an entry to the producer
until a reader of committed records has its prediction. (The embedded broker shows records before
their commit: there the time ends with the commit, as measured in the engine.) The start is the
work of the guarantee before the first record: reading the output's end, or fencing and reading the
committed positions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from streamadapt_connectors.codecs import FieldMap, JsonCodec
from streamadapt_connectors.kafka import KafkaDeadLetters, KafkaSink, KafkaSource

from benchmarks.kafka_broker import broker_name, measured_broker
from streamadapt import RLS, Bias, Forecast, Persistence, Pipeline
from streamadapt.app.demo.broker import create_topics
from streamadapt.engine.engine import Engine
from streamadapt.engine.guarantees import GUARANTEES
from streamadapt.engine.settings import EngineSettings

ENTRIES, EVERY_S, CHECKPOINT_S, ROUNDS = 300, 0.02, 1.0, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delivery", description=__doc__)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures here, as one JSON object"
    )
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {guarantee: [] for guarantee in GUARANTEES}
    with (
        measured_broker() as servers,
        tempfile.TemporaryDirectory(prefix="streamadapt-latency-") as folder,
    ):
        broker = broker_name(servers)
        print(f"on {broker}")
        for i in range(ROUNDS):
            for guarantee in GUARANTEES:
                found[guarantee].append(
                    measured(broker, servers, Path(folder) / f"{guarantee}-{i}", guarantee)
                )
    figures = {
        guarantee: {name: median(one[name] for one in rounds) for name in rounds[0]}
        for guarantee, rounds in found.items()
    }
    for guarantee, figure in figures.items():
        print(guarantee, {name: round(value, 2) for name, value in figure.items()})
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        protocol = {
            "entries": ENTRIES,
            "every_s": EVERY_S,
            "checkpoint_s": CHECKPOINT_S,
            "rounds": ROUNDS,
        }
        asked.json.write_text(
            json.dumps({"broker": broker, "protocol": protocol, **figures}, indent=1) + "\n",
            encoding="utf-8",
        )
    return 0


def measured(broker: str, servers: str, folder: Path, guarantee: str) -> dict[str, float]:
    """Return the latencies of one run, in milliseconds."""
    name = f"latency-{uuid.uuid4().hex[:8]}"
    create_topics(servers, {name: 1, f"{name}-out": 1, f"{name}-dead": 1})
    fields = FieldMap(values=("x",), time="time", time_format="unix_s")
    engine = Engine(
        KafkaSource(servers, name),
        lambda: Pipeline(Forecast(4, 2), Persistence(2), [Bias(0.1), RLS(0.99)]),
        KafkaSink(servers, f"{name}-out"),
        JsonCodec(fields, streams=[name]),
        KafkaDeadLetters(servers, f"{name}-dead"),
        settings=EngineSettings(
            checkpoint_path=folder, checkpoint_every_s=CHECKPOINT_S, guarantee=guarantee
        ),
    )
    commits: list[float] = []
    starts: list[float] = []
    engine.on_checkpoint_step = lambda step: (
        commits.append(time.monotonic()) if step == "committed" else None
    )
    resume = engine.delivery.resume

    def timed(runner: Any, digest: str) -> Any:
        start = time.monotonic()
        try:
            return resume(runner, digest)
        finally:
            starts.append(time.monotonic() - start)

    engine.delivery.resume = timed  # type: ignore[method-assign]
    running = threading.Thread(target=engine.run)
    running.start()
    try:
        sent, seen = _trickle(servers, name)
    finally:
        time.sleep(2 * CHECKPOINT_S)
        engine.stop()
        running.join()
    shown = seen
    if guarantee == "exactly-once" and broker.startswith("embedded"):
        shown = {i: min(t for t in commits if t >= at) for i, at in seen.items()}
    latencies = sorted(1000 * (shown[i] - sent[i]) for i in shown)
    return {
        "median_ms": median(latencies),
        "p95_ms": latencies[int(0.95 * len(latencies))],
        "start_ms": 1000 * starts[0],
        "predictions": float(len(latencies)),
    }


def _trickle(servers: str, name: str) -> tuple[dict[int, float], dict[int, float]]:
    """Send the entries and read the predictions; return the times of sending and of reading
    each."""
    sent: dict[int, float] = {}
    seen: dict[int, float] = {}
    producer = KafkaProducer(bootstrap_servers=servers, linger_ms=0)
    consumer = KafkaConsumer(
        bootstrap_servers=servers, enable_auto_commit=False, isolation_level="read_committed"
    )
    at = TopicPartition(f"{name}-out", 0)
    consumer.assign([at])
    consumer.seek(at, 0)
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.normal(size=ENTRIES)).tolist()
    wanted = ENTRIES - 3  # the first window fills
    deadline = time.monotonic() + 60.0
    for i, x in enumerate(values):
        sent[i] = time.monotonic()
        producer.send(name, json.dumps({"time": 60 * i, "x": x}).encode(), partition=0)
        until = sent[i] + EVERY_S
        while (left := until - time.monotonic()) > 0:
            _read(consumer, seen, left)
    while len(seen) < wanted and time.monotonic() < deadline:
        _read(consumer, seen, 0.1)
    producer.close()
    consumer.close()
    return sent, seen


def _read(consumer: Any, seen: dict[int, float], timeout_s: float) -> None:
    for batch in consumer.poll(max(1.0, 1000 * timeout_s)).values():
        for record in batch:
            seen.setdefault(
                int(json.loads(record.value)["id"].rpartition("@")[2]), time.monotonic()
            )


if __name__ == "__main__":
    sys.exit(main())
