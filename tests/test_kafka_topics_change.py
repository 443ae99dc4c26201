"""Topics that are deleted, recreated, or get more partitions while an engine runs."""

from __future__ import annotations

import logging
import time
from collections import Counter

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka_engines import create, delete, fill, grow
from kafka_helpers import consume, produce, until
from streamadapt_connectors.codecs import FieldMap, JsonCodec
from streamadapt_connectors.kafka import KafkaDeadLetters, KafkaSink, KafkaSource

from streamadapt import Bias, Forecast, Persistence, Pipeline
from streamadapt.app.watchdog import Watchdog
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import NullMetrics
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import ConnectorError
from streamadapt.records import Position

pytestmark = [pytest.mark.kafka, pytest.mark.apache_kafka]

FIELDS = FieldMap(time="time", time_format="unix_s", values=["x"])
GUARANTEES = ["at-least-once", "effectively-once", "exactly-once"]


class Running:
    """An engine in this process that a test drives step by step."""

    def __init__(
        self, servers, topic, folder, guarantee="at-least-once", sink=None, letters=None, **source
    ):
        self.servers, self.out = servers, sink or f"{topic}-out"
        settings = EngineSettings(
            checkpoint_path=folder, checkpoint_every_s=0.5, guarantee=guarantee
        )
        kafka = KafkaSource(servers, topic, **source)
        self.engine = Engine(
            kafka, lambda: Pipeline(Forecast(1, 1), Persistence(1), [Bias(0.1)]),
            KafkaSink(servers, self.out), JsonCodec(FIELDS, streams=list(kafka.streams)),
            KafkaDeadLetters(servers, letters or f"{topic}-dead"), settings=settings,
        )  # fmt: skip
        self.engine.source.open(self.engine)

    def entries(self):
        return {
            p: runner.pipeline.stats.entries for p, runner in sorted(self.engine.runners.items())
        }

    def until(self, holds):
        until(holds, self.engine.step)

    def settle(self, seconds=3.0):
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)

    def close(self, *, save=True):
        if save:
            self.engine.checkpoint()
        self.engine._close()

    def prediction_counts(self):
        """Return how often the output has each prediction, by partition and offset of its
        entry."""
        import json

        found = Counter()
        for record in consume(self.servers, self.out, isolation_level="read_committed"):
            at = Position.parse(json.loads(record.value)["id"])
            found[at.partition, at.offset] += 1
        return found


@pytest.fixture
def running(kafka_servers, topic, tmp_path):
    """Start engines on topics; all are closed at the end."""
    engines = []

    def start(name, folder="state", **settings):
        engines.append(Running(kafka_servers, name, tmp_path / folder, **settings))
        return engines[-1]

    yield start
    for one in engines:
        one.engine._close()


def created(servers, topic, partitions=1, **more):
    name = topic(partitions, **more)
    create(servers, f"{name}-out", f"{name}-dead", partitions=partitions)
    return name


def refused(one):
    return sum(
        sum(runner.pipeline.stats.rejected.values()) for runner in one.engine.runners.values()
    )


def again(servers, name, partitions=1):
    delete(servers, name)
    time.sleep(1.0)
    create(servers, name, partitions=partitions)


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("group", [None, "g"])
def test_a_recreated_topic_is_read_from_its_beginning(
    guarantee, group, kafka_servers, topic, running, caplog
):
    """It has more records than the old topic: its first records are not mistaken for read ones."""
    name = created(kafka_servers, topic)
    fill(kafka_servers, name, 6)
    group = group and f"{group}-{name}"
    one = running(
        name, guarantee=guarantee, group=group, out_of_range="earliest", session_timeout="6s"
    )
    one.until(lambda: one.entries() == {0: 6})
    one.settle(1.5)
    again(kafka_servers, name)
    fill(kafka_servers, name, 9, first=10)
    with caplog.at_level(logging.WARNING, "streamadapt"):
        one.until(lambda: one.entries() == {0: 15})
    one.settle(1.5)
    one.close()
    assert f"{name}[0] was deleted and created again: it is read from 0" in caplog.text
    assert one.prediction_counts() == {(0, i): 2 if i < 6 else 1 for i in range(9)}


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_by_default_a_recreated_topic_is_an_error(guarantee, kafka_servers, topic, running):
    """While the engine runs, and when it is started again: the checkpoint knows the topic of its
    position."""
    name = created(kafka_servers, topic)
    fill(kafka_servers, name, 6)
    one = running(name, guarantee=guarantee)
    one.until(lambda: one.entries() == {0: 6})
    one.settle(1.5)
    again(kafka_servers, name)
    fill(kafka_servers, name, 9, first=10)
    message = rf"{name}\[0\]: this is not the topic that was read up to 6: .*source.out_of_range"
    with pytest.raises(ConnectorError, match=message):
        one.until(lambda: False)
    one.close(save=False)
    two = running(name, guarantee=guarantee)
    with pytest.raises(ConnectorError, match=message):
        two.until(lambda: False)
    two.close(save=False)
    three = running(name, guarantee=guarantee, out_of_range="earliest")
    three.until(lambda: three.entries() == {0: 15})
    three.close()
    assert three.prediction_counts() == {(0, i): 2 if i < 6 else 1 for i in range(9)}


