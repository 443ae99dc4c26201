"""Labels of a classification as people write them: numbers, text, true and false; as the class's index."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from streamadapt.errors import Reason
from streamadapt_connectors.codec_fields import FieldError, Missing, number_of, shown

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
        How many classes there are, which labels name by their indices, or their names in the order of their indices.
        Of two classes without names, and of those named 0 and 1 or true and false, false is the first.
    read_number : callable
        How numbers are read.
    missing : Missing
        A class of such a name is a class all the same.
    text_numbers : bool
        Whether cells are text (CSV).
    """
    if isinstance(classes, int):
        return _counted(classes, read_number, text_numbers=text_numbers)
    return _named(list(classes), read_number, missing, text_numbers=text_numbers)


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
                raise FieldError(error.reason, f"{detail}; task.classes may be a list of names") from None
            raise

    return read


def _named(classes: list[object], read_number: Reader, missing: Missing, *, text_numbers: bool) -> Reader:
    texts = {one: float(i) for i, one in enumerate(classes) if isinstance(one, str)}
    bools = {one: float(i) for i, one in enumerate(classes) if isinstance(one, bool)}
    numbers = {
        one: float(i) for i, one in enumerate(classes) if isinstance(one, int | float) and not isinstance(one, bool)
    }
    said = {number: i for text, i in texts.items() if (number := number_of(text)) is not None}
    if not bools and set(numbers) == {0, 1}:
        bools = {False: numbers[0], True: numbers[1]}
    elif not bools and {text.lower() for text in texts} >= BOOLS.keys():
        bools = {BOOLS[text.lower()]: i for text, i in texts.items() if text.lower() in BOOLS}
    named = ", ".join(map(repr, classes[:SHOWN_CLASSES])) + (", ..." if len(classes) > SHOWN_CLASSES else "")

    def found(value: Any, path: str) -> float | None:
        if type(value) is bool:
            return bools.get(value)
        if type(value) is int or type(value) is float:
            return numbers.get(value, said.get(value))
        if type(value) is not str:
            return None
        text = value.strip()
        index = texts.get(value, texts.get(text))
        if index is None and text.lower() in BOOLS:
            index = bools.get(BOOLS[text.lower()])
        if index is None and (numbers or said):
            number = number_of(text)
            if number is None and text_numbers:
                try:
                    number = read_number(value, path)  # which knows the decimal sign
                except FieldError:
                    number = None
            index = None if number is None else numbers.get(number, said.get(number))
        return index

    def read(value: Any, path: str) -> float:
        index = found(value, path)
        if index is not None:
            return index
        if value is None or value != value or (type(value) is str and missing.says(value)):
            return math.nan
        if (type(value) is int or type(value) is float) and value in missing.numbers:
            return math.nan
        reason = Reason.WRONG_TYPE if isinstance(value, list | dict) else Reason.BAD_CLASS
        raise FieldError(reason, f"$.{path}: expected one of the classes {named}, got {shown(value)}")

    return read
