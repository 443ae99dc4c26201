"""Convert plain TOML data to typed arguments; an error names the path, the value and the expected
form."""

from __future__ import annotations

import difflib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from streamadapt.config.renamed import renamed_keys
from streamadapt.config.secrets import masked
from streamadapt.errors import ConfigError

__all__ = [
    "check_keys",
    "check_needed",
    "config_error",
    "convert",
    "did_you_mean",
    "is_callable_hint",
    "join",
    "see",
]

PATH_IN_MESSAGE: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
EXPECTED_TYPES: Final = re.compile(
    r"Expected `(?P<types>[^`]+)`(?P<rest>.*?)(?:, got `.*`)?", re.DOTALL
)
PLAIN_TYPE_NAMES: Final = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false",
    "array": "a list", "object": "a table",
}  # fmt: skip
UNIONS: Final = (typing.Union, types.UnionType)


def join(path: str, key: str) -> str:
    """Return the path of a key in the table at `path`; the root's path is empty."""
    return f"{path}.{key}" if path else key


def config_error(path: str, value: object, expected: str) -> ConfigError:
    """Return the error for a setting, with its secrets hidden."""
    return ConfigError(path, masked(path, value), expected)


def did_you_mean(
    key: object, known: Iterable[str], renamed: Mapping[str, str] | None = None
) -> str:
    """Return `` (did you mean ...?)``, or an empty text if no known name is similar.

    Parameters
    ----------
    renamed : mapping, optional
        Old names that are similar, too, and the names that replace them.
    """
    renamed = renamed or {}
    near = difflib.get_close_matches(str(key), [*known, *renamed], n=1)
    return f" (did you mean {renamed.get(near[0], near[0])!r}?)" if near else ""


def see(table: str) -> str:
    """Return a pointer to the explanation of a table's keys.

    Parameters
    ----------
    table : str
        The name of the table, such as ``learners.rls``, or a path that starts with it.
    """
    name = re.sub(r"\[.*", "", table)
    return f"; see `{f'streamadapt config {name}'.strip()}`"


def check_keys(
    path: str, table: Mapping[str, Any], allowed: Iterable[str], explained_as: str | None = None
) -> None:
    """Raise `ConfigError` for the first key that is not allowed; the error names the most similar
    allowed key.

    Parameters
    ----------
    explained_as : str, optional
        The table's name in ``streamadapt config``. Default: `path`.
    """
    names = sorted(allowed)
    explained_as = path if explained_as is None else explained_as
    pointer = see(explained_as)
    renamed = renamed_keys(re.sub(r"\[.*", "", path), explained_as.rpartition(".")[2])
    for key in table:
        if key not in names:
            known = f"one of the keys {', '.join(names)}" if names else "no keys here"
            expected = known + did_you_mean(key, names, renamed) + pointer
            raise config_error(join(path, str(key)), table[key], expected)


def check_needed(path: str, table: Mapping[str, Any], needed: Iterable[str]) -> None:
    """Raise `ConfigError` for the first key that is missing."""
    for name in needed:
        if name not in table:
            raise ConfigError(join(path, name), None, "a value: it is needed")


def convert(value: Any, hint: Any, path: str) -> Any:
    """Convert plain TOML data to a type.

    Raises
    ------
    ConfigError
        If the data does not fit the type; with the full path.
    """
    if isinstance(value, Mapping):
        _check_table(value, hint, path)
    try:
        converted = msgspec.convert(value, _decodable(hint), dec_hook=_make_path)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):  # raised by a dataclass that checks itself
            raise config_error(cause.path, cause.value, cause.expected) from None
        match = PATH_IN_MESSAGE.match(str(error))
        assert match is not None, "the pattern matches every text"
        place = match["path"] or ""
        raise config_error(
            path + place, _at(value, place), _expected(match["what"], hint)
        ) from None
    return Path(converted) if isinstance(converted, str) and _wants_path(hint) else converted


def is_callable_hint(hint: Any) -> bool:
    """Whether an argument is a function: it can come from Python only, never from a config."""
    return any(typing.get_origin(h) is Callable for h in (hint, *typing.get_args(hint)))


def _check_table(value: Mapping[str, Any], hint: Any, path: str) -> None:
    members = typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)
    for member in members:
        if is_dataclass(member):
            check_keys(path, value, [f.name for f in fields(member)])
            required = [
                f.name
                for f in fields(member)
                if f.default is MISSING and f.default_factory is MISSING
            ]
            check_needed(path, value, required)
        elif isinstance(member, type) and issubclass(member, msgspec.Struct):
            check_keys(path, value, member.__struct_fields__)
            check_needed(
                path, value, [f.name for f in msgspec.structs.fields(member) if f.required]
            )


def _at(value: Any, place: str) -> Any:
    """Return the part of a value at a path such as ``[1].x``; the whole value if it has no such
    part."""
    part = value
    for step in re.findall(r"[^.\[\]]+", place):
        try:
            part = part[int(step) if step.isdecimal() else step]
        except (KeyError, IndexError, TypeError):
            return value
    return part


def _expected(message: str, hint: Any) -> str:
    """Return in plain words what msgspec expected."""
    if message.startswith("Invalid enum value") and (choices := _choices(hint)):
        return "one of " + ", ".join(map(str, choices))
    match = EXPECTED_TYPES.fullmatch(message)
    if match is None:
        return message
    names = [
        PLAIN_TYPE_NAMES.get(name, name) for name in match["types"].split(" | ") if name != "null"
    ]
    return " or ".join(names) + match["rest"]


def _choices(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [choice for member in typing.get_args(hint) for choice in _choices(member)]


def _decodable(hint: Any) -> Any:
    """Return a type that msgspec can decode: a union without the types that TOML cannot write,
    and with paths as text."""
    if typing.get_origin(hint) in UNIONS:
        members = [
            str if member is Path else _decodable(member)
            for member in typing.get_args(hint)
            if not _is_tensor(member)
        ]
        return typing.Union[tuple(dict.fromkeys(members))]  # noqa: UP007 - made at run time
    if typing.get_origin(hint) in (Sequence, Mapping) and Path in typing.get_args(hint):
        return list[str]
    if (origin := typing.get_origin(hint)) is Sequence:
        return list[tuple(_decodable(a) for a in typing.get_args(hint))]  # type: ignore[misc]
    return dict[str, Any] if origin is Mapping else hint


def _is_tensor(hint: Any) -> bool:
    """Whether a type is torch's tensor. No annotation names it before torch is loaded, so torch,
    which takes a second to load, is not imported here."""
    torch = sys.modules.get("torch")
    return torch is not None and hint is torch.Tensor


def _wants_path(hint: Any) -> bool:
    return hint is Path or (Path in typing.get_args(hint) and str not in typing.get_args(hint))


def _make_path(hint: Any, value: Any) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"cannot convert {value!r} to {hint}")
