"""Converts entries and labels from common Python types to those of a pipeline, or refuses them
before anything changes.

Accepted as numbers: lists, tuples, arrays of any kind of number (also of bools, as 0 and 1), rows
of data frames, masked arrays, tensors, single numbers, `Decimal` and `Fraction`; None,
``pandas.NA``, NaT and masked values are missing. Accepted as a time: whole numbers (ns since the
Unix epoch), other numbers (seconds since then), `datetime` and ``pandas.Timestamp`` (without an
offset: UTC), ``numpy.datetime64``. pandas is not imported.
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor, float64

from streamadapt.errors import EntryError, Reason
from streamadapt.records import NOWHERE, Entry, Label, Position, RefusedLabel

__all__ = ["coerced", "coerced_entry", "has_surrogate"]

F64: Final = np.dtype(np.float64)
INT64: Final = range(-(2**63), 2**63)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
NS: Final = 10**9
MISSING_TYPES: Final = ("NAType", "NaTType", "MaskedConstant")
"""Names of the types of ``pandas.NA``, ``pandas.NaT`` and ``numpy.ma.masked``."""

FloatRow = npt.NDArray[np.float64]


class _BadError(Exception):
    """The reason why a value is refused; `coerced` adds the item."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def coerced(item: Any) -> Entry | Label:
    """Return an entry or a label whose parts have the types that `Entry` and `Label` promise.

    Raises
    ------
    EntryError
        If the item is neither an entry nor a label, or a part of it cannot be converted:
        ``wrong_type``, ``wrong_width``, ``not_finite`` or ``bad_time``, with the expected form. If
        only the label of an entry cannot be converted, the reason is in `Entry.refused`.
    """
    if isinstance(item, Entry):
        if (
            _is_plain(item.values, item)
            and (item.label is None or _is_row(item.label))
            and type(item.key) is str
        ):
            return item
    elif isinstance(item, Label):
        if _is_plain(item.value, item):
            return item
    else:
        raise EntryError(Reason.WRONG_TYPE, f"expected an Entry or a Label, got {_shown(item)}")
    position: Position = NOWHERE
    try:
        position = _position(item.position)
        time, id_ = _time_ns(item.time), _text(item.id, "id")
        if isinstance(item, Label):
            return replace(
                item, id=id_, value=_row(item.value, "value"), time=time, position=position
            )
        label, refused = _own_label(item)
        key, values = _text(item.key, "key"), _row(item.values, "values")
        return Entry(values, time, id_, key, label, position, refused)
    except _BadError as bad:
        raise EntryError(bad.reason, bad.detail, position) from bad.__cause__


def _own_label(entry: Entry) -> tuple[FloatRow | None, RefusedLabel | None]:
    """Return the label inside an entry, and the reason if it is refused; the entry is still
    predicted."""
    if entry.label is None:
        return None, entry.refused
    try:
        return _row(entry.label, "label"), entry.refused
    except _BadError as bad:
        return None, RefusedLabel(bad.reason, bad.detail)


def coerced_entry(item: Any) -> Entry:
    """Return ``coerced(item)`` of an entry; `EntryError` for anything else."""
    entry = coerced(item)
    if not isinstance(entry, Entry):
        raise EntryError(Reason.WRONG_TYPE, f"expected an Entry, got {_shown(item)}")
    return entry


def _is_plain(row: object, item: Entry | Label) -> bool:
    time, id_ = item.time, item.id
    return (
        _is_row(row)
        and type(time) is int
        and time in INT64
        and type(id_) is str
        and (id_.isascii() or not has_surrogate(id_))
        and type(item.position) is Position
        and type(item.position.partition) is int
        and type(item.position.offset) is int
    )


def _is_row(row: object) -> bool:
    return type(row) is np.ndarray and row.dtype == F64 and row.dtype.isnative


# -- numbers


def _row(given: Any, what: str) -> FloatRow:
    """Return numbers as a new row, float64; NaN means missing."""
    try:
        with np.errstate(all="ignore"):
            array = _array(given, what)
    except _BadError:
        raise
    except Exception as error:  # the value's own code may raise any exception
        detail = (
            f"{what}: expected numbers, got {_shown(given)} ({type(error).__name__}: "
            f"{str(error)[:100]})"
        )
        raise _BadError(Reason.WRONG_TYPE, detail) from error
    if array.ndim == 0:
        array = array.reshape(1)
    if array.ndim != 1:
        raise _too_deep(what, array)
    return array


