"""Converts JSON records to entries and labels, and predictions to JSON.

Only `JsonCodec.decode` converts untrusted bytes to numbers: it returns an `Entry` or a `Label`, or
raises `EntryError` with a `Reason`, and never raises another error.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from streamadapt.errors import ConfigError, EntryError, Reason
from streamadapt.records import Entry, FloatArray, Label, Prediction, Record, RefusedLabel
from streamadapt_connectors.codecs.classes import class_reader
from streamadapt_connectors.codecs.fields import (
    ABSENT,
    INT64,
    FieldError,
    FieldPath,
    Missing,
    is_blank,
    number_reader,
    read_text,
    shown,
)
from streamadapt_connectors.codecs.local_time import moment_reader
from streamadapt_connectors.codecs.repeated_keys import check_twice

__all__ = ["FieldMap", "JsonCodec", "Limits", "encode_prediction"]

_decode_json = msgspec.json.Decoder().decode
_encode_json = msgspec.json.Encoder().encode

STRINGS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
BRACKETS: Final = re.compile(rb"[^\[\]{}]+")
FRAME_BYTES: Final = 5
MAX_INT_DIGITS: Final = 400  # a longer number is larger than every float, and int() of it is slow


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits for the size of records.

    Attributes
    ----------
    record_bytes : int, > 0, bytes
        The largest record; a larger one is refused before it is decoded.
    depth : int, > 0
        The largest number of levels of nested arrays and objects.
    width : int, > 0
        The largest number of fields of a record, and of numbers in an array: a row of a million
        numbers would cost every learner a million weights.
    id_bytes : int, > 0, bytes
        The longest id or key, as UTF-8: both are kept in memory, and are part of predictions.
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
    """The paths of the fields in a record, and how their values are written.

    Paths may have dots (``payload.speed``); a literal key with the same dots has priority. Names
    of columns may have dots, blanks and brackets: ``Temp..C.``, ``Inst. No.``, ``x[0]``.

    Attributes
    ----------
    values : tuple of str
        One path per channel, or one path to a JSON array with the whole row.
    time : str or None
        The path of the event time. Default: the record's own time stamp.
    time_format : str
        How times are written: ``iso8601``, ``unix_s``, ``unix_ms``, ``unix_us``, ``unix_ns`` or a
        strptime pattern. A time without an offset is UTC, or in `timezone`.
    timezone : str or None
        The time zone of times without an offset, such as ``Europe/Berlin``. A time in the hour
        that is repeated in autumn is resolved by the order of the records
        (`streamadapt.engine.local_time`); a time in the hour that is skipped in spring is refused.
    key : str or None
        The path of the key: the sensor, machine or customer of the record. Default: the record's
        own key.
    id : str or None
        The path of the id that labels refer to. Default: the record's position, such as
        ``cgm[0]@17``.
    label : str or None
        The path of the label: a number, an array of numbers, or a class.
    label_id : str or None
        The path of the entry's id in a record of the label stream. Default: the path `id`.
    label_time : str or None
        The path of the time in a record of the label stream. Default: the path `time`.
    channels : int or None, >= 1
        The number of values in the array, if `values` is one path. Default: the number in the
        first record.
    outputs : int, >= 1
        The number of values of a label.
    text_numbers : bool
        Whether cells are text (CSV), from which numbers are read. Then an empty text, nan, NA,
        N/A, null, None, ``-``, ``?`` and the other words of pandas mean a missing value.
    missing : tuple of str, int or float
        Further words and numbers for a missing value or label, such as ``"n.a."`` or -999.
    decimal : {".", ","}
        The decimal sign of numbers in text.
    classes : int, tuple of str, bool, int or float, or None
        Classification: the number of classes, or their names. In a config this is task.classes.
    missing_as_null : bool
        Whether a record without one of the value keys has a missing value there, instead of being
        refused.
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
    timezone: str | None = None
    missing: tuple[str | int | float, ...] = ()
    decimal: str = "."
    classes: int | tuple[str | bool | int | float, ...] | None = None

    def __post_init__(self) -> None:
        given: object = self.values
        # A str would be one path per character.
        if isinstance(given, str) or not self.values:
            raise ConfigError(
                "fields.values", given, "one field path per channel, or one path to an array"
            )
        if len(self.values) > 1 and self.channels not in (None, len(self.values)):
            raise ConfigError(
                "fields.channels", self.channels, f"{len(self.values)}, the number of value paths"
            )
        if self.channels is not None and not self.channels > 0:
            raise ConfigError("fields.channels", self.channels, "a whole number above 0")
        if not self.outputs > 0:
            raise ConfigError("fields.outputs", self.outputs, "a whole number above 0")
        if self.decimal not in (".", ","):
            raise ConfigError("fields.decimal", self.decimal, "'.' or ','")


