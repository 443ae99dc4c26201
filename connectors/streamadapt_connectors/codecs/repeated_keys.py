"""Refuses JSON objects in which a key occurs twice: readers of JSON silently keep the last value,
and it is unknown which one is right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from streamadapt.errors import Reason
from streamadapt_connectors.codecs.fields import FieldError, FieldPath

__all__ = ["check_twice"]


def check_twice(value: bytes, data: dict[str, Any], paths: Sequence[FieldPath]) -> None:
    """Raise `FieldError` if a key occurs twice in the record, or in an object on the way to one
    of `paths`.

    Parameters
    ----------
    value : bytes
        The record from which `data` was decoded.
    paths : sequence of FieldPath
        The fields that are read.
    """
    # After each key there is one colon. If the decoded data explains all colons of the bytes, no
    # key was lost.
    colons = value.count(b":")
    if colons == len(data) or (b"\\" not in value and colons == _colons(data)):
        return
    try:
        whole = json.loads(value.decode("utf-8"), object_pairs_hook=_Object, parse_int=float)
    except (ValueError, RecursionError):
        return  # its error was already reported, or it is accepted as decoded
    for name, inner in [("", whole), *_inner(whole, paths)]:
        if inner.twice is not None:
            place = f"$.{name}" if name else "$"
            raise FieldError(
                Reason.DUPLICATE_KEY, f"{place}: the key {inner.twice[:40]!r} occurs twice"
            )


class _Object(dict[str, Any]):
    """A JSON object, and its first key that occurs twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice: str | None = None
        if len(self) != len(pairs):
            seen: set[str] = set()
            self.twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _inner(whole: _Object, paths: Sequence[FieldPath]) -> list[tuple[str, _Object]]:
    objects = []
    for path in paths:
        if path.text in whole:
            continue
        at: Any = whole
        for i, part in enumerate(path.parts):
            at = at.get(part)
            if not isinstance(at, _Object):
                break
            objects.append((".".join(path.parts[: i + 1]), at))
    return objects


def _colons(value: Any) -> int:
    """Count the colons in the JSON text of a decoded value: one for each key, and those inside its
    texts."""
    if type(value) is str:
        return value.count(":")
    if type(value) is dict:
        return len(value) + sum(map(_colons, value)) + sum(map(_colons, value.values()))
    if type(value) is list:
        return sum(_colons(item) for item in value if type(item) not in (float, int))
    return 0
