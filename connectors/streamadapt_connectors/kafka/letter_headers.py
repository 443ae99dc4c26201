"""Restore a dead letter from the plain values in its headers or its JSON line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["split_headers"]

Headers = tuple[tuple[str, Any], ...]


def split_headers(headers: Sequence[tuple[str, Any]]) -> tuple[Headers, Headers]:
    """Part the headers of a Kafka dead letter: the refused record's own, which come first, and
    those of the letter.

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