class JsonCodec:
    """Decodes JSON records.

    A record of the label stream is a `Label`. A record of the entry stream is an `Entry`, unless
    it has a label and an id but none of the values: then it is a `Label`, too (one topic for
    both). An entry whose own label is invalid is returned without a label, with `Entry.refused`. A
    byte-order mark before a record is ignored. A key that occurs twice, in the record or in an
    object on the path to a field, is an error.

    Parameters
    ----------
    fields : FieldMap
    streams : sequence of str
        The stream of the entries, then the stream of the labels, if there is one.
    limits : Limits

    Raises
    ------
    ConfigError
        If a path or the time format is wrong, or there is a label stream but no path to its labels
        or their ids.
    """

    def __init__(
        self, fields: FieldMap, *, streams: Sequence[str], limits: Limits | None = None
    ) -> None:
        self.fields = fields
        self.limits = limits or Limits()
        self.label_stream = streams[1] if len(streams) > 1 else None
        if self.label_stream is not None and fields.label is None:
            raise ConfigError(
                "fields.label", None, f"the label's path in stream {self.label_stream!r}"
            )
        if self.label_stream is not None and fields.label_id is None and fields.id is None:
            raise ConfigError(
                "fields.label_id",
                None,
                f"the path of the entry's id in stream {self.label_stream!r}",
            )
        self._values = [
            FieldPath(path, f"fields.values[{i}]") for i, path in enumerate(fields.values)
        ]
        self._time = _path(fields.time, "fields.time")
        self._key = _path(fields.key, "fields.key")
        self._id = _path(fields.id, "fields.id")
        self._label = _path(fields.label, "fields.label")
        self._label_id = _path(fields.label_id, "fields.label_id") or self._id
        self._label_time = _path(fields.label_time, "fields.label_time") or self._time
        text = fields.text_numbers
        self._missing = Missing(fields.missing, text_numbers=text)
        self._read_number = number_reader(text, missing=self._missing, decimal=fields.decimal)
        self._read_label = self._read_number
        if fields.classes is not None:
            self._read_label = class_reader(
                fields.classes, self._read_number, self._missing, text_numbers=text
            )
        self._read_time = moment_reader(fields.time_format, fields.timezone, text, fields.decimal)
        paths = (
            *self._values,
            self._time,
            self._key,
            self._id,
            self._label,
            self._label_id,
            self._label_time,
        )
        self._paths = [path for path in paths if path is not None]
        self._names = sorted({path.text for path in self._paths}, key=len, reverse=True)

    def decode(self, record: Record) -> Entry | Label:
        """Return the entry or the label in a record.

        Raises
        ------
        EntryError
            If the record is invalid: with a `Reason`, a detail of one line and the record's
            position.
        """
        try:
            data = self._object(record.value)
            if record.position.stream == self.label_stream or self._is_lone_label(data):
                return self._label_of(data, record)
            return self._entry_of(data, record)
        except FieldError as error:
            raise EntryError(
                error.reason, self._with_column(error.detail), record.position
            ) from None

    def label_alone(self, record: Record) -> Record:
        """Return an entry's record without its values, which will be read as the label of that
        entry.

        Raises
        ------
        EntryError
            If the record is invalid, or has no label, or no id that refers to its entry.
        """
        item = self.decode(record)
        if isinstance(item, Label):
            return record
        if item.refused is not None:
            raise EntryError(item.refused.reason, item.refused.detail, record.position)
        if item.label is None or self._id is None:
            detail = (
                "no label"
                if item.label is None
                else "without fields.id a label cannot refer to its entry"
            )
            raise EntryError(Reason.MISSING_FIELD, detail, record.position)
        data = self._object(record.value)
        for path in self._values:
            path.remove(data)
        for other, own in ((self._label_id, self._id), (self._label_time, self._time)):
            if other is not None and own is not None and other.get(data) is ABSENT:
                data[other.text] = own.get(data)
        return Record(record.position, record.key, _encode_json(data), record.time, record.headers)

    def _with_column(self, detail: str) -> str:
        """Replace "$.a" by "column 'a'" if records are rows of text."""
        if self.fields.text_numbers and detail.startswith("$."):
            for name in self._names:
                if detail.startswith(name, 2):
                    return f"column {name!r}" + detail[2 + len(name) :]
        return detail

    def _object(self, value: bytes | None) -> dict[str, Any]:
        if not value:
            raise FieldError(Reason.EMPTY_VALUE, "$: expected a JSON object, got an empty value")
        limits = self.limits
        if len(value) > limits.record_bytes:
            detail = f"$: expected at most {limits.record_bytes} bytes, got {len(value)}"
            raise FieldError(Reason.TOO_LARGE, detail)
        # There are at most as many levels as opening brackets: for ordinary records, two fast
        # counts are enough.
        if value.count(b"[") + value.count(b"{") > limits.depth and nesting(value) > limits.depth:
            raise FieldError(
                Reason.TOO_DEEP, f"$: expected at most {limits.depth} levels, got {nesting(value)}"
            )
        if value.startswith(BOM_UTF8):
            value = value[len(BOM_UTF8) :]
        try:
            data = _decode_json(value)
        except (msgspec.MsgspecError, ValueError):
            data = _decode_lenient(value)
        if type(data) is not dict:
            raise FieldError(Reason.WRONG_TYPE, f"$: expected object, got {shown(data)}")
        if len(data) > limits.width:
            raise FieldError(
                Reason.WRONG_WIDTH, f"$: expected at most {limits.width} fields, got {len(data)}"
            )
        check_twice(value, data, self._paths)
        if self.fields.text_numbers and type(extra := data.get("")) is list:
            detail = (
                f"$: {len(extra)} more cells than the file has columns, the first is "
                f"{shown(extra[0])}"
            )
            raise FieldError(Reason.WRONG_WIDTH, detail + self._comma_hint())
        return data

    def _comma_hint(self) -> str:
        return "; if its numbers have decimal commas, they need quotes or another delimiter"

    def _is_lone_label(self, data: dict[str, Any]) -> bool:
        if self._label is None or self._label_id is None:
            return False
        text, missing = self.fields.text_numbers, self._missing
        if not all(
            is_blank(v, missing) if text else v is ABSENT
            for v in (path.get(data) for path in self._values)
        ):
            return False
        return self._has_label(data) and not is_blank(self._label_id.get(data), missing)

    def _has_label(self, data: dict[str, Any]) -> bool:
        """Return whether the record has a label; the name of a class may be a word that otherwise
        means a missing value."""
        assert self._label is not None, "called only if there is a path for labels"
        raw = self._label.get(data)
        if not is_blank(raw, self._missing):
            return True
        classes = self.fields.classes
        return isinstance(raw, str) and isinstance(classes, tuple) and raw.strip() in classes

    def _entry_of(self, data: dict[str, Any], record: Record) -> Entry:
        key, label_path, id_path, time_path = self._key, self._label, self._id, self._time
        position = record.position
        values = self._row(data)
        label = refused = None
        if label_path is not None and self._has_label(data):
            try:
                label = self._label_row(label_path.get(data), label_path.text)
            except FieldError as error:  # the entry can still be predicted
                refused = RefusedLabel(error.reason, self._with_column(error.detail))
        time, or_time = self._moment(time_path, data, record)
        return Entry(
            values,
            time,
            f"{position.stream}[{position.partition}]@{position.offset}"
            if id_path is None
            else self._short(read_text(id_path.need(data), id_path.text), id_path.text),
            self._record_key(record.key)
            if key is None
            else self._short(_key_text(key.need(data), key.text), key.text),
            label,
            position,
            refused,
            or_time,
        )

    def _short(self, text: str, path: str) -> str:
        most = self.limits.id_bytes
        if len(text) > most or (4 * len(text) > most and len(text.encode()) > most):
            detail = (
                f"$.{path}: expected at most {most} bytes (limits.id_bytes), got "
                f"{len(text.encode())}"
            )
            raise FieldError(Reason.TOO_LARGE, detail)
        return text

    def _record_key(self, key: bytes | None) -> str:
        if key is None:
            return ""
        if len(key) > self.limits.id_bytes:
            expected = f"at most {self.limits.id_bytes} bytes (limits.id_bytes)"
            raise FieldError(
                Reason.TOO_LARGE, f"the record's key: expected {expected}, got {len(key)}"
            )
        # A key may be invalid UTF-8; with escapes, different keys stay different.
        return key.decode("utf-8", "backslashreplace")

    def _label_of(self, data: dict[str, Any], record: Record) -> Label:
        id_path, value_path, time_path = self._label_id, self._label, self._label_time
        assert id_path is not None, "checked on construction"
        assert value_path is not None, "checked on construction"
        value = self._label_row(value_path.need(data), value_path.text)
        time, or_time = self._moment(time_path, data, record)
        name = self._short(read_text(id_path.need(data), id_path.text), id_path.text)
        return Label(name, value, time, record.position, or_time)

    def _moment(
        self, path: FieldPath | None, data: dict[str, Any], record: Record
    ) -> tuple[int, int | None]:
        return (
            (_record_time(record.time), None)
            if path is None
            else self._read_time(path.need(data), path.text)
        )

    def _row(self, data: dict[str, Any]) -> FloatArray:
        read, lenient = self._read_number, self.fields.missing_as_null
        if len(self._values) == 1:
            whole = self._whole_row(self._values[0], data)
            if whole is not None:
                return whole
        row: list[float] = []
        for path in self._values:
            raw = data.get(path.text, ABSENT)
            if raw is ABSENT:
                raw = path.get(data)
            if raw is ABSENT:
                if not lenient:
                    raise FieldError(Reason.MISSING_FIELD, f"$.{path.text}: missing")
                raw = None
            row.append(read(raw, path.text))
        return np.array(row, np.float64)

    def _whole_row(self, path: FieldPath, data: dict[str, Any]) -> FloatArray | None:
        """Return all values of an entry from the one field that has them; None if the field is to
        be read as a single number."""
        channels = self.fields.channels
        raw = path.get(data) if self.fields.missing_as_null else path.need(data)
        if type(raw) is list:
            return self._array(raw, path.text, channels)
        if channels is None or channels == 1:
            return None
        if raw is ABSENT or raw is None:
            return np.full(channels, np.nan)
        raise FieldError(
            Reason.WRONG_WIDTH,
            f"$.{path.text}: expected an array of {channels} numbers, got {shown(raw)}",
        )

    def _label_row(self, raw: Any, path: str) -> FloatArray:
        outputs = self.fields.outputs
        if type(raw) is list:
            return self._array(raw, path, outputs, self._read_label)
        if raw is None:
            return np.full(outputs, np.nan)
        number = self._read_label(raw, path)
        if outputs != 1:
            raise FieldError(
                Reason.WRONG_WIDTH,
                f"$.{path}: expected an array of {outputs} numbers, got {shown(raw)}",
            )
        return np.array([number], np.float64)

    def _array(
        self,
        raw: list[Any],
        path: str,
        width: int | None,
        read: Callable[[Any, str], float] | None = None,
    ) -> FloatArray:
        if not raw or (width is not None and len(raw) != width):
            expected = "at least 1" if width is None else str(width)
            raise FieldError(
                Reason.WRONG_WIDTH,
                f"$.{path}: expected an array of {expected} numbers, got {len(raw)}",
            )
        if len(raw) > self.limits.width:
            detail = f"$.{path}: expected at most {self.limits.width} numbers, got {len(raw)}"
            raise FieldError(Reason.WRONG_WIDTH, detail)
        read = read or self._read_number
        try:
            return np.array([read(value, path) for value in raw], np.float64)
        except FieldError:
            # The names of the elements are made only after a failure, since this takes time.
            for i, value in enumerate(raw):
                read(value, f"{path}[{i}]")
            raise


