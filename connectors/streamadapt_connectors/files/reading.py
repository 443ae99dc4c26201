"""Reads files as numbered records: JSON lines unchanged, CSV rows as JSON objects of text cells;
both may be compressed with gzip."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import msgspec

from streamadapt.errors import ConfigError, ConnectorError
from streamadapt.files import encoding_of_mark, open_regular

__all__ = [
    "DEFAULT_FORMAT",
    "FileFormat",
    "check_path",
    "encoding_of",
    "header_of",
    "is_csv",
    "shown_columns",
    "values_of",
]

CSV_SUFFIXES: Final = (".csv",)
JSONL_SUFFIXES: Final = (".jsonl", ".ndjson")
MAX_LINE: Final = 1 << 24
"""The largest number of bytes of a JSON line, or of characters of a CSV row; it is more than the
codec accepts by default."""

_encode_json = msgspec.json.Encoder().encode


def twice(names: list[str] | tuple[str, ...]) -> str | None:
    """Return the first name that occurs twice, without blank names; None if there is none."""
    seen: set[str] = set()
    for name in map(str.strip, names):
        if name and name in seen:
            return name
        seen.add(name)
    return None


@dataclass(frozen=True)
class FileFormat:
    """The form of text files.

    Attributes
    ----------
    delimiter : str, one character
        Between the cells of a CSV file.
    columns : tuple of str
        The columns of CSV files without a header; empty if the first line has the columns.
    comment : str
        Lines of a CSV file that begin with this text are skipped; an empty text skips no line.
    encoding : str or None
        The encoding, with Python's name; None is UTF-8. A byte-order mark at the start of a file
        takes precedence.

    Raises
    ------
    ConfigError
        If a value is invalid.
    """

    delimiter: str = ","
    columns: tuple[str, ...] = ()
    comment: str = ""
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter == r"\t":  # a backslash and a t, as on a command line
            object.__setattr__(self, "delimiter", "\t")
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n\0':
            raise ConfigError(
                "source.delimiter", self.delimiter, "one character, such as ',', ';' or a tab"
            )
        if twice(self.columns) is not None or not all(map(str.strip, self.columns)):
            raise ConfigError(
                "source.columns", self.columns, "a list of different names, none of them blank"
            )
        if self.comment != self.comment.strip():
            raise ConfigError(
                "source.comment", self.comment, "the beginning of a comment, such as '#'"
            )
        if self.encoding is not None:
            try:
                " ".encode(self.encoding).decode(self.encoding)
            except (LookupError, UnicodeError):
                raise ConfigError(
                    "source.encoding", self.encoding, "an encoding such as 'cp1252'"
                ) from None


DEFAULT_FORMAT: Final = FileFormat()


def check_path(path: Path, setting: str) -> Path:
    """Return `path`, or raise `ConfigError` if its name has no known ending."""
    if _suffix(path) not in CSV_SUFFIXES + JSONL_SUFFIXES:
        raise ConfigError(
            setting, str(path), "a file named .csv, .jsonl or .ndjson, with or without .gz"
        )
    return path


def is_csv(path: Path | str) -> bool:
    """Whether the records of `path` are rows of text cells: the codec then needs
    ``text_numbers=True``."""
    return _suffix(Path(path)) in CSV_SUFFIXES


def header_of(path: Path, form: FileFormat = DEFAULT_FORMAT) -> list[str]:
    """Return the names of a CSV file's columns, without blanks around them.

    Raises
    ------
    ConnectorError
        If the file cannot be read, or two columns have the same name.
    """
    try:
        with _open(path) as file, _text(file, form) as text:
            return _columns(csv.reader(_Rows(text, form.comment), **_dialect(form)), form)
    except (OSError, EOFError, zlib.error) as error:
        raise ConnectorError(f"file {path}: cannot be read: {error}") from error
    except (ValueError, csv.Error) as error:
        raise ConnectorError(f"file {path}: its columns cannot be read: {error}") from error


def encoding_of(path: Path, form: FileFormat = DEFAULT_FORMAT) -> str:
    """Return the encoding for lines that are appended to a file, which need no byte-order mark.

    Raises
    ------
    ConnectorError
        If the file cannot be read.
    """
    try:
        with _open(path) as file:
            start = _peeked(file)
    except (OSError, EOFError, zlib.error) as error:
        raise ConnectorError(f"file {path}: cannot be read: {error}") from error
    marked = encoding_of_mark(start)
    if marked in ("utf-16", "utf-32"):
        return f"{marked}-{'le' if start[0] == 0xFF else 'be'}"
    return (
        "utf-8"
        if marked is not None
        else codecs.lookup(form.encoding or "utf-8").name.removesuffix("-sig")
    )


def values_of(path: Path, form: FileFormat = DEFAULT_FORMAT) -> Iterator[bytes]:
    """Yield the value of every record, in order; empty lines are skipped.

    At most 16 MiB of a line are read, even if a small .gz file expands to more: the codec gets the
    beginning of a longer line, and refuses it.

    Raises
    ------
    ConnectorError
        If the file cannot be opened or read to its end (a truncated .gz), is not a regular file,
        or has two columns of the same name.
    """
    number = 0
    try:
        with _open(path) as file:
            for value in _csv_values(file, form) if is_csv(path) else _jsonl_values(file, form):
                yield value
                number += 1
    except (
        OSError,
        EOFError,
        ValueError,
        csv.Error,
        zlib.error,
    ) as error:  # gzip reports a truncated file as EOFError
        raise ConnectorError(
            f"file {path}: cannot be read after {number} records: {error}"
        ) from error


def _jsonl_values(file: BinaryIO, form: FileFormat) -> Iterator[bytes]:
    encoding = encoding_of_mark(_peeked(file)) or form.encoding
    if encoding is not None and codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig"):
        yield from _recoded_values(file, form)
        return
    while line := file.readline(MAX_LINE):
        whole = len(line) < MAX_LINE or line.endswith(b"\n")
        while not whole:  # skip the rest
            rest = file.readline(MAX_LINE)
            whole = not rest or rest.endswith(b"\n")
        value = line.rstrip(b"\r\n")
        if value.strip() and value != codecs.BOM_UTF8:
            yield value


def _recoded_values(file: BinaryIO, form: FileFormat) -> Iterator[bytes]:
    with _text(file, form) as text:
        while line := text.readline(MAX_LINE):
            part = line
            while len(part) == MAX_LINE and not part.endswith("\n"):  # skip the rest
                part = text.readline(MAX_LINE)
            if line.strip():
                yield line.rstrip("\r\n").encode("utf-8", "surrogatepass")


def _csv_values(file: BinaryIO, form: FileFormat) -> Iterator[bytes]:
    with _text(file, form) as text:
        rows = csv.reader(lines := _Rows(text, form.comment), **_dialect(form))
        columns = _columns(rows, form)
        width = len(columns)
        named = [(i, name) for i, name in enumerate(columns) if name]
        while columns:
            lines.begin()
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                # This is not JSON: the codec refuses it, and the stream continues.
                yield f"csv: {error}".encode()
                continue
            if not row or (len(row) == 1 and width > 1 and not row[0].strip()):
                continue
            # A short row has missing fields.
            record: dict[str, Any] = {name: row[i].strip() for i, name in named if i < len(row)}
            if len(row) > width and any(cell.strip() for cell in row[width:]):
                record[""] = row[width:]  # the codec refuses it
            yield _encode_json(record)


def _columns(rows: Iterator[list[str]], form: FileFormat) -> list[str]:
    """Return the names of the columns, an empty text for a column without a name; an empty list
    for an empty file."""
    if form.columns:
        return [name.strip() for name in form.columns]
    row = next((row for row in rows if any(cell.strip() for cell in row)), [])
    columns = [name.strip() for name in row]
    if "\0" in "".join(columns):
        raise ValueError(
            "its first line has NUL characters; is it UTF-16 without a byte-order mark? Set "
            "source.encoding"
        )
    again = twice(columns)
    if again is not None:
        raise ValueError(f"the column {again!r} occurs twice in {shown_columns(columns)}")
    return columns


def shown_columns(columns: list[str]) -> str:
    """Return the names of the columns as a short list."""
    names = [name if len(name) <= 60 else f"{name[:57]}..." for name in columns[:20]]
    return repr(names) if len(columns) <= 20 else f"{repr(names)[:-1]}, ... {len(columns)} in all]"


def _dialect(form: FileFormat) -> dict[str, Any]:
    # Quotes after a blank are only recognised if blanks after a delimiter are skipped.
    return {"delimiter": form.delimiter, "skipinitialspace": not form.delimiter.isspace()}


def _text(file: BinaryIO, form: FileFormat) -> io.TextIOWrapper:
    """Return a file as text.

    Bytes that are not valid in the encoding become escapes, so that they do not stop the stream:
    the codec refuses a cell with escapes, because it is not a number.
    """
    encoding = encoding_of_mark(_peeked(file)) or form.encoding or "utf-8"
    return io.TextIOWrapper(file, encoding=encoding, errors="backslashreplace", newline="")


def _peeked(file: BinaryIO) -> bytes:
    return bytes(cast(Any, file).peek(4)[:4])


class _Rows:
    """The lines of a CSV file; one row may take only `MAX_LINE` characters, since a row with an
    unclosed quote would have no end."""

    def __init__(self, text: io.TextIOWrapper, comment: str = "") -> None:
        self._text = text
        self._comment = comment
        self.begin()

    def begin(self) -> None:
        """Begin the next row."""
        self._left = MAX_LINE
        self._begun = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        while self._comment and not self._begun and line.startswith(self._comment):
            line = self._text.readline(self._left + 1)
        if not line:
            raise StopIteration
        self._begun = self._begun or not line.isspace()
        if len(line) > self._left:
            while line and not line.endswith(("\n", "\r")):
                line = self._text.readline(MAX_LINE)
            raise csv.Error(f"a row of more than {MAX_LINE} characters")
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
