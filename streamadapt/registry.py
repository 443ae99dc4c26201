"""From a ``kind`` in a config to an object: entry points, and arguments checked against the signature."""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import msgspec

from streamadapt.errors import ConfigError, StreamadaptError

__all__ = ["build", "call", "check_keys", "convert", "join", "kinds"]

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)


def kinds(group: str) -> dict[str, Any]:
    """Return the entry points of ``streamadapt.<group>`` by kind."""
    return {point.name: point for point in entry_points(group=f"streamadapt.{group}")}


def build(group: str, path: str, table: Mapping[str, Any], **given: Any) -> Any:
    """Make what ``table["kind"]`` names, with the table's other keys as arguments.

    Parameters
    ----------
    path : str
        Where the table stands in the config, for errors.
    given : dict
        Arguments that do not come from the config; the ones the target does not take are left out.

    Raises
    ------
    ConfigError
        With the full path of the key, the value and what was expected.
    """
    known = kinds(group)
    kind = table.get("kind")
    if kind not in known:
        raise ConfigError(join(path, "kind"), kind, "one of " + ", ".join(sorted(known)) + _meant(kind, known))
    target = known[kind].load()
    function = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(function)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    given = {name: value for name, value in given.items() if name in parameters}
    settings = {name: value for name, value in table.items() if name != "kind"}
    open_to_config = {name for name in parameters.keys() - given.keys() if not _is_callable(hints.get(name))}
    check_keys(path, settings, open_to_config)
    arguments = {name: convert(value, hints.get(name, Any), join(path, name)) for name, value in settings.items()}
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments and name not in given:
            raise ConfigError(join(path, name), None, f"a value: {kind} needs it")
    return call(path, target, arguments | given)


def call(path: str, target: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call `target`, giving the errors of its own checks the full path."""
    try:
        return target(**arguments)
    except ConfigError as error:
        name = error.path.rpartition(".")[2].partition("[")[0]
        if name not in arguments:
            raise  # it names a place of its own: a file, another table
        raise ConfigError(join(path, error.path.rpartition(".")[2]), error.value, error.expected) from error
    except StreamadaptError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(path, dict(arguments), f"arguments that fit ({error})") from error


def check_keys(path: str, table: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Raise `ConfigError` for the first key that is not allowed, naming the nearest one that is."""
    names = sorted(allowed)
    for key in table:
        if key not in names:
            raise ConfigError(
                join(path, str(key)), table[key], "no such key" + _meant(key, names) + "; known: " + ", ".join(names)
            )


def convert(value: Any, hint: Any, path: str) -> Any:
    """Convert plain TOML data to a type; `ConfigError` with the full path if it does not fit."""
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        check_keys(path, value, [field.name for field in fields(hint)])
    try:
        converted = msgspec.convert(value, _decodable(hint), dec_hook=_make_path)
    except msgspec.ValidationError as error:
        match = _AT.match(str(error))
        assert match is not None
        raise ConfigError(path + (match["path"] or ""), value, match["what"]) from error
    return Path(converted) if isinstance(converted, str) and _wants_path(hint) else converted


def _is_callable(hint: Any) -> bool:
    return any(typing.get_origin(h) is Callable for h in (hint, *typing.get_args(hint)))


def _decodable(hint: Any) -> Any:
    """Take out of a union what TOML has no form for, and read paths as text there."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [str if member is Path else _decodable(member) for member in typing.get_args(hint)]
        return typing.Union[tuple(dict.fromkeys(members))]  # noqa: UP007 - made at run time
    if typing.get_origin(hint) in (Sequence, Mapping) and Path in typing.get_args(hint):
        return list[str]
    if (origin := typing.get_origin(hint)) is Sequence:
        return list[tuple(_decodable(a) for a in typing.get_args(hint))]  # type: ignore[misc]
    return dict[str, Any] if origin is Mapping else hint


def _wants_path(hint: Any) -> bool:
    return hint is Path or (Path in typing.get_args(hint) and str not in typing.get_args(hint))


def _make_path(hint: Any, value: Any) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"no way to make {hint} from {value!r}")


def join(path: str, key: str) -> str:
    """Return the path of a key in the table at `path`; the root's path is empty."""
    return f"{path}.{key}" if path else key


def _meant(key: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(key), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
