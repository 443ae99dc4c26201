"""Splits the headers of a Kafka dead letter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["split_headers"]

Headers = tuple[tuple[str, Any], ...]


def split_headers(headers: Sequence[tuple[str, Any]]) -> tuple[Headers, Headers]:
    """Return the headers of the refused record, which come first, and the headers of the letter.

    Raises
    ------
    ValueError
        If the header ``headers``, the number of the record's headers, is not possible.
    """
    for name, raw in reversed(headers):
        if name == "headers":
            count = int(raw)
            if not 0 <= count < len(headers):
                raise ValueError(f"headers is {count}, but there are {len(headers)} headers")
            return tuple(headers[:count]), tuple(headers[count:])
        if name == "reason":  # the first header of the letter
            break
    return (), tuple(headers)