def _array(given: Any, what: str) -> FloatRow:
    if isinstance(given, Tensor):
        given = given.detach().cpu().resolve_conj().resolve_neg()
        if given.is_complex():
            raise _BadError(Reason.WRONG_TYPE, f"{what}: expected real numbers, got {given.dtype}")
        return np.array(given.to(float64).numpy(), F64)
    if isinstance(given, np.ma.MaskedArray):
        known = _array(np.asarray(given.data), what)
        return np.where(np.ma.getmaskarray(given), np.nan, known)
    if isinstance(given, dict | str | bytes | bytearray | set | frozenset) or given is None:
        raise _BadError(Reason.WRONG_TYPE, f"{what}: expected numbers, got {_shown(given)}")
    if isinstance(given, list | tuple):  # np.asarray would convert [1, "a"] to text
        return np.array([_number(value, f"{what}[{i}]") for i, value in enumerate(given)], F64)
    array = np.asarray(given)
    if array.dtype.kind in "fiub":
        return np.array(array, F64)
    if array.dtype.kind != "O":
        raise _BadError(
            Reason.WRONG_TYPE,
            f"{what}: expected numbers, got {_shown(given)} of type {array.dtype}",
        )
    if array.ndim > 1:
        raise _too_deep(what, array)
    numbers = [
        _number(value, f"{what}[{i}]") for i, value in enumerate(array.reshape(-1).tolist())
    ]
    return np.array(numbers, F64)


def _too_deep(what: str, array: npt.NDArray[Any]) -> _BadError:
    return _BadError(
        Reason.WRONG_WIDTH,
        f"{what}: expected one row of numbers, got an array of shape {array.shape}",
    )


def _number(value: Any, what: str) -> float:
    if type(value) is float:
        return value
    if value is None or type(value).__name__ in MISSING_TYPES:
        return math.nan
    if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, float | int | np.floating | Decimal | Fraction):
        raise _BadError(Reason.WRONG_TYPE, f"{what}: expected a number, got {_shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise _BadError(
            Reason.NOT_FINITE, f"{what}: expected a finite number, got {_shown(value)}"
        ) from None


# -- times


def _time_ns(given: Any) -> int:
    """Return a time in ns since the Unix epoch; `_BadError` with ``bad_time`` if the value is not
    a time, or not in the range of int64."""
    try:
        ns = _ns(given)
    except Exception:  # NaT, a year outside of datetime's range, or an error of the value's code
        ns = None
    if ns is None or ns not in INT64:
        expected = (
            "whole ns or other seconds since the Unix epoch, a datetime or a datetime64, "
            "to the year 2262"
        )
        raise _BadError(Reason.BAD_TIME, f"time: expected {expected}; got {_shown(given)}")
    return ns


def _ns(given: Any) -> int | None:
    if isinstance(given, datetime):  # also a pandas.Timestamp, which has three more digits
        since: Any = (given if given.tzinfo is not None else given.replace(tzinfo=UTC)) - EPOCH
        below_micro = int(getattr(since, "nanoseconds", 0))
        return (
            int((since.days * 86_400 + since.seconds) * NS + since.microseconds * 1000)
            + below_micro
        )
    if isinstance(given, np.datetime64):
        return None if np.isnat(given) else _datetime64_ns(given)
    if isinstance(given, np.ndarray) and given.ndim == 0:
        return _ns(given[()])
    if isinstance(given, np.generic) or (isinstance(given, Tensor) and given.ndim == 0):
        given = given.item()
    if isinstance(given, bool):
        return None
    if isinstance(given, float | Decimal | Fraction):
        return round(given * NS)
    return operator.index(given)


def _datetime64_ns(given: np.datetime64) -> int | None:
    seconds = int(given.astype("datetime64[s]").astype(np.int64))
    if not -(2**63) // NS < seconds < 2**63 // NS:  # numpy would wrap around
        return None
    return int(given.astype("datetime64[ns]").astype(np.int64))


# -- the rest


def _text(given: Any, what: str) -> str:
    """Return an id or a key as text: from text, or from a whole number, which JSON may contain;
    None becomes an empty text."""
    if given is None:
        return ""
    if isinstance(given, str):
        if not given.isascii() and has_surrogate(given):
            raise _BadError(
                Reason.WRONG_TYPE,
                f"{what}: expected text, got a lone surrogate, which is not UTF-8",
            )
        return str(given)
    if isinstance(given, bool | np.bool_) or not isinstance(given, int | np.integer):
        raise _BadError(
            Reason.WRONG_TYPE, f"{what}: expected text or a whole number, got {_shown(given)}"
        )
    return str(int(given))


def has_surrogate(text: str) -> bool:
    """Return whether a text has half of a UTF-16 pair, which is not UTF-8."""
    return any("\ud800" <= c <= "\udfff" for c in text)


def _position(given: Any) -> Position:
    try:
        stream, partition, offset = given
        if isinstance(stream, str):
            return Position(str(stream), operator.index(partition), operator.index(offset))
    except (TypeError, ValueError):
        pass
    raise _BadError(
        Reason.WRONG_TYPE,
        f"position: expected a Position(stream, partition, offset), got {_shown(given)}",
    )


def _shown(given: Any) -> str:
    """Return a short text that shows a refused value."""
    try:
        text = repr(given)
    except Exception:  # an error of the value's own code
        text = "?"
    return f"{type(given).__name__} {text if len(text) <= 60 else text[:57] + '...'}".replace(
        "\n", " "
    )
