"""Reads one field of a decoded JSON object by its path: a number, a time or a text.

All functions here raise `FieldError`; the codec converts it to an `EntryError` with the record's
position.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from streamadapt.errors import ConfigError, Reason

__all__ = [
    "ABSENT",
    "GROUPED",
    "INT64",
    "FieldError",
    "FieldPath",
    "Missing",
    "is_blank",
    "number_of",
    "number_reader",
    "read_text",
    "shown",
    "time_reader",
]

ABSENT: Final = object()
"""Returned by `FieldPath.get` if there is no such key; `None` stands for JSON's null."""

FLOAT32_MAX: Final = 3.4028234663852886e38
MISSING_WORDS: Final = frozenset(
    {
        "",
        "nan",
        "-nan",
        "na",
        "null",
        "none",
        "n/a",
        "<na>",
        "nat",
        "#n/a",
        "#n/a n/a",
        "#na",
        "1.#ind",
        "-1.#ind",
        "1.#qnan",
        "-1.#qnan",
        "-",
        "?",
    }
)
"""Texts for missing values, in lower case: the list of pandas, and the dash and question mark of
many public data sets."""
SHOWN_CHARS: Final = 40
GROUPED: Final = re.compile(r"[+-]?\d{1,3}[.,]\d{3}")
"""Matches a number in which the sign may also group thousands."""

NS_PER_UNIT: Final = {"unix_s": 1_000_000_000, "unix_ms": 1_000_000, "unix_us": 1000, "unix_ns": 1}
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
INT64: Final = range(-(2**63), 2**63)

JSON_NAMES: Final = {dict: "object", list: "array", bool: "bool", type(None): "null"}


