"""The JSON form of dead letters: writing one as a line, and reading a repaired one from a line."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from streamadapt.engine.dead_letter_ports import ReplayMark, StoredLetter
from streamadapt.errors import RepairError
from streamadapt.records import DeadLetter, Position, Record

__all__ = [
    "ReplayLedger",
    "headers_of",
    "letter_fields",
    "letter_of",
    "mark_fields",
    "mark_of",
    "origin_of",
    "parse_repaired",
    "stored_fields",
]

NEEDED: Final = ("topic", "partition", "offset", "time", "key", "value")
KNOWN: Final = frozenset(
    {
        *NEEDED, "reason", "stage", "detail", "key_encoding", "value_encoding", "headers",
        "truncated", "foreign", "letter", "replayed",
    }
)  # fmt: skip
STATES: Final = ("sending", "sent", "not-sent")


def letter_fields(letter: DeadLetter) -> dict[str, Any]:
    """Return the JSON values of a dead letter.

    ``key`` and ``value`` are text if they are UTF-8. Otherwise they are base64, and the field
    ``key_encoding`` or ``value_encoding`` is ``base64``.
    """
    record = letter.record
    stream, partition, offset = record.position
    data: dict[str, Any] = {
        "reason": str(letter.reason),
        "stage": letter.stage,
        "detail": letter.detail,
        "topic": stream,
        "partition": partition,
        "offset": offset,
        "time": record.time,
    }
    for name, raw in (("key", record.key), ("value", record.value)):
        if raw is None:
            data[name] = None
            continue
        try:
            data[name] = raw.decode()
        except UnicodeDecodeError:
            data[name] = base64.b64encode(raw).decode()
            data[f"{name}_encoding"] = "base64"
    if record.headers:
        data["headers"] = [_header_fields(name, raw) for name, raw in record.headers]
    return data


def _header_fields(name: str, raw: bytes | None) -> list[str | None]:
    """Return name and value of a header, and ``base64`` if the value is not UTF-8 text."""
    if raw is None:
        return [name, None]
    try:
        return [name, raw.decode()]
    except UnicodeDecodeError:
        return [name, base64.b64encode(raw).decode(), "base64"]


def headers_of(fields: Any) -> tuple[tuple[str, bytes | None], ...]:
    """Return a record's headers from their JSON form, which `letter_fields` made.

    Raises
    ------
    ValueError
        If the values have another form.
    """
    found: list[tuple[str, bytes | None]] = []
    for field in fields if isinstance(fields, list | tuple) else [None]:
        match field:
            case [str(name), None]:
                found.append((name, None))
            case [str(name), str(text)]:
                found.append((name, text.encode()))
            case [str(name), str(text), "base64"]:
                found.append((name, base64.b64decode(text, validate=True)))
            case _:
                raise ValueError('expected a list of [name, value] or [name, value, "base64"]')
    return tuple(found)


def stored_fields(stored: StoredLetter) -> dict[str, Any]:
    """Return the JSON values of a stored dead letter, with ``truncated`` or ``foreign`` if that
    applies, and its place."""
    data = letter_fields(stored.letter)
    if stored.truncated is not None:
        data["truncated"] = stored.truncated
    if stored.foreign:
        data["foreign"] = True
    return data | {"letter": str(stored.place)}


def parse_repaired(line: bytes, streams: Collection[str]) -> Record:
    """Parse a repaired line, which `stored_fields` or `letter_fields` made before its repair.

    Parameters
    ----------
    streams : collection of str
        The streams that the record may have come from.

    Raises
    ------
    RepairError
        If the line has another form; the message names the field and the expected value.
    """
    try:
        data = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RepairError(f"expected one JSON object, got no JSON ({error})") from None
    if not isinstance(data, dict):
        raise RepairError(f"expected one JSON object, got {_kind(data)}")
    _check_names(data)
    if data.get("foreign"):
        raise RepairError(
            "foreign: expected a letter of streamadapt; where this one came from is not known"
        )
    if data.get("truncated") is not None:
        raise RepairError(
            f"truncated: the dead letter holds the beginning of {data['truncated']!r} bytes; "
            f"put the whole value in, "
            "and take this field out"
        )
    if data["topic"] not in streams:
        raise RepairError(
            f"topic: expected {' or '.join(map(repr, streams))}, got {data['topic']!r}"
        )
    partition, offset, time = (_whole(data, name) for name in ("partition", "offset", "time"))
    position = Position(data["topic"], partition, offset)
    try:
        headers = headers_of(data.get("headers") or ())
    except ValueError as error:
        raise RepairError(f"headers: {error}") from None
    return Record(position, _raw(data, "key"), _raw(data, "value"), time, headers)


def _check_names(data: Mapping[str, Any]) -> None:
    unknown = sorted(data.keys() - KNOWN)
    if unknown:
        raise RepairError(
            f"expected the fields of streamadapt dlq list --json, got "
            f"{', '.join(map(repr, unknown))} too"
        )
    missing = [name for name in NEEDED if name not in data]
    if missing:
        raise RepairError(f"{', '.join(missing)}: expected, and missing")


def _whole(data: Mapping[str, Any], name: str) -> int:
    value = data[name]
    if type(value) is not int or not 0 <= value < 2**63:
        raise RepairError(f"{name}: expected a whole number >= 0, got {_kind(value)}")
    return value


def _raw(data: Mapping[str, Any], name: str) -> bytes | None:
    value, encoding = data[name], data.get(f"{name}_encoding")
    if encoding not in (None, "base64"):
        raise RepairError(
            f"{name}_encoding: expected base64, or no such field for text, got {encoding!r}"
        )
    if value is None:
        return None
    if not isinstance(value, str):
        raise RepairError(
            f"{name}: expected text (in jq: .{name} |= tojson), or null, got {_kind(value)}"
        )
    if encoding is None:
        return value.encode()
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RepairError(
            f"{name}: expected base64, as {name}_encoding says, got other text ({error})"
        ) from None


def _kind(value: object) -> str:
    if isinstance(value, bool | int | float) or value is None:
        return msgspec.json.encode(value).decode()
    return (
        "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
    )


# -- marks of replayed records


def mark_fields(mark: ReplayMark) -> dict[str, Any]:
    """Return the JSON values of a mark."""
    return {
        "replay": mark.state,
        "time": mark.time,
        "positions": [str(at) for at in mark.positions],
    }


def mark_of(line: bytes) -> ReplayMark | None:
    """Return the mark that a line contains; None if it contains something else."""
    try:
        data = msgspec.json.decode(line, type=_Mark)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    positions = tuple(Position.parse(text) for text in data.positions)
    if data.replay not in STATES or None in positions:
        return None
    return ReplayMark(data.replay, data.time, tuple(at for at in positions if at is not None))


class _Mark(msgspec.Struct):
    replay: str
    time: int
    positions: list[str]


class ReplayLedger:
    """The result of all marks: the records that were replayed, and those that may have been.

    Attributes
    ----------
    sent, perhaps : dict of Position to int, ns
        Position in the source -> time of the newest mark.
    """

    def __init__(self) -> None:
        self.sent: dict[Position, int] = {}
        self.perhaps: dict[Position, int] = {}

    def take(self, mark: ReplayMark) -> None:
        """Add one mark; call it in the order of the marks."""
        for at in mark.positions:
            if mark.state == "sending":
                self.perhaps[at] = mark.time
            else:
                self.perhaps.pop(at, None)
            if mark.state == "sent":
                self.sent[at] = mark.time


def letter_of(data: Mapping[str, Any]) -> DeadLetter:
    """Return the dead letter of JSON values that `letter_fields` made.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the values have another form.
    """
    if not isinstance(data, Mapping):
        raise TypeError("a line is a JSON object")
    at = origin_of(data)
    headers = headers_of(data.get("headers") or ())
    record = Record(
        at, _written(data, "key"), _written(data, "value"), int(data.get("time") or 0), headers
    )
    return DeadLetter(
        record, str(data["reason"]), str(data.get("stage", "")), str(data.get("detail", ""))
    )


def origin_of(data: Mapping[str, Any]) -> Position:
    """Return the position of the refused record in its source; raises as `letter_of` does."""
    partition, offset = int(data["partition"]), int(data["offset"])
    if not isinstance(data["topic"], str) or partition < 0 or offset < 0:
        raise ValueError("topic is not text, or partition or offset is negative")
    return Position(data["topic"], partition, offset)


def _written(data: Mapping[str, Any], name: str) -> bytes | None:
    value = data[name]
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name} is not text")
    return (
        base64.b64decode(value, validate=True)
        if data.get(f"{name}_encoding") == "base64"
        else value.encode()
    )
