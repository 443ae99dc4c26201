"""Sending records back to Kafka: the outcome of each record is reported separately, whatever the
client's answer is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kafka import errors as kafka_errors
from streamadapt_connectors.kafka import KafkaDeadLetterReader, KafkaStreamWriter
from streamadapt_connectors.kafka.client import Reach

from streamadapt.engine.dead_letter_ports import ReplayMark, Returning
from streamadapt.errors import ConnectorError
from streamadapt.records import Position, Record


class Posted:
    """A future that is done."""

    def __init__(self, error: type[Exception] | None) -> None:
        self._error = error

    def get(self, timeout: float) -> Any:
        assert timeout < 60
        if self._error is not None:
            raise self._error("broker")
        return SimpleNamespace(topic="x", partition=0, offset=9)


class Producer:
    """Answers each record with the error that its value names."""

    closed = 0

    def send(self, topic: str, value: bytes, **others: Any) -> Posted:
        error = getattr(kafka_errors, value.decode(), None)
        if error is kafka_errors.MessageSizeTooLargeError:  # the client's own limit
            raise error("client")
        return Posted(error)

    def close(self, timeout: float) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("names", "states"),
    [
        (["fine", "fine"], ["sent", "sent"]),
        (["KafkaTimeoutError"], ["unknown"]),
        (["NotLeaderForPartitionError"], ["unknown"]),
        (["fine", "RecordListTooLargeError", "fine"], ["sent", "not-sent", "sent"]),
        (["MessageSizeTooLargeError", "fine"], ["not-sent", "sent"]),
        (["TopicAuthorizationFailedError"], ["not-sent"]),
    ],
)
def test_the_outcome_of_each_record_is_reported(
    monkeypatch: pytest.MonkeyPatch, names: list[str], states: list[str]
) -> None:
    """A producer with a failed record is not used again: its sequence may be broken."""
    made: list[Producer] = []
    monkeypatch.setattr(Reach, "producer", lambda *_, **__: made.append(Producer()) or made[-1])
    writer = KafkaStreamWriter("localhost:9", "x")
    records = [
        Returning(Record(Position("x", 0, i), None, n.encode(), 0), False)
        for i, n in enumerate(names)
    ]
    done = writer.write(records)
    assert [one.state for one in done] == states
    assert "x[0]@9" in [one.detail for one in done] or "sent" not in states
    writer.write(records[:1])
    assert len(made) == (1 if set(states) == {"sent"} else 2)
    assert made[0].closed == len(made) - 1
    writer.close()


def test_without_a_broker_nothing_was_sent_and_no_note_is_kept() -> None:
    writer, reader = (
        KafkaStreamWriter("127.0.0.1:9", "x"),
        KafkaDeadLetterReader("127.0.0.1:9", "letters"),
    )
    (done,) = writer.write([Returning(Record(Position("x", 0, 1), None, b"v", 0), False)])
    assert done.state == "not-sent"
    with pytest.raises(ConnectorError, match="was not written"):
        reader.mark(ReplayMark("sending", 0, ()))
    with pytest.raises(ConnectorError, match="kafka topic letters at 127"):
        list(reader.read())
    writer.close()
    reader.close()
