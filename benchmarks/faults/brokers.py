"""A broker with connections that are cut, reset, refused and delayed, at any moment."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from streamadapt_connectors.kafka import KafkaSink, KafkaSource

from benchmarks.faults.counts import Counts
from benchmarks.faults.memory_job import STREAMS, Job, final_state
from benchmarks.faults.proxy import Proxy
from benchmarks.kafka_broker import ApacheKafka, broker_name, start_script
from streamadapt import Position
from streamadapt.app.demo.broker import EmbeddedBroker, create_topics
from streamadapt.engine.engine import Engine
from streamadapt.engine.settings import EngineSettings
from streamadapt.testing import IdentityCodec, MemoryDeadLetters, encode

__all__ = ["Disturber", "broker", "one_round"]

PREDICTIONS = "predictions"
ROUNDS, FAULTS, ENTRIES = 8, 30, 3000
QUICK_ROUNDS, QUICK_FAULTS, QUICK_ENTRIES = 1, 10, 1200
FETCH_BYTES = 4000  # a fetch is a few dozen records: most cuts hit a running fetch
POLL_RECORDS = 50
PATIENCE_S = 300.0  # a bound against hanging, far above any step here
LONGEST_S = 1.5
LONG_STALL_S = 35.0
"""Longer than the client's own request timeout: once in every round that is not quick."""
READ_MS = 500
SEED = 7

Fault = tuple[int, str, float]
"""Number of entries before the fault; the fault (``cut``, ``reset``, ``refused``, ``held``); its
length, s."""


def broker(quick: bool) -> Counts:
    """Run an engine between Kafka topics while its connections fail; a reader then looks for every
    prediction.

    Each fault counts as tried. The faults of a round survive if it ends with every prediction
    written once, with the right value, and in the state of an undisturbed run. Nothing crashes
    and the producer is idempotent, so no prediction may be written twice.
    """
    counts, rng = Counts(), random.Random(SEED)
    job = Job(QUICK_ENTRIES if quick else ENTRIES)
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        doubled = counts.doubled
        plan = _plan(rng, job.n, QUICK_FAULTS if quick else FAULTS, long=not quick)
        made, fine = one_round(job, counts, plan)
        counts.tried += made
        counts.survived += made if fine and counts.doubled == doubled else 0
    return counts


def one_round(job: Job, counts: Counts, plan: Sequence[Fault]) -> tuple[int, bool]:
    """Run a job to its end while a plan is carried out; return the number of faults caused and
    whether all is well."""
    proxy = Proxy()
    try:
        with _broker_behind(proxy) as name:
            counts.more["broker"] = name
            servers = f"127.0.0.1:{proxy.port}"
            create_topics(servers, dict.fromkeys((*STREAMS, PREDICTIONS), 1))
            _produce(servers, job)
            engine = _engine(servers, job)
            disturber = Disturber(proxy, engine, plan)
            try:
                finished = _run(engine, job.n)
            finally:
                disturber.finish()
            counts.more["connections"] = counts.more.get("connections", 0) + proxy.connections
            for name, count in disturber.made.items():
                counts.more[name] = counts.more.get(name, 0) + count
            found = _read(servers, len(job.wanted))
            fine = job.judge(counts, final_state(engine), found)
            return sum(disturber.made.values()), fine and finished
    finally:
        proxy.close()


@contextlib.contextmanager
def _broker_behind(proxy: Proxy) -> Iterator[str]:
    """Start a broker that clients can reach through a proxy only; yield its name and version."""
    if start_script() is None:
        with EmbeddedBroker(advertised_port=proxy.port) as embedded:
            proxy.target_port = embedded.port
            yield broker_name(embedded.servers)
        return
    advertised = f"advertised.listeners=PLAINTEXT://127.0.0.1:{proxy.port}"
    with tempfile.TemporaryDirectory(prefix="streamadapt-kafka-") as folder:
        kafka = ApacheKafka(Path(folder), settings=[advertised])
        proxy.target_port = kafka.port
        with kafka:
            yield broker_name(kafka.servers)


