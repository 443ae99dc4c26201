"""exactly-once if the broker does not answer, or has ended the transaction: the same process
continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from kafka.future import Future
from kafka_helpers import consume, produce, until
from own_broker import OwnBroker
from streamadapt_connectors.kafka import KafkaSink, KafkaSource
from streamadapt_connectors.kafka import client as kafka_settings

from streamadapt import Bias, Entry, Forecast, Persistence, Pipeline
from streamadapt.app.demo.broker import create_topics
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import ConfigError, Loss, TransactionLostError
from streamadapt.testing import IdentityCodec, MemoryDeadLetters, encode

Topic = Callable[..., str]

WINDOW = 3
EMBEDDED = not os.environ.get("STREAMADAPT_TEST_BROKER")
"""The embedded broker shows the records of aborted transactions to readers of committed ones."""


def entries(first: int, count: int) -> list[bytes]:
    rows = range(first, first + count)
    return [encode(Entry(np.array([i % 7], np.float32), i * 10**9, f"e{i}")) for i in rows]


def make_engine(
    servers: str, name: str, out: str, path: Any, group: dict[str, Any] | None = None, **sink: str
) -> Engine:
    options = {"broker_timeout": "3s", "transaction_timeout": "30s"} | sink
    return Engine(
        KafkaSource(servers, name, **(group or {})),
        lambda: Pipeline(Forecast(WINDOW, 1), Persistence(1), [Bias(0.1)]),
        KafkaSink(servers, out, **options),
        IdentityCodec(),
        MemoryDeadLetters(),
        settings=EngineSettings(
            checkpoint_path=path, checkpoint_every_s=0.3, guarantee="exactly-once"
        ),
        metrics=Metrics(),
    )


def prediction_counts(servers: str, out: str) -> Counter[str]:
    return Counter(
        json.loads(r.value)["id"] for r in consume(servers, out, isolation_level="read_committed")
    )


def wanted(name: str, count: int, partitions: int = 1) -> Counter[str]:
    return Counter(f"{name}[{p}]@{i}" for p in range(partitions) for i in range(WINDOW - 1, count))


def losses(engine: Engine) -> dict[str, float]:
    found = engine.metrics.samples()["streamadapt_transactions_lost_total"]
    return {labels[1]: value for labels, value in found if isinstance(value, int) and value}


def run_until(engine: Engine, count: int) -> None:
    """Step until the given number of entries is committed."""

    def committed() -> bool:
        runner = engine.runners.get(0)
        return (
            runner is not None
            and runner.pipeline.stats.entries >= count
            and not runner.since_checkpoint
        )

    until(committed, engine.step)


class Loses:
    """Loses the first request of a kind after `arm`: it is never sent and never answered."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.armed = False
        self.lost = 0

    def arm(self) -> None:
        self.armed = True

    def takes(self, request: Any) -> bool:
        if not self.armed or type(request).__name__ != self.kind:
            return False
        self.armed = False
        self.lost += 1
        return True


