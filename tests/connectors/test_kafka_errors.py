"""The message for the user if Apache Kafka refuses or does not answer, at the start and in the
middle of a run.

The tests run on their own broker, with ACLs and several listeners (`tests/guarded_broker.py`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guarded_broker import Guarded, guarded
from kafka_helpers import PATIENCE_S, opened, produce, until
from streamadapt_connectors.kafka import (
    KafkaDeadLetterReader,
    KafkaDeadLetters,
    KafkaSink,
    KafkaSource,
    KafkaStreamWriter,
)

from streamadapt.app.demo.broker import create_topics
from streamadapt.errors import ConnectorError
from streamadapt.records import DeadLetter, Position, Prediction, Record, StreamPartition

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.apache_kafka,
    # kafka-python leaves the sockets of refused connections to garbage collection.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
    ),
]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded(tmp_path_factory.mktemp("guarded")) as one:
        yield one


class Names:
    """Topics and a group for one test; ``T`` is the input, ``L`` the labels', ``O`` the output,
    ``M`` is missing."""

    def __init__(self, broker: Guarded) -> None:
        own = uuid.uuid4().hex[:8]
        self.of = {letter: f"{letter.lower()}-{own}" for letter in "TLOMG"}
        self.of["X"] = f"streamadapt/{self.of['O']}/{self.of['T']}/0"
        self.broker = broker
        broker.revoke_all()
        servers = broker.servers["open"]
        create_topics(servers, {self.of[letter]: 1 for letter in "TLO"})
        produce(servers, self.of["T"], [[b'{"x": 1}']])
        produce(servers, self.of["L"], [[b'{"x": 1}']])
        produce(servers, self.of["O"], [[b'{"id": "another"}']])

    def named(self, text: str) -> str:
        """Replace the letters by the names."""
        return " ".join(self.of.get(word, word) for word in text.split(" "))

    def allow(self, *rights: str) -> None:
        self.broker.allow(*map(self.named, rights))

    def deny(self, *rights: str) -> None:
        self.broker.deny(*map(self.named, rights))


@pytest.fixture
def names(broker: Guarded) -> Names:
    return Names(broker)


def prediction(topic: str, offset: int) -> Prediction:
    row = np.array([[offset]], np.float32)
    return Prediction(
        Position(topic, 0, offset), f"e{offset}", "k", offset, row, row, {"base": row}, {"base": 1}
    )


def source_error(source: KafkaSource, after: Callable[[], None] | None = None) -> str:
    """Return the error that ends a source: at its start, or after `after` was called when it had
    read its first record."""

    def run() -> None:
        if after is not None:
            until(lambda: bool(source.poll(0.5)), lambda: None)
            after()
        until(lambda: False, lambda: source.poll(0.5))

    with opened(source), pytest.raises(ConnectorError) as refused:
        run()
    return str(refused.value)


def sink_error(
    sink: Any, write: Callable[[int], None], after: Callable[[], None] | None = None
) -> str:
    """Return the error that ends a sink: at its first write, or at a later one after `after` was
    called."""
    ends_at = time.monotonic() + PATIENCE_S
    sink.break_off_when(lambda: time.monotonic() > ends_at)

    def run() -> None:
        if after is not None:
            write(0)
            after()
        for number in range(1, 10_000):
            write(number)
            time.sleep(0.1)

    try:
        with pytest.raises(ConnectorError) as refused:
            run()
    finally:
        sink.break_off_when(lambda: True)
        with suppress(ConnectorError):
            sink.close()
    return str(refused.value)


def writing(sink: KafkaSink, topic: str, guarantee: str) -> Callable[[int], None]:
    begun: list[bool] = []

    def write(number: int) -> None:
        if not begun:
            begun.append(True)
            if guarantee == "effectively-once":
                sink.newest(topic, 0)
            if guarantee == "exactly-once":
                sink.begin([topic], 0)
        sink.write([prediction(topic, number)])
        sink.flush()
        if guarantee == "exactly-once":
            sink.commit({StreamPartition(topic, 0): number + 1})

    return write


def check(text: str, *parts: str) -> None:
    assert "\n" not in text
    for part in parts:
        assert part in text, text


SOURCES = {
    "nothing": ([], {}, ["read the topic T (source.topic)", "--operation Read --topic T"]),
    "to describe only": (["Describe topic T"], {}, ["read the topic T (source.topic)"]),
    "the labels": (
        ["Read topic T"],
        {"label_topic": "L"},
        ["read the topic L (source.label_topic)", "--topic L"],
    ),
    "the group": (
        ["Read topic T"],
        {"group": "G"},
        ["the group G (source.group)", "--operation Read --group G"],
    ),
    "labels in a group": (
        ["Read topic T", "Read group G"],
        {"label_topic": "L", "group": "G"},
        ["read the topic L (source.label_topic)"],
    ),
}


def expected(names: Names, parts: list[str]) -> list[str]:
    """Replace the letters by names, in quotes where the text has quotes."""
    quoted = [" ".join(names.of.get(word, word) for word in part.split(" ")) for part in parts]
    for name in names.of.values():
        quoted = [part.replace(f"topic {name} (", f"topic '{name}' (") for part in quoted]
        quoted = [part.replace(f"group {name} (", f"group '{name}' (") for part in quoted]
        quoted = [part.replace(f"id {name} (", f"id '{name}' (") for part in quoted]
    return quoted


@pytest.mark.parametrize("case", SOURCES)
def test_a_source_names_the_missing_permission(broker: Guarded, names: Names, case: str) -> None:
    """The error names the resource, the config key, and what an administrator has to do."""
    rights, settings, parts = SOURCES[case]
    names.allow(*rights)
    more = {key: names.of[letter] for key, letter in settings.items()}
    text = source_error(
        KafkaSource(broker.servers["sasl"], names.of["T"], security=broker.login(), **more)
    )
    check(text, broker.servers["sasl"], "no right to", *expected(names, parts))


REVOKED = {
    "the topic": ({}, ["Read topic T"], ["read the topic T (source.topic)"]),
    "all of the topic": ({}, ["All topic T"], ["read the topic T (source.topic)"]),
    "the labels": (
        {"label_topic": "L"},
        ["All topic L"],
        ["read the topic L (source.label_topic)"],
    ),
    "the group": ({"group": "G"}, ["All group G"], ["the group G (source.group)"]),
    "the topic of a group": ({"group": "G"}, ["All topic T"], ["read the topic T (source.topic)"]),
}


@pytest.mark.parametrize("case", REVOKED)
def test_a_source_ends_when_its_permission_is_removed(
    broker: Guarded, names: Names, case: str
) -> None:
    """It is not mistaken for a deleted topic, for which the source would wait."""
    settings, denied, parts = REVOKED[case]
    names.allow("Read topic T", "Read topic L", "Read group G")
    more = {key: names.of[letter] for key, letter in settings.items()}
    source = KafkaSource(broker.servers["sasl"], names.of["T"], security=broker.login(), **more)
    check(source_error(source, lambda: names.deny(*denied)), *expected(names, parts))


WRITE = ["write to the topic O (sink.topic)", "--operation Write --topic O"]
ID = ["use the transactional id X (", "--operation Write --transactional-id X"]
SINKS = {
    "nothing": ("at-least-once", [], WRITE),
    "to describe only": ("at-least-once", ["Describe topic O"], WRITE),
    "to read back": (
        "effectively-once",
        ["Write topic O"],
        [
            "read the topic O (sink.topic, read back for effectively-once)",
            "--operation Read --topic O",
        ],
    ),
    "the id": ("exactly-once", ["Write topic O", "Read topic T", "Read group X"], ID),
    "more than to describe the id": (
        "exactly-once",
        ["Write topic O", "Describe transactional-id X"],
        ID,
    ),
    "the group": (
        "exactly-once",
        ["Write topic O", "Read topic T", "Write transactional-id X"],
        ["the group X (", "--operation Read --group X"],
    ),
    "the input": (
        "exactly-once",
        ["Write topic O", "Write transactional-id X", "Read group X"],
        ["read the topic T (source.topic)"],
    ),
    "to write in a transaction": (
        "exactly-once",
        ["Describe topic O", "Read topic T", "Write transactional-id X", "Read group X"],
        WRITE,
    ),
}


@pytest.mark.parametrize("case", SINKS)
def test_a_sink_names_the_missing_permission(broker: Guarded, names: Names, case: str) -> None:
    guarantee, rights, parts = SINKS[case]
    names.allow(*rights)
    sink = KafkaSink(broker.servers["sasl"], names.of["O"], security=broker.login())
    text = sink_error(sink, writing(sink, names.of["T"], guarantee))
    check(text, broker.servers["sasl"], "no right to", *expected(names, parts))


TAKEN = {
    "to write": ("at-least-once", ["Write topic O"], WRITE),
    "the topic": ("at-least-once", ["All topic O"], WRITE),
    "the topic in a transaction": ("exactly-once", ["All topic O"], WRITE),
    "the id": ("exactly-once", ["All transactional-id X"], ID),
    "the group": ("exactly-once", ["All group X"], ["the group X ("]),
    "the input": ("exactly-once", ["All topic T"], ["read the topic T (source.topic)"]),
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_sink_ends_when_its_permission_is_removed(
    broker: Guarded, names: Names, case: str
) -> None:
    guarantee, denied, parts = TAKEN[case]
    names.allow("Write topic O", "Read topic T", "Write transactional-id X", "Read group X")
    sink = KafkaSink(broker.servers["sasl"], names.of["O"], security=broker.login())
    text = sink_error(sink, writing(sink, names.of["T"], guarantee), lambda: names.deny(*denied))
    check(text, *expected(names, parts))


@pytest.mark.parametrize("kind", ["sink", "dead_letters"])
def test_a_topic_that_is_missing_and_may_not_be_created(
    broker: Guarded, names: Names, kind: str
) -> None:
    names.allow("Write topic M")
    make = KafkaSink if kind == "sink" else KafkaDeadLetters
    sink: Any = make(broker.servers["sasl"], names.of["M"], security=broker.login())
    text = sink_error(sink, lambda number: write_any(sink, number))
    check(
        text,
        f"no right to create the topic '{names.of['M']}' ({kind}.topic)",
        "--operation Create",
        "does not exist",
    )


def write_any(sink: Any, number: int) -> None:
    if isinstance(sink, KafkaSink):
        sink.write([prediction("t", number)])
    else:
        sink.write(
            [
                DeadLetter(
                    Record(Position("t", 0, number), b"k", b"v", 1), "not_json", "decode", "x"
                )
            ]
        )
    sink.flush()


def test_errors_about_dead_letters_name_their_own_setting(broker: Guarded, names: Names) -> None:
    sink = KafkaDeadLetters(broker.servers["sasl"], names.of["O"], security=broker.login())
    text = sink_error(sink, lambda number: write_any(sink, number))
    check(text, f"write to the topic '{names.of['O']}' (dead_letters.topic)")


def test_a_transaction_timeout_above_the_brokers(broker: Guarded, names: Names) -> None:
    names.allow("Write topic O", "Read topic T", "Write transactional-id X", "Read group X")
    sink = KafkaSink(
        broker.servers["sasl"], names.of["O"], security=broker.login(), transaction_timeout="90s"
    )
    text = sink_error(sink, writing(sink, names.of["T"], "exactly-once"))
    check(text, "sink.transaction_timeout (90 s)", "transaction.max.timeout.ms")


def test_unreadable_dead_letters_are_not_reported_as_missing(
    broker: Guarded, names: Names
) -> None:
    reader = KafkaDeadLetterReader(broker.servers["sasl"], names.of["O"], security=broker.login())
    with pytest.raises(ConnectorError) as refused:
        list(reader.read())
    reader.close()
    check(
        str(refused.value),
        f"no right to read the topic '{names.of['O']}' (dead_letters.topic)",
        "--operation Read",
    )


def test_a_stream_without_write_permission(broker: Guarded, names: Names) -> None:
    writer = KafkaStreamWriter(broker.servers["sasl"], names.of["T"], security=broker.login())
    with pytest.raises(ConnectorError) as refused:
        writer.check([StreamPartition(names.of["T"], 0)])
    writer.close()
    check(
        str(refused.value),
        f"no right to write to the topic '{names.of['T']}' (source.topic)",
        "--operation Write",
    )


def test_a_source_waits_for_a_missing_topic_and_names_it(
    broker: Guarded, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    """The user may describe the topic; it may be created later."""
    names.allow("Read topic M")
    source = KafkaSource(broker.servers["sasl"], names.of["M"], security=broker.login())
    with opened(source):
        until(lambda: "does not exist" in caplog.text, lambda: source.poll(0.5))
        assert f"topic {names.of['M']} does not exist" in caplog.text
        assert "correct source.topic" in caplog.text
        create_topics(broker.servers["open"], {names.of["M"]: 1})
        produce(broker.servers["open"], names.of["M"], [[b"1"]])
        until(lambda: bool(source.poll(0.5)), lambda: None)


def doors(broker: Guarded) -> dict[str, tuple[str, dict[str, Any], list[str]]]:
    """Return listener, settings and the expected message, by case."""
    ca = {"ssl_cafile": str(broker.certificates.ca_file)}
    tls = {"security_protocol": "SSL", **ca}
    both = broker.login(security_protocol="SASL_SSL", **ca)
    has_tls, has_none = "this port speaks TLS", "this port speaks Kafka without TLS"
    asks = "this port asks for a user name and a password"
    return {
        "plain text to TLS": ("tls", {}, [has_tls, "'PLAINTEXT'", "'SSL'"]),
        "plain text to TLS with a password": ("sasltls", {}, [has_tls, "'SASL_SSL'"]),
        "a password without TLS to TLS": ("sasltls", broker.login(), [has_tls, "'SASL_SSL'"]),
        "TLS to plain text": ("open", tls, [has_none, "'SSL'", "'PLAINTEXT'"]),
        "TLS and a password to a password": ("sasl", both, [has_none, "'SASL_PLAINTEXT'"]),
        "no password": ("sasl", {}, [asks, "'SASL_PLAINTEXT'", "(PLAIN, SCRAM-SHA-256)"]),
        "no password, TLS": ("sasltls", tls, [asks, "'SASL_SSL'"]),
        "a password that is not required": (
            "open",
            broker.login(),
            ["asks for no user name and password"],
        ),
        "a password in TLS that is not required": (
            "tls",
            both,
            ["asks for no user name and password"],
        ),
        "a wrong password": (
            "sasl",
            broker.login(sasl_plain_password="wrong-one"),
            ["security.sasl_plain_username"],
        ),
        "another mechanism": (
            "sasl",
            broker.login(sasl_mechanism="SCRAM-SHA-512"),
            ["security.sasl_mechanism (SCRAM-SHA-512)", "it supports PLAIN, SCRAM-SHA-256"],
        ),
        "an unknown CA": (
            "tls",
            tls | {"ssl_cafile": str(broker.certificates.stranger_file)},
            ["security.ssl_cafile must contain the CA"],
        ),
        "another host": (
            "elsewhere",
            tls | {"ssl_cafile": str(broker.elsewhere.ca_file)},
            ["servers must name a host that the certificate contains"],
        ),
        "no client certificate": ("mutual", tls, ["client certificate", "security.ssl_certfile"]),
    }


DOORS = (
    "plain text to TLS",
    "plain text to TLS with a password",
    "a password without TLS to TLS",
    "TLS to plain text",
    "TLS and a password to a password",
    "no password",
    "no password, TLS",
    "a password that is not required",
    "a password in TLS that is not required",
    "a wrong password",
    "another mechanism",
    "an unknown CA",
    "another host",
    "no client certificate",
)


@pytest.mark.parametrize("case", DOORS)
def test_a_wrong_security_setting_ends_the_run_and_is_named_with_the_address(
    broker: Guarded, case: str
) -> None:
    """Source and sink give the same message."""
    listener, security, parts = doors(broker)[case]
    servers = broker.servers[listener]
    text = source_error(KafkaSource(servers, "t", security=security))
    check(text, servers, *parts)
    sink = KafkaSink(servers, "t", security=security)
    check(sink_error(sink, lambda number: write_any(sink, number)), servers, *parts)
    assert "wrong-one" not in text


@pytest.mark.parametrize(
    ("listener", "message"),
    [
        ("deadend", "nothing listens there (connection refused)"),
        ("noname", "the host name cannot be resolved"),
        ("dropped", "a firewall drops the connection"),
    ],
)
def test_an_advertised_address_that_does_not_answer_is_named(
    broker: Guarded, listener: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The address is tried again: the broker may just be down. In the source and in the sink."""
    source = KafkaSource(broker.servers[listener], "t")
    with opened(source):
        until(lambda: "advertised.listeners" in caplog.text, lambda: source.poll(0.5))
    check(caplog.records[-1].getMessage(), broker.advertised[listener], message)
    caplog.clear()
    sink = KafkaSink(broker.servers[listener], "t")
    sink.break_off_when(lambda: "advertised.listeners" in caplog.text)
    with pytest.raises(ConnectorError, match="the engine is to stop"):
        write_any(sink, 0)
    sink.close()
    assert message in caplog.text