class FieldError(Exception):
    """A field is invalid; internal to the codecs.

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
    """Return the JSON type of `value` and at most `SHOWN_CHARS` characters of it."""
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
    """The path of a field in a record, such as ``payload.speed``.

    A literal key that contains the dots has priority over a nested key. A name with an empty part
    (``Temp..C.``) can only be a literal key. If the literal key is absent, blanks around the name
    are ignored, since readers of CSV remove them.

    Raises
    ------
    ConfigError
        If the path is blank.
    """

    __slots__ = ("_bare", "parts", "text")

    def __init__(self, text: str, setting: str) -> None:
        if not text.strip():
            raise ConfigError(setting, text, "a field's path such as 'speed' or 'payload.speed'")
        self.text = text
        self._bare = text.strip()
        parts = text.split(".")
        self.parts = parts if len(parts) > 1 and all(parts) else []

    def get(self, record: dict[str, Any]) -> Any:
        """Return the value at this path, or `ABSENT`."""
        value = record.get(self.text, ABSENT)
        if value is not ABSENT:
            return value
        if self._bare != self.text and self._bare in record:
            return record[self._bare]
        if not self.parts:
            return ABSENT
        value = record
        for part in self.parts:
            if not isinstance(value, dict) or part not in value:
                return ABSENT
            value = value[part]
        return value

    def remove(self, record: dict[str, Any]) -> None:
        """Remove this field from a record, if the record has it."""
        for name in (self.text, self._bare):
            if record.pop(name, ABSENT) is not ABSENT:
                return
        inner: Any = record
        for part in self.parts[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if self.parts and isinstance(inner, dict):
            inner.pop(self.parts[-1], None)

    def need(self, record: dict[str, Any]) -> Any:
        """Return the value at this path, or raise `FieldError` with ``missing_field``."""
        value = self.get(record)
        if value is ABSENT:
            raise FieldError(Reason.MISSING_FIELD, f"$.{self.text}: missing")
        return value


class Missing:
    """The words and numbers for a missing value: the usual words if cells are text, and those that
    the user adds.

    Parameters
    ----------
    added : sequence of str, int or float
        ``fields.missing``. A text that is a number also stands for that number. The user's words
        also count in JSON whose numbers are not text.
    text_numbers : bool
        Whether text cells are read as numbers (CSV), and the usual words count.

    Raises
    ------
    ConfigError
        If one of `added` has another type.
    """

    def __init__(self, added: Sequence[object] = (), *, text_numbers: bool = False) -> None:
        words, numbers = set[str](), set[float]()
        for i, one in enumerate(added):
            if isinstance(one, bool) or not isinstance(one, str | int | float):
                raise ConfigError(
                    f"fields.missing[{i}]", one, "a word or a number that means a missing value"
                )
            if isinstance(one, str):
                words.add(one.strip().lower())
            number = number_of(one) if isinstance(one, str) else one
            if number is not None and number == number:
                numbers.add(number)
        self.words = frozenset(words) | (MISSING_WORDS if text_numbers else frozenset())
        self.numbers = frozenset(numbers)

    def says(self, text: str) -> bool:
        """Whether a text means a missing value."""
        return text.strip().lower() in self.words


def is_blank(value: object, missing: Missing) -> bool:
    """Return whether a value is missing: absent, null, or a word for a missing value."""
    return value is ABSENT or value is None or (isinstance(value, str) and missing.says(value))


def number_of(text: str) -> float | None:
    """Return the number in a text, as `float` reads it; None if the text is not a number.

    Whole numbers are exact.
    """
    text = text.strip()
    if "_" in text:  # float() would read "1_000" as a thousand
        return None
    try:
        return (
            int(text)
            if text.lstrip("+-").isdecimal() and len(text) <= SHOWN_CHARS
            else float(text)
        )
    except ValueError:
        return None


def number_reader(
    text_numbers: bool, *, missing: Missing | None = None, decimal: str = "."
) -> Callable[[Any, str], float]:
    """Return ``read(value, path) -> float``: NaN for a missing value, `FieldError` for a value
    that is not a float32 number.

    Parameters
    ----------
    text_numbers : bool
        Whether text cells are read as numbers (CSV).
    missing : Missing, optional
        Default: the usual words, if cells are text.
    decimal : {".", ","}
        The decimal sign of numbers in text.
    """
    nothing = missing or Missing(text_numbers=text_numbers)

    def read(value: Any, path: str) -> float:
        kind = type(value)
        if (kind is float or kind is int) and -FLOAT32_MAX <= value <= FLOAT32_MAX:
            return value  # type: ignore[no-any-return] # the fast path: numpy converts an int as float() would
        if value is None:
            return math.nan
        if kind is float or kind is int:
            return _finite(value, path)
        if kind is str:
            if nothing.says(value):
                return math.nan
            if text_numbers:
                return _number_from_text(value, path, decimal)
        raise FieldError(Reason.WRONG_TYPE, f"$.{path}: expected number, got {shown(value)}")

    return _with_marks(read, nothing.numbers) if nothing.numbers else read


def _with_marks(
    read: Callable[[Any, str], float], marks: Collection[float]
) -> Callable[[Any, str], float]:
    """Return a reader that returns NaN for each number in `marks`, as which a missing value is
    written."""

    def read_marked(value: Any, path: str) -> float:
        if (type(value) is float or type(value) is int) and value in marks:
            return math.nan  # before its size is looked at
        number = read(value, path)
        return math.nan if number in marks else number

    return read_marked


def _number_from_text(value: str, path: str, decimal: str) -> float:
    text = value.strip()
    number = number_of(text if decimal == "." else _with_point(text))
    if number is None:
        raise FieldError(
            Reason.WRONG_TYPE,
            f"$.{path}: expected number, got {shown(value)}{_other_sign(text, decimal)}",
        )
    return _finite(number, path)


def _with_point(text: str) -> str:
    # If the decimal sign is a comma, the point in "1.234" groups digits: the number must not be
    # read as slightly more than 1.
    return "" if "." in text else text.replace(",", ".", 1)


def _other_sign(text: str, decimal: str) -> str:
    """Return a hint if the text would be a number with the other decimal sign."""
    other = "," if decimal == "." else "."
    if text.count(other) != 1 or decimal in text or number_of(text.replace(other, ".")) is None:
        return ""
    if GROUPED.fullmatch(text):
        return f"; {other!r} may group its digits, or be the decimal sign (fields.decimal)"
    return f'; if {other!r} is the decimal sign, set fields.decimal = "{other}"'


def _finite(value: float, path: str) -> float:
    if -FLOAT32_MAX <= value <= FLOAT32_MAX:
        return float(value)
    if value != value:
        return math.nan
    raise FieldError(Reason.NOT_FINITE, f"$.{path}: expected a finite float32, got {shown(value)}")


def read_text(value: Any, path: str) -> str:
    """Return an id or a key as text: from a text or an integer."""
    if type(value) is int and value.bit_length() <= 128:
        return str(value)
    if type(value) is str and value:
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise FieldError(
                Reason.WRONG_TYPE,
                f"$.{path}: expected text, got a lone surrogate, which is not UTF-8",
            )
        return value
    raise FieldError(Reason.WRONG_TYPE, f"$.{path}: expected text or integer, got {shown(value)}")


def time_reader(
    time_format: str, setting: str, text_numbers: bool, decimal: str = "."
) -> Callable[[Any, str], int]:
    """Return ``read(value, path) -> int`` in ns since the Unix epoch; raises `FieldError` with
    ``bad_time``.

    Raises
    ------
    ConfigError
        If `time_format` is not one of the known names and has no ``%``.
    """
    if time_format == "iso8601":
        convert: Callable[[Any], int] = _iso8601_ns
    elif time_format in NS_PER_UNIT:
        scale = NS_PER_UNIT[time_format]
        convert = lambda value: _unix_ns(value, scale, text_numbers, decimal)  # noqa: E731 - one of three one-liners
    elif "%" in time_format:
        convert = lambda value: _datetime_ns(datetime.strptime(value, time_format))  # noqa: E731
    else:
        expected = f"iso8601, {', '.join(NS_PER_UNIT)} or a strptime pattern with %"
        raise ConfigError(setting, time_format, expected)

    def read(value: Any, path: str) -> int:
        try:
            ns = convert(value.strip() if text_numbers and type(value) is str else value)
        except (ValueError, TypeError, OverflowError, InvalidOperation):
            ns = None
        if ns is None or ns not in INT64:
            raise FieldError(
                Reason.BAD_TIME, f"$.{path}: expected {time_format} time, got {shown(value)}"
            )
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
        # datetime keeps six digits; the next three are read here
        digits = value[point + 7 : point + 10]
        extra = digits[: next((i for i, c in enumerate(digits) if not c.isdigit()), len(digits))]
        ns += int(extra.ljust(3, "0")) if extra else 0
    return ns


def _unix_ns(value: Any, scale: int, text_numbers: bool, decimal: str) -> int:
    if type(value) is int:
        return value * scale
    if type(value) is float:
        return round(value * scale)
    if text_numbers and type(value) is str:
        if len(value) > SHOWN_CHARS or "_" in value:
            raise ValueError(value)
        number = Decimal(value if decimal == "." else _with_point(value))
        if number.is_finite() and number.adjusted() > SHOWN_CHARS:
            raise ValueError(value)  # int(Decimal("1E999999999")) would fill the memory
        return int(number * scale)
    raise TypeError(value)
