"""Predictions and dead letters as lines of JSON, appended to a file."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from streamadapt.entry import Prediction
from streamadapt.errors import ConnectorError
from streamadapt.ports import DeadLetter, DeadLetterSink, Sink
from streamadapt_connectors.codecs import encode_prediction

__all__ = ["JsonlDeadLetters", "JsonlSink"]

TAIL_BYTES: Final = 1 << 16

_encode_json = msgspec.json.Encoder().encode


class _LineFile:
    """Append lines; a line that a crash tore is cut off, because its record comes again."""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab+")
            self._mend()
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
        if not self._file.closed:
            try:
                self.flush()
            finally:
                self._file.close()

    def _mend(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        start = end
        tail = b""
        while start > 0 and b"\n" not in tail:
            start = max(0, start - TAIL_BYTES)
            self._file.seek(start)
            tail = self._file.read(end - start)
        torn = tail[tail.rfind(b"\n") + 1 :]
        if not torn:
            return
        try:
            msgspec.json.decode(torn)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._file.truncate(end - len(torn))
        else:
            self._file.write(b"\n")  # whole, but for its end

    def _error(self, error: Exception) -> ConnectorError:
        return ConnectorError(f"file {self._path}: cannot be written: {error}")


class JsonlSink(Sink):
    """Append one line per prediction; `flush` returns when the disk has them.

    After a crash some predictions are there twice, with the same id: at-least-once.

    Parameters
    ----------
    path : Path or str
        Created, with its folders, if it is missing.
    encoder : callable
        From `Prediction` to one line of bytes; not from a config.
    experts : bool
        Also write what every expert said; not together with an encoder of one's own.

    Raises
    ------
    ConnectorError
        If the file cannot be written.
    """

    def __init__(
        self,
        path: Path | str,
        encoder: Callable[[Prediction], bytes] = encode_prediction,
        *,
        experts: bool = False,
    ) -> None:
        self._file = _LineFile(path)
        self._encoder = partial(encode_prediction, experts=True) if experts else encoder

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Append them; they may stay in a small buffer until `flush`."""
        self._file.append([self._encoder(p) for p in predictions])

    def flush(self) -> None:
        """Write through to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close. Idempotent."""
        self._file.close()


class JsonlDeadLetters(DeadLetterSink):
    """Append one line per dead letter.

    ``key`` and ``value`` are text where they are UTF-8; otherwise base64, and ``key_encoding`` or ``value_encoding``
    says so.

    Parameters
    ----------
    path : Path or str

    Raises
    ------
    ConnectorError
        If the file cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = _LineFile(path)

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Append them."""
        self._file.append([_encode_json(_letter(letter)) for letter in letters])

    def flush(self) -> None:
        """Write through to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close. Idempotent."""
        self._file.close()


def _letter(letter: DeadLetter) -> dict[str, Any]:
    record = letter.record
    stream, partition, offset = record.position
    data: dict[str, Any] = {
        "reason": str(letter.reason),
        "stage": letter.stage,
        "detail": letter.detail,
        "topic": stream,
        "partition": partition,
        "offset": offset,
        "time": record.time,
    }
    for name, raw in (("key", record.key), ("value", record.value)):
        if raw is None:
            data[name] = None
            continue
        try:
            data[name] = raw.decode()
        except UnicodeDecodeError:
            data[name] = base64.b64encode(raw).decode()
            data[f"{name}_encoding"] = "base64"
    return data
