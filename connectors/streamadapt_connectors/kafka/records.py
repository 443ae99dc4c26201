"""Records with a header name that is no UTF-8: kafka-python 3.0 raises for one at every poll, and
reads no further."""

from __future__ import annotations

from typing import Any

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch

__all__ = ["read_any_header_name"]


class _AnyText(bytes):
    """Bytes that decode, whatever they are: what is no UTF-8 becomes an escape such as
    ``\\xff``."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _AnyText(found) if isinstance(found, bytes) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        del errors
        return super().decode(encoding, "backslashreplace")


class _Batch(DefaultRecordBatch):  # type: ignore[misc]
    _buffer: Any

    def _read_msg(self, *args: Any) -> Any:
        try:
            return super()._read_msg(*args)
        except (
            UnicodeDecodeError
        ):  # only names of headers are decoded; the place in the buffer is still the record's
            buffer = self._buffer
            self._buffer = _AnyText(buffer)
            try:
                return super()._read_msg(*args)
            finally:
                self._buffer = buffer


def read_any_header_name() -> None:
    """Have every kafka-python consumer of this process read such records. Idempotent."""
    memory_records.DefaultRecordBatch = _Batch
