"""Keys of a config that were renamed: their old names still work, with a warning, for one
release."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from streamadapt.config.secrets import masked
from streamadapt.errors import ConfigError

__all__ = [
    "RENAMED",
    "accepts_old_names",
    "old_spelling",
    "renamed_keys",
    "settings_with_new_names",
    "use_new_names",
    "with_old_names",
]

T = TypeVar("T")

RENAMED: Final[Mapping[str, Mapping[str, str]]] = {
    "drift": {"keep": "keep_fraction", "trial": "refit_trial"},
    "learners.error_memory": {"lam": "strength", "floor": "min_entries"},
    "learners.liquid": {"late": "max_label_delay"},
    "task.supervised": {"settle": "correction_window"},
}
"""The new name of each renamed key by its old one, by table as ``streamadapt config`` calls it.

The digest of a config is computed from the old names: an entry may lose its warning and its old
spelling in a later release, but taking it out would refuse every checkpoint of a config that has
the key.
"""


def renamed_keys(path: str, kind: object = None) -> Mapping[str, str]:
    """Return the new names by the old ones for the table at a path of a config.

    Parameters
    ----------
    path : str
        ``task``, ``drift[0]``, ``learners[1].learner``: a learner may be within another one.
    kind : object
        The table's ``kind``, where it has one.
    """
    root = re.split(r"[.\[]", path)[0]
    shared = RENAMED.get(root, {}) if "." not in path else {}
    return {**shared, **RENAMED.get(f"{root}.{kind}", {})}


def use_new_names(
    config: dict[str, Any], warn: Callable[[str], None], put: Collection[str] = ()
) -> None:
    """Replace the old names in a config's tables by the new ones, in place.

    Parameters
    ----------
    warn : callable (str) -> None
        Takes one line for each old name.
    put : collection of str
        Paths such as ``learners.0.lam`` that the environment or the command line has just set:
        they have priority over the other name of the same key, which was there before.

    Raises
    ------
    ConfigError
        If one place gives both names of a key.
    """
    for path, table in _tables("", config):
        for old, new in renamed_keys(path, table.get("kind")).items():
            if old not in table:
                continue
            value = table.pop(old)
            is_newer = {name: _dotted(f"{path}.{name}") in put for name in (old, new)}
            if new in table and is_newer[old] == is_newer[new]:
                raise ConfigError(
                    f"{path}.{new}",
                    masked(f"{path}.{new}", table[new]),
                    f"either {new} or its old name {old}, not both",
                )
            if new not in table or is_newer[old]:
                table[new] = value
            warn(f"{path}.{old}: {_advice(old, new)}")


def with_old_names(value: Any, path: str = "") -> Any:
    """Return a copy of a config's tables with the old names: what the digest is computed from."""
    if isinstance(value, list):
        return [with_old_names(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    old = {new: old for old, new in renamed_keys(path, value.get("kind")).items()}
    return {
        old.get(key, key): with_old_names(item, f"{path}.{key}" if path else str(key))
        for key, item in value.items()
    }


def settings_with_new_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a digest by their paths in today's names, for a person to read."""
    named = {}
    for path, value in settings.items():
        table, dot, key = path.rpartition(".")
        names = renamed_keys(table, settings.get(f"{table}.kind"))
        named[f"{table}{dot}{names.get(key, key)}"] = value
    return named


def old_spelling(keys: Sequence[str]) -> list[str]:
    """Return the keys of a path, by their old names where a table below the same root has them."""
    old = {
        new: old
        for table, names in RENAMED.items()
        if keys and table.partition(".")[0] == keys[0]
        for old, new in names.items()
    }
    return [old.get(key, key) for key in keys]


def accepts_old_names(table: str) -> Callable[[type[T]], type[T]]:
    """Let a class take the renamed arguments by their old names, too, with a `DeprecationWarning`.

    Parameters
    ----------
    table : str
        Which of `RENAMED` the arguments are the keys of.
    """
    names = RENAMED[table]

    def decorate(cls: type[T]) -> type[T]:
        initialise = cls.__init__

        @functools.wraps(initialise)
        def accept(self: T, *args: Any, **kwargs: Any) -> None:
            for old, new in names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise ConfigError(
                        f"{cls.__name__}.{new}",
                        kwargs[new],
                        f"either {new} or its old name {old}, not both",
                    )
                text = f"{cls.__name__}({old}=...): {_advice(old, new)}"
                warnings.warn(text, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            initialise(self, *args, **kwargs)

        cls.__init__ = accept  # type: ignore[method-assign,assignment]
        cls.renamed_arguments = names  # type: ignore[attr-defined]
        return cls

    return decorate


def _advice(old: str, new: str) -> str:
    return f"{old} was renamed to {new}; the old name stops working in the next release"


def _tables(path: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every table below a path, with its own path."""
    if isinstance(value, dict):
        if path:
            yield path, value
        for key, item in list(value.items()):
            yield from _tables(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _tables(f"{path}[{i}]", item)


def _dotted(path: str) -> str:
    return path.replace("[", ".").replace("]", "")
