"""Reads records whose header name is not UTF-8: for such a record, kafka-python 3.0 would raise an
error at every poll and never continue."""

from __future__ import annotations

from typing import Any

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch

__all__ = ["read_any_header_name"]


class _AnyText(bytes):
    """Bytes that can always be decoded: invalid UTF-8 becomes an escape such as ``\\xff``."""

    def __getitem__(self, at: Any) -> Any:
        part = super().__getitem__(at)
        return _AnyText(part) if isinstance(part, bytes) else part

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        del errors
        return super().decode(encoding, "backslashreplace")


class _Batch(DefaultRecordBatch):  # type: ignore[misc]
    _buffer: Any

    def _read_msg(self, *args: Any) -> Any:
        try:
            return super()._read_msg(*args)
        except UnicodeDecodeError:
            # Only names of headers are decoded. The position in the buffer is unchanged.
            buffer = self._buffer
            self._buffer = _AnyText(buffer)
            try:
                return super()._read_msg(*args)
            finally:
                self._buffer = buffer


def read_any_header_name() -> None:
    """Make every kafka-python consumer of this process read such records. Idempotent."""
    memory_records.DefaultRecordBatch = _Batch