def test_a_copy_with_the_old_offsets_can_be_trusted(kafka_servers, topic, running):
    name = created(kafka_servers, topic)
    fill(kafka_servers, name, 6)
    one = running(name)
    one.until(lambda: one.entries() == {0: 6})
    one.close()
    again(kafka_servers, name)
    fill(kafka_servers, name, 9, first=10)
    two = running(name, check_topic_id=False)
    two.until(lambda: two.entries() == {0: 9})
    two.close()
    assert two.prediction_counts() == dict.fromkeys([(0, i) for i in range(9)], 1)


def test_an_unread_topic_may_be_replaced(kafka_servers, topic, running):
    name = created(kafka_servers, topic)
    one = running(name)
    one.until(lambda: one.engine.source.state == "connected")
    again(kafka_servers, name)
    fill(kafka_servers, name, 5)
    one.until(lambda: one.entries() == {0: 5})


def test_the_engine_names_a_deleted_input_and_waits_for_it(kafka_servers, topic, running, caplog):
    name = created(kafka_servers, topic)
    fill(kafka_servers, name, 6)
    one = running(name, out_of_range="earliest")
    one.until(lambda: one.entries() == {0: 6})
    one.until(lambda: one.engine.source.state == "connected")
    one.settle(1.0)
    with caplog.at_level(logging.WARNING, "streamadapt"):
        begin = time.monotonic()
        delete(kafka_servers, name)
        one.until(lambda: one.engine.source.state == "connecting")
        assert time.monotonic() - begin < 15.0
        one.settle(2.0)
        assert caplog.text.count(f"topic {name} does not exist: it was deleted") == 1
    create(kafka_servers, name)
    fill(kafka_servers, name, 4, first=10)
    one.until(lambda: one.entries() == {0: 10})
    one.until(lambda: one.engine.source.state == "connected")


@pytest.fixture
def growing(kafka_servers):
    """Skip if the broker cannot add partitions."""
    create(kafka_servers, "can-it-grow")
    try:
        grow(kafka_servers, "can-it-grow", 2)
    except Exception as error:  # each client has its own error
        pytest.skip(f"this broker adds no partitions: {error}")
    finally:
        delete(kafka_servers, "can-it-grow")


@pytest.mark.usefixtures("growing")
@pytest.mark.parametrize("start", ["earliest", "latest"])
@pytest.mark.parametrize("group", [None, "g"])
def test_added_partitions_are_read_from_their_beginning(
    group, start, kafka_servers, topic, running
):
    """Within a minute, for any value of `start`: a new partition has no old records."""
    name = created(kafka_servers, topic)
    group = group and f"{group}-{name}"
    one = running(name, group=group, start=start, session_timeout="6s")
    one.until(lambda: one.engine.source.state == "connected" and 0 in one.engine.runners)
    one.settle(1.0)
    fill(kafka_servers, name, 3)
    one.until(lambda: one.entries() == {0: 3})
    begin = time.monotonic()
    grow(kafka_servers, name, 3)
    time.sleep(0.5)
    fill(kafka_servers, name, 5, partitions=3, first=10)
    one.until(lambda: one.entries() == {0: 8, 1: 5, 2: 5})
    assert time.monotonic() - begin < 60.0
    one.close()


@pytest.mark.usefixtures("growing")
@pytest.mark.parametrize("group", [None, "g"])
def test_entries_get_more_partitions_than_their_labels(group, kafka_servers, topic, running):
    """The error is the clear message of the start.

    In the other order, or shortly after each other, there is no error.
    """
    name, labels = created(kafka_servers, topic), topic(1, name="labels")
    group = group and f"{group}-{name}"
    source = KafkaSource(
        kafka_servers, name, labels, group=group, metadata_max_age="1s", session_timeout="6s"
    )
    from streamadapt.testing.checks.sources import Owner

    source.open(owner := Owner())
    owner.streams = source.streams
    try:
        until(lambda: owner.assigned == [[0]], lambda: source.poll(0.2))
        grow(kafka_servers, name, 2)
        end = time.monotonic() + 4.0
        until(lambda: time.monotonic() > end, lambda: source.poll(0.2))
        grow(kafka_servers, labels, 2)
        until(lambda: owner.assigned == [[0], [1]], lambda: source.poll(0.2))
        grow(kafka_servers, name, 3)
        message = f"same number of partitions.*'{name}' has 3, '{labels}' has 2"
        with pytest.raises(ConnectorError, match=message):
            until(lambda: False, lambda: source.poll(0.2))
    finally:
        source.close()


