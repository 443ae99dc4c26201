"""Checks that every `DeadLetterReader` must pass: run them on your own.

A factory returns an empty dead-letter sink and a reader of the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from streamadapt.engine.dead_letter_ports import DeadLetterReader, ReplayMark, StoredLetter
from streamadapt.engine.ports import DeadLetterSink
from streamadapt.records import DeadLetter, Position, Record
from streamadapt.testing.checks.sources import CheckError

__all__ = ["ReaderCase", "check_letter_reader", "yield_letter_reader_checks"]

RAW = (
    (b"k", b'{"a":1}'),
    (None, b"\x1b[31m"),
    (b"\xff\x00", b"\x80\n\x00"),
    (b"only a key", None),
    (None, b""),
)


@dataclass(frozen=True)
class ReaderCase:
    """An empty sink, and a reader of its dead letters."""

    sink: DeadLetterSink
    reader: DeadLetterReader


ReaderFactory = Callable[[], ReaderCase]


def check_letter_reader(factory: ReaderFactory) -> None:
    """Run every check on new sinks and readers; raises `CheckError`."""
    for check in yield_letter_reader_checks():
        check(factory)


def yield_letter_reader_checks() -> Iterator[Callable[[ReaderFactory], None]]:
    """Yield the checks."""
    yield check_letters_come_back_as_they_were_refused
    yield check_notes_are_read_in_order_and_letters_stay


def check_letters_come_back_as_they_were_refused(factory: ReaderFactory) -> None:
    """Position, key, value, time, reason, stage and detail are the same at every read."""
    case = factory()
    try:
        letters = [
            DeadLetter(
                Record(Position("in[2]", 0, i), key, value, i), "not_json", "decode", f"detail {i}"
            )
            for i, (key, value) in enumerate(RAW)
        ]
        case.sink.write(letters)
        case.sink.flush()
        for _ in range(2):
            got = [item.letter for item in case.reader.read() if isinstance(item, StoredLetter)]
            _require(got == letters, f"wanted {letters}, it read {got}")
    finally:
        case.sink.close()
        case.reader.close()


def check_notes_are_read_in_order_and_letters_stay(factory: ReaderFactory) -> None:
    """Marks are read in the order they were stored, and are not letters; the sink may go on
    writing."""
    case = factory()
    try:
        letter = DeadLetter(
            Record(Position("in", 1, 7), b"k", b"v", 5), "not_json", "decode", "a check wrote it"
        )
        states = "sending", "sent", "sending", "not-sent"
        marks = [
            ReplayMark(state, i, (Position("in[2]", 1, i), letter.record.position))
            for i, state in enumerate(states)
        ]
        case.sink.write([letter])
        case.sink.flush()
        list(case.reader.read())
        for mark in marks:
            case.reader.mark(mark)
        case.sink.write([letter])
        case.sink.flush()
        found = list(case.reader.read())
        got = [item for item in found if isinstance(item, ReplayMark)]
        _require(got == marks, f"wanted the notes {marks}, it read {got}")
        kept = [item.letter for item in found if isinstance(item, StoredLetter)]
        _require(kept == [letter, letter], f"wanted the letter twice, it read {kept}")
    finally:
        case.sink.close()
        case.reader.close()


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise CheckError(message)