@pytest.fixture
def loses(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Loses:
    loses = Loses(request.param)
    send = kafka_settings._Manager.send

    def lossy(
        manager: Any, request: Any, node_id: Any = None, request_timeout_ms: Any = None
    ) -> Any:
        return (
            Future()
            if loses.takes(request)
            else send(manager, request, node_id, request_timeout_ms)
        )

    monkeypatch.setattr(kafka_settings._Manager, "send", lossy)
    return loses


REQUESTS = [
    "AddPartitionsToTxnRequest",
    "ProduceRequest",
    "AddOffsetsToTxnRequest",
    "TxnOffsetCommitRequest",
]
REQUESTS += ["EndTxnRequest"]


@pytest.mark.kafka
@pytest.mark.apache_kafka
@pytest.mark.parametrize("loses", REQUESTS, indirect=True)
def test_a_lost_request_causes_a_replay(
    kafka_servers: str, topic: Topic, tmp_path: Any, loses: Loses
) -> None:
    """Without our own limit the engine would wait for the answer forever."""
    name, out, pid = topic(1), topic(1), os.getpid()
    engine = make_engine(kafka_servers, name, out, tmp_path)
    engine.source.open(engine)
    produce(kafka_servers, name, [entries(0, 20)])
    run_until(engine, 20)
    loses.arm()
    produce(kafka_servers, name, [entries(20, 20)])
    run_until(engine, 40)
    assert loses.lost == 1
    assert losses(engine) == {"no_answer": 1}
    produce(kafka_servers, name, [entries(40, 10)])
    run_until(engine, 50)
    engine.stop()
    engine.run()
    assert os.getpid() == pid
    found = prediction_counts(kafka_servers, out)
    assert set(found) == set(wanted(name, 50))
    if not EMBEDDED:
        assert found == wanted(name, 50)


@pytest.mark.kafka
@pytest.mark.apache_kafka
@pytest.mark.parametrize(
    "loses", ["InitProducerIdRequest", "FindCoordinatorRequest"], indirect=True
)
def test_a_lost_request_at_the_start(
    kafka_servers: str, topic: Topic, tmp_path: Any, loses: Loses
) -> None:
    """The partition is restarted until it works; records that arrive in between are not
    skipped."""
    name, out = topic(1), topic(1)
    engine = make_engine(kafka_servers, name, out, tmp_path)
    produce(kafka_servers, name, [entries(0, 20)])
    loses.arm()
    engine.source.open(engine)
    run_until(engine, 20)
    engine.stop()
    engine.run()
    assert loses.lost == 1
    assert set(prediction_counts(kafka_servers, out)) == set(wanted(name, 20))


@pytest.fixture
def own_broker(tmp_path: Any) -> Iterator[OwnBroker]:
    broker = OwnBroker(tmp_path)
    try:
        yield broker
    finally:
        broker.stop()


def run_in_thread(engine: Engine) -> tuple[threading.Thread, list[Exception]]:
    errors: list[Exception] = []

    def run() -> None:
        try:
            engine.run()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def feed_while(
    servers: str,
    name: str,
    batches: int,
    between: Sequence[Callable[[], object]],
    partitions: int = 1,
) -> int:
    """Write batches of ten entries, with an action after some of them; return the number of
    entries per partition."""
    done = 0
    steps = dict(enumerate(between, 1))
    for i in range(batches):
        produce(servers, name, [entries(done, 10)] * partitions)
        done += 10
        time.sleep(0.4)
        if i % 3 == 2 and (step := steps.pop(i // 3 + 1, None)) is not None:
            step()
    return done


@pytest.mark.kafka
@pytest.mark.apache_kafka
def test_a_process_survives_killed_brokers(own_broker: OwnBroker, tmp_path: Any) -> None:
    """SIGKILL of the only broker, three times: nothing is lost or doubled, and the same process
    continues."""
    name, out, pid = "in", "out", os.getpid()
    create_topics(own_broker.servers, {name: 1, out: 1})
    engine = make_engine(own_broker.servers, name, out, tmp_path / "state", broker_timeout="4s")
    thread, errors = run_in_thread(engine)

    def outage() -> None:
        own_broker.kill()
        time.sleep(6.0)  # longer than the limit of 4 s
        own_broker.start()

    count = feed_while(own_broker.servers, name, 12, [outage, outage, outage])
    try:
        until(
            lambda: (
                prediction_counts(own_broker.servers, out) == wanted(name, count) or bool(errors)
            ),
            lambda: time.sleep(0.5),
        )
    finally:
        engine.stop()
        thread.join()
    assert not errors
    assert os.getpid() == pid
    assert prediction_counts(own_broker.servers, out) == wanted(name, count)


CONFIG = """
guarantee = "exactly-once"
[source]
kind = "kafka"
servers = "{servers}"
topic = "in"
[fields]
id = "id"
values = ["v"]
[task]
kind = "forecast"
window = 3
horizon = 1
[base]
kind = "persistence"
[sink]
kind = "kafka"
topic = "out"
broker_timeout = "4s"
[checkpoint]
path = "state"
every = "500ms"
"""


@pytest.mark.kafka
@pytest.mark.apache_kafka
def test_streamadapt_run_is_the_same_process_before_and_after(
    own_broker: OwnBroker, tmp_path: Any
) -> None:
    """``streamadapt run``: its only broker is killed in the middle of a transaction; SIGTERM ends
    the process in order."""
    create_topics(own_broker.servers, {"in": 1, "out": 1})
    (tmp_path / "config.toml").write_text(CONFIG.format(servers=own_broker.servers))
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "streamadapt", "run", "config.toml"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    done = 0

    def feed_until_predicted(more: int) -> None:
        nonlocal done
        rows = [json.dumps({"id": f"e{i}", "v": i % 7}).encode() for i in range(done, done + more)]
        produce(own_broker.servers, "in", [rows])
        done += more
        until(
            lambda: (
                process.poll() is not None
                or prediction_counts(own_broker.servers, "out") == wanted("in", done)
            ),
            lambda: time.sleep(0.2),
        )
        assert process.poll() is None, (tmp_path / "log").read_text()

    try:
        feed_until_predicted(20)
        pid = process.pid
        produce(own_broker.servers, "in", [[json.dumps({"id": "last", "v": 1}).encode()]])
        done += 1
        own_broker.kill()
        time.sleep(6.0)
        own_broker.start()
        feed_until_predicted(20)
        assert process.pid == pid
        process.terminate()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.kafka
@pytest.mark.apache_kafka
def test_a_frozen_and_a_killed_broker_under_a_group(own_broker: OwnBroker, tmp_path: Any) -> None:
    """Two engines, two partitions: no engine ends, nothing is lost, nothing is doubled."""
    name, out = "in", "out"
    create_topics(own_broker.servers, {name: 2, out: 2})
    group = {"group": "g", "session_timeout": "30s"}
    engines = [
        make_engine(own_broker.servers, name, out, tmp_path / "state", group, broker_timeout="4s")
        for _ in range(2)
    ]
    running = [run_in_thread(engine) for engine in engines]

    def freeze() -> None:
        own_broker.signal(signal.SIGSTOP)
        time.sleep(7.0)  # longer than the limit of 4 s
        own_broker.signal(signal.SIGCONT)

    def outage() -> None:
        own_broker.kill()
        time.sleep(2.0)
        own_broker.start()

    count = feed_while(own_broker.servers, name, 12, [freeze, outage, freeze], partitions=2)

    def done() -> bool:
        return prediction_counts(own_broker.servers, out) == wanted(name, count, 2) or any(
            errors for _, errors in running
        )

    try:
        until(done, lambda: time.sleep(0.5))
    finally:
        for engine in engines:
            engine.stop()
        for thread, _ in running:
            thread.join()
    assert [errors for _, errors in running] == [[], []]
    assert prediction_counts(own_broker.servers, out) == wanted(name, count, 2)


@pytest.mark.kafka
@pytest.mark.apache_kafka
def test_a_transaction_that_was_open_for_too_long_is_restarted(
    kafka_servers: str, topic: Topic, tmp_path: Any
) -> None:
    """The broker has ended it and our epoch is old, but our token is still the highest: the
    partition continues."""
    if EMBEDDED:
        pytest.skip("the embedded broker does not end transactions that are open for too long")
    name, out = topic(1), topic(1)
    engine = make_engine(
        kafka_servers, name, out, tmp_path, transaction_timeout="2s", broker_timeout="2s"
    )
    engine.source.open(engine)
    produce(kafka_servers, name, [entries(0, 10)])
    run_until(engine, 10)
    engine.settings.__dict__["checkpoint_every_s"] = 3600.0
    produce(kafka_servers, name, [entries(10, 10)])
    until(
        lambda: bool(engine.runners) and engine.runners[0].pipeline.stats.entries == 20,
        engine.step,
    )
    time.sleep(13.0)  # the broker checks for such transactions every ten seconds
    produce(kafka_servers, name, [entries(20, 10)])
    engine.settings.__dict__["checkpoint_every_s"] = 0.3
    until(lambda: bool(losses(engine)), engine.step)
    engine.settings.__dict__["checkpoint_every_s"] = 0.3
    run_until(engine, 30)
    engine.stop()
    engine.run()
    assert losses(engine) == {"taken": 1}
    assert prediction_counts(kafka_servers, out) == wanted(name, 30)


def test_a_limit_is_a_duration() -> None:
    with pytest.raises(ConfigError, match=r"sink\.broker_timeout: expected a duration > 0"):
        KafkaSink("127.0.0.1:1", "out", broker_timeout="0s")


def test_the_wait_for_an_absent_broker_ends_at_the_limit() -> None:
    """Also if the limit of a transaction is below that of the broker."""
    sink = KafkaSink("127.0.0.1:1", "out", transaction_timeout="300ms")
    try:
        with pytest.raises(
            TransactionLostError, match=r"no answer from the broker within 0\.3 s"
        ) as caught:
            sink.begin(["in"], 4)
        assert caught.value.partitions == (4,)
        assert caught.value.cause is Loss.NO_ANSWER
    finally:
        sink.close()