def nesting(value: bytes) -> int:
    """Return the depth of nested arrays and objects in `value`, without recursion, by counting
    brackets outside of strings."""
    marks = np.frombuffer(BRACKETS.sub(b"", STRINGS.sub(b"", value)), np.uint8)
    steps = np.where((marks == ord("[")) | (marks == ord("{")), 1, -1)
    return int(np.cumsum(steps).max(initial=0))


def encode_prediction(prediction: Prediction, *, experts: bool = False) -> bytes:
    """Return `prediction` as one JSON object; NaN becomes null.

    Parameters
    ----------
    prediction : Prediction
    experts : bool
        Whether to include every expert's prediction.

    Returns
    -------
    bytes
        ``id`` is the position, such as ``cgm[0]@17``; ``time`` is in ns since the Unix epoch;
        predictions of one row are flat lists, other predictions are lists of rows. If classes have
        names, ``classes`` are the names, in the order of the probabilities, and ``class`` is the
        name of the most probable class of the served prediction, or null if that is unknown.
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
        **(_named(p) if p.classes else {}),
        **(
            {"low": _rows(p.low), "high": _rows(p.high)}
            if p.low is not None and p.high is not None
            else {}
        ),
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


def _named(prediction: Prediction) -> dict[str, Any]:
    row = prediction.served[0]
    likeliest = None if np.isnan(row).any() else prediction.classes[int(row.argmax())]
    return {"classes": list(prediction.classes), "class": likeliest}


def _rows(values: FloatArray) -> list[Any]:
    rows: list[Any] = values.tolist()
    return rows[0] if len(rows) == 1 and isinstance(rows[0], list) else rows


def _path(text: str | None, setting: str) -> FieldPath | None:
    return None if text is None else FieldPath(text, setting)


def _key_text(value: Any, path: str) -> str:
    return "" if value is None or value == "" else read_text(value, path)


def _record_time(time: int) -> int:
    if time not in INT64 or time == INT64[-1]:  # the largest value stands for all later times
        raise FieldError(
            Reason.BAD_TIME,
            f"the record's time stamp: expected a time before the year 2262, got {time} ns",
        )
    return time


def _framing(value: bytes) -> str:
    """Return a hint if a value starts with the framing of a schema registry, since such values are
    rarely plain JSON."""
    if len(value) < FRAME_BYTES or value[0] != 0:
        return ""
    schema = int.from_bytes(value[1:FRAME_BYTES], "big")
    return (
        "; it starts with the framing of a schema registry (a zero byte, then schema id "
        f"{schema}): write plain JSON, without the registry's serializer"
    )


def _decode_lenient(value: bytes) -> Any:
    """Decode JSON that msgspec refuses but producers send: the bare tokens NaN and Infinity, and
    numbers larger than every float."""
    try:
        return json.loads(value.decode("utf-8"), parse_int=_parse_int)
    except (ValueError, RecursionError) as error:
        raise FieldError(
            Reason.NOT_JSON, f"$: expected JSON, got {error}"[:200] + _framing(value)
        ) from None


def _parse_int(digits: str) -> float:
    return int(digits) if len(digits) <= MAX_INT_DIGITS else float(digits)
