"""Reads files as a finite source, and as a history for fitting."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from streamadapt.engine.local_time import LocalClock
from streamadapt.engine.ports import PartitionOwner, Source
from streamadapt.errors import ConfigError, ConnectorError, EntryError, Reason
from streamadapt.records import Batch, Entry, FloatArray, Label, Position, Record, StreamPartition
from streamadapt_connectors.codecs.json_codec import FieldMap, JsonCodec, Limits
from streamadapt_connectors.files.columns import look_at
from streamadapt_connectors.files.reading import (
    DEFAULT_FORMAT,
    FileFormat,
    check_path,
    is_csv,
    values_of,
)

__all__ = ["FilesSource", "History", "read_history"]

SKIP_CHUNK: Final = 10_000  # records skipped between two checks of the clock

Paths = Path | str | Sequence[Path | str]


class FilesSource(Source):
    """Reads CSV or JSON-lines files once, to their end.

    The offset of a record is its number, from 0, over all files of its stream; its partition is 0.
    Values are JSON: CSV rows become objects of text cells (the codec then needs
    ``text_numbers=True``); lines of JSON are delivered unchanged, also invalid lines. The time
    stamp of a record is its number, since lines of files have no time stamps.

    Parameters
    ----------
    path : path or sequence of paths
        The files with the entries, read in this order. Names end in .csv, .jsonl or .ndjson, with
        or without .gz.
    label_path : path or sequence of paths, optional
        The files with the labels, if labels are not in the files with the entries.
    stream, label_stream : str or None
        The names of the two streams in positions. Default: the name of the first file.
    batch : int, >= 1
        The largest number of records of each stream that one poll returns.
    delimiter : str, one character
        Between the cells of a CSV file.
    columns : sequence of str
        The names of the columns, for CSV files without a header.
    comment : str
        Lines of a CSV file that begin with this text are skipped.
    encoding : str, optional
        The encoding of the text, with Python's name. Default: UTF-8.

    Raises
    ------
    ConfigError
        If the name of a file has another ending.
    ConnectorError
        From `open` if a file is missing; from `poll` if it cannot be read, or a position is beyond
        its end.
    """

    kind: ClassVar[str] = "files"
    has_keys: ClassVar[bool] = False
    has_times: ClassVar[bool] = False

    @classmethod
    def has_text_cells(cls, settings: Mapping[str, Any]) -> bool:
        """Whether one of the files is CSV."""
        paths = [settings.get(name) or () for name in ("path", "label_path")]
        names = [name for path in paths for name in ([path] if isinstance(path, str) else path)]
        return any(str(name).removesuffix(".gz").endswith(".csv") for name in names)

    def __init__(  # noqa: PLR0913 - each is a key of its table
        self,
        path: Paths,
        label_path: Paths | None = None,
        *,
        stream: str | None = None,
        label_stream: str | None = None,
        batch: int = 500,
        delimiter: str = DEFAULT_FORMAT.delimiter,
        columns: Sequence[str] = DEFAULT_FORMAT.columns,
        comment: str = DEFAULT_FORMAT.comment,
        encoding: str | None = DEFAULT_FORMAT.encoding,
    ) -> None:
        if not batch >= 1:
            raise ConfigError("source.batch", batch, "a whole number of records, at least 1")
        self._batch = batch
        self.form = FileFormat(delimiter, tuple(columns), comment, encoding)
        entries = _as_paths(path, "source.path")
        self._files = {stream or entries[0].name: entries}
        if label_path is not None:
            paths = _as_paths(label_path, "source.label_path")
            name = label_stream or paths[0].name
            self._files[name if name not in self._files else f"{name}-labels"] = paths
        self._readers: dict[str, _Reader] = {}
        self._paused: frozenset[str] = frozenset()

    @property
    def streams(self) -> Sequence[str]:
        """The stream of the entries, then the stream of the labels, if there is one."""
        return tuple(self._files)

    @property
    def files(self) -> Mapping[str, Sequence[Path]]:
        """The files of each stream, in order."""
        return self._files

    def look(self, codec: Any) -> list[dict[str, Any]]:
        """Read the beginning of every file; see `look_at`.

        A file that cannot be read has a ``problem``.
        """
        facts: list[dict[str, Any]] = []
        if not isinstance(codec, JsonCodec):  # the fields of another codec are unknown
            return facts
        for i, (stream, paths) in enumerate(self._files.items()):
            for path in paths:
                try:
                    if not path.is_file():
                        raise ConnectorError(f"file {path}: not found")
                    setting = "source.label_path" if i else "source.path"
                    facts.append(look_at(path, codec, stream, self.form, setting))
                except ConnectorError as error:
                    facts.append({"path": str(path), "problem": str(error)})
        return facts

    def open(self, owner: PartitionOwner) -> None:
        """Start at the positions that `owner` returns; None means the first record."""
        for path in chain.from_iterable(self._files.values()):
            if not path.is_file():
                raise ConnectorError(f"file {path}: not found")
        self.close()
        starts = owner.partitions_assigned([0])
        self._readers = {
            stream: _Reader(stream, paths, starts.get(StreamPartition(stream, 0)) or 0, self.form)
            for stream, paths in self._files.items()
        }

    def poll(self, timeout_s: float) -> list[Record]:
        """Return the next records of every stream; waits only while it skips the records before
        the start."""
        if not self._readers:
            raise ConnectorError("files source: poll before open")
        deadline = time.monotonic() + timeout_s
        records: list[Record] = []
        for stream, reader in self._readers.items():
            if stream not in self._paused and reader.skip(deadline):
                records += reader.take(self._batch)
        return records

    def pause(self, partitions: Collection[StreamPartition]) -> None:
        """Pause exactly these partitions, and resume all others."""
        self._paused = frozenset(at.stream for at in partitions if at.partition == 0)

    def seek(self, starts: Mapping[StreamPartition, int | None]) -> None:
        """Reopen the streams of `starts`, and skip the records before these positions."""
        for at, start in starts.items():
            if at.stream in self._readers and at.partition == 0:
                self._readers[at.stream].close()
                self._readers[at.stream] = _Reader(
                    at.stream, self._files[at.stream], start or 0, self.form
                )

    def lag(self) -> dict[StreamPartition, int]:
        """Return 0 for each stream that was read to its end; the lag of other streams is
        unknown."""
        return {
            StreamPartition(stream, 0): 0
            for stream, reader in self._readers.items()
            if reader.ended
        }

    @property
    def state(self) -> str:
        """``ended`` when every stream was read to its end, else ``connected``."""
        return (
            "ended"
            if self._readers and all(r.ended for r in self._readers.values())
            else "connected"
        )

    def close(self) -> None:
        """Close the files. Idempotent."""
        for reader in self._readers.values():
            reader.close()
        self._readers = {}


class _Reader:
    """Reads the records of one stream, and knows the number of the next one."""

    def __init__(self, stream: str, paths: Sequence[Path], start: int, form: FileFormat) -> None:
        self._stream = stream
        self._start = start
        self._next = 0
        self._open = [values_of(path, form) for path in paths]
        self._values: Iterator[bytes] = chain.from_iterable(self._open)
        self.ended = False

    def skip(self, deadline: float) -> bool:
        """Skip the records before the start; return False if `deadline` (monotonic, s) has passed
        before the end."""
        while self._next < self._start:
            for _ in range(min(SKIP_CHUNK, self._start - self._next)):
                if next(self._values, None) is None:
                    raise ConnectorError(
                        f"{self._stream}[0]: position {self._start} is outside of the file, which "
                        f"has the positions 0 to {self._next}; was the file replaced? Start from "
                        f"a checkpoint that belongs to it, or without a checkpoint"
                    )
                self._next += 1
            if time.monotonic() >= deadline:
                return self._next >= self._start
        return True

    def take(self, most: int) -> list[Record]:
        """Return up to `most` records; at the end of the stream, set `ended`."""
        records: list[Record] = []
        while not self.ended and len(records) < most:
            value = next(self._values, None)
            if value is None:
                self.ended = True
                break
            records.append(Record(Position(self._stream, 0, self._next), None, value, self._next))
            self._next += 1
        return records

    def close(self) -> None:
        for values in self._open:
            values.close()  # type: ignore[attr-defined] # generators: closes the file


@dataclass(frozen=True)
class History:
    """The result of `read_history`.

    Attributes
    ----------
    batch : Batch
        The valid rows, in the order of the file.
    rows : int
        The number of records that were read, valid or not.
    rejected : Counter of str
        Refused records by `streamadapt.errors.Reason` value; `batch` does not contain them.
    entries : int
        The number of `rows` without the records that are only a label.
    examples : dict of str to str
        Reason -> the position and the problem of the first record refused for this reason.
    rejected_labels : int
        The number of refused records that are only a label.
    """

    batch: Batch
    rows: int
    rejected: Counter[str]
    entries: int = 0
    examples: Mapping[str, str] = field(default_factory=dict)
    rejected_labels: int = 0


def read_history(
    path: Paths,
    fields: FieldMap,
    *,
    label_path: Paths | None = None,
    limits: Limits | None = None,
    form: FileFormat = DEFAULT_FORMAT,
) -> History:
    """Read files into columns, through the same codec as a running stream.

    Parameters
    ----------
    path : path or sequence of paths
        .csv, .jsonl or .ndjson, with or without .gz; CSV cells are always read as numbers, also
        without ``fields.text_numbers``.
    fields : FieldMap
    label_path : the same as `path`, or None
        Files with labels, which are joined to their entries by id.
    limits : Limits or None
    form : FileFormat
        The form of the files.

    Raises
    ------
    ConfigError
        If a column that `fields` names is missing in a CSV file.
    ConnectorError
        If a file cannot be read, or has no valid row.
    """
    streams = ["history"] if label_path is None else ["history", "history-labels"]
    history = _Columns(fields.outputs)
    for stream, paths in zip(streams, (path, label_path), strict=False):
        offset, clock = 0, LocalClock()
        for file in _as_paths(paths or (), "path"):
            codec = JsonCodec(
                replace(fields, text_numbers=fields.text_numbers or is_csv(file)),
                streams=streams,
                limits=limits,
            )
            look_at(file, codec, stream, form, "HISTORY" if stream == streams[0] else "--labels")
            for value in values_of(file, form):
                history.add(
                    codec, Record(Position(stream, 0, offset), None, value, offset), clock, file
                )
                offset += 1
    if not history.values:
        reasons = "; ".join(
            f"{history.rejected[reason]} {reason}, for example {history.examples[reason]}"
            for reason in history.rejected
        )
        raise ConnectorError(
            f"history {path}: no valid row among {history.rows}: {reasons or 'it is empty'}"
        )
    return History(
        history.batch(fields.values),
        history.rows,
        history.rejected,
        history.entries,
        history.examples,
        history.rejected_labels,
    )


class _Columns:
    def __init__(self, outputs: int) -> None:
        self.rows = 0
        self.rejected: Counter[str] = Counter()
        self.entries = self.rejected_labels = 0
        self.examples: dict[str, str] = {}
        self.values: list[FloatArray] = []
        self._times: list[int] = []
        self._labels: dict[int, FloatArray] = {}
        self._row_of: dict[str, int] = {}
        self._outputs = outputs

    def add(self, codec: JsonCodec, record: Record, clock: LocalClock, file: Path) -> None:
        self.rows += 1
        of_labels = record.position.stream != "history"
        try:
            item = clock.take(record.position.offset, codec.decode(record))
            clock.passed(record.position.offset)
            of_labels = of_labels or isinstance(item, Label)
            if isinstance(item, Label):
                self._label(item)
            else:
                self._entry(item)
                if item.refused is not None:
                    raise EntryError(item.refused.reason, f"its label: {item.refused.detail}")
        except EntryError as error:
            self.rejected[error.reason.value] += 1
            self.rejected_labels += of_labels
            self.examples.setdefault(
                error.reason.value, f"{file}, record {record.position.offset}: {error.detail}"
            )
        self.entries += not of_labels

    def _entry(self, entry: Entry) -> None:
        if self.values and len(entry.values) != len(self.values[0]):
            raise EntryError(
                Reason.WRONG_WIDTH,
                f"expected {len(self.values[0])} values, got {len(entry.values)}",
            )
        row = len(self.values)
        if entry.label is not None:
            self._labels[row] = entry.label
        self._row_of[entry.id] = row
        self.values.append(entry.values)
        self._times.append(entry.time)

    def _label(self, label: Label) -> None:
        row = self._row_of.get(label.id)
        if row is None:
            raise EntryError(Reason.UNKNOWN_LABEL, f"no entry with id {label.id!r}")
        self._labels[row] = label.value

    def batch(self, paths: tuple[str, ...]) -> Batch:
        labels = None
        if self._labels:
            labels = np.full((len(self.values), self._outputs), np.nan)
            for row, value in self._labels.items():
                labels[row] = value
        names = paths if len(paths) == len(self.values[0]) else ()
        return Batch(np.stack(self.values), np.array(self._times, np.int64), labels, names)


def _as_paths(path: Paths, setting: str) -> list[Path]:
    given = [path] if isinstance(path, Path | str) else list(path)
    if not given:
        raise ConfigError(setting, path, "at least one file")
    return [check_path(Path(p), setting) for p in given]
