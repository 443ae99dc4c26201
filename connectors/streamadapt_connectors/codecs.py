"""JSON records <-> entries, labels and predictions.

`JsonCodec.decode` is the only door through which bytes of strangers become numbers: it returns an `Entry` or a `Label`,
or raises `EntryError` with a reason of the catalogue, and never anything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from streamadapt.entry import Entry, FloatArray, Label, Prediction
from streamadapt.errors import ConfigError, EntryError, Reason
from streamadapt.ports import Record
from streamadapt_connectors.codec_fields import (
    ABSENT,
    INT64,
    FieldError,
    FieldPath,
    is_blank,
    number_reader,
    read_text,
    shown,
    time_reader,
)

__all__ = ["FieldMap", "JsonCodec", "Limits", "encode_prediction"]

_decode_json = msgspec.json.Decoder().decode
_encode_json = msgspec.json.Encoder().encode

STRINGS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
BRACKETS: Final = re.compile(rb"[^\[\]{}]+")
FRAME_BYTES: Final = 5
LONGEST_INT: Final = 400  # digits; a longer one is beyond every float, and int() of it is slow


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large a record may be before it is even decoded.

    Attributes
    ----------
    record_bytes : int, > 0, bytes
    depth : int, > 0, levels of nested arrays and objects
    width : int, > 0
        Fields of a record, and numbers of an array: a row of a million would cost every learner a million weights.
    id_bytes : int, > 0, bytes
        Of an id or a key, as UTF-8: both are kept, and go into every prediction.
    """

    record_bytes: int = 1 << 20
    depth: int = 64
    width: int = 10_000
    id_bytes: int = 4096

    def __post_init__(self) -> None:
        for name in ("record_bytes", "depth", "width", "id_bytes"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"limits.{name}", getattr(self, name), "a whole number above 0")


@dataclass(frozen=True, kw_only=True)
class FieldMap:
    """Where a record keeps what. Paths may be dotted (``payload.speed``); a literal key with the dots wins.

    Attributes
    ----------
    values : tuple of str
        One path per channel, or one path to a JSON array that holds the whole row.
    time, time_format : str or None, str
        Event time; None takes the record's own time stamp. Formats: ``iso8601`` (naive means UTC), ``unix_s``,
        ``unix_ms``, ``unix_us``, ``unix_ns`` or a strptime pattern.
    key, id : str or None
        None: the record's own key; its position, e.g. ``cgm[0]@17``.
    label : str or None
        A number or an array of numbers.
    label_id, label_time : str or None
        In the label stream; None means the same as `id` and `time`.
    channels : int or None
        Width of the row; None takes what comes when `values` is one path.
    outputs : int
        Width of a label.
    text_numbers : bool
        Cells are text (CSV): numbers are read from it; empty, nan, NA and null mean missing.
    missing_as_null : bool
        A record without one of the value keys has a missing value there, instead of being refused.
    """

    values: tuple[str, ...]
    time: str | None = None
    time_format: str = "iso8601"
    key: str | None = None
    id: str | None = None
    label: str | None = None
    label_id: str | None = None
    label_time: str | None = None
    channels: int | None = None
    outputs: int = 1
    text_numbers: bool = False
    missing_as_null: bool = False

    def __post_init__(self) -> None:
        given: object = self.values
        if isinstance(given, str) or not self.values:  # a str would be read as one path per character
            raise ConfigError("fields.values", given, "one field path per channel, or one path to an array")
        if len(self.values) > 1 and self.channels not in (None, len(self.values)):
            raise ConfigError("fields.channels", self.channels, f"{len(self.values)}, the number of value paths")
        if self.channels is not None and not self.channels > 0:
            raise ConfigError("fields.channels", self.channels, "a whole number above 0")
        if not self.outputs > 0:
            raise ConfigError("fields.outputs", self.outputs, "a whole number above 0")


