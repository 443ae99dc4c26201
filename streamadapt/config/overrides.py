"""Settings from the environment and the command line, put over a config file's table."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from streamadapt.config.convert import wrong
from streamadapt.config.renamed import old_spelling
from streamadapt.config.secrets import HIDDEN, is_secret

__all__ = ["PREFIX", "apply_environment", "apply_settings", "setting_of", "variable_of"]

PREFIX: Final = "STREAMADAPT__"
FILE: Final = "_file"
IN_A_FILE: Final = re.compile(
    r"(?:passw(?:or)?d|pwd|passphrase|secret|token|credentials?|username|(?:api|access|account|private|secret)_?key)_file$",
    re.IGNORECASE,
)


def setting_of(name: str) -> str | None:
    """Return which setting ``NAME_file`` has the content of its file for; None where the name is
    not of that form.

    Only names that end in a word for a secret, or in ``username``, have it: other settings may
    well end in ``_file``.
    """
    return name[: -len(FILE)] if IN_A_FILE.search(name) else None


def apply_environment(table: dict[str, Any], environment: Mapping[str, str]) -> set[str]:
    """Put ``STREAMADAPT__A__B=value`` at ``a.b``; return the paths that were set, such as
    ``learners.0.lr``.

    Raises
    ------
    ConfigError
        If the table has no such place.
    """
    found = [(_keys_of(name), name) for name in environment if name.startswith(PREFIX)]
    put: set[str] = set()
    for keys, name in sorted(
        found, key=lambda item: [(int(k) if k.isdecimal() else 0, k) for k in item[0]]
    ):
        _put(table, keys, environment[name], name, put)
    return put


def apply_settings(table: dict[str, Any], settings: Sequence[str]) -> set[str]:
    """Put ``a.b=value`` at ``a.b``; see `apply_environment`."""
    put: set[str] = set()
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            word = setting.split()[0] if setting.split() else setting
            raise wrong(
                "--set", HIDDEN if is_secret(word) else word, "KEY=VALUE, such as task.window=6"
            )
        _put(table, name.strip().split("."), value, "--set " + name.strip(), put)
    return put


def variable_of(path: str, environment: Mapping[str, str]) -> str | None:
    """Return the variable that set the config path of an error, if one did."""
    keys = path.replace("[", ".").replace("]", "").split(".")
    for name in environment:
        if name.startswith(PREFIX) and _keys_of(name)[: len(keys)] in (keys, old_spelling(keys)):
            return name
    return None


def _keys_of(name: str) -> list[str]:
    return name[len(PREFIX) :].lower().split("__")


def _put(table: dict[str, Any], keys: Sequence[str], text: str, name: str, put: set[str]) -> None:
    """Put one setting; `put` are the paths that this layer, environment or command line, has put
    before."""
    path = ".".join(keys)
    if not all(keys):
        raise wrong(name, _value(path, text), "a name between each pair of separators")
    where: Any = table
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        place = _place(where, key, name, path, text)
        if following is None:
            where[place] = _value(path, text)
            _replace_other_form(where, key, path, put)
        elif isinstance(where, list):
            where = where[place]
        else:
            # What is not there yet becomes a list of tables where an index follows.
            where = where.setdefault(place, [] if following.isdecimal() else {})


def _replace_other_form(where: Any, key: str, path: str, put: set[str]) -> None:
    """A secret put here wins over the file that a lower layer names for it, and the other way
    round."""
    other = setting_of(key) or key + FILE
    has_two = setting_of(key) is not None or setting_of(other) is not None
    if has_two and isinstance(where, dict) and path.removesuffix(key) + other not in put:
        where.pop(other, None)
    put.add(path)


def _place(where: Any, key: str, name: str, path: str, text: str) -> Any:
    """Return `key` as the place that it means in a table or a list; one past the end of a list
    makes a table there."""
    if isinstance(where, dict):
        return key
    if not isinstance(where, list):
        raise wrong(name, _value(path, text), "a table to put it in, but there is a plain value")
    if not key.isdecimal() or int(key) > len(where):
        raise wrong(
            name, _value(path, text), f"an index from 0 to {len(where)} where it says {key!r}"
        )
    if int(key) == len(where):
        where.append({})
    return int(key)


def _value(path: str, text: str) -> Any:
    if is_secret(path.rpartition(".")[2]):
        return text  # a password of digits is text all the same
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text  # a line break could bring in more
