"""What a config leaves open about its connectors, answered by the connectors' own classes.

Nothing here knows a connector by its name: what differs from one to the next is an attribute or a
class method of the ports in `streamadapt.engine`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from streamadapt.config.registry import kinds
from streamadapt.config.tables import Config
from streamadapt.engine.ports import Source
from streamadapt.errors import ConfigError

__all__ = [
    "FORM",
    "ask",
    "dead_letters_table",
    "source_class",
    "with_connection",
    "without_foreign_form",
]

FORM: Final = ("delimiter", "columns", "comment", "encoding")
"""Keys of ``[source]`` that say how files are written, also for `replay` and `fit`."""


def _class_of(group: str, table: Mapping[str, Any]) -> Any:
    """Return what a table's kind names; None if that cannot be loaded, which `build` reports."""
    point = kinds(group).get(str(table.get("kind")))
    try:
        return None if point is None else point.load()
    except (ImportError, AttributeError):
        return None


def ask(group: str, table: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return an attribute of the class that a table's kind names.

    Parameters
    ----------
    group : str
        ``sources``, ``sinks``, ``dead_letters``, ...
    default
        What holds for a kind that is not known, or that says nothing about it.
    """
    return getattr(_class_of(group, table), name, default)


def source_class(config: Config) -> type[Source]:
    """Return the class of the config's source; `Source` itself where it is none of these."""
    found = _class_of("sources", config.source)
    return found if inspect.isclass(found) and issubclass(found, Source) else Source


def without_foreign_form(group: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Take out the keys of `FORM` that a table's kind does not have."""
    found = _class_of(group, table)
    if found is None:
        return dict(table)
    known = inspect.signature(found).parameters
    if any(known[name].kind is inspect.Parameter.VAR_KEYWORD for name in known):
        return dict(table)
    return {k: v for k, v in table.items() if k not in FORM or k in known}


def dead_letters_table(config: Config) -> dict[str, Any]:
    """Return the table of the dead letters, which go beside the predictions by default.

    Raises
    ------
    ConfigError
        If the config names no place for them, and the sink knows none.
    """
    if config.dead_letters is not None:
        return dict(config.dead_letters)
    beside = ask("sinks", config.sink, "dead_letters_beside", lambda settings: None)(config.sink)
    if beside is None:
        expected = "a table [dead_letters]: refused records must go somewhere"
        raise ConfigError("dead_letters", None, expected)
    return {"kind": config.sink["kind"], **beside}


def with_connection(
    group: str, table: Mapping[str, Any], source: Mapping[str, Any]
) -> dict[str, Any]:
    """Give a table the source's connection, where it is of the same kind and names none itself."""
    table = dict(table)
    shared: tuple[str, ...] = ask(group, table, "connection", ())
    if shared and table.get("kind") == source.get("kind") and shared[0] not in table:
        for name in shared:
            if name in source:
                table.setdefault(name, source[name])
    return table
