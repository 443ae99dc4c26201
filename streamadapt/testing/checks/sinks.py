"""Checks that every `Sink` and every `DeadLetterSink` must pass: run them on your own.

A factory returns an empty sink and a function that reads back the delivered records: for
predictions their ids (``stream[partition]@offset``), in order within each partition; for dead
letters key, value and reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamadapt.engine.ports import DeadLetterSink, Sink
from streamadapt.records import DeadLetter, Position, Prediction, Record
from streamadapt.testing.checks.sources import CheckError

__all__ = [
    "LetterCase",
    "SinkCase",
    "check_dead_letter_sink",
    "check_sink",
    "yield_dead_letter_checks",
    "yield_sink_checks",
]


@dataclass(frozen=True)
class SinkCase:
    """An empty sink, and a function that returns the delivered ids."""

    sink: Sink
    delivered: Callable[[], Sequence[str]]


@dataclass(frozen=True)
class LetterCase:
    """An empty dead-letter sink, and a function that returns key, value and reason of the
    delivered letters."""

    sink: DeadLetterSink
    delivered: Callable[[], Sequence[tuple[bytes | None, bytes | None, str]]]


SinkFactory = Callable[[], SinkCase]
LetterFactory = Callable[[], LetterCase]


def check_sink(factory: SinkFactory) -> None:
    """Run every check on new sinks; raises `CheckError`."""
    for check in yield_sink_checks():
        check(factory)


def check_dead_letter_sink(factory: LetterFactory) -> None:
    """Run every check on new dead-letter sinks; raises `CheckError`."""
    for check in yield_dead_letter_checks():
        check(factory)


def yield_sink_checks() -> Iterator[Callable[[SinkFactory], None]]:
    """Yield the checks for predictions."""
    yield check_flush_delivers_everything_in_order
    yield check_flush_again_delivers_nothing_twice
    yield check_empty_write_and_flush
    yield check_close_flushes_and_is_idempotent


def yield_dead_letter_checks() -> Iterator[Callable[[LetterFactory], None]]:
    """Yield the checks for dead letters."""
    yield check_letters_are_untouched
    yield check_letters_close_flushes_and_is_idempotent


def check_flush_delivers_everything_in_order(factory: SinkFactory) -> None:
    """After `flush` a reader sees every prediction once, in order within its partition."""
    case = factory()
    try:
        predictions = [_prediction(i % 2, i // 2) for i in range(40)]
        for i in range(0, 40, 7):
            case.sink.write(predictions[i : i + 7])
        case.sink.flush()
        _same(case.delivered(), predictions)
    finally:
        case.sink.close()


def check_flush_again_delivers_nothing_twice(factory: SinkFactory) -> None:
    """Further writes and flushes add only new predictions."""
    case = factory()
    try:
        predictions = [_prediction(0, i) for i in range(6)]
        for part in (predictions[:3], predictions[3:], []):
            case.sink.write(part)
            case.sink.flush()
            case.sink.flush()
        _same(case.delivered(), predictions)
    finally:
        case.sink.close()


def check_empty_write_and_flush(factory: SinkFactory) -> None:
    """An empty write delivers nothing and raises nothing."""
    case = factory()
    try:
        case.sink.write([])
        case.sink.flush()
        _same(case.delivered(), [])
    finally:
        case.sink.close()


def check_close_flushes_and_is_idempotent(factory: SinkFactory) -> None:
    """`close` delivers what is still buffered; a second one does nothing."""
    case = factory()
    predictions = [_prediction(1, i) for i in range(5)]
    case.sink.write(predictions)
    for _ in range(3):
        case.sink.close()
    _same(case.delivered(), predictions)


def check_letters_are_untouched(factory: LetterFactory) -> None:
    """Key and value are delivered unchanged, also if they are missing, empty or not text."""
    case = factory()
    try:
        raws: list[tuple[bytes | None, bytes | None]] = [
            (b"k", b'{"a":1}'),
            (None, b"not json"),
            (b"\xff\x00", b"\x80\xfe\n\r\n\x00"),
            (b"only a key", None),
            (None, b""),
        ]
        letters = [_letter(i, key, value) for i, (key, value) in enumerate(raws)]
        case.sink.write(letters[:2])
        case.sink.write(letters[2:])
        case.sink.flush()
        wanted = [(key, value, "not_json") for key, value in raws]
        got = list(case.delivered())
        _require(got == wanted, f"wanted {wanted}, a reader sees {got}")
    finally:
        case.sink.close()


def check_letters_close_flushes_and_is_idempotent(factory: LetterFactory) -> None:
    """`close` delivers what is still buffered; a second one does nothing."""
    case = factory()
    case.sink.write([_letter(0, b"k", b"v")])
    for _ in range(3):
        case.sink.close()
    got = list(case.delivered())
    _require(got == [(b"k", b"v", "not_json")], f"wanted the one letter, a reader sees {got}")


def _prediction(partition: int, offset: int) -> Prediction:
    row = np.array([[float(offset), np.nan]], np.float32)
    weights = {"base": 1.0}
    return Prediction(
        Position("in", partition, offset),
        f"e{offset}",
        "key",
        offset,
        row,
        row,
        {"base": row},
        weights,
    )


def _letter(offset: int, key: bytes | None, value: bytes | None) -> DeadLetter:
    return DeadLetter(
        Record(Position("in", 0, offset), key, value, offset),
        "not_json",
        "decode",
        "a check wrote it",
    )


def _same(got: Sequence[str], predictions: Sequence[Prediction]) -> None:
    for partition in sorted({p.position.partition for p in predictions}):
        wanted = [str(p.position) for p in predictions if p.position.partition == partition]
        here = [name for name in got if f"[{partition}]" in name]
        _require(here == wanted, f"partition {partition}: wanted {wanted}, a reader sees {here}")
    _require(
        len(got) == len(predictions),
        f"wanted {len(predictions)} predictions, a reader sees {len(got)}",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise CheckError(message)
