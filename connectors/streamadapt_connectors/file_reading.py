"""Files as numbered records: JSON lines as they are, CSV rows as JSON objects of text cells; either may be gzipped."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

import msgspec

from streamadapt.errors import ConfigError, ConnectorError

__all__ = ["check_path", "is_csv", "values_of"]

CSV_SUFFIXES: Final = (".csv",)
JSONL_SUFFIXES: Final = (".jsonl", ".ndjson")

_encode_json = msgspec.json.Encoder().encode


def check_path(path: Path, setting: str) -> Path:
    """Return `path`, or raise `ConfigError` if its name says neither CSV nor JSON lines."""
    if _suffix(path) not in CSV_SUFFIXES + JSONL_SUFFIXES:
        raise ConfigError(setting, str(path), "a file named .csv, .jsonl or .ndjson, with or without .gz")
    return path


def is_csv(path: Path | str) -> bool:
    """Whether the records of `path` are rows of text cells: the codec then needs ``text_numbers=True``."""
    return _suffix(Path(path)) in CSV_SUFFIXES


def values_of(path: Path) -> Iterator[bytes]:
    """Yield every record's value, in order; empty lines are no records.

    Raises
    ------
    ConnectorError
        If the file cannot be opened or read to its end (a torn .gz).
    """
    number = 0
    try:
        with _open(path) as file:
            for value in _csv_values(file) if is_csv(path) else _jsonl_values(file):
                yield value
                number += 1
    except (OSError, EOFError) as error:  # gzip reports a torn file as EOFError
        raise ConnectorError(f"file {path}: cannot be read after {number} records: {error}") from error


def _jsonl_values(file: BinaryIO) -> Iterator[bytes]:
    for line in file:
        value = line.rstrip(b"\r\n")
        if value.strip():
            yield value


def _csv_values(file: BinaryIO) -> Iterator[bytes]:
    # A cell that is not UTF-8 must not stop the file: its escapes are no number, and the codec refuses the record.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="backslashreplace", newline="") as text:
        rows = csv.reader(text)
        header = next(rows, None)
        while header is not None:
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


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