def test_a_frozen_broker_is_not_mistaken_for_wrong_settings(
    broker: Guarded, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start; when the broker continues, the source does, too."""
    source = KafkaSource(broker.servers["open"], names.of["T"])
    broker.broker.signal(signal.SIGSTOP)
    try:
        with opened(source):
            until(lambda: "frozen or overloaded" in caplog.text, lambda: source.poll(0.5))
            assert broker.servers["open"] in caplog.text
            assert "security" not in caplog.text
            broker.broker.signal(signal.SIGCONT)
            until(lambda: bool(source.poll(0.5)), lambda: None)
    finally:
        broker.broker.signal(signal.SIGCONT)


CONFIG = """
guarantee = "{guarantee}"
[source]
kind = "kafka"
servers = "{servers}"
topic = "{source}"
[source.security]
security_protocol = "SASL_PLAINTEXT"
sasl_mechanism = "PLAIN"
sasl_plain_username = "alice"
sasl_plain_password = "rabbit-hole"
[sink]
kind = "kafka"
topic = "{sink}"
{more}
[dead_letters]
kind = "kafka"
topic = "{letters}"
[fields]
values = ["x"]
time = "time"
[task]
kind = "forecast"
window = 4
horizon = 1
[base]
kind = "persistence"
[checkpoint]
path = "state"
"""


def command(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the command line in a process of its own; return exit code and standard error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "streamadapt", *arguments]
    done = subprocess.run(
        line,
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=2 * PATIENCE_S,
        check=False,
        text=True,
    )
    return done.returncode, done.stderr


RUNS = {
    "the input": (["Write topic O"], "read the topic T (source.topic)"),
    "the output": (["Read topic T"], "write to the topic O (sink.topic)"),
}


@pytest.mark.parametrize("case", RUNS)
def test_the_command_ends_with_one_line_and_exit_code_1(
    broker: Guarded, names: Names, tmp_path: Path, case: str
) -> None:
    rights, message = RUNS[case]
    names.allow(*rights)
    rows = [json.dumps({"time": f"2026-01-01T00:{i:02}:00Z", "x": i}).encode() for i in range(20)]
    produce(broker.servers["open"], names.of["T"], [rows])
    settings = {
        "servers": broker.servers["sasl"],
        "source": names.of["T"],
        "sink": names.of["O"],
        "letters": "letters",
    }
    if case == "the output":
        settings["letters"] = names.of["L"]
        names.allow("Write topic L")
    (tmp_path / "config.toml").write_text(
        CONFIG.format(guarantee="at-least-once", more="", **settings)
    )
    code, shown = command(tmp_path, "run", "config.toml")
    assert code == 1, shown
    assert "Traceback" not in shown
    last = shown.strip().splitlines()[-1]
    check(last, "streamadapt: kafka", *expected(names, [message]))
    assert "rabbit-hole" not in shown


def test_dlq_list_names_what_it_may_not_read(
    broker: Guarded, names: Names, tmp_path: Path
) -> None:
    settings = {"servers": broker.servers["sasl"], "source": names.of["T"], "sink": names.of["O"]}
    text = CONFIG.format(guarantee="at-least-once", more="", letters=names.of["L"], **settings)
    (tmp_path / "config.toml").write_text(text)
    code, shown = command(tmp_path, "dlq", "list", "config.toml")
    assert code == 1, shown
    assert "Traceback" not in shown
    check(
        shown.strip().splitlines()[-1], *expected(names, ["read the topic L (dead_letters.topic)"])
    )
