"""Reads the dead letters of a file, and appends repaired records to the files that they came
from."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from streamadapt.engine.dead_letter_ports import (
    FOREIGN,
    DeadLetterReader,
    ReplayMark,
    Returned,
    Returning,
    StoredLetter,
    StreamWriter,
)
from streamadapt.engine.dead_letters import letter_of, mark_fields, mark_of
from streamadapt.errors import ConnectorError
from streamadapt.files import open_to_append
from streamadapt.records import DeadLetter, Position, Record, StreamPartition
from streamadapt_connectors.files.reading import (
    DEFAULT_FORMAT,
    FileFormat,
    encoding_of,
    header_of,
    is_csv,
)
from streamadapt_connectors.files.source import FilesSource

__all__ = ["FilesStreamWriter", "JsonlDeadLetterReader", "LineWriter"]

PROGRESS_EVERY: Final = 256  # lines


class JsonlDeadLetterReader(DeadLetterReader):
    """Reads the lines of `JsonlDeadLetters`.

    Marks of replays are in a second file, ``PATH.replays``: the engine appends dead letters in
    blocks, so a line of another process could end up inside one of its lines.

    Parameters
    ----------
    path : Path or str
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._marks = Path(f"{path}.replays")
        self._missing = False

    @property
    def name(self) -> str:
        """The name of the file, for messages."""
        return f"file {self._path}"

    @property
    def missing(self) -> bool:
        """Whether the file did not exist when it was read."""
        return self._missing

    def read(
        self, on_progress: Callable[[int, int], None] | None = None
    ) -> Iterator[StoredLetter | ReplayMark]:
        """Yield the marks, then the letters; a last line without a line break is left out, because
        it is still being written."""
        for _, line in _lines(self._marks):
            mark = mark_of(line)
            if mark is not None:  # None for a line that a crash has truncated
                yield mark
        self._missing = not self._path.exists()
        size = 0 if self._missing else self._path.stat().st_size
        done = 0
        for number, line in _lines(self._path):
            if done >= size:
                return
            done += len(line)
            if on_progress is not None and number % PROGRESS_EVERY == 0:
                on_progress(done, size)
            if line.strip():
                yield self._stored(line.rstrip(b"\r\n"), number)

    def _stored(self, line: bytes, number: int) -> StoredLetter:
        place = Position(self._path.name, 0, number)
        try:
            data = msgspec.json.decode(line)
            letter = letter_of(data)
        except (
            msgspec.DecodeError,
            UnicodeDecodeError,
            RecursionError,
            ValueError,
            TypeError,
            KeyError,
        ) as error:
            detail = f"not written by streamadapt: {type(error).__name__}: {error}"
            return StoredLetter(
                DeadLetter(Record(place, None, line, 0), FOREIGN, "", detail), place, foreign=True
            )
        return StoredLetter(letter, place)

    def mark(self, mark: ReplayMark) -> None:
        """Append the mark, and return when it is on the disk."""
        try:
            self._marks.parent.mkdir(parents=True, exist_ok=True)
            _append(self._marks, msgspec.json.encode(mark_fields(mark)) + b"\n")
        except OSError as error:
            raise ConnectorError(f"file {self._marks}: cannot be written: {error}") from error

    def close(self) -> None:
        """Do nothing: no file is open."""


class LineWriter(StreamWriter):
    """Writes records of one stream to a new file, as lines that can be appended to the stream's
    file.

    Parameters
    ----------
    path : Path
        The new file; it must not exist yet.
    header : sequence of str or None
        The columns of a CSV file; None for JSON lines.
    form : FileFormat
        The form of the stream's file; its encoding is that of appended lines.
    """

    def __init__(
        self, path: Path, header: Sequence[str] | None = None, form: FileFormat = DEFAULT_FORMAT
    ) -> None:
        self._path = path
        self._header = header
        self._form = form

    def check(self, places: Collection[StreamPartition]) -> None:
        """Raise `ConnectorError` if there are several streams, or the file cannot be created."""
        streams = sorted({at.stream for at in places})
        if len(streams) > 1:
            raise ConnectorError(
                f"file {self._path}: expected records of one stream, got {', '.join(streams)}"
            )
        if self._path.exists():
            raise ConnectorError(f"file {self._path}: expected a file that does not exist yet")
        if not Path(os.path.realpath(self._path)).parent.is_dir():
            raise ConnectorError(f"file {self._path}: expected a file in an existing folder")

    def write(self, records: Sequence[Returning]) -> list[Returned]:
        """Append the records; a record that cannot be a line of this file is not written."""
        return _write_lines(self._path, records, self._header, self._form)

    def close(self) -> None:
        """Do nothing: no file is open."""


