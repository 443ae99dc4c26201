"""What an operator sees while a broker is frozen or away, refuses writes, or while others have
changed the topics.

Each time: one log line when it begins, one when it is over, the metrics, and the readiness
endpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.structs import OffsetAndMetadata
from kafka_engines import admin, create, fill
from kafka_helpers import until
from own_broker import OwnBroker
from streamadapt_connectors.codecs import FieldMap, JsonCodec
from streamadapt_connectors.kafka import KafkaDeadLetters, KafkaSink, KafkaSource

from benchmarks.kafka_broker import ApacheKafka, start_script
from streamadapt import Bias, Forecast, Persistence, Pipeline
from streamadapt.app.watchdog import Watchdog
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.settings import EngineSettings

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.apache_kafka,
    # kafka-python leaves the sockets of refused connections to garbage collection.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
    ),
]

FIELDS = FieldMap(time="time", time_format="unix_s", values=["x"])
EXPIRES_MS = 15_000
AWAY = {
    "frozen": ["has not answered"],
    "killed": ["no broker answers", "refused", "trying again until it works"],
}
BOTH = [
    ("at-least-once", None),
    ("effectively-once", "g"),
    ("exactly-once", None),
    ("exactly-once", "g"),
]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    folder = tmp_path_factory.mktemp("broker")
    settings = (
        f"transactional.id.expiration.ms={EXPIRES_MS}",
        "transaction.remove.expired.transaction.cleanup.interval.ms=1000",
    )
    broker = OwnBroker(folder, settings)
    try:
        yield broker
    finally:
        broker.stop()


class SlowCodec(JsonCodec):
    """A slow codec, so that records are still to be written when the broker goes."""

    def decode(self, record: Any) -> Any:
        time.sleep(0.02)
        return super().decode(record)


class Running:
    """An engine that runs in a thread, with its watchdog."""

    def __init__(
        self, servers: str, name: str, folder: Any, guarantee: str, **source: Any
    ) -> None:
        self.name = name
        kafka = KafkaSource(servers, name, max_poll_records=5, session_timeout="6s", **source)
        settings = EngineSettings(
            checkpoint_path=folder, checkpoint_every_s=0.5, guarantee=guarantee
        )
        self.metrics = Metrics()
        self.engine = Engine(
            kafka, lambda: Pipeline(Forecast(1, 1), Persistence(1), [Bias(0.1)]),
            KafkaSink(servers, f"{name}-out"), SlowCodec(FIELDS, streams=[name]),
            KafkaDeadLetters(servers, f"{name}-dead"), settings=settings, metrics=self.metrics,
        )  # fmt: skip
        self.watchdog = Watchdog(self.engine, self.metrics, 600.0)
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.engine.run()
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> Running:
        self.watchdog.__enter__()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.stop()
        self.thread.join(60)
        self.watchdog.__exit__(None, None, None)
        assert not self.thread.is_alive()
        assert self.errors == []

    def metric(self, name: str, **labels: str) -> float | None:
        wanted = tuple(labels.values())
        found = dict(self.metrics.samples()[f"streamadapt_{name}"])
        value = found.get(wanted)
        assert value is None or isinstance(value, int | float)
        return value

    def until(self, holds: Any) -> None:
        def step() -> None:
            assert self.errors == []
            time.sleep(0.1)

        until(holds, step)

    def entries(self) -> int:
        return sum(runner.pipeline.stats.entries for runner in list(self.engine.runners.values()))

    def works(self) -> bool:
        return (
            self.watchdog.ready()[0]
            and self.metric("source_connected") == 1.0
            and all(
                self.metric("sink_connected", side=side) == 1.0
                for side in ("sink", "dead_letters")
            )
        )


@pytest.fixture
def made(broker: OwnBroker, request: pytest.FixtureRequest) -> str:
    name = (
        "".join(c if c.isalnum() else "-" for c in request.node.name)[-60:]
        + f"-{time.time_ns() % 10**6}"
    )
    create(broker.servers, name, f"{name}-out", f"{name}-dead")
    return name


def lines(
    caplog: pytest.LogCaptureFixture, what: str, level: int = logging.WARNING, of: str = ""
) -> list[str]:
    """Return what `what` (source or sink) has logged about something: a busy machine may also have
    logged a silent broker."""
    logged = [
        record
        for record in caplog.records
        if record.name == "streamadapt.kafka" and record.levelno == level
    ]
    return [
        text for record in logged if (text := record.getMessage()).startswith(what) and of in text
    ]


def not_json(servers: str, name: str) -> None:
    producer = KafkaProducer(bootstrap_servers=servers)
    producer.send(name, b"not JSON", partition=0).get(60)
    producer.close()


@contextlib.contextmanager
def at_work(
    broker: OwnBroker | ApacheKafka,
    made: str,
    tmp_path: Any,
    caplog: Any,
    guarantee: str,
    group: str | None,
) -> Any:
    """An engine that has written predictions and a dead letter, and has a backlog."""
    caplog.set_level(logging.INFO, "streamadapt")
    not_json(broker.servers, made)
    fill(broker.servers, made, 20)
    with Running(
        broker.servers, made, tmp_path / "state", guarantee, group=group and f"{group}-{made}"
    ) as one:
        one.until(lambda: one.entries() == 20 and one.works())
        caplog.clear()
        fill(broker.servers, made, 400, first=20)
        yield one


@pytest.mark.parametrize(("guarantee", "group"), BOTH)
@pytest.mark.parametrize("fault", ["frozen", "killed"])
def test_a_broker_that_goes_and_comes_back(
    fault: str,
    guarantee: str,
    group: str | None,
    broker: OwnBroker,
    made: str,
    tmp_path: Any,
    caplog: Any,
) -> None:
    sides = (
        f"source kafka {made} at",
        f"sink kafka {made}-out at",
        f"dead letters kafka {made}-dead at",
    )
    with at_work(broker, made, tmp_path, caplog, guarantee, group) as one:
        broker.signal(signal.SIGSTOP) if fault == "frozen" else broker.kill()
        try:
            one.until(lambda: one.metric("source_connected") == 0.0)
            for side in ("sink", "dead_letters"):
                one.until(lambda side=side: one.metric("sink_connected", side=side) == 0.0)
            ready, why = one.watchdog.ready()
            assert not ready
            assert "answer" in why
            # Longer than `sink.broker_timeout`: transactions are aborted meanwhile.
            time.sleep(12.0)
            assert not one.watchdog.ready()[0]
            logged = {
                side: [text for text in lines(caplog, side) if any(w in text for w in AWAY[fault])]
                for side in sides
            }
            assert not [text for text in caplog.messages if "connected again" in text]
            assert one.metric("conditions_total", side="source", condition="no_answer") == 1
        finally:
            broker.signal(signal.SIGCONT) if fault == "frozen" else broker.start()
        one.until(lambda: one.works() and one.entries() == 420)
        assert one.metric("condition_active", side="source", condition="no_answer") == 0.0
    for side in sides:
        assert len(logged[side]) == 1, logged
        assert [
            text for text in lines(caplog, side, logging.INFO) if "connected again after" in text
        ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    if start_script() is None:
        pytest.skip("no start script of Apache Kafka (STREAMADAPT_KAFKA_START names one)")
    with ApacheKafka(tmp_path_factory.mktemp("cluster"), 3) as kafka:
        yield kafka


def replicated(cluster: ApacheKafka, name: str, strict: str) -> None:
    """Create the topics of an engine; in one of them, every broker must store each record."""
    with admin(cluster.servers) as client:
        topics = [NewTopic(name, 1, 3)]
        for which in ("out", "dead"):
            configs = {"min.insync.replicas": "3" if which == strict else "2"}
            topics.append(NewTopic(f"{name}-{which}", 1, 3, topic_configs=configs))
        client.create_topics(topics)
        client.wait_for_topics([topic.name for topic in topics], timeout_ms=30_000)


@contextlib.contextmanager
def without_a_broker(
    cluster: ApacheKafka, made: str, strict: str, tmp_path: Any, caplog: Any, guarantee: str
) -> Iterator[Running]:
    """Kill one of three brokers while a topic requires all three replicas; start it at the end."""
    replicated(cluster, made, strict)
    side = "sink" if strict == "out" else "dead_letters"
    with at_work(cluster, made, tmp_path, caplog, guarantee, None) as one:
        cluster.end(2)
        try:
            not_json(cluster.servers, made)
            fill(cluster.servers, made, 50, first=420)
            one.until(lambda: one.metric("sink_connected", side=side) == 0.0)
            assert not one.watchdog.ready()[0]
            yield one
            time.sleep(
                12.0
            )  # longer than `sink.broker_timeout`: transactions are aborted meanwhile
            assert not one.watchdog.ready()[0]
        finally:
            cluster.start()
        one.until(lambda: one.works() and one.entries() == 470)
        assert one.metric("condition_active", side=side, condition="too_few_replicas") == 0.0


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("guarantee", "which"),
    [("at-least-once", "dead"), ("at-least-once", "out"), ("effectively-once", "out")],
)
def test_too_few_in_sync_replicas(
    guarantee: str, which: str, cluster: ApacheKafka, tmp_path: Any, caplog: Any
) -> None:
    made = f"few-{which}-{guarantee}-{time.time_ns()}"
    side, what = (
        ("sink", "sink kafka") if which == "out" else ("dead_letters", "dead letters kafka")
    )
    with without_a_broker(cluster, made, which, tmp_path, caplog, guarantee) as one:
        one.until(
            lambda: one.metric("condition_active", side=side, condition="too_few_replicas") == 1.0
        )
        assert one.metric("sink_connected", side=side) == 0.0
        one.until(
            lambda: f"topic {made}-{which}, partition 0 has fewer" in one.watchdog.ready()[1]
        )
        one.until(lambda: (one.metric("unacknowledged_seconds", side=side) or 0.0) > 5.0)
    logged = lines(caplog, f"{what} {made}-{which} at", of="min.insync.replicas")
    assert len(logged) == 1, logged
    assert lines(
        caplog,
        f"{what} {made}-{which} at",
        logging.INFO,
        of="has enough in-sync replicas again after",
    )


@pytest.mark.timeout(900)
def test_too_few_in_sync_replicas_for_a_transaction(
    cluster: ApacheKafka, tmp_path: Any, caplog: Any
) -> None:
    """The broker cannot end the open transaction, either: it refuses no other record for it."""
    made = f"few-exactly-once-{time.time_ns()}"
    with without_a_broker(cluster, made, "out", tmp_path, caplog, "exactly-once") as one:
        one.until(
            lambda: any("begins again from its last commit" in text for text in caplog.messages)
        )
        assert not one.watchdog.ready()[0]


def test_an_open_transaction_of_another_producer(
    broker: OwnBroker, made: str, tmp_path: Any, caplog: Any
) -> None:
    """It is not our fault, so the engine is ready; but the records behind it are lag."""
    with at_work(broker, made, tmp_path, caplog, "at-least-once", None) as one:
        one.until(lambda: one.entries() == 420)
        other = KafkaProducer(bootstrap_servers=broker.servers, transactional_id=f"other-{made}")
        other.init_transactions()
        other.begin_transaction()
        other.send(made, json.dumps({"time": 1.8e9, "x": 1}).encode(), partition=0)
        other.flush()
        fill(broker.servers, made, 7, first=500)
        try:
            one.until(
                lambda: (
                    one.metric("condition_active", side="source", condition="open_transaction")
                    == 1.0
                )
            )
            assert one.metric("consumer_lag_records", stream=made, partition="0") == 8
            assert one.watchdog.ready()[0]
        finally:
            other.abort_transaction()
            other.close()
        one.until(
            lambda: (
                one.metric("condition_active", side="source", condition="open_transaction") == 0.0
            )
        )
        one.until(lambda: one.entries() == 427)
    logged = lines(caplog, f"source kafka {made}", of="another producer's transaction")
    assert len(logged) == 1, logged
    assert f"{made}[0]@421" in logged[0]
    assert f"transactional id 'other-{made}'" in logged[0]
    assert any(
        "the transaction has ended after" in text for text in lines(caplog, "source", logging.INFO)
    )


@pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
def test_group_offsets_reset_from_outside(
    guarantee: str, broker: OwnBroker, made: str, tmp_path: Any, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "streamadapt")
    fill(broker.servers, made, 20)
    state, group = tmp_path / "state", f"g-{made}"
    for _ in range(2):  # a usual start logs nothing
        with Running(broker.servers, made, state, guarantee, group=group) as one:
            one.until(lambda one=one: one.works() and one.entries() == 20)
        assert lines(caplog, "source", of="committed offsets") == []
    consumer = KafkaConsumer(
        bootstrap_servers=broker.servers, group_id=group, enable_auto_commit=False
    )
    consumer.commit({TopicPartition(made, 0): OffsetAndMetadata(5, "", -1)})
    consumer.close()
    with Running(broker.servers, made, state, guarantee, group=group) as one:
        one.until(
            lambda: (
                one.works()
                and one.metric("conditions_total", side="source", condition="group_offset") == 1
            )
        )
        fill(broker.servers, made, 5, first=20)
        one.until(lambda: one.entries() == 25)
    logged = lines(caplog, "source", of="committed offsets")
    assert len(logged) == 1, logged
    assert f"group {group!r}" in logged[0]
    assert f"{made}[0] 5, read from 20" in logged[0]


@pytest.mark.parametrize(("policy", "skipped"), [("earliest", 30), ("latest", 60)])
def test_records_deleted_before_they_were_read(
    policy: str, skipped: int, broker: OwnBroker, made: str, tmp_path: Any, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "streamadapt")
    fill(broker.servers, made, 20)
    with Running(broker.servers, made, tmp_path, "at-least-once") as one:
        one.until(lambda: one.works() and one.entries() == 20)
    fill(broker.servers, made, 60, first=20)
    with admin(broker.servers) as client:
        client.delete_records({TopicPartition(made, 0): 50})
    with Running(broker.servers, made, tmp_path, "at-least-once", out_of_range=policy) as one:
        one.until(lambda: one.works() and one.entries() == 80 - skipped)
        assert one.metric("skipped_records_total", stream=made, partition="0") == skipped
        assert one.metric("conditions_total", side="source", condition="records_deleted") == 1
    logged = lines(caplog, "source", of="were deleted")
    assert len(logged) == 1, logged
    assert f"{made}[0]: {skipped} records, 20 to {20 + skipped - 1}, were deleted" in logged[0]


def test_expired_committed_offsets(
    broker: OwnBroker, made: str, tmp_path: Any, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "streamadapt")
    fill(broker.servers, made, 20)
    with Running(broker.servers, made, tmp_path, "exactly-once") as one:
        one.until(lambda: one.works() and one.entries() == 20)
    group = f"streamadapt/{made}-out/{made}/0"
    with admin(broker.servers) as client:
        client.delete_group_offsets(group, [TopicPartition(made, 0)])
    with Running(broker.servers, made, tmp_path, "exactly-once") as one:
        one.until(lambda: one.works())
        assert one.metric("conditions_total", side="sink", condition="offsets_expired") == 1
        fill(broker.servers, made, 5, first=20)
        one.until(lambda: one.entries() == 25)
    logged = lines(caplog, "sink", of="no committed offsets")
    assert len(logged) == 1, logged
    assert f"no committed offsets of the group {group!r}" in logged[0]


def test_an_expired_transactional_id(
    broker: OwnBroker, made: str, tmp_path: Any, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "streamadapt")
    fill(broker.servers, made, 20)
    with Running(broker.servers, made, tmp_path, "exactly-once") as one:
        one.until(lambda: one.works() and one.entries() == 20)
        name = f"streamadapt/{made}-out/{made}/0"

        def gone() -> bool:
            with admin(broker.servers) as client:
                listed = client.list_transactions()
            return not any(
                one.transactional_id == name for found in listed.values() for one in found
            )

        one.until(gone)
        fill(broker.servers, made, 10, first=20)
        one.until(lambda: one.entries() == 30 and one.works())
        one.until(
            lambda: one.metric("transactions_lost_total", partition="0", cause="expired") == 1
        )
    logged = [text for text in caplog.messages if "begins again" in text]
    assert len(logged) == 1, logged
    assert f"{name}" in logged[0]
    assert "transactional.id.expiration.ms" in logged[0]
