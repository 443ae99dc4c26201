"""The shared check suites over the built-in sources and sinks; those in memory are in
tests/checks."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka_helpers import consume, produce
from streamadapt_connectors.files import (
    FilesSource,
    JsonlDeadLetterReader,
    JsonlDeadLetters,
    JsonlSink,
)
from streamadapt_connectors.kafka import (
    KafkaDeadLetterReader,
    KafkaDeadLetters,
    KafkaSink,
    KafkaSource,
)

from streamadapt.engine.dead_letter_ports import DeadLetterReader, ReplayMark
from streamadapt.engine.ports import Source
from streamadapt.testing.checks.dead_letters import (
    ReaderCase,
    check_letter_reader,
    yield_letter_reader_checks,
)
from streamadapt.testing.checks.sinks import (
    LetterCase,
    SinkCase,
    yield_dead_letter_checks,
    yield_sink_checks,
)
from streamadapt.testing.checks.sources import CheckError, yield_source_checks

over_sources = pytest.mark.parametrize("check", [*yield_source_checks()], ids=lambda c: c.__name__)
over_sinks = pytest.mark.parametrize("check", [*yield_sink_checks()], ids=lambda c: c.__name__)
over_readers = pytest.mark.parametrize(
    "check", [*yield_letter_reader_checks()], ids=lambda c: c.__name__
)
over_letters = pytest.mark.parametrize(
    "check", [*yield_dead_letter_checks()], ids=lambda c: c.__name__
)


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
    check(
        lambda: SinkCase(
            JsonlSink(path), lambda: [json.loads(x)["id"] for x in path.read_text().splitlines()]
        )
    )


@pytest.mark.kafka
@over_sinks
def test_kafka_sink(check: Any, kafka_servers: str, topic: Callable[..., str]) -> None:
    name = topic(2)
    sink = KafkaSink(kafka_servers, name)
    check(
        lambda: SinkCase(
            sink, lambda: [json.loads(r.value)["id"] for r in consume(kafka_servers, name)]
        )
    )


@over_letters
def test_jsonl_dead_letters(check: Any, tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"

    def raw(letter: dict[str, Any], name: str) -> bytes | None:
        text = letter[name]
        if text is None:
            return None
        return (
            base64.b64decode(text) if letter.get(f"{name}_encoding") == "base64" else text.encode()
        )

    def delivered() -> list[tuple[bytes | None, bytes | None, str]]:
        letters = [json.loads(line) for line in path.read_text().splitlines()]
        return [(raw(x, "key"), raw(x, "value"), x["reason"]) for x in letters]

    check(lambda: LetterCase(JsonlDeadLetters(path), delivered))


@pytest.mark.kafka
@over_letters
def test_kafka_dead_letters(check: Any, kafka_servers: str, topic: Callable[..., str]) -> None:
    name = topic(1)

    def delivered() -> list[tuple[bytes | None, bytes | None, str]]:
        return [
            (r.key, r.value, dict(r.headers)["reason"].decode())
            for r in consume(kafka_servers, name)
        ]

    check(lambda: LetterCase(KafkaDeadLetters(kafka_servers, name), delivered))


@over_readers
def test_jsonl_reader(check: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "dead.jsonl"
    check(lambda: ReaderCase(JsonlDeadLetters(path), JsonlDeadLetterReader(path)))


@pytest.mark.kafka
@over_readers
def test_kafka_reader(check: Any, kafka_servers: str, topic: Callable[..., str]) -> None:
    name = topic(1)
    check(
        lambda: ReaderCase(
            KafkaDeadLetters(kafka_servers, name), KafkaDeadLetterReader(kafka_servers, name)
        )
    )


class Forgetful(JsonlDeadLetterReader):
    """Keeps no notes."""

    def mark(self, mark: ReplayMark) -> None:
        pass


class Once(JsonlDeadLetterReader):
    """Reads only new records, as with a group."""

    def read(self, on_progress: Any = None) -> Any:
        found = list(super().read())
        start, self.seen = getattr(self, "seen", 0), len(found)
        return iter(found[start:])


@pytest.mark.parametrize("broken", [Forgetful, Once])
def test_the_checks_reject_a_broken_reader(broken: type[DeadLetterReader], tmp_path: Path) -> None:
    count = iter(range(9))

    def factory() -> ReaderCase:
        path = tmp_path / f"dead-{next(count)}"
        return ReaderCase(JsonlDeadLetters(path), broken(path))

    with pytest.raises(CheckError):
        check_letter_reader(factory)