class FilesStreamWriter(StreamWriter):
    """Appends records to the last file of their stream, if that file has JSON lines and is not
    compressed.

    Parameters
    ----------
    path, label_path, stream, label_stream
        As for `FilesSource`.
    others
        The other settings of `FilesSource`; only the form of the files is used.
    """

    def __init__(self, path: Any, label_path: Any = None, **others: Any) -> None:
        source = FilesSource(path, label_path, **others)
        self._files, self._form = source.files, source.form

    def check(self, places: Collection[StreamPartition]) -> None:
        """Raise `ConnectorError` for a stream whose file cannot be appended to; the error explains
        what to do instead."""
        for stream, partition in sorted(places):
            if partition != 0:
                raise ConnectorError(f"{stream}[{partition}]: files have only the partition 0")
            path = self._files[stream][-1]
            if not path.is_file():
                raise ConnectorError(f"file {path}: not found")
            kind = _other_form(path, self._form)
            if kind is not None:
                raise ConnectorError(
                    f"file {path}: is {kind}, but only files of plain JSON lines are appended to. "
                    f"Use --out LINES, check that file, then: {appending('LINES', path)}"
                )

    def detached(self, out: Path, streams: Collection[str]) -> tuple[LineWriter, str]:
        """Return a writer of lines in the stream's form to another file, and the command that
        appends that file."""
        path = self._files[min(streams)][-1]
        header = header_of(path, self._form) if is_csv(path) else None
        form = replace(self._form, encoding=encoding_of(path, self._form))
        return LineWriter(out, header, form), appending(str(out), path)

    def write(self, records: Sequence[Returning]) -> list[Returned]:
        """Append the records, and return when they are on the disk."""
        results: dict[int, Returned] = {}
        for stream in {one.record.position.stream for one in records}:
            own = [i for i, one in enumerate(records) if one.record.position.stream == stream]
            done = _write_lines(
                self._files[stream][-1], [records[i] for i in own], None, DEFAULT_FORMAT
            )
            results.update(zip(own, done, strict=True))
        return [results[i] for i in range(len(records))]

    def close(self) -> None:
        """Do nothing: no file is open."""


def appending(lines: str, path: Path) -> str:
    """Return the command that appends a file of lines. A .gz file can consist of several
    members."""
    return f"gzip -c {lines} >> {path}" if path.suffix == ".gz" else f"cat {lines} >> {path}"


def _write_lines(
    path: Path, records: Sequence[Returning], header: Sequence[str] | None, form: FileFormat
) -> list[Returned]:
    lines = [_line(one.record, header, form) for one in records]
    good = b"".join(line for line in lines if isinstance(line, bytes))
    state, detail = "sent", f"appended to {path}"
    try:
        if good:
            _append(path, good)
    except OSError as error:  # a part of the lines may be written
        state, detail = "unknown", f"file {path}: {error}"
    return [
        Returned(state, detail) if isinstance(x, bytes) else Returned("not-sent", x) for x in lines
    ]


def _line(record: Record, header: Sequence[str] | None, form: FileFormat) -> bytes | str:
    """Return the record as a line, or a text with the reason why it cannot be one."""
    if record.key is not None:
        return "key: expected null, since records of files have no keys"
    value = (record.value or b"").removeprefix(codecs.BOM_UTF8)
    encoding = form.encoding or "utf-8"
    if header is None:
        # The codec has accepted the value, so it is JSON, in which a line break is white space.
        line = value.replace(b"\r", b" ").replace(b"\n", b" ").strip() + b"\n"
        return line if encoding == "utf-8" else line.decode().encode(encoding, "backslashreplace")
    cells = msgspec.json.decode(value)
    unknown = sorted(cells.keys() - set(header))
    if unknown:
        return f"the CSV file has no column {', '.join(map(repr, unknown))}"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", delimiter=form.delimiter)
    writer.writerow([_cell(cells.get(name, "")) if name else "" for name in header])
    try:
        return text.getvalue().encode(encoding)
    except UnicodeEncodeError as error:
        return f"it has characters that do not exist in the file's encoding: {error}"


def _other_form(path: Path, form: FileFormat) -> str | None:
    """Return in a word why a file is not plain JSON lines in UTF-8; None if it is."""
    encoding = encoding_of(path, form)
    if path.suffix == ".gz":
        return "compressed"
    if is_csv(path):
        return "CSV"
    return None if encoding == "utf-8" else f"in {encoding}"


def _cell(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()


def _append(path: Path, data: bytes) -> None:
    """Append whole lines in one write; raises `OSError`."""
    with open_to_append(path) as file:
        ends = True
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            ends = file.read(1) == b"\n"
        file.write(data if ends else b"\n" + data)
        file.flush()
        os.fsync(file.fileno())


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the complete lines with their numbers, from 1; a missing file has no lines."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield number, line
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConnectorError(f"file {path}: cannot be read: {error}") from error
