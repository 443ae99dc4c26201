"""A dead letter from the plain values that were written of it; whoever wrote them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from streamadapt.entry import Position
from streamadapt.letters import headers_of
from streamadapt.ports import DeadLetter, Record

__all__ = ["letter_of", "origin_of", "split_headers"]

Headers = tuple[tuple[str, Any], ...]


def letter_of(data: Mapping[str, Any]) -> DeadLetter:
    """Return the letter that `streamadapt.letters.letter_fields` gave the values of.

    Raises
    ------
    KeyError, TypeError, ValueError
        If it did not.
    """
    if not isinstance(data, Mapping):
        raise TypeError("a line is a JSON object")
    at = origin_of(data)
    headers = headers_of(data.get("headers") or ())
    record = Record(at, _raw(data, "key"), _raw(data, "value"), int(data.get("time") or 0), headers)
    return DeadLetter(record, str(data["reason"]), str(data.get("stage", "")), str(data.get("detail", "")))


def split_headers(headers: Sequence[tuple[str, Any]]) -> tuple[Headers, Headers]:
    """Part the headers of a Kafka dead letter: the refused record's own, which come first, and those of the letter.

    Raises
    ------
    ValueError
        If the header that counts the record's own says something else.
    """
    for name, raw in reversed(headers):
        if name == "headers":
            count = int(raw)
            if not 0 <= count < len(headers):
                raise ValueError(f"headers says {count}, there are {len(headers)}")
            return tuple(headers[:count]), tuple(headers[count:])
        if name == "reason":  # of the letter's headers the first: none of what comes before is its
            break
    return (), tuple(headers)


def origin_of(data: Mapping[str, Any]) -> Position:
    """Return where the refused record stood; raises as `letter_of` does."""
    partition, offset = int(data["partition"]), int(data["offset"])
    if not isinstance(data["topic"], str) or partition < 0 or offset < 0:
        raise ValueError("topic, partition or offset is none")
    return Position(data["topic"], partition, offset)


def _raw(data: Mapping[str, Any], name: str) -> bytes | None:
    value = data[name]
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return base64.b64decode(value, validate=True) if data.get(f"{name}_encoding") == "base64" else value.encode()