class JsonCodec:
    """Decode JSON records.

    A record of the label stream is a `Label`. A record of the entry stream is an `Entry`, unless it has a label and an
    id but none of the values: then it is a `Label` too (one topic for both).

    Parameters
    ----------
    fields : FieldMap
    streams : sequence of str
        The source's streams: the entries' first, then, if there is one, the labels'.
    limits : Limits

    Raises
    ------
    ConfigError
        If a path or the time format is wrong, or there is a label stream but no path to its labels or their ids.
    """

    def __init__(self, fields: FieldMap, *, streams: Sequence[str], limits: Limits | None = None) -> None:
        self.fields = fields
        self.limits = limits or Limits()
        self._label_stream = streams[1] if len(streams) > 1 else None
        if self._label_stream is not None and fields.label is None:
            raise ConfigError("fields.label", None, f"the label's path in stream {self._label_stream!r}")
        if self._label_stream is not None and fields.label_id is None and fields.id is None:
            raise ConfigError("fields.label_id", None, f"the path of the entry's id in stream {self._label_stream!r}")
        self._values = [FieldPath(path, f"fields.values[{i}]") for i, path in enumerate(fields.values)]
        self._time = _path(fields.time, "fields.time")
        self._key = _path(fields.key, "fields.key")
        self._id = _path(fields.id, "fields.id")
        self._label = _path(fields.label, "fields.label")
        self._label_id = _path(fields.label_id, "fields.label_id") or self._id
        self._label_time = _path(fields.label_time, "fields.label_time") or self._time
        self._read_number = number_reader(fields.text_numbers)
        self._read_time = time_reader(fields.time_format, "fields.time_format", fields.text_numbers)

    def decode(self, record: Record) -> Entry | Label:
        """Return what `record` says.

        Raises
        ------
        EntryError
            With the catalogue's reason, a one-line detail and the record's position.
        """
        try:
            data = self._object(record.value)
            if record.position.stream == self._label_stream or self._is_lone_label(data):
                return self._label_of(data, record)
            return self._entry_of(data, record)
        except FieldError as error:
            raise EntryError(error.reason, error.detail, record.position) from None

    def _object(self, value: bytes | None) -> dict[str, Any]:
        if not value:
            raise FieldError(Reason.EMPTY_VALUE, "$: expected a JSON object, got an empty value")
        limits = self.limits
        if len(value) > limits.record_bytes:
            detail = f"$: expected at most {limits.record_bytes} bytes, got {len(value)}"
            raise FieldError(Reason.TOO_LARGE, detail)
        # There are never more levels than opening brackets: ordinary records are through with two fast counts.
        if value.count(b"[") + value.count(b"{") > limits.depth and nesting(value) > limits.depth:
            raise FieldError(Reason.TOO_DEEP, f"$: expected at most {limits.depth} levels, got {nesting(value)}")
        try:
            data = _decode_json(value)
        except (msgspec.MsgspecError, ValueError):
            data = _decode_lenient(value)
        if type(data) is not dict:
            raise FieldError(Reason.WRONG_TYPE, f"$: expected object, got {shown(data)}")
        if len(data) > limits.width:
            raise FieldError(Reason.WRONG_WIDTH, f"$: expected at most {limits.width} fields, got {len(data)}")
        return data

    def _is_lone_label(self, data: dict[str, Any]) -> bool:
        if self._label is None or self._label_id is None:
            return False
        text = self.fields.text_numbers
        if not all(is_blank(v, text) if text else v is ABSENT for v in (path.get(data) for path in self._values)):
            return False
        return not is_blank(self._label.get(data), text) and not is_blank(self._label_id.get(data), text)

    def _entry_of(self, data: dict[str, Any], record: Record) -> Entry:
        key, label_path, id_path, time_path = self._key, self._label, self._id, self._time
        position = record.position
        values = self._row(data)
        label = None
        if label_path is not None:
            raw = label_path.get(data)
            if not is_blank(raw, self.fields.text_numbers):
                label = self._label_row(raw, label_path.text)
        return Entry(
            values,
            _record_time(record.time) if time_path is None else self._read_time(time_path.need(data), time_path.text),
            f"{position.stream}[{position.partition}]@{position.offset}"
            if id_path is None
            else self._short(read_text(id_path.need(data), id_path.text), id_path.text),
            self._record_key(record.key) if key is None else self._short(_key_text(key.need(data), key.text), key.text),
            label,
            position,
        )

    def _short(self, text: str, path: str) -> str:
        most = self.limits.id_bytes
        if len(text) > most or (4 * len(text) > most and len(text.encode()) > most):
            detail = f"$.{path}: expected at most {most} bytes (limits.id_bytes), got {len(text.encode())}"
            raise FieldError(Reason.TOO_LARGE, detail)
        return text

    def _record_key(self, key: bytes | None) -> str:
        if key is None:
            return ""
        if len(key) > self.limits.id_bytes:
            expected = f"at most {self.limits.id_bytes} bytes (limits.id_bytes)"
            raise FieldError(Reason.TOO_LARGE, f"the record's key: expected {expected}, got {len(key)}")
        return key.decode("utf-8", "backslashreplace")  # need not be UTF-8; escapes keep different keys different

    def _label_of(self, data: dict[str, Any], record: Record) -> Label:
        id_path, value_path, time_path = self._label_id, self._label, self._label_time
        assert id_path is not None, "checked on construction"
        assert value_path is not None, "checked on construction"
        value = self._label_row(value_path.need(data), value_path.text)
        stamp = None if time_path is None else self._read_time(time_path.need(data), time_path.text)
        time = _record_time(record.time) if stamp is None else stamp
        name = self._short(read_text(id_path.need(data), id_path.text), id_path.text)
        return Label(name, value, time, record.position)

    def _row(self, data: dict[str, Any]) -> FloatArray:
        read, lenient = self._read_number, self.fields.missing_as_null
        row: list[float] = []
        if len(self._values) == 1:
            path = self._values[0]
            raw = path.get(data) if lenient else path.need(data)
            if type(raw) is list:
                return self._array(raw, path.text, self.fields.channels)
            if self.fields.channels not in (None, 1):
                wanted = f"an array of {self.fields.channels} numbers"
                if raw is ABSENT or raw is None:
                    return np.full(self.fields.channels or 1, np.nan, np.float32)
                raise FieldError(Reason.WRONG_WIDTH, f"$.{path.text}: expected {wanted}, got {shown(raw)}")
        for path in self._values:
            raw = data.get(path.text, ABSENT)
            if raw is ABSENT:
                raw = path.get(data)
            if raw is ABSENT:
                if not lenient:
                    raise FieldError(Reason.MISSING_FIELD, f"$.{path.text}: missing")
                raw = None
            row.append(read(raw, path.text))
        return np.array(row, np.float32)

    def _label_row(self, raw: Any, path: str) -> FloatArray:
        outputs = self.fields.outputs
        if type(raw) is list:
            return self._array(raw, path, outputs)
        if raw is None:
            return np.full(outputs, np.nan, np.float32)
        number = self._read_number(raw, path)
        if outputs != 1:
            raise FieldError(Reason.WRONG_WIDTH, f"$.{path}: expected an array of {outputs} numbers, got {shown(raw)}")
        return np.array([number], np.float32)

    def _array(self, raw: list[Any], path: str, width: int | None) -> FloatArray:
        if not raw or (width is not None and len(raw) != width):
            wanted = "at least 1" if width is None else str(width)
            raise FieldError(Reason.WRONG_WIDTH, f"$.{path}: expected an array of {wanted} numbers, got {len(raw)}")
        if len(raw) > self.limits.width:
            detail = f"$.{path}: expected at most {self.limits.width} numbers, got {len(raw)}"
            raise FieldError(Reason.WRONG_WIDTH, detail)
        read = self._read_number
        try:
            return np.array([read(value, path) for value in raw], np.float32)
        except FieldError:
            # Only the failing path pays for the elements' names.
            for i, value in enumerate(raw):
                read(value, f"{path}[{i}]")
            raise


