"""TLS and SASL, end to end: clients are admitted, or refused with a message that says what to do,
and nothing is sent unencrypted.

A stand-in in front of the embedded broker asks for them (`tests/secured_broker.py`), since that
broker supports neither. It is used whatever STREAMADAPT_TEST_BROKER names.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka_helpers import consume, opened, produce, read, until
from secured_broker import Certificates, Door, secured
from streamadapt_connectors.kafka import KafkaSink, KafkaSource
from streamadapt_connectors.kafka.security import check_security

from streamadapt.errors import ConfigError, ConnectorError
from streamadapt.records import Position, Prediction

pytestmark = [
    pytest.mark.kafka,
    # kafka-python leaves the sockets of refused connections to garbage collection.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
    ),
]

USERS = {"alice": "rabbit-hole"}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def tls(certificates: Certificates, **more: Any) -> dict[str, Any]:
    return {"security_protocol": "SSL", "ssl_cafile": str(certificates.ca_file), **more}


def mutual(certificates: Certificates, **more: Any) -> dict[str, Any]:
    own = {"ssl_certfile": str(certificates.cert_file), "ssl_keyfile": str(certificates.key_file)}
    return tls(certificates, **own, ssl_password=certificates.password) | more


def sasl(mechanism: str = "PLAIN", password: str = "rabbit-hole", **more: Any) -> dict[str, Any]:
    user = {"sasl_plain_username": "alice", "sasl_plain_password": password}
    return {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": mechanism, **user} | more


def prediction(offset: int) -> Prediction:
    row = np.array([[offset]], np.float32)
    return Prediction(
        Position("in", 0, offset), f"e{offset}", "k", offset, row, row, {"base": row}, {"base": 1}
    )


def deliver(sink: KafkaSink) -> None:
    sink.write([prediction(i) for i in range(300)])
    sink.flush()


def round_trip(servers: str, security: dict[str, Any]) -> list[int]:
    """Write with a sink and read with a source; return the entries' numbers."""
    sink = KafkaSink(servers, "t", security=security)
    deliver(sink)
    sink.close()
    source = KafkaSource(servers, "t", security=security)
    with opened(source):
        values = [json.loads(record.value or b"") for record in read(source, 300)]
    return [int(value["id"].rpartition("@")[2]) for value in values]


@pytest.mark.parametrize("case", ["tls", "mutual tls", "plain", "scram", "scram within tls"])
def test_an_admitted_client_works_as_usual(certificates: Certificates, case: str) -> None:
    """Both sink and source, over several connections each."""
    door, security = {
        "tls": (Door(certificates.context()), tls(certificates)),
        "mutual tls": (Door(certificates.context(ask_client=True)), mutual(certificates)),
        "plain": (Door(users=USERS), sasl()),
        "scram": (Door(users=USERS), sasl("SCRAM-SHA-256")),
        "scram within tls": (
            Door(certificates.context(), USERS),
            tls(certificates, **sasl("SCRAM-SHA-256", security_protocol="SASL_SSL")),
        ),
    }[case]
    with secured(door) as (servers, _):
        assert round_trip(servers, security) == list(range(300))
        assert door.admitted >= 2
        assert consume(servers, "t", **security)


