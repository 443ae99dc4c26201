"""Describes the types and defaults of config keys in words for people."""

from __future__ import annotations

import inspect
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from streamadapt.config.durations import UNITS_NS, duration_ns
from streamadapt.errors import ConfigError

__all__ = ["default_text", "duration_text", "is_settable", "table_class", "type_text"]

UNIONS: Final = (typing.Union, types.UnionType)
PLURALS: Final[Mapping[str, str]] = {
    "text": "texts", "whole number": "whole numbers", "number": "numbers", "path": "paths",
    "true or false": "booleans",
}  # fmt: skip
INCLUDED: Final = (
    ("whole number", "number"),
    ("text", "path"),
    ("table", "table with the keys of a learner"),
)
"""Pairs of words: the second includes the first, which is then left out."""
PLAIN: Final[Mapping[Any, str]] = {
    str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path",
    Any: "any value",
}  # fmt: skip
TYPE_WORDS: Final = re.compile(
    r"or |optional|default|int\b|float|str\b|bool|None|tuple|sequence|mapping|path|dict|the "
)
"""Matches the beginning of each part of a documented type that is neither a range nor a unit."""


def is_settable(hint: Any) -> bool:
    """Whether TOML can express a value of this type. It cannot express functions and objects that
    only Python can create."""
    return bool(_words(hint))


def type_text(hint: Any, documented: str, default: Any) -> str:
    """Return the type of a key, with its range or unit if the docstring names one.

    Parameters
    ----------
    hint : type
        The type, from `typing.get_type_hints`.
    documented : str
        The type in the docstring: the text after the colon.
    default : object
        A default such as ``"10s"`` shows that the text is a duration.
    """
    words = _words(hint)
    if choices := re.match(r"\{([^}]*)\}", documented):
        words = [f"one of {choices[1]}"] if "one of" not in words[0] else words
    elif "text" in words and (documented.startswith("duration") or _is_duration(default)):
        words[words.index("text")] = "duration"
    return ", ".join([" or ".join(words), *_qualifiers(documented)])


def default_text(default: Any) -> str:
    """Return a default as TOML text; ``none`` if leaving the key out is the only way to set it."""
    if default is None:
        return "none"
    if isinstance(default, float):
        return str(default) if math.isinf(default) else f"{default:g}"
    if isinstance(default, tuple | list):
        return "[" + ", ".join(map(default_text, default)) + "]"
    return json.dumps(default, default=str)


def duration_text(nanoseconds: int) -> str:
    """Return a duration as it is written in a config: ``1d``."""
    for unit, length in sorted(UNITS_NS.items(), key=lambda item: -item[1]):
        if nanoseconds % length == 0 and nanoseconds:
            return f"{nanoseconds // length}{unit}"
    return "0s"


def table_class(hint: Any) -> type | None:
    """Return the class whose docstring describes the table's keys: `Keys` in
    ``Annotated[Mapping[str, Any], Keys]``."""
    for member in _members(hint):
        if typing.get_origin(member) is typing.Annotated:
            described: type = member.__metadata__[0]
            return described
    return None


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)


def _words(hint: Any) -> list[str]:
    """Return the words for each form of the type that TOML can express."""
    words = [_word(member) for member in _members(hint) if member not in (type(None), Tensor)]
    redundant = {narrow for narrow, wide in INCLUDED if wide in words}
    return [word for word in dict.fromkeys(words) if word and word not in redundant]


def _word(hint: Any) -> str:
    from streamadapt.learners.base import Learner

    if hint in PLAIN:
        return PLAIN[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _word(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(map(json.dumps, arguments))
    if hint is dict or origin in (dict, Mapping):
        return "table"
    if origin in (Sequence, list, tuple):
        inside = _words(arguments[0])
        plural = [PLURALS.get(word, word.replace("one of", "some of", 1)) for word in inside]
        return f"list of {' or '.join(plural)}" if inside else ""
    if inspect.isclass(hint) and issubclass(hint, Learner):
        return "table with the keys of a learner"
    return ""


def _is_duration(value: Any) -> bool:
    try:
        return isinstance(value, str) and duration_ns("", value) >= 0
    except ConfigError:
        return False


def _qualifiers(documented: str) -> list[str]:
    """Return the ranges and units in a documented type: ``["in (0, 1]"]`` of
    ``float, in (0, 1], optional``."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(documented + ","):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append(documented[start:i].strip())
            start, depth = i + 1, 0
    ranges = [part for part in parts[1:] if not TYPE_WORDS.match(part)]
    if parts and (first := re.search(r"(>=?|<=?) \S+$", parts[0])):
        ranges.insert(0, first[0])
    return ranges