def test_a_created_output_has_as_many_partitions_as_the_input(kafka_servers, topic, running):
    name = topic(3)
    fill(kafka_servers, name, 2, partitions=3)
    one = running(name, sink=f"{name}-made", letters=f"{name}-refused")
    producer = KafkaProducer(bootstrap_servers=kafka_servers)
    producer.send(name, b"not JSON", partition=2).get(60)
    producer.close()
    one.until(lambda: one.entries() == {0: 2, 1: 2, 2: 2} and refused(one) == 1)
    one.close()
    consumer = KafkaConsumer(bootstrap_servers=kafka_servers)
    try:
        assert consumer.partitions_for_topic(f"{name}-made") == {0, 1, 2}
        assert consumer.partitions_for_topic(f"{name}-refused") == {0, 1, 2}
    finally:
        consumer.close()


@pytest.mark.parametrize("which", ["out", "dead"])
def test_the_engine_names_a_deleted_output_and_waits_for_it(
    which, kafka_servers, topic, running, caplog
):
    """Also if nothing is written meanwhile: in the log and in the readiness endpoint."""
    name = created(kafka_servers, topic)
    one = running(name)
    one.engine.opened = True  # as `Engine.run` sets it at its start
    watchdog = Watchdog(one.engine, NullMetrics(), 60.0)
    produce(kafka_servers, name, [[b"not JSON"]])
    fill(kafka_servers, name, 3)
    one.until(lambda: one.entries() == {0: 3} and refused(one) == 1)
    one.until(lambda: watchdog.ready()[0])
    one.settle(1.0)
    lost = f"{name}-{which}"
    with caplog.at_level(logging.INFO, "streamadapt"):
        begin = time.monotonic()
        delete(kafka_servers, lost)
        one.until(lambda: watchdog.ready() != (True, "source is connected"))
        assert time.monotonic() - begin < 20.0
        assert f"topic {lost} does not exist" in watchdog.ready()[1]
        one.settle(1.0)
        assert caplog.text.count(f"topic {lost} does not exist") == 1
        create(kafka_servers, lost)
        one.until(lambda: watchdog.ready()[0])
    produce(kafka_servers, name, [[b"neither"]])
    fill(kafka_servers, name, 3, first=10)
    one.until(lambda: one.entries() == {0: 6} and refused(one) == 2)
    one.close()
    assert len(consume(kafka_servers, lost)) == (3 if which == "out" else 1)


@pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
def test_the_group_offsets_pass_transaction_markers(guarantee, kafka_servers, topic, running):
    """An outside monitor, which compares the group with the end of the topic, reads 0 when all is
    processed."""
    name = created(kafka_servers, topic, 2)
    fill(kafka_servers, name, 5, 2, transactional_id=f"t-{name}")
    producer = KafkaProducer(bootstrap_servers=kafka_servers, transactional_id=f"t-{name}")
    producer.init_transactions()
    for partition in (0, 1):  # in each, one aborted transaction behind the committed ones
        producer.begin_transaction()
        producer.send(name, b'{"time": 1, "x": 99}', partition=partition)
        producer.flush()
        producer.abort_transaction()
    producer.close()
    group = f"g-{name}"
    one = running(name, guarantee=guarantee, group=group, session_timeout="6s")
    monitor = KafkaConsumer(
        bootstrap_servers=kafka_servers, group_id=group, enable_auto_commit=False
    )
    places = [TopicPartition(name, p) for p in (0, 1)]
    try:

        def lags():
            ends = monitor.end_offsets(places)
            return [ends[at] - (monitor.committed(at) or 0) for at in places]

        one.until(lambda: one.entries() == {0: 5, 1: 5})
        if monitor.end_offsets(places)[places[0]] == 5:
            pytest.skip("this broker writes no transaction markers")
        one.until(lambda: lags() == [0, 0])
        one.close()
        assert one.prediction_counts() == {(p, i): 1 for p in (0, 1) for i in range(5)}
    finally:
        monitor.close()


def test_records_of_aborted_transactions_are_read_only_if_configured(
    kafka_servers, topic, running
):
    name = created(kafka_servers, topic)
    producer = KafkaProducer(bootstrap_servers=kafka_servers, transactional_id=f"t-{name}")
    producer.init_transactions()
    for end in (producer.abort_transaction, producer.commit_transaction):
        producer.begin_transaction()
        producer.send(name, b'{"time": 1, "x": 99}', partition=0)
        producer.flush()
        end()
    producer.close()
    every = running(name, "uncommitted", isolation_level="read_uncommitted")
    every.until(lambda: every.entries() == {0: 2})
    committed = running(name, "committed")
    committed.until(lambda: committed.entries().get(0, 0) >= 1)
    committed.settle(2.0)
    if committed.entries() == {0: 2}:
        pytest.skip("this broker shows the records of aborted transactions to everybody")
    assert committed.entries() == {0: 1}
