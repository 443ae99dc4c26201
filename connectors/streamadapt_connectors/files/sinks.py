"""Appends predictions and dead letters to a file, as lines of JSON."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec

from streamadapt.engine.dead_letters import letter_fields
from streamadapt.engine.ports import DeadLetterSink, RecallingSink
from streamadapt.errors import ConnectorError
from streamadapt.records import DeadLetter, Position, Prediction
from streamadapt_connectors.codecs.json_codec import encode_prediction

__all__ = ["JsonlDeadLetters", "JsonlSink"]

TAIL_BYTES: Final = 1 << 16
MAX_TORN: Final = 1 << 26
"""A longer last line was not written by a sink: to truncate it would damage a foreign file."""

_encode_json = msgspec.json.Encoder().encode


class _LineFile:
    """Appends lines to a file; an incomplete last line, which a crash has left, is removed first,
    because its record will be written again.

    Parameters
    ----------
    objects : bool
        Whether every line is a JSON object: then a last line that does not begin like an object is
        an error, and is not removed.
    """

    def __init__(self, path: Path | str, *, objects: bool = True) -> None:
        self._path = Path(path)
        self._objects = objects
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab+")
            try:
                self._mend()
            except OSError:
                self._file.close()
                raise
        except OSError as error:
            raise self._error(error) from error

    def append(self, lines: list[bytes]) -> None:
        try:
            self._file.writelines(line + b"\n" for line in lines)
        except (OSError, ValueError) as error:
            raise self._error(error) from error

    def flush(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except (OSError, ValueError) as error:
            raise self._error(error) from error

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self.flush()
        except ConnectorError:
            with suppress(OSError):  # closing writes the rest, and fails in the same way
                self._file.close()
            raise
        try:
            self._file.close()
        except OSError as error:
            raise self._error(error) from error

    def backwards(self) -> Iterator[bytes]:
        """Yield the lines, the last one first."""
        self.flush()
        try:
            with self._path.open("rb") as file:
                start, rest = file.seek(0, os.SEEK_END), b""
                while start > 0:
                    size = min(start, TAIL_BYTES)
                    start -= size
                    file.seek(start)
                    rest, *lines = (file.read(size) + rest).split(b"\n")
                    yield from reversed(lines)
                yield rest
        except OSError as error:
            raise self._error(error) from error

    def _mend(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        start = end
        found = False
        while start > 0 and not found:
            before, start = start, max(0, start - TAIL_BYTES)
            self._file.seek(start)
            found = b"\n" in self._file.read(before - start)
            if end - start > MAX_TORN and not found:
                raise OSError(
                    errno.EFBIG,
                    f"its last line is longer than {MAX_TORN} bytes: not a file of JSON lines",
                )
        self._file.seek(start)
        tail = self._file.read(end - start)
        torn = tail[tail.rfind(b"\n") + 1 :]
        if not torn:
            return
        try:
            msgspec.json.decode(torn)
        except (msgspec.DecodeError, UnicodeDecodeError):
            own = torn.lstrip(b"\0")  # on some disks a crash can leave zero bytes
            if self._objects and own and not own.startswith(b"{"):
                raise OSError(
                    errno.EINVAL, "its last line is not a JSON object: not a file of JSON lines"
                ) from None
            self._file.truncate(end - len(torn))
        else:
            self._file.write(b"\n")  # only the line break was missing

    def _error(self, error: Exception) -> ConnectorError:
        return ConnectorError(f"file {self._path}: cannot be written: {error}")


class JsonlSink(RecallingSink):
    """Appends one line per prediction; `flush` returns when all lines are on the disk.

    With ``at-least-once`` the file has some predictions twice after a crash, with the same id;
    with ``effectively-once`` it has each prediction once. There are no transactions.

    Parameters
    ----------
    path : Path or str
        The file; it is created, with its folders, if it is missing.
    encoder : callable
        From `Prediction` to one line of bytes; not from a config.
    experts : bool
        Whether to write also the prediction of every expert; not together with an encoder of your
        own.

    Raises
    ------
    ConnectorError
        If the file cannot be written.
    """

    opens_when_made: ClassVar[bool] = True

    @classmethod
    def output_files(cls, settings: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the file of predictions."""
        path = settings.get("path")
        return {"path": path} if isinstance(path, str) else {}

    @classmethod
    def dead_letters_beside(cls, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the file ``PATH.dead-letters`` beside the file of predictions."""
        path = settings.get("path")
        return {"path": f"{path}.dead-letters"} if isinstance(path, str) else None

    def __init__(
        self,
        path: Path | str,
        encoder: Callable[[Prediction], bytes] = encode_prediction,
        *,
        experts: bool = False,
    ) -> None:
        self._file = _LineFile(path, objects=encoder is encode_prediction)
        self._encoder = partial(encode_prediction, experts=True) if experts else encoder

    def newest(self, stream: str, partition: int) -> int | None:
        """Return the offset in the id of the last line for a partition of `stream`; None if there
        is no such line."""
        ids = (_id_of(line) for line in self._file.backwards())
        return next(
            (at.offset for at in ids if at is not None and at[:2] == (stream, partition)), None
        )

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Append the predictions; they may stay in a small buffer until `flush`."""
        self._file.append([self._encoder(p) for p in predictions])

    def flush(self) -> None:
        """Write everything to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close. Idempotent."""
        self._file.close()


class JsonlDeadLetters(DeadLetterSink):
    """Appends one line per dead letter.

    ``key`` and ``value`` are text if they are valid UTF-8; otherwise they are base64, and
    ``key_encoding`` or ``value_encoding`` shows this.

    Parameters
    ----------
    path : Path or str
        The file; it is created, with its folders, if it is missing.

    Raises
    ------
    ConnectorError
        If the file cannot be written.
    """

    opens_when_made: ClassVar[bool] = True

    @classmethod
    def output_files(cls, settings: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the file of dead letters."""
        path = settings.get("path")
        return {"path": path} if isinstance(path, str) else {}

    def __init__(self, path: Path | str) -> None:
        self._file = _LineFile(path)

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Append the dead letters."""
        self._file.append([_encode_json(letter_fields(letter)) for letter in letters])

    def flush(self) -> None:
        """Write everything to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close. Idempotent."""
        self._file.close()


class _Id(msgspec.Struct):
    id: str


def _id_of(line: bytes) -> Position | None:
    try:
        return Position.parse(msgspec.json.decode(line, type=_Id).id)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
