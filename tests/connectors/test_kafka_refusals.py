"""How client errors are translated, and how a server at an address is recognised, without a Kafka
broker."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from guarded_broker import silent_port
from kafka import errors as kafka_errors
from secured_broker import Certificates
from streamadapt_connectors.kafka import greeting as kafka_greeting
from streamadapt_connectors.kafka.client import Reach
from streamadapt_connectors.kafka.greeting import (
    address_reason,
    check_server,
    mechanisms_at,
    password_demand,
)
from streamadapt_connectors.kafka.refusals import Access, Refusals, names_in, source_accesses

from streamadapt.errors import ConnectorError

UNEXPECTED = "Unexpected error in InitProducerIdResponse"
ACCESSES = [
    Access("Write", "topic", "out", "sink.topic"),
    Access("Write", "transactional-id", "streamadapt/out/in/0", "exactly-once"),
    Access("Read", "group", "streamadapt/out/in/0", "exactly-once"),
    *source_accesses(["in", "labels"], "team"),
]


def explain(error: BaseException, shown: tuple[str, ...] = ()) -> str | None:
    return Refusals(["k1:9092", "k2:9092"], ACCESSES, 90.0).explain(error, shown)


def caused(cause: BaseException) -> Exception:
    error = ConnectorError("could not be delivered")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (
            kafka_errors.TopicAuthorizationFailedError({"in"}),
            ["read the topic 'in' (source.topic)", "Read --topic in"],
        ),
        (kafka_errors.TopicAuthorizationFailedError("labels"), ["'labels' (source.label_topic)"]),
        (
            kafka_errors.TopicAuthorizationFailedError({"out"}),
            ["write to the topic 'out' (sink.topic)", "Write --top"],
        ),
        (kafka_errors.TopicAuthorizationFailedError(), ["'out'", "'in'", "'labels'"]),
        (
            kafka_errors.GroupAuthorizationFailedError("team"),
            ["the group 'team' (source.group)", "--group team"],
        ),
        (
            kafka_errors.TransactionalIdAuthorizationFailedError(),
            [
                "use the transactional id 'streamadapt/out/in/0'",
                "--transactional-id streamadapt/out/in/0",
            ],
        ),
        (
            kafka_errors.ClusterAuthorizationFailedError(),
            ["'out' (sink.topic)", "IdempotentWrite --cluster"],
        ),
        # kafka-python names many errors only in the text of another error
        (
            kafka_errors.KafkaError(f"{UNEXPECTED}: [Error 31] ClusterAuthorizationFailedError"),
            ["write to the topic 'out'"],
        ),
        (
            kafka_errors.KafkaError(f"{UNEXPECTED}: [Error 50] InvalidTransactionTimeoutError"),
            ["sink.transaction_timeout (90 s)", "transaction.max.timeout.ms"],
        ),
        (
            kafka_errors.KafkaError(kafka_errors.GroupAuthorizationFailedError("team")),
            ["source.group"],
        ),
        (caused(kafka_errors.TopicAuthorizationFailedError({"in"})), ["source.topic"]),
        (
            kafka_errors.InvalidSessionTimeoutError(),
            ["source.session_timeout", "group.min.session.timeout.ms"],
        ),
        (kafka_errors.GroupMaxSizeReachedError(), ["group.max.size"]),
        (kafka_errors.InvalidGroupIdError(), ["source.group"]),
        (kafka_errors.InvalidTopicError(), ["source.topic 'in'", "sink.topic 'out'"]),
    ],
)
def test_an_error_names_the_refused_resource_its_setting_and_the_remedy(
    error: BaseException, parts: list[str]
) -> None:
    text = explain(error)
    assert text is not None
    assert text.startswith("kafka k1:9092,k2:9092: ")
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_an_error_about_one_topic_names_no_other() -> None:
    text = explain(kafka_errors.TopicAuthorizationFailedError({"labels"}))
    assert text is not None
    assert "'in'" not in text
    assert "'out'" not in text


def test_an_error_about_a_visible_topic_does_not_suggest_that_it_is_missing() -> None:
    """Without the right to describe a topic, the broker's answer is the same whether the topic
    exists or not."""
    error = kafka_errors.TopicAuthorizationFailedError({"in"})
    assert "or it does not exist" in (explain(error) or "")
    assert "or it does not exist" not in (explain(error, ("in", "out")) or "")


@pytest.mark.parametrize(
    "error",
    [
        kafka_errors.KafkaTimeoutError("Timed out after 10000 ms"),
        kafka_errors.NotLeaderForPartitionError(),
        kafka_errors.KafkaConnectionError("socket disconnected"),
        OSError("broken pipe"),
    ],
)
def test_a_temporary_error_is_not_a_refusal(error: BaseException) -> None:
    assert explain(error) is None


def test_the_context_of_an_error_is_not_its_reason() -> None:
    """Python keeps an error that was being handled as the context of the next one."""
    error = kafka_errors.KafkaTimeoutError("later")
    error.__context__ = kafka_errors.TopicAuthorizationFailedError({"in"})
    assert explain(error) is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "nothing listens there"),
        (socket.gaierror(-2, "Name or service not known"), "cannot be resolved"),
        (TimeoutError("timed out"), "a firewall drops"),
        (kafka_errors.KafkaConnectionError("111 ECONNREFUSED"), "nothing listens there"),
        (kafka_errors.KafkaConnectionError("DNS Resolution failure"), "cannot be resolved"),
        (kafka_errors.KafkaConnectionError("Connection timed out"), "a firewall drops"),
        (ConnectionResetError(104, "Connection reset by peer"), "closes the connection"),
        (kafka_errors.KafkaConnectionError("socket disconnected"), "closes the connection"),
        (OSError(113, "No route to host"), "No route to host"),
    ],
)
def test_the_reason_why_an_address_does_not_answer_is_in_plain_words(
    error: BaseException, message: str
) -> None:
    assert message in address_reason(error)


def versions(*keys: int) -> bytes:
    """Return a broker's answer to the request for its versions."""
    rows = b"".join(struct.pack(">hhh", key, 0, 1) for key in keys)
    body = struct.pack(">ihi", 18, 0, len(keys)) + rows
    return struct.pack(">i", len(body)) + body


