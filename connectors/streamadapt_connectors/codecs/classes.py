"""Reads labels of a classification, written as numbers, text, true or false, as indices of
classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from streamadapt.errors import Reason
from streamadapt_connectors.codecs.fields import FieldError, Missing, number_of, shown

__all__ = ["class_reader"]

SHOWN_CLASSES: Final = 8
BOOLS: Final = {"false": False, "true": True}

Reader = Callable[[Any, str], float]


def class_reader(
    classes: int | Sequence[object], read_number: Reader, missing: Missing, *, text_numbers: bool
) -> Reader:
    """Return ``read(value, path) -> float``: the index of the class, NaN for a missing label.

    Parameters
    ----------
    classes : int, or sequence of str, bool, int or float
        The number of classes, if labels are indices; or the names of the classes, in the order of
        their indices. If there are two classes without names, false means the first, true the
        second; the names 0 and 1 mean the same as false and true.
    read_number : callable
        Reads numbers.
    missing : Missing
        The words and numbers for a missing label; the name of a class has priority over them.
    text_numbers : bool
        Whether cells are text (CSV).
    """
    if isinstance(classes, int):
        return _counted(classes, read_number, text_numbers=text_numbers)
    return _Named(list(classes), read_number, missing, text_numbers=text_numbers).read


def _counted(count: int, read_number: Reader, *, text_numbers: bool) -> Reader:
    def read(value: Any, path: str) -> float:
        kind = type(value)
        if kind is str and text_numbers:
            value = BOOLS.get(value.strip().lower(), value)
            kind = type(value)
        if kind is bool and count == 2:
            return float(value)
        try:
            return read_number(value, path)
        except FieldError as error:
            if error.reason is Reason.WRONG_TYPE and kind in (bool, str):
                detail = f"$.{path}: expected a class from 0 to {count - 1}, got {shown(value)}"
                raise FieldError(
                    error.reason, f"{detail}; task.classes may be a list of names"
                ) from None
            raise

    return read


class _Named:
    """Reads labels that are names of classes; names may be texts, booleans or numbers."""

    def __init__(
        self,
        classes: Sequence[object],
        read_number: Reader,
        missing: Missing,
        *,
        text_numbers: bool,
    ) -> None:
        self._read_number = read_number
        self._missing = missing
        self._text_numbers = text_numbers
        self._texts: dict[str, float] = {}
        self._bools: dict[bool, float] = {}
        self._numbers: dict[float, float] = {}
        self._text_numbers_to_class: dict[float, float] = {}  # for names such as "1.0"
        for i, one in enumerate(classes):
            if isinstance(one, bool):
                self._bools[one] = float(i)
            elif isinstance(one, int | float):
                self._numbers[one] = float(i)
            elif isinstance(one, str):
                self._texts[one] = float(i)
                if (number := number_of(one)) is not None:
                    self._text_numbers_to_class[number] = float(i)
        if not self._bools:
            self._bools = self._meant_by_bools()
        shown_ones = ", ".join(map(repr, classes[:SHOWN_CLASSES]))
        self._expected = shown_ones + (", ..." if len(classes) > SHOWN_CLASSES else "")

    def _meant_by_bools(self) -> dict[bool, float]:
        if set(self._numbers) == {0, 1}:
            return {False: self._numbers[0], True: self._numbers[1]}
        by_word = {
            BOOLS[text.strip().lower()]: i
            for text, i in self._texts.items()
            if text.strip().lower() in BOOLS
        }
        return by_word if len(by_word) == 2 else {}

    def read(self, value: Any, path: str) -> float:
        """Return the index of the class that `value` names."""
        index = self._of_text(value, path) if type(value) is str else self._of_other(value)
        if index is not None:
            return index
        is_number = type(value) is int or type(value) is float
        if value is None or value != value or (is_number and value in self._missing.numbers):
            return math.nan
        if type(value) is str and self._missing.says(value):
            return math.nan
        reason = Reason.WRONG_TYPE if isinstance(value, list | dict) else Reason.BAD_CLASS
        raise FieldError(
            reason, f"$.{path}: expected one of the classes {self._expected}, got {shown(value)}"
        )

    def _of_other(self, value: Any) -> float | None:
        if type(value) is bool:
            return self._bools.get(value)
        return self._of_number(value) if type(value) is int or type(value) is float else None

    def _of_number(self, number: float) -> float | None:
        return self._numbers.get(number, self._text_numbers_to_class.get(number))

    def _of_text(self, value: str, path: str) -> float | None:
        text = value.strip()
        index = self._texts.get(value, self._texts.get(text))
        if index is None and text.lower() in BOOLS:
            index = self._bools.get(BOOLS[text.lower()])
        if index is not None:
            return index
        number = number_of(text)
        if number is None and self._text_numbers:
            try:
                number = self._read_number(value, path)  # this uses the config's decimal sign
            except FieldError:
                return None
        return None if number is None else self._of_number(number)
