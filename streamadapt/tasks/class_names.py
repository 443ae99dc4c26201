"""The classes of a task: their number, or a list of their names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from streamadapt.errors import ConfigError

__all__ = ["ClassName", "counted_classes"]

ClassName = str | bool | int | float

EXPECTED = "2 to 100000 classes: how many, or a list of their names"


def counted_classes(classes: object) -> tuple[int | None, tuple[ClassName, ...]]:
    """Return the number of classes, and their names if `classes` is a list of names.

    Raises
    ------
    ConfigError
        If `classes` is neither a valid number nor a list of names, or two names are equal or look
        the same in a CSV file, such as 1, 1.0 and "1".
    """
    if classes is None:
        return None, ()
    if isinstance(classes, int) and not isinstance(classes, bool):
        if not 2 <= classes <= 100_000:
            raise ConfigError("task.classes", classes, EXPECTED)
        return classes, ()
    if (
        isinstance(classes, str)
        or not isinstance(classes, Sequence)
        or not 2 <= len(classes) <= 100_000
    ):
        raise ConfigError("task.classes", classes, EXPECTED)
    seen: dict[Any, int] = {}
    for i, name in enumerate(classes):
        for form in _forms(f"task.classes[{i}]", name):
            if seen.setdefault(form, i) != i:
                other = classes[seen[form]]
                raise ConfigError(
                    f"task.classes[{i}]", name, f"a name that differs from {other!r}, also as text"
                )
    return len(classes), tuple(classes)


def _forms(path: str, name: object) -> list[Any]:
    """Return the forms that a class of this name can have in a record."""
    if isinstance(name, bool):
        return [str(name).lower(), float(name)]
    if isinstance(name, int | float):
        if isinstance(name, float) and not math.isfinite(name):
            raise ConfigError(path, name, "a finite number")
        return [name]
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(path, name, "text that is not blank, a number, true or false")
    text = name.strip()
    if "_" in text:
        return [text]
    try:
        return [
            text,
            int(text) if text.lstrip("+-").isdecimal() and len(text) <= 40 else float(text),
        ]
    except ValueError:
        return [text]