@contextmanager
def listener(
    answer: Callable[[bytes], bytes | None], context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Yield the address of a server that answers each first message with some bytes; None means no
    answer."""
    closing = threading.Event()

    def serve(end: socket.socket) -> None:
        with contextlib.suppress(OSError), end:
            end.settimeout(20.0)
            inner = end if context is None else context.wrap_socket(end, server_side=True)
            with inner:
                received = answer(inner.recv(1 << 16))
                if received is None:
                    closing.wait(20.0)
                elif received:
                    inner.sendall(received)
                    inner.recv(1 << 16)

    def accept() -> None:
        while True:
            try:
                end, _ = near.accept()
            except OSError:
                return
            thread = threading.Thread(target=serve, args=(end,), daemon=True)
            threads.append(thread)
            thread.start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as near:
        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield f"127.0.0.1:{near.getsockname()[1]}"
        finally:
            closing.set()
            near.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread in threads:
                thread.join()


def web_server_answer(message: bytes) -> bytes | None:
    """A web server waits for the end of a line."""
    return b"HTTP/1.0 400 Bad Request\r\n\r\n" if b"\n" in message else None


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_greeting, "ANSWER_S", 0.5)


TLS = {"security_protocol": "SSL"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda message: web_server_answer(message), "a web server answers at this port"),
        (lambda message: b"HTTP/1.1 400 Bad Request\r\n\r\n", "a web server answers at this port"),
        (
            lambda message: b"-ERR unknown command\r\n",
            "what answers at this port is not a Kafka broker",
        ),
        (lambda message: b"\x15\x03\x03\x00\x02\x02\x50", "this port speaks TLS"),
        (lambda message: versions(18, 52, 53), "the port of a Kafka controller"),
    ],
)
@pytest.mark.usefixtures("short_timeouts")
def test_a_server_that_is_not_a_broker_is_recognised(
    answer: Callable[[bytes], bytes | None], message: str
) -> None:
    with listener(answer) as server, pytest.raises(ConnectorError, match=message) as refused:
        check_server(server, {})
    assert server in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda message: None, "frozen or overloaded"),
        (lambda message: b"", "closes the connection without an answer"),
    ],
)
@pytest.mark.usefixtures("short_timeouts")
def test_a_broker_that_may_return_is_not_a_config_error(
    answer: Callable[[bytes], bytes | None], message: str
) -> None:
    """No security setting is named, since it is not the cause."""
    with listener(answer) as server, pytest.raises(ConnectionError, match=message) as failed:
        check_server(server, {})
    assert server in str(failed.value)
    assert "security" not in str(failed.value)


def test_a_broker_is_recognised_as_a_broker() -> None:
    with listener(lambda received: versions(0, 1, 3, 18)) as server:
        check_server(server, {})
        assert password_demand(server, {}) is None


def test_tls_and_plaintext_listeners_are_distinguished(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    trusted = TLS | {"ssl_cafile": str(certificates.ca_file)}
    with listener(lambda received: versions(3, 18), certificates.context()) as server:
        check_server(server, trusted)
        with pytest.raises(
            ConnectorError, match=r"speaks TLS, and security\.security_protocol is 'PLAINTEXT'"
        ):
            check_server(server, {})
    with (
        listener(lambda received: b"" if received[:1] == b"\x16" else versions(3, 18)) as server,
        pytest.raises(
            ConnectorError, match=r"without TLS, and security\.security_protocol is 'SSL'"
        ),
    ):
        check_server(server, trusted)


def test_refused_and_dropped_connections_have_different_messages() -> None:
    with (
        silent_port(listen=False) as port,
        pytest.raises(ConnectionError, match="nothing listens there"),
    ):
        check_server(f"127.0.0.1:{port}", TLS)
    with (
        silent_port(listen=True) as port,
        pytest.raises(ConnectionError, match="a firewall drops"),
    ):
        check_server(f"127.0.0.1:{port}", {})
    with pytest.raises(ConnectionError, match="host name cannot be resolved"):
        check_server("kafka.invalid:9092", {})


def test_an_error_about_a_required_password_names_the_mechanisms() -> None:
    body = struct.pack(">ihi", 17, 33, 2) + b"\0\5PLAIN" + b"\0\x0dSCRAM-SHA-256"
    offers = struct.pack(">i", len(body)) + body
    with listener(lambda received: offers) as server:
        text = password_demand(server, {})
        assert text is not None
        assert "'SASL_PLAINTEXT', with security.sasl_mechanism (PLAIN, SCRAM-SHA-256)" in text
        assert mechanisms_at(server, {}) == "PLAIN, SCRAM-SHA-256"
        assert password_demand(server, {"security_protocol": "SASL_PLAINTEXT"}) is None


@pytest.mark.usefixtures("short_timeouts")
def test_one_wrong_server_of_several_is_skipped_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        listener(web_server_answer) as wrong,
        silent_port(listen=False) as port,
        listener(lambda received: versions(3, 18)) as right,
    ):
        reach = Reach(f"{wrong},127.0.0.1:{port},{right}", None)
        for _ in range(2):
            reach.probe()
        assert reach.common()["bootstrap_servers"] == [right]
        assert caplog.text.count("a web server answers") == 1
        assert wrong in caplog.text


@pytest.mark.usefixtures("short_timeouts")
def test_wrong_servers_end_the_run_only_if_no_other_may_return() -> None:
    with listener(web_server_answer) as wrong, silent_port(listen=False) as port:
        with pytest.raises(ConnectorError, match="a web server"):
            Reach(wrong, None).probe()
        with pytest.raises(ConnectionError) as failed:
            Reach(f"{wrong},127.0.0.1:{port}", None).probe()
    for part in (wrong, "a web server", "nothing listens there"):
        assert part in str(failed.value)


def test_resource_names_are_found_in_every_form() -> None:
    assert names_in(kafka_errors.TopicAuthorizationFailedError({"a", "b"})) == {"a", "b"}
    assert names_in(kafka_errors.TopicAuthorizationFailedError("a")) == {"a"}
    assert names_in(kafka_errors.TopicAuthorizationFailedError()) == set()