def _plan(rng: random.Random, n: int, faults: int, *, long: bool) -> list[Fault]:
    plan: list[Fault] = [
        (
            rng.randrange(n),
            rng.choice(("cut", "reset", "refused", "held")),
            rng.uniform(0.0, LONGEST_S),
        )
        for _ in range(faults)
    ]
    if long:
        plan.append((rng.randrange(n), "held", LONG_STALL_S))
    return sorted(plan)


class Disturber:
    """A thread that carries out a plan of faults while an engine runs; faults not due by the end
    are left out.

    Parameters
    ----------
    proxy : Proxy
        Between the engine and its broker.
    engine : Engine
    plan : sequence of Fault
        The faults in order.

    Attributes
    ----------
    made : dict of str to int
        Faults caused, by name.
    """

    def __init__(self, proxy: Proxy, engine: Engine, plan: Sequence[Fault]) -> None:
        self.made: dict[str, int] = {}
        self._proxy = proxy
        self._engine = engine
        self._plan = plan
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._disturb)
        self._thread.start()

    def finish(self) -> None:
        """Restore the network, and return when the thread has ended."""
        self._over.set()
        self._thread.join()
        self._proxy.mend()

    def _disturb(self) -> None:
        for due, what, seconds in self._plan:
            while entries_done(self._engine) < due:
                if self._over.wait(0.001):
                    return
            if what == "held":
                self._proxy.stall()
            else:
                self._proxy.cut(refuse=what == "refused", reset=what == "reset")
            self.made[what] = self.made.get(what, 0) + 1
            if what in ("held", "refused"):
                self._over.wait(seconds)
                self._proxy.mend()


def entries_done(engine: Engine) -> int:
    """Return how many entries an engine has processed; from any thread."""
    return sum(runner.pipeline.stats.entries for runner in list(engine.runners.values()))


def _engine(servers: str, job: Job) -> Engine:
    source = KafkaSource(servers, *STREAMS, fetch_bytes=FETCH_BYTES, max_poll_records=POLL_RECORDS)
    sink = KafkaSink(servers, PREDICTIONS, _encode)
    settings = EngineSettings(checkpoint_every_entries=job.every)
    return Engine(source, job.make, sink, IdentityCodec(), MemoryDeadLetters(), settings=settings)


def _encode(prediction: Any) -> bytes:
    offset, served = prediction.position.offset, prediction.served
    return json.dumps(
        {"offset": offset, "served": served.tobytes().hex(), "type": str(served.dtype)}
    ).encode()


def _run(engine: Engine, n: int) -> bool:
    """Run until every entry and label is processed; False if that never happens."""
    engine.source.open(engine)
    deadline = time.monotonic() + PATIENCE_S

    def done() -> bool:
        labels = sum(
            sum(runner.pipeline.stats.labels.values()) for runner in engine.runners.values()
        )
        return entries_done(engine) >= n and labels >= n

    while not done() and time.monotonic() < deadline:
        engine.step()
    finished = done()
    engine.stop()
    engine.run()  # stopped already: it flushes, checkpoints and closes
    return finished


def _produce(servers: str, job: Job) -> None:
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", batch_size=FETCH_BYTES)
    try:
        for topic, items in zip(STREAMS, (job.entries, job.labels), strict=True):
            for item in items:
                producer.send(topic, encode(item), partition=0)
        producer.flush()
    finally:
        producer.close()


def _read(servers: str, enough: int) -> list[tuple[str, bytes]]:
    """Return (name, value) of every prediction of the topic, once `enough` are written or no more
    arrive."""
    consumer = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    at = TopicPartition(PREDICTIONS, 0)
    found: list[Any] = []
    try:
        consumer.assign([at])
        consumer.seek(at, 0)
        idle = 0
        while idle < (2 if len(found) >= enough else 10):
            more = consumer.poll(READ_MS).get(at, ())
            found += more
            idle = 0 if more else idle + 1
    finally:
        consumer.close()
    rows = [json.loads(record.value) for record in found]
    served = [np.frombuffer(bytes.fromhex(row["served"]), row["type"]).tobytes() for row in rows]
    return [
        (str(Position(STREAMS[0], 0, row["offset"])), value)
        for row, value in zip(rows, served, strict=True)
    ]
