"""Reading from Kafka: positions, policies, groups, and an absent broker."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaProducer
from kafka_helpers import PATIENCE_S, made, offsets, opened, produce, read, until
from streamadapt_connectors.kafka import KafkaSource

from benchmarks.faults.proxy import Proxy
from streamadapt.app.demo.broker import EmbeddedBroker, create_topics
from streamadapt.errors import ConfigError, ConnectorError
from streamadapt.records import Record, StreamPartition
from streamadapt.testing.checks.sources import Owner

pytestmark = pytest.mark.kafka

Topic = Callable[..., str]


# kafka-python leaves the socket of a refused connection to garbage collection, which warns.
outage = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def collected() -> Iterator[None]:
    """Let the garbage collector warn here, under `outage`, and not in a later test."""
    yield
    gc.collect()


def numbered(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % i for i in range(first, first + count)]


def test_records_carry_key_time_and_position(kafka_servers: str, topic: Topic) -> None:
    name = topic(2)
    producer = KafkaProducer(bootstrap_servers=kafka_servers)
    producer.send(name, b"v", key=b"k", partition=1, timestamp_ms=1_700_000_000_123).get(
        PATIENCE_S
    )
    producer.send(name, None, key=b"gone", partition=1, timestamp_ms=5).get(PATIENCE_S)
    producer.close()
    source = KafkaSource(kafka_servers, name)
    with opened(source):
        first, second = read(source, 2)
        assert source.state == "connected"
    assert (first.position, first.key, first.value) == ((name, 1, 0), b"k", b"v")
    assert first.time == 1_700_000_000_123_000_000
    assert (second.key, second.value, second.time) == (b"gone", None, 5_000_000)


def test_only_the_requested_partitions_are_read(kafka_servers: str, topic: Topic) -> None:
    name = topic(3)
    produce(kafka_servers, name, [numbered(2)] * 3)
    source = KafkaSource(kafka_servers, name, partitions=[2, 0])
    with opened(source) as owner:
        records = read(source, 4) + source.poll(0.3)
        assert owner.assigned == [[0, 2]]
    assert sorted({r.position.partition for r in records}) == [0, 2]
    beyond = KafkaSource(kafka_servers, name, partitions=[3])
    with opened(beyond), pytest.raises(ConnectorError, match="the topic has 3"):
        read(beyond, 1)


def test_entries_and_labels_share_partition_numbers(kafka_servers: str, topic: Topic) -> None:
    entries, labels = topic(2, "entries"), topic(2, "labels")
    produce(kafka_servers, entries, [numbered(3), numbered(3)])
    produce(kafka_servers, labels, [numbered(1), numbered(2)])
    source = KafkaSource(kafka_servers, entries, labels)
    with opened(source) as owner:
        records = read(source, 9)
        assert owner.assigned == [[0, 1]]
    for stream, log in ((entries, [0, 1, 2]), (labels, [0, 1])):
        assert offsets([r for r in records if r.position.stream == stream], 1) == log


def test_different_partition_counts_are_named(kafka_servers: str, topic: Topic) -> None:
    entries, labels = topic(2), topic(3)
    source = KafkaSource(kafka_servers, entries, labels)
    with (
        opened(source),
        pytest.raises(ConnectorError, match=rf"'{entries}' has 2, '{labels}' has 3"),
    ):
        read(source, 1)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_topics(codec: str, kafka_servers: str, topic: Topic) -> None:
    name = topic()
    values = [b'{"speed": %d}' % i * 20 for i in range(50)]
    produce(kafka_servers, name, [values], compression_type=codec, linger_ms=100)
    source = KafkaSource(kafka_servers, name)
    with opened(source):
        assert [r.value for r in read(source, 50)] == values


def test_a_record_of_ten_megabytes(kafka_servers: str, topic: Topic) -> None:
    name = made(kafka_servers, topic(0), {"max.message.bytes": str(16 << 20)})
    values = [b"a", b"x" * 10_000_000, b"b"]
    produce(kafka_servers, name, [values])
    source = KafkaSource(kafka_servers, name)
    with opened(source):
        assert [r.value == v for r, v in zip(read(source, 3), values, strict=True)] == [True] * 3


@pytest.mark.parametrize(("start", "expected"), [("earliest", [0, 1, 2, 3]), ("latest", [3])])
def test_the_configured_start_applies_to_partitions_without_a_position(
    start: str, expected: list[int], kafka_servers: str, topic: Topic
) -> None:
    name = topic()
    produce(kafka_servers, name, [numbered(3)], linger_ms=50)
    source = KafkaSource(kafka_servers, name, start=start)
    with opened(source):
        records: list[Record] = []
        until(lambda: source.state == "connected", lambda: records.extend(source.poll(0)))
        produce(kafka_servers, name, [numbered(1, 3)])
        records += read(source, len(expected) - len(records))
        assert offsets(records + source.poll(0.3)) == expected


@pytest.mark.parametrize(("policy", "expected"), [("earliest", [0, 1, 2, 3]), ("latest", [3])])
def test_a_deleted_position_follows_the_policy(
    policy: str, expected: list[int], kafka_servers: str, topic: Topic
) -> None:
    name = topic()
    produce(kafka_servers, name, [numbered(3)])
    source = KafkaSource(kafka_servers, name, out_of_range=policy)
    with opened(source, {0: 1000}):
        records: list[Record] = []
        until(lambda: source.state == "connected", lambda: records.extend(source.poll(0)))
        produce(kafka_servers, name, [numbered(1, 3)])
        records += read(source, len(expected) - len(records))
        assert offsets(records + source.poll(0.3)) == expected


def test_a_deleted_position_is_an_error_by_default(kafka_servers: str, topic: Topic) -> None:
    name = topic()
    produce(kafka_servers, name, [numbered(3)])
    source = KafkaSource(kafka_servers, name)
    message = (
        rf"{name}\[0\]: position 1000 is outside of the topic's 0 to 3: .* source.out_of_range"
    )
    with opened(source, {0: 1000}), pytest.raises(ConnectorError, match=message):
        read(source, 1)


def test_lag_also_follows_the_end_of_a_paused_partition(kafka_servers: str, topic: Topic) -> None:
    name = topic(2)
    produce(kafka_servers, name, [numbered(5), numbered(5)])
    source = KafkaSource(kafka_servers, name)
    here, there = StreamPartition(name, 0), StreamPartition(name, 1)
    with opened(source):
        read(source, 10)
        assert source.lag() == {here: 0, there: 0}
        source.pause([there])
        for _ in range(2):
            produce(kafka_servers, name, [numbered(1), numbered(1)])
        records: list[Record] = []
        until(
            lambda: source.lag() == {here: 0, there: 2}, lambda: records.extend(source.poll(0.1))
        )
        assert offsets(records, 1) == []


def test_the_source_waits_for_a_missing_topic(
    kafka_servers: str, topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    name = topic(0)
    source = KafkaSource(kafka_servers, name)
    with caplog.at_level(logging.INFO, "streamadapt"), opened(source):
        until(lambda: f"topic {name} does not exist" in caplog.text, lambda: source.poll(0.1))
        for _ in range(5):
            assert source.poll(0.1) == []
        assert source.state == "connecting"
        create_topics(kafka_servers, {name: 1})
        produce(kafka_servers, name, [numbered(2)])
        assert offsets(read(source, 2)) == [0, 1]
    assert caplog.text.count("does not exist") == 1


@outage
@pytest.mark.usefixtures("collected")
def test_a_broker_that_is_absent_at_the_start(
    topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedBroker() as broker:
        port = broker.port
    source = KafkaSource(f"127.0.0.1:{port}", "late")
    with caplog.at_level(logging.INFO, "streamadapt"), opened(source):
        for _ in range(10):
            assert source.poll(0.05) == []
        assert source.state == "connecting"
        with EmbeddedBroker(port):
            create_topics(f"127.0.0.1:{port}", {"late": 1})
            produce(f"127.0.0.1:{port}", "late", [numbered(3)])
            assert offsets(read(source, 3)) == [0, 1, 2]
            assert source.state == "connected"
    assert caplog.text.count("refused") == 1
    assert caplog.text.count(": connected") == caplog.text.count(": connected after") == 1


@outage
@pytest.mark.usefixtures("collected")
def test_a_topic_recreated_while_the_broker_was_away_is_noticed() -> None:
    with EmbeddedBroker() as broker:
        port, servers = broker.port, broker.servers
        create_topics(servers, {"t": 1})
        produce(servers, "t", [numbered(3)])
        source = KafkaSource(servers, "t")
        source.open(owner := Owner())
        owner.streams = source.streams
        assert offsets(read(source, 3)) == [0, 1, 2]
    try:
        until(lambda: source.state == "connecting", lambda: source.poll(0.1))
        with EmbeddedBroker(port):
            create_topics(servers, {"t": 1})
            with pytest.raises(
                ConnectorError, match="this is not the topic that was read up to 3"
            ):
                until(lambda: False, lambda: source.poll(0.1))
    finally:
        source.close()


@pytest.fixture
def proxied() -> Iterator[tuple[Proxy, str]]:
    """A separate broker behind a proxy: the proxy and the servers to use."""
    proxy = Proxy()
    with EmbeddedBroker(advertised_port=proxy.port) as broker:
        proxy.target_port = broker.port
        try:
            yield proxy, f"127.0.0.1:{proxy.port}"
        finally:
            proxy.close()


@outage
@pytest.mark.usefixtures("collected")
def test_connections_cut_in_the_middle_lose_and_double_nothing(proxied: tuple[Proxy, str]) -> None:
    proxy, servers = proxied
    create_topics(servers, {"t": 2})
    produce(servers, "t", [numbered(3000), numbered(3000)])
    source = KafkaSource(servers, "t", max_poll_records=100, fetch_bytes=2000)
    records: list[Record] = []
    with opened(source):
        for cut in range(8):
            until(
                lambda: len(records) >= 600 * (cut + 1),  # noqa: B023
                lambda: records.extend(source.poll(0.2)),
            )
            proxy.cut()
        records += read(source, 6000 - len(records))
        assert source.poll(0.3) == []
    assert proxy.connections >= 8
    assert offsets(records, 0) == list(range(3000))
    assert offsets(records, 1) == list(range(3000))


@outage
@pytest.mark.usefixtures("collected")
def test_a_temporary_network_outage(
    proxied: tuple[Proxy, str], caplog: pytest.LogCaptureFixture
) -> None:
    proxy, servers = proxied
    create_topics(servers, {"t": 1})
    produce(servers, "t", [numbered(10)])
    source = KafkaSource(servers, "t")
    with caplog.at_level(logging.INFO, "streamadapt"), opened(source):
        assert len(read(source, 10)) == 10
        proxy.cut(refuse=True)
        until(lambda: source.state == "connecting", lambda: source.poll(0.1))
        for _ in range(5):
            assert source.poll(0.1) == []
        proxy.mend()
        produce(servers, "t", [numbered(5)])
        assert offsets(read(source, 5)) == list(range(10, 15))
        assert source.state == "connected"
    assert caplog.text.count("no broker answers") == 1
    assert caplog.text.count(": connected") == 2
    assert caplog.text.count(": connected again after") == 1


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("servers", {"servers": "localhost"}),
        ("servers", {"servers": ""}),
        ("source.label_topic", {"label_topic": "t"}),
        ("source.partitions", {"group": "g", "partitions": [0]}),
        ("source.start", {"start": "middle"}),
        ("source.out_of_range", {"out_of_range": "ignore"}),
        ("source.max_poll_records", {"max_poll_records": 0}),
        ("security.ssl_magic", {"security": {"ssl_magic": 1}}),
        ("security.security_protocol", {"security": {"security_protocol": "TLS"}}),
    ],
)
def test_wrong_settings_name_their_path(path: str, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        KafkaSource(**({"servers": "h:1", "topic": "t"} | settings))  # type: ignore[arg-type]
    assert caught.value.path == path


def test_passwords_are_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    security = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_password": "hunter2",
    }
    source = KafkaSource("127.0.0.1:1", "t", security=security | {"sasl_plain_username": "u"})
    with caplog.at_level(logging.DEBUG), opened(source):
        source.poll(0.3)
    assert "hunter2" not in caplog.text + repr(source) + str(vars(source))
    with pytest.raises(ConfigError) as caught:
        KafkaSource("h:1", "t", security={"sasl_pasword": "hunter2"})
    assert "hunter2" not in str(caught.value)
