"""Files as numbered records: JSON lines as they are, CSV rows as JSON objects of text cells; either may be gzipped."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

import msgspec

from streamadapt.errors import ConfigError, ConnectorError
from streamadapt.files import open_regular

__all__ = ["check_path", "header_of", "is_csv", "values_of"]

CSV_SUFFIXES: Final = (".csv",)
JSONL_SUFFIXES: Final = (".jsonl", ".ndjson")
MOST_LINE: Final = 1 << 24  # bytes of a JSON line, characters of a CSV row; more than the codec takes by default

_encode_json = msgspec.json.Encoder().encode


def check_path(path: Path, setting: str) -> Path:
    """Return `path`, or raise `ConfigError` if its name says neither CSV nor JSON lines."""
    if _suffix(path) not in CSV_SUFFIXES + JSONL_SUFFIXES:
        raise ConfigError(setting, str(path), "a file named .csv, .jsonl or .ndjson, with or without .gz")
    return path


def is_csv(path: Path | str) -> bool:
    """Whether the records of `path` are rows of text cells: the codec then needs ``text_numbers=True``."""
    return _suffix(Path(path)) in CSV_SUFFIXES


def header_of(path: Path) -> list[str]:
    """Return the columns of a CSV file; `ConnectorError` if it cannot be read."""
    try:
        with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            return next(csv.reader(_Rows(text)), [])
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise ConnectorError(f"file {path}: its columns cannot be read: {error}") from error


def values_of(path: Path) -> Iterator[bytes]:
    """Yield every record's value, in order; empty lines are no records.

    A line is held up to 16 MiB, whatever a small .gz unpacks to: of a longer one the codec gets, and refuses, as much.

    Raises
    ------
    ConnectorError
        If the file cannot be opened or read to its end (a torn .gz), is no regular file, or has no columns.
    """
    number = 0
    try:
        with _open(path) as file:
            for value in _csv_values(file) if is_csv(path) else _jsonl_values(file):
                yield value
                number += 1
    except (OSError, EOFError, csv.Error, zlib.error) as error:  # gzip reports a torn file as EOFError
        raise ConnectorError(f"file {path}: cannot be read after {number} records: {error}") from error


def _jsonl_values(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MOST_LINE):
        whole = len(line) < MOST_LINE or line.endswith(b"\n")
        while not whole:  # pass over the rest
            rest = file.readline(MOST_LINE)
            whole = not rest or rest.endswith(b"\n")
        value = line.rstrip(b"\r\n")
        if value.strip():
            yield value


def _csv_values(file: BinaryIO) -> Iterator[bytes]:
    # A cell that is not UTF-8 must not stop the file: its escapes are no number, and the codec refuses the record.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="backslashreplace", newline="") as text:
        rows = csv.reader(lines := _Rows(text))
        header = next(rows, None)
        while header is not None:
            lines.begin()
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"csv: {error}".encode()  # not JSON: the codec refuses it, and the stream goes on
                continue
            if len(row) > len(header):
                yield _encode_json(row)  # no object: the codec refuses it
            elif row:
                yield _encode_json(dict(zip(header, row, strict=False)))  # a short row has missing fields


class _Rows:
    """The lines of a CSV file, of which one row takes only so much: a quote that is never closed has no end."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.begin()

    def begin(self) -> None:
        """Begin the next row."""
        self._left = MOST_LINE

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        if not line:
            raise StopIteration
        if len(line) > self._left:
            while line and not line.endswith(("\n", "\r")):
                line = self._text.readline(MOST_LINE)
            raise csv.Error(f"a row of more than {MOST_LINE} characters")
        self._left -= len(line)
        return line


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    with open_regular(path) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield file


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
