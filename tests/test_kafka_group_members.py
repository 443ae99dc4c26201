"""Other members of an engine's consumer group: they share the group, or the engine refuses it and
names them."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
from kafka import KafkaConsumer
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import InconsistentGroupProtocolError
from kafka.protocol.api_message import ApiMessage
from kafka_engines import fill
from kafka_helpers import offsets, until
from streamadapt_connectors.kafka import KafkaSource

from streamadapt.errors import ConnectorError
from streamadapt.testing.checks.sources import Owner

pytestmark = [pytest.mark.kafka, pytest.mark.apache_kafka]


class Engines:
    """Sources in this process, polled in turn."""

    def __init__(self):
        self.all = []

    def add(self, servers, group, *topics):
        source = KafkaSource(servers, *topics, group=group, session_timeout="6s")
        source.owner, source.records = Owner(), []
        source.owner.streams = source.streams
        source.open(source.owner)
        self.all.append(source)
        return source

    def poll(self):
        for source in self.all:
            source.records += source.poll(0.1)


@pytest.fixture
def engines():
    made = Engines()
    yield made
    for source in made.all:
        source.close()


class Other(threading.Thread):
    """Another application in the group, with an assignor of its own."""

    def __init__(self, servers, group, topic):
        super().__init__()
        self.error, self.over, self.assigned = None, threading.Event(), threading.Event()
        self.consumer = KafkaConsumer(
            bootstrap_servers=servers, group_id=group, client_id="the-other",
            enable_auto_commit=False, partition_assignment_strategy=[RangePartitionAssignor],
        )  # fmt: skip
        other = self

        class Listener(ConsumerRebalanceListener):
            def on_partitions_revoked(self, revoked):
                pass

            def on_partitions_assigned(self, assigned):
                other.assigned.set()

        self.consumer.subscribe([topic], listener=Listener())
        self.start()

    def run(self):
        while not self.over.is_set() and self.error is None:
            try:
                self.consumer.poll(1000)
            except InconsistentGroupProtocolError as error:
                self.error = error
        self.consumer.close()

    def stop(self):
        self.over.set()
        self.join()


@pytest.mark.parametrize("same_topic", [True, False])
def test_another_application_in_the_group_is_named(same_topic, kafka_servers, topic, engines):
    """Within 30 s, with the group, the client and its host, and the remedy."""
    name, group = topic(2), f"g-{uuid.uuid4().hex}"
    other = Other(kafka_servers, group, name if same_topic else topic(1))
    try:
        if not other.assigned.wait(30):
            pytest.skip("this broker gives that application nothing")
        engines.add(kafka_servers, group, name)
        begin = time.monotonic()
        message = f"'{group}'.*'range'.*the-other at .*source.group"
        with pytest.raises(ConnectorError, match=message):
            until(lambda: False, engines.poll)
        assert time.monotonic() - begin < 30.0
    finally:
        other.stop()


def test_the_engine_waits_for_another_application_that_leaves(kafka_servers, topic, engines):
    """The application is just being stopped."""
    name, group = topic(1), f"g-{uuid.uuid4().hex}"
    fill(kafka_servers, name, 3)
    other = Other(kafka_servers, group, name)
    try:
        if not other.assigned.wait(30):
            pytest.skip("this broker gives that application nothing")
        source = engines.add(kafka_servers, group, name)
        end = time.monotonic() + 2.0
        until(lambda: time.monotonic() > end, engines.poll)
    finally:
        other.stop()
    until(lambda: offsets(source.records) == [0, 1, 2], engines.poll)


def test_an_application_that_joins_later_takes_no_partition(kafka_servers, topic, engines):
    name, group = topic(2), f"g-{uuid.uuid4().hex}"
    source = engines.add(kafka_servers, group, name)
    until(lambda: source.owner.assigned == [[0, 1]], engines.poll)
    other = Other(kafka_servers, group, name)
    try:
        until(lambda: other.error is not None, engines.poll)
    finally:
        other.stop()
    fill(kafka_servers, name, 3, 2)
    until(lambda: len(source.records) == 6, engines.poll)
    assert source.owner.revoked == []


def test_engines_with_other_topics_share_a_group(kafka_servers, topic, engines):
    """The engines with the same topics share their partitions."""
    one, two, group = topic(2, "one"), topic(3, "two"), f"g-{uuid.uuid4().hex}"
    first = engines.add(kafka_servers, group, one)
    until(lambda: first.owner.assigned == [[0, 1]], engines.poll)
    second = engines.add(kafka_servers, group, two)
    until(lambda: second.owner.assigned == [[0, 1, 2]], engines.poll)
    third = engines.add(kafka_servers, group, two)
    until(lambda: bool(third.owner.assigned), engines.poll)
    assert first.owner.revoked == []
    assert second.owner.revoked == third.owner.assigned
    fill(kafka_servers, one, 2, 2)
    fill(kafka_servers, two, 2, 3)
    until(
        lambda: len(first.records) == 4 and len(second.records + third.records) == 6, engines.poll
    )


def test_an_engine_with_only_some_of_the_topics_is_refused_and_the_others_continue(
    kafka_servers, topic, engines
):
    entries, labels, group = topic(2, "entries"), topic(2, "labels"), f"g-{uuid.uuid4().hex}"
    first = engines.add(kafka_servers, group, entries, labels)
    until(lambda: first.owner.assigned == [[0, 1]], engines.poll)
    late = engines.add(kafka_servers, group, entries)
    said = f"'{group}'.*other members read {entries}, {labels}, but this one reads {entries}"
    with pytest.raises(ConnectorError, match=said):
        until(lambda: False, engines.poll)
    engines.all.remove(late)
    late.close()
    fill(kafka_servers, entries, 2, 2)
    until(lambda: len(first.records) == 4, engines.poll)
    assert first.owner.revoked == []


def test_an_engine_without_a_partition_is_ready(kafka_servers, topic, engines):
    """A stand-by is as ready as the others: it takes over when one of them leaves."""
    name, group = topic(1), f"g-{uuid.uuid4().hex}"
    first = engines.add(kafka_servers, group, name)
    until(lambda: first.owner.assigned == [[0]], engines.poll)
    second = engines.add(kafka_servers, group, name)
    until(lambda: second.state == "connected", engines.poll)
    assert second.owner.assigned == []
    engines.all.remove(first)
    first.close()
    until(lambda: second.owner.assigned == [[0]], engines.poll)


def _heartbeat(kind, fields):
    versions = {"validVersions": "0", "flexibleVersions": "0+"}
    return {
        "apiKey": 68,
        "type": kind,
        "name": f"ConsumerGroupHeartbeat{kind}",
        "fields": fields,
        **versions,
    }


PLACES = [
    {"name": "TopicId", "type": "uuid", "versions": "0+"},
    {"name": "Partitions", "type": "[]int32", "versions": "0+"},
]


class HeartbeatRequest(ApiMessage):
    """``ConsumerGroupHeartbeat`` of the new consumer protocol (KIP-848), which kafka-python does
    not support."""

    json_patch = classmethod(
        lambda cls, json: _heartbeat(
            "request",
            [
                {"name": "GroupId", "type": "string", "versions": "0+"},
                {"name": "MemberId", "type": "string", "versions": "0+"},
                {"name": "MemberEpoch", "type": "int32", "versions": "0+"},
                {
                    "name": "InstanceId",
                    "type": "string",
                    "versions": "0+",
                    "nullableVersions": "0+",
                    "default": "null",
                },
                {
                    "name": "RackId",
                    "type": "string",
                    "versions": "0+",
                    "nullableVersions": "0+",
                    "default": "null",
                },
                {"name": "RebalanceTimeoutMs", "type": "int32", "versions": "0+", "default": "-1"},
                {
                    "name": "SubscribedTopicNames",
                    "type": "[]string",
                    "versions": "0+",
                    "nullableVersions": "0+",
                },
                {
                    "name": "ServerAssignor",
                    "type": "string",
                    "versions": "0+",
                    "nullableVersions": "0+",
                },
                {
                    "name": "TopicPartitions",
                    "type": "[]TopicPartitions",
                    "versions": "0+",
                    "nullableVersions": "0+",
                    "fields": PLACES,
                },
            ],
        )
    )


class HeartbeatResponse(ApiMessage):
    """The answer to `HeartbeatRequest`."""

    json_patch = classmethod(
        lambda cls, json: _heartbeat(
            "response",
            [
                {"name": "ThrottleTimeMs", "type": "int32", "versions": "0+"},
                {"name": "ErrorCode", "type": "int16", "versions": "0+"},
                {
                    "name": "ErrorMessage",
                    "type": "string",
                    "versions": "0+",
                    "nullableVersions": "0+",
                },
                {"name": "MemberId", "type": "string", "versions": "0+", "nullableVersions": "0+"},
                {"name": "MemberEpoch", "type": "int32", "versions": "0+"},
                {"name": "HeartbeatIntervalMs", "type": "int32", "versions": "0+"},
                {
                    "name": "Assignment",
                    "type": "Assignment",
                    "versions": "0+",
                    "nullableVersions": "0+",
                    "fields": [
                        {
                            "name": "TopicPartitions",
                            "type": "[]TopicPartitions",
                            "versions": "0+",
                            "fields": PLACES,
                        }
                    ],
                },
            ],
        )
    )


def test_a_group_of_the_new_consumer_protocol_is_named(kafka_servers, topic, engines):
    """The broker itself assigns such a group's partitions, without regard to entries and labels
    that belong together."""
    from kafka import KafkaAdminClient

    name, group = topic(2), f"g-{uuid.uuid4().hex}"
    admin = KafkaAdminClient(bootstrap_servers=kafka_servers, client_id="the-new-one")

    async def join():
        node = (await admin._find_coordinator_ids([group]))[group]
        request = HeartbeatRequest(
            group_id=group, member_id=str(uuid.uuid4()), member_epoch=0,
            rebalance_timeout_ms=60_000, subscribed_topic_names=[name], server_assignor=None,
            topic_partitions=[],
        )  # fmt: skip
        return await admin._manager.send(request, node_id=node)

    try:
        try:
            answer = admin._manager.run(join)
        except Exception as error:  # brokers before 4.0, and others
            pytest.skip(f"this broker has no such protocol: {error!r}")
        assert answer.error_code == 0, answer.error_message
        engines.add(kafka_servers, group, name)
        begin = time.monotonic()
        with pytest.raises(
            ConnectorError, match=f"'{group}'.*'consumer'.*the-new-one at .*source.group"
        ):
            until(lambda: False, engines.poll)
        assert time.monotonic() - begin < 30.0
    finally:
        admin.close()
