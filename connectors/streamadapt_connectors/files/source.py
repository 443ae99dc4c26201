"""Finite sources from files, and history for fitting; `JsonlSink` and `JsonlDeadLetters` are
re-exported here."""

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
    AS_USUAL,
    FileFormat,
    check_path,
    is_csv,
    values_of,
)

__all__ = ["FilesSource", "History", "read_history"]

SKIP_CHUNK: Final = 10_000  # records skipped between two checks of the clock

Paths = Path | str | Sequence[Path | str]


class FilesSource(Source):
    """Read CSV or JSON-lines files once, to their end.

    The offset of a record is its number, from 0, over all files of its stream; its partition is 0.
    Values are JSON: CSV rows become objects of text cells (give the codec ``text_numbers=True``),
    lines of JSON are delivered as they are, broken ones too. A record's own time stamp is its
    number, as files have none.

    Parameters
    ----------
    path : path or sequence of paths
        The files with the entries, read in this order. Names end in .csv, .jsonl or .ndjson, with
        or without .gz.
    label_path : path or sequence of paths, optional
        The files with the labels, where they have files of their own.
    stream, label_stream : str or None
        The names of the two streams, as positions show them. Default: the name of the first file.
    batch : int, >= 1
        The largest number of records of each stream that one poll returns.
    delimiter : str, one character
        Between the cells of a CSV file.
    columns : sequence of str
        The names of the columns, for CSV files without a header.
    comment : str
        Lines of a CSV file that begin with this text are skipped.
    encoding : str, optional
        The encoding of the text, by Python's names. Default: UTF-8.

    Raises
    ------
    ConfigError
        If a name has another ending.
    ConnectorError
        From `open` if a file is missing; from `poll` if it cannot be read or a position lies
        beyond its end.
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
        delimiter: str = AS_USUAL.delimiter,
        columns: Sequence[str] = AS_USUAL.columns,
        comment: str = AS_USUAL.comment,
        encoding: str | None = AS_USUAL.encoding,
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
        """The entries' stream, then, if there is one, the labels'."""
        return tuple(self._files)

    @property
    def files(self) -> Mapping[str, Sequence[Path]]:
        """The files of each stream, in order."""
        return self._files

    def look(self, codec: Any) -> list[dict[str, Any]]:
        """Read the beginning of every file; see `look_at`.

        A file that cannot be read has a ``problem``.
        """
        found: list[dict[str, Any]] = []
        if not isinstance(codec, JsonCodec):  # somebody else's, of whose fields nothing is known
            return found
        for i, (stream, paths) in enumerate(self._files.items()):
            for path in paths:
                try:
                    if not path.is_file():
                        raise ConnectorError(f"file {path}: not found")
                    setting = "source.label_path" if i else "source.path"
                    found.append(look_at(path, codec, stream, self.form, setting))
                except ConnectorError as error:
                    found.append({"path": str(path), "problem": str(error)})
        return found

    def open(self, owner: PartitionOwner) -> None:
        """Start where `owner` says; None is the first record."""
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
        """Return the next records of every stream; waits only while it passes over those before
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
        """Hold back exactly these partitions."""
        self._paused = frozenset(at.stream for at in partitions if at.partition == 0)

    def seek(self, starts: Mapping[StreamPartition, int | None]) -> None:
        """Read the streams of `starts` from their beginning again, up to there in silence."""
        for at, start in starts.items():
            if at.stream in self._readers and at.partition == 0:
                self._readers[at.stream].close()
                self._readers[at.stream] = _Reader(
                    at.stream, self._files[at.stream], start or 0, self.form
                )

    def lag(self) -> dict[StreamPartition, int]:
        """0 for a stream read to its end; how much is left of the others is not known."""
        return {
            StreamPartition(stream, 0): 0
            for stream, reader in self._readers.items()
            if reader.ended
        }

    @property
    def state(self) -> str:
        """``ended`` once every stream has been read to its end."""
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
    """One stream: which record comes next, and whether there is one."""

    def __init__(self, stream: str, paths: Sequence[Path], start: int, form: FileFormat) -> None:
        self._stream = stream
        self._start = start
        self._next = 0
        self._open = [values_of(path, form) for path in paths]
        self._values: Iterator[bytes] = chain.from_iterable(self._open)
        self.ended = False

    def skip(self, deadline: float) -> bool:
        """Pass over the records before the start; False if `deadline` (monotonic, s) came
        first."""
        while self._next < self._start:
            for _ in range(min(SKIP_CHUNK, self._start - self._next)):
                if next(self._values, None) is None:
                    raise ConnectorError(
                        f"{self._stream}[0]: position {self._start} is outside of the file's 0 "
                        f"to {self._next}; "
                        f"was it replaced? Start from a checkpoint that belongs to it, or "
                        f"without one"
                    )
                self._next += 1
            if time.monotonic() >= deadline:
                return self._next >= self._start
        return True

    def take(self, most: int) -> list[Record]:
        """Return up to `most` records; `ended` says whether the file has been read out."""
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
    """What `read_history` found.

    Attributes
    ----------
    batch : Batch
        The good rows, in the file's order.
    rows : int
        Records read, good and bad.
    rejected : Counter of str
        Bad ones by `streamadapt.errors.Reason` value; nothing of them is in `batch`.
    entries : int
        Of `rows`, those that are no labels of their own.
    examples : dict of str to str
        Reason -> the first one: where it stands, and what is wrong with it.
    rejected_labels : int
        Of the bad ones, labels of their own.
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
    form: FileFormat = AS_USUAL,
) -> History:
    """Read files into columns, through the same codec as a running stream.

    Parameters
    ----------
    path : path or sequence of paths
        .csv, .jsonl or .ndjson, with or without .gz; CSV cells are read as numbers also where
        `fields` does not say so.
    fields : FieldMap
    label_path : the same as `path`, or None
        Labels that came apart from their entries are joined by id.
    limits : Limits or None
    form : FileFormat
        How the files are written.

    Raises
    ------
    ConfigError
        If the columns of a CSV file are not those that `fields` names.
    ConnectorError
        If a file cannot be read, or has no good row.
    """
    streams = ["history"] if label_path is None else ["history", "history-labels"]
    found = _Columns(fields.outputs)
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
                found.add(
                    codec, Record(Position(stream, 0, offset), None, value, offset), clock, file
                )
                offset += 1
    if not found.values:
        reasons = "; ".join(
            f"{found.rejected[reason]} {reason}, for example {found.examples[reason]}"
            for reason in found.rejected
        )
        raise ConnectorError(
            f"history {path}: no good row among {found.rows}: {reasons or 'it is empty'}"
        )
    return History(
        found.batch(fields.values),
        found.rows,
        found.rejected,
        found.entries,
        found.examples,
        found.rejected_labels,
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