def nesting(value: bytes) -> int:
    """Return how many levels of arrays and objects `value` opens, without recursion: brackets outside strings."""
    marks = np.frombuffer(BRACKETS.sub(b"", STRINGS.sub(b"", value)), np.uint8)
    steps = np.where((marks == ord("[")) | (marks == ord("{")), 1, -1)
    return int(np.cumsum(steps).max(initial=0))


def encode_prediction(prediction: Prediction, *, experts: bool = False) -> bytes:
    """Return `prediction` as one JSON object; NaN becomes null.

    Parameters
    ----------
    prediction : Prediction
    experts : bool
        Whether every expert's prediction is written too.

    Returns
    -------
    bytes
        ``id`` is the position, e.g. ``cgm[0]@17``; ``time`` is in ns since the Unix epoch; predictions of one row are
        flat lists, others lists of rows.
    """
    p = prediction
    data: dict[str, Any] = {
        "id": str(p.position),
        "entry": p.id,
        "key": p.key,
        "time": p.time,
        **({"columns": list(p.columns)} if p.columns else {}),
        "served": _rows(p.served),
        "base": _rows(p.base),
        **({"low": _rows(p.low), "high": _rows(p.high)} if p.low is not None and p.high is not None else {}),
        "weights": {name: float(share) for name, share in p.weights.items()},
        "drifts": list(p.drifts),
        **({"reactions": list(p.reactions)} if p.reactions else {}),
        **({"scores": p.scores} if p.scores else {}),
        **({"ask": p.ask, "ask_probability": p.ask_probability} if p.ask is not None else {}),
        **({"estimated_loss": p.estimated_loss} if p.estimated_loss is not None else {}),
    }
    if experts:
        data["experts"] = {name: _rows(values) for name, values in p.experts.items()}
    return _encode_json(data)


def _rows(values: FloatArray) -> list[Any]:
    rows: list[Any] = values.tolist()
    return rows[0] if len(rows) == 1 and isinstance(rows[0], list) else rows


def _path(text: str | None, setting: str) -> FieldPath | None:
    return None if text is None else FieldPath(text, setting)


def _key_text(value: Any, path: str) -> str:
    return "" if value is None or value == "" else read_text(value, path)


def _record_time(time: int) -> int:
    if time not in INT64 or time == INT64[-1]:  # the last one stands for all that are beyond
        raise FieldError(Reason.BAD_TIME, f"the record's time stamp: expected one before the year 2262, got {time} ns")
    return time


def _framing(value: bytes) -> str:
    """Name the framing of a schema registry, where a value starts with it: what follows is rarely plain JSON."""
    if len(value) < FRAME_BYTES or value[0] != 0:
        return ""
    schema = int.from_bytes(value[1:FRAME_BYTES], "big")
    return (
        f"; it starts with the framing of a schema registry (a zero byte, then schema id {schema}): write plain JSON, "
        "without the registry's serializer"
    )


def _decode_lenient(value: bytes) -> Any:
    """Decode what msgspec refuses but producers send: the bare tokens NaN and Infinity, numbers beyond every float."""
    try:
        return json.loads(value.decode("utf-8"), parse_int=_parse_int)
    except (ValueError, RecursionError) as error:
        raise FieldError(Reason.NOT_JSON, f"$: expected JSON, got {error}"[:200] + _framing(value)) from None


def _parse_int(digits: str) -> float:
    return int(digits) if len(digits) <= LONGEST_INT else float(digits)