def refusals(
    certificates: Certificates, folder: Path
) -> Iterator[tuple[str, Door, dict[str, Any], str]]:
    """Yield a description, the door, the client's settings and the expected message."""
    stranger = str(certificates.stranger_file)
    context = certificates.context
    yield (
        "an unknown CA",
        Door(context()),
        tls(certificates, ssl_cafile=stranger),
        "ssl_cafile must contain the CA",
    )
    yield (
        "no CA given",
        Door(context()),
        {"security_protocol": "SSL"},
        "ssl_cafile must contain the CA",
    )
    other = folder / "other"
    other.mkdir()
    elsewhere = Certificates(other, "kafka.example.org")
    yield (
        "another host's",
        Door(elsewhere.context()),
        tls(elsewhere),
        "servers must name a host that the certificate contains",
    )
    yield (
        "no client certificate",
        Door(context(ask_client=True)),
        tls(certificates),
        "set security.ssl_certfile",
    )
    older = context(ask_client=True)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    yield "none, with TLS 1.2", Door(older), tls(certificates), "ssl_certfile"
    wrong = {
        "ssl_certfile": str(certificates.stranger_cert_file),
        "ssl_keyfile": str(certificates.stranger_key_file),
    }
    yield (
        "a stranger's",
        Door(context(ask_client=True)),
        mutual(certificates, **wrong),
        "who signed our client",
    )
    for mechanism in ("PLAIN", "SCRAM-SHA-256"):
        message = "refuses security.sasl_plain_username with this password"
        yield (
            f"a wrong password, {mechanism}",
            Door(users=USERS),
            sasl(mechanism, "wrong-rabbit"),
            message,
        )
    yield (
        "no such mechanism",
        Door(users=USERS),
        sasl("SCRAM-SHA-512"),
        "does not support this security.sasl_mechanism (SCRAM-SHA-512); it supports PLAIN, "
        "SCRAM-SHA-256",
    )


def test_a_refused_client_gets_a_remedy_and_does_not_retry_forever(
    certificates: Certificates, tmp_path: Path
) -> None:
    """Source and sink raise an error that ends the engine; no client was admitted, and no password
    is shown."""
    for what, door, security, text in refusals(certificates, tmp_path):
        with secured(door) as (servers, _):
            source = KafkaSource(servers, "t", security=security)
            with opened(source), pytest.raises(ConnectorError) as refused:
                until(lambda: False, lambda source=source: source.poll(0.5))  # type: ignore[misc]
            sink = KafkaSink(servers, "t", security=security)
            with pytest.raises(ConnectorError) as refused_too:
                deliver(sink)
            sink.close()
        for error in (refused.value, refused_too.value):
            assert text in str(error), what
            assert "wrong-rabbit" not in str(error)
        assert door.admitted == 0 or not door.users, what
        assert 0 < door.refused + (what == "no such mechanism") < 10, what


def test_a_changed_password_ends_a_running_engine() -> None:
    """Both source and sink end at the next connection; until then they continue."""
    door = Door(users=dict(USERS))
    with secured(door) as (servers, listener):
        produce(servers, "t", [[b"1", b"2"]], **sasl())
        sink = KafkaSink(servers, "p", security=sasl())
        deliver(sink)
        source = KafkaSource(servers, "t", security=sasl())
        with opened(source):
            assert len(read(source, 2)) == 2
            assert door.users is not None
            door.users["alice"] = "another"
            listener.cut()
            with pytest.raises(ConnectorError, match=r"refuses security\.sasl_plain_username"):
                until(lambda: False, lambda: source.poll(0.5))
        with pytest.raises(ConnectorError, match=r"refuses security\.sasl_plain_username"):
            deliver(sink)
        sink.close()


def test_a_password_that_the_broker_repeats_is_not_shown() -> None:
    """Whatever the broker's refusal contains."""
    door = Door(users=USERS, refusal_text="alice may not use wrong-rabbit")
    with secured(door) as (servers, _):
        source = KafkaSource(servers, "t", security=sasl(password="wrong-rabbit"))
        with opened(source), pytest.raises(ConnectorError, match="may not use <hidden>"):
            until(lambda: False, lambda: source.poll(0.5))


@pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL"])
def test_nothing_is_sent_unencrypted(
    certificates: Certificates, protocol: str, caplog: Any
) -> None:
    """To a server that does not answer: only TLS hellos arrive, and the source keeps trying and
    reports why."""
    security = sasl(security_protocol=protocol) if protocol == "SASL_SSL" else {}
    arrived: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            while True:
                try:
                    end, _ = listener.accept()
                except OSError:
                    return
                with end:
                    end.settimeout(20.0)
                    while data := end.recv(1 << 16):
                        arrived.append(data)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        servers = f"127.0.0.1:{listener.getsockname()[1]}"
        source = KafkaSource(servers, "t", security=tls(certificates, **security))
        with opened(source), caplog.at_level("WARNING"):
            until(lambda: "does it speak TLS?" in caplog.text, lambda: source.poll(0.5))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert arrived
    assert all(data.startswith(b"\x16\x03") for data in arrived), "a TLS handshake record"
    assert not any(b"rabbit" in data or b"alice" in data for data in arrived)


