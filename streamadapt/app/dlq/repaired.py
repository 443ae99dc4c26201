"""Reads the file of repaired letters: one JSON object in each line."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from streamadapt.app.terminal import safe
from streamadapt.engine.dead_letters import parse_repaired
from streamadapt.errors import ConnectorError, RepairError
from streamadapt.files import encoding_of_mark
from streamadapt.records import Position, Record

__all__ = ["RepairedFile", "RepairedLine", "read_repaired"]


class RepairedLine(NamedTuple):
    """A repaired record, and the number of its line."""

    number: int
    record: Record


class RepairedFile(NamedTuple):
    """The content of a file of repaired letters.

    Attributes
    ----------
    lines : int
        Number of lines that are not blank.
    records : list of RepairedLine
        One for each line that is a letter, in the order of the file.
    problems : list of str
        A message about each line that is no letter, or repeats a record.
    """

    lines: int
    records: list[RepairedLine]
    problems: list[str]


def read_repaired(file: Path, streams: Collection[str]) -> RepairedFile:
    """Read the repaired letters of a file, or of standard input if `file` is ``-``.

    Parameters
    ----------
    streams : collection of str
        The streams that the records may have come from.

    Raises
    ------
    ConnectorError
        If the file cannot be read.
    """
    lines = 0
    found: dict[Position, RepairedLine] = {}
    problems: list[str] = []
    for number, line in _lines_of(file):
        lines += 1
        try:
            record = parse_repaired(line, streams)
            if record.position in found:
                first = found[record.position].number
                raise RepairError(f"the same record as line {first}: expected each once")
            found[record.position] = RepairedLine(number, record)
        except RepairError as error:
            problems.append(f"{file} line {number}: {safe(str(error))}")
    return RepairedFile(lines, list(found.values()), problems)


def _lines_of(file: Path) -> Iterator[tuple[int, bytes]]:
    try:
        if str(file) == "-":
            given = io.BufferedReader(cast(io.RawIOBase, sys.stdin.buffer))
            yield from _numbered(given.peek(4), given)
        else:
            with file.open("rb") as lines:
                yield from _numbered(lines.peek(4), lines)
    except OSError as error:
        raise ConnectorError(f"file {file}: cannot be read: {error.strerror}") from error


def _numbered(start: bytes, lines: Any) -> Iterator[tuple[int, bytes]]:
    encoding = encoding_of_mark(start[:4])
    if encoding in (None, "utf-8-sig"):
        yield from _not_blank(lines)
        return
    # As PowerShell writes.
    text = io.TextIOWrapper(lines, encoding=encoding, errors="backslashreplace")
    try:
        yield from _not_blank(line.encode() for line in text)
    finally:
        text.detach()  # who opened the file closes it


def _not_blank(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, 1):
        line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, line
