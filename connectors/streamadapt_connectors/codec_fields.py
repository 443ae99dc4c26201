"""Reading one field of a decoded JSON object: its path, its number, its time stamp, its text.

Everything here raises `FieldError`; the codec adds the record's position and makes an `EntryError` of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from streamadapt.errors import ConfigError, Reason

__all__ = [
    "ABSENT",
    "INT64",
    "FieldError",
    "FieldPath",
    "is_blank",
    "number_reader",
    "read_text",
    "shown",
    "time_reader",
]

ABSENT: Final = object()
"""What `FieldPath.get` returns where there is no such key; `None` is JSON's null."""

FLOAT32_MAX: Final = 3.4028234663852886e38
MISSING_WORDS: Final = frozenset({"", "nan", "na", "null"})
SHOWN_CHARS: Final = 40

NS_PER_UNIT: Final = {"unix_s": 1_000_000_000, "unix_ms": 1_000_000, "unix_us": 1000, "unix_ns": 1}
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
INT64: Final = range(-(2**63), 2**63)

JSON_NAMES: Final = {dict: "object", list: "array", bool: "bool", type(None): "null"}


class FieldError(Exception):
    """One field is bad; internal to the codecs.

    Parameters
    ----------
    reason : Reason
    detail : str
        ``$.path: expected this, got that``.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def shown(value: object) -> str:
    """Name the JSON type of `value` and quote at most `SHOWN_CHARS` characters of it."""
    kind = JSON_NAMES.get(type(value), type(value).__name__)
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return f"{kind} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 4 * SHOWN_CHARS:
        return f"{kind} of {value.bit_length()} bits"  # repr() refuses integers beyond 4300 digits
    text = repr(value[: SHOWN_CHARS + 1] if isinstance(value, str) else value)
    return f"{kind} {text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + '...'}"


class FieldPath:
    """A field's place in a record: ``payload.speed``, split once.

    A literal key that contains the dots wins over the nested one.

    Raises
    ------
    ConfigError
        If the path is empty or has an empty part.
    """

    __slots__ = ("_parts", "text")

    def __init__(self, text: str, setting: str) -> None:
        if not text or not all(text.split(".")):
            raise ConfigError(setting, text, "a field's path such as 'speed' or 'payload.speed'")
        self.text = text
        self._parts = text.split(".") if "." in text else []

    def get(self, record: dict[str, Any]) -> Any:
        """Return the value at this path, or `ABSENT`."""
        value = record.get(self.text, ABSENT)
        if value is not ABSENT or not self._parts:
            return value
        value = record
        for part in self._parts:
            if not isinstance(value, dict) or part not in value:
                return ABSENT
            value = value[part]
        return value

    def need(self, record: dict[str, Any]) -> Any:
        """Return the value at this path, or raise `FieldError` with ``missing_field``."""
        value = self.get(record)
        if value is ABSENT:
            raise FieldError(Reason.MISSING_FIELD, f"$.{self.text}: missing")
        return value


def is_blank(value: object, text_numbers: bool) -> bool:
    """Whether nothing was said: no such key, null or, where cells are text, a missing-value word."""
    if value is ABSENT or value is None:
        return True
    return text_numbers and isinstance(value, str) and value.strip().lower() in MISSING_WORDS


def number_reader(text_numbers: bool) -> Callable[[Any, str], float]:
    """Return ``read(value, path) -> float``: NaN for a missing value, `FieldError` for what is not a float32.

    Parameters
    ----------
    text_numbers : bool
        Whether text cells are read as numbers (CSV).
    """

    def read(value: Any, path: str) -> float:
        kind = type(value)
        if (kind is float or kind is int) and -FLOAT32_MAX <= value <= FLOAT32_MAX:
            return value  # type: ignore[no-any-return] # the fast path: numpy converts an int as float() would
        if value is None:
            return math.nan
        if kind is float or kind is int:
            return _finite(value, path)
        if text_numbers and kind is str:
            return _number_from_text(value, path)
        raise FieldError(Reason.WRONG_TYPE, f"$.{path}: expected number, got {shown(value)}")

    return read


def _number_from_text(value: str, path: str) -> float:
    text = value.strip()
    if text.lower() in MISSING_WORDS:
        return math.nan
    try:
        # float() would take "1_000" for a thousand
        number = float(text) if "_" not in text else None
    except ValueError:
        number = None
    if number is None:
        raise FieldError(Reason.WRONG_TYPE, f"$.{path}: expected number, got {shown(value)}")
    return _finite(number, path)


def _finite(value: float, path: str) -> float:
    if -FLOAT32_MAX <= value <= FLOAT32_MAX:
        return float(value)
    if value != value:
        return math.nan
    raise FieldError(Reason.NOT_FINITE, f"$.{path}: expected a finite float32, got {shown(value)}")


def read_text(value: Any, path: str) -> str:
    """Return an id or a key: text or an integer."""
    if type(value) is int and value.bit_length() <= 128:
        return str(value)
    if type(value) is str and value:
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise FieldError(Reason.WRONG_TYPE, f"$.{path}: expected text, got a lone surrogate, which is not UTF-8")
        return value
    raise FieldError(Reason.WRONG_TYPE, f"$.{path}: expected text or integer, got {shown(value)}")


def time_reader(time_format: str, setting: str, text_numbers: bool) -> Callable[[Any, str], int]:
    """Return ``read(value, path) -> int`` in ns since the Unix epoch; raises `FieldError` with ``bad_time``.

    Raises
    ------
    ConfigError
        If `time_format` is none of the named ones and has no ``%``.
    """
    if time_format == "iso8601":
        convert: Callable[[Any], int] = _iso8601_ns
    elif time_format in NS_PER_UNIT:
        scale = NS_PER_UNIT[time_format]
        convert = lambda value: _unix_ns(value, scale, text_numbers)  # noqa: E731 - one of three one-liners
    elif "%" in time_format:
        convert = lambda value: _datetime_ns(datetime.strptime(value, time_format))  # noqa: E731
    else:
        expected = f"iso8601, {', '.join(NS_PER_UNIT)} or a strptime pattern with %"
        raise ConfigError(setting, time_format, expected)

    def read(value: Any, path: str) -> int:
        try:
            ns = convert(value)
        except (ValueError, TypeError, OverflowError, InvalidOperation):
            ns = None
        if ns is None or ns not in INT64:
            raise FieldError(Reason.BAD_TIME, f"$.{path}: expected {time_format} time, got {shown(value)}")
        return ns

    return read


def _datetime_ns(moment: datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


def _iso8601_ns(value: Any) -> int:
    ns = _datetime_ns(datetime.fromisoformat(value))
    point = value.rfind(".")
    if point >= 0 and len(value) > point + 7:
        # datetime keeps six digits; the next three are still ours
        digits = value[point + 7 : point + 10]
        extra = digits[: next((i for i, c in enumerate(digits) if not c.isdigit()), len(digits))]
        ns += int(extra.ljust(3, "0")) if extra else 0
    return ns


def _unix_ns(value: Any, scale: int, text_numbers: bool) -> int:
    if type(value) is int:
        return value * scale
    if type(value) is float:
        return round(value * scale)
    if text_numbers and type(value) is str:
        if len(value) > SHOWN_CHARS or "_" in value:
            raise ValueError(value)
        number = Decimal(value.strip())
        if number.is_finite() and number.adjusted() > SHOWN_CHARS:
            raise ValueError(value)  # int() of 1E999999999 would fill the memory
        return int(number * scale)
    raise TypeError(value)
