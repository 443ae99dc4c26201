"""Settings from the environment and the command line, which override those of a config file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from streamadapt.config.convert import config_error
from streamadapt.config.renamed import old_spelling
from streamadapt.config.secrets import HIDDEN, is_secret

__all__ = ["PREFIX", "apply_environment", "apply_settings", "setting_of", "variable_of"]

PREFIX: Final = "STREAMADAPT__"
FILE_SUFFIX: Final = "_file"
SECRET_FILE_KEY: Final = re.compile(
    r"(?:passw(?:or)?d|pwd|passphrase|secret|token|credentials?|username|(?:api|access|account|private|secret)_?key)_file$",
    re.IGNORECASE,
)


def setting_of(name: str) -> str | None:
    """Return the setting ``NAME`` whose value is read from the file of ``NAME_file``; None if the
    name does not have that form.

    Only a name that ends in a word for a secret, or in ``username``, has that form: other settings
    may end in ``_file`` too.
    """
    return name[: -len(FILE_SUFFIX)] if SECRET_FILE_KEY.search(name) else None


def apply_environment(table: dict[str, Any], environment: Mapping[str, str]) -> set[str]:
    """Set ``a.b`` in the table for each variable ``STREAMADAPT__A__B=value``; return the paths
    that were set, such as ``learners.0.lr``.

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
    """Set ``a.b`` in the table for each text ``a.b=value``; see `apply_environment`."""
    put: set[str] = set()
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            word = setting.split()[0] if setting.split() else setting
            raise config_error(
                "--set", HIDDEN if is_secret(word) else word, "KEY=VALUE, such as task.window=6"
            )
        _put(table, name.strip().split("."), value, "--set " + name.strip(), put)
    return put


def variable_of(path: str, environment: Mapping[str, str]) -> str | None:
    """Return the environment variable that set the config path of an error; None if there is
    none."""
    keys = path.replace("[", ".").replace("]", "").split(".")
    for name in environment:
        if name.startswith(PREFIX) and _keys_of(name)[: len(keys)] in (keys, old_spelling(keys)):
            return name
    return None


def _keys_of(name: str) -> list[str]:
    return name[len(PREFIX) :].lower().split("__")


def _put(table: dict[str, Any], keys: Sequence[str], text: str, name: str, put: set[str]) -> None:
    """Set one value; `put` has the paths that the same layer, environment or command line, has
    already set."""
    path = ".".join(keys)
    if not all(keys):
        raise config_error(name, _value(path, text), "a name between each pair of separators")
    where: Any = table
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        place = _place(where, key, name, path, text)
        if following is None:
            where[place] = _value(path, text)
            _replace_other_form(where, key, path, put)
        elif isinstance(where, list):
            where = where[place]
        else:
            # A missing part becomes a list of tables if an index follows, else a table.
            where = where.setdefault(place, [] if following.isdecimal() else {})


def _replace_other_form(where: Any, key: str, path: str, put: set[str]) -> None:
    """Let a secret replace the file that a lower layer names for it, and a file replace the secret
    of a lower layer."""
    other = setting_of(key) or key + FILE_SUFFIX
    has_two = setting_of(key) is not None or setting_of(other) is not None
    if has_two and isinstance(where, dict) and path.removesuffix(key) + other not in put:
        where.pop(other, None)
    put.add(path)


def _place(where: Any, key: str, name: str, path: str, text: str) -> Any:
    """Return the place of `key` in a table or a list; the index after the last one appends a table
    to the list."""
    if isinstance(where, dict):
        return key
    if not isinstance(where, list):
        raise config_error(
            name, _value(path, text), "a table to put it in, but there is a plain value"
        )
    if not key.isdecimal() or int(key) > len(where):
        raise config_error(
            name, _value(path, text), f"an index from 0 to {len(where)} where it says {key!r}"
        )
    if int(key) == len(where):
        where.append({})
    return int(key)


def _value(path: str, text: str) -> Any:
    if is_secret(path.rpartition(".")[2]):
        return text  # a password of digits is still text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text  # a line break could add more keys
