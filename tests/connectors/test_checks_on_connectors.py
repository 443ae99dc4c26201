"""The shared check suites over the built-in sources and sinks; memory is in tests/checks."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka_helpers import consume, produce
from streamadapt_connectors.files import FilesSource, JsonlDeadLetters, JsonlSink
from streamadapt_connectors.kafka import KafkaDeadLetters, KafkaSink, KafkaSource

from streamadapt.checks.sinks import LetterCase, SinkCase, yield_dead_letter_checks, yield_sink_checks
from streamadapt.checks.sources import yield_source_checks
from streamadapt.ports import Source

over_sources = pytest.mark.parametrize("check", [*yield_source_checks()], ids=lambda c: c.__name__)
over_sinks = pytest.mark.parametrize("check", [*yield_sink_checks()], ids=lambda c: c.__name__)
over_letters = pytest.mark.parametrize("check", [*yield_dead_letter_checks()], ids=lambda c: c.__name__)


@over_sources
def test_files_source(check: Any, tmp_path: Path) -> None:
    def factory(logs: Sequence[Sequence[bytes]]) -> Callable[[], Source]:
        path = tmp_path / "log.jsonl"
        path.write_bytes(b"".join(value + b"\n" for value in logs[0]))
        return lambda: FilesSource(path, batch=3)

    check(factory, 1)


@pytest.mark.kafka
@over_sources
def test_kafka_source(check: Any, kafka_servers: str, topic: Callable[..., str]) -> None:
    def factory(logs: Sequence[Sequence[bytes]]) -> Callable[[], Source]:
        name = topic(len(logs))
        produce(kafka_servers, name, logs)
        return lambda: KafkaSource(kafka_servers, name, max_poll_records=3)

    check(factory, 2)


@over_sinks
def test_jsonl_sink(check: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    check(lambda: SinkCase(JsonlSink(path), lambda: [json.loads(x)["id"] for x in path.read_text().splitlines()]))


@pytest.mark.kafka
@over_sinks
def test_kafka_sink(check: Any, kafka_servers: str, topic: Callable[..., str]) -> None:
    name = topic(2)
    sink = KafkaSink(kafka_servers, name)
    check(lambda: SinkCase(sink, lambda: [json.loads(r.value)["id"] for r in consume(kafka_servers, name)]))


@over_letters
def test_jsonl_dead_letters(check: Any, tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"

    def raw(letter: dict[str, Any], name: str) -> bytes | None:
        text = letter[name]
        if text is None:
            return None
        return base64.b64decode(text) if letter.get(f"{name}_encoding") == "base64" else text.encode()

    def delivered() -> list[tuple[bytes | None, bytes | None, str]]:
        letters = [json.loads(line) for line in path.read_text().splitlines()]
        return [(raw(x, "key"), raw(x, "value"), x["reason"]) for x in letters]

    check(lambda: LetterCase(JsonlDeadLetters(path), delivered))


@pytest.mark.kafka
@over_letters
def test_kafka_dead_letters(check: Any, kafka_servers: str, topic: Callable[..., str]) -> None:
    name = topic(1)

    def delivered() -> list[tuple[bytes | None, bytes | None, str]]:
        return [(r.key, r.value, dict(r.headers)["reason"].decode()) for r in consume(kafka_servers, name)]

    check(lambda: LetterCase(KafkaDeadLetters(kafka_servers, name), delivered))