@pytest.mark.parametrize("door", ["tls", "password"])
def test_a_client_without_security_settings_gets_a_remedy(
    certificates: Certificates, door: str
) -> None:
    """Such a broker only closes the connection; the client finds out what the broker requires, and
    that ends the run."""
    asks = Door(certificates.context()) if door == "tls" else Door(users=USERS)
    message = (
        "this port speaks TLS"
        if door == "tls"
        else "this port asks for a user name and a password"
    )
    with secured(asks) as (servers, _):
        source = KafkaSource(servers, "t")
        with (
            opened(source),
            pytest.raises(ConnectorError, match=f"{servers}: {message}") as refused,
        ):
            until(lambda: False, lambda: source.poll(0.5))
    assert "security.security_protocol is 'PLAINTEXT': set it to" in str(refused.value)
    assert asks.admitted <= (door == "tls"), (
        "nothing, or a TLS handshake if the broker's alert was lost"
    )


def test_a_key_needs_its_password_and_never_prompts_on_the_terminal(
    certificates: Certificates,
) -> None:
    """Before anything connects."""
    assert check_security(mutual(certificates))["ssl_password"] == certificates.password
    for wrong in ("no-such", "", None):
        with pytest.raises(
            ConfigError, match="ssl_password is the password of a key that is encrypted"
        ) as refused:
            check_security(mutual(certificates, ssl_password=wrong))
        assert refused.value.path == "security.ssl_certfile"
        assert "no-such" not in str(refused.value)


@pytest.mark.parametrize(
    ("security", "path", "message"),
    [
        (
            {"sasl_plain_password": "x"},
            "security_protocol",
            "SASL_PLAINTEXT or SASL_SSL, which sasl_plain_password needs",
        ),
        (
            {"ssl_cafile": "ca.pem"},
            "security_protocol",
            "SSL or SASL_SSL, which ssl_cafile needs",
        ),
        (
            {"security_protocol": "SSL", "sasl_mechanism": "PLAIN"},
            "security_protocol",
            "SASL_PLAINTEXT or SASL_SSL",
        ),
        ({"security_protocol": "SASL_SSL"}, "sasl_mechanism", "one of PLAIN, SCRAM-SHA-256"),
        (sasl("SCRAM"), "sasl_mechanism", "one of PLAIN, SCRAM-SHA-256"),
        (sasl(sasl_plain_username=""), "sasl_plain_username", "a text, for PLAIN"),
        (sasl(sasl_plain_password=7), "sasl_plain_password", "a text, for PLAIN"),
        (
            {"security_protocol": "SSL", "ssl_cafile": "/nowhere/ca.pem"},
            "ssl_cafile",
            "No such file",
        ),
        (
            {"security_protocol": "SSL", "ssl_cafile": __file__},
            "ssl_cafile",
            "a readable PEM file",
        ),
        (
            {"security_protocol": "SSL", "ssl_keyfile": "key.pem"},
            "ssl_certfile",
            "that belongs to ssl_keyfile",
        ),
    ],
)
def test_contradictory_settings_are_refused_before_anything_connects(
    security: dict[str, Any], path: str, message: str
) -> None:
    """Above all credentials without the protocol that would use them: all would be sent
    unencrypted."""
    for make in (
        lambda: KafkaSource("h:1", "t", security=security),
        lambda: KafkaSink("h:1", "t", security=security),
    ):
        with pytest.raises(ConfigError) as refused:
            make()
        assert refused.value.path == f"security.{path}"
        assert message in str(refused.value)
