"""Collects every key of a config with its type, default and meaning from signatures and
docstrings, also those of third parties."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, Final, NamedTuple

import msgspec

from streamadapt.app.config_words import (
    default_text,
    duration_text,
    is_settable,
    table_class,
    type_text,
)
from streamadapt.app.docstrings import Entry, described, summary_of
from streamadapt.build import TASK_DURATIONS, kinds_of_table
from streamadapt.config.registry import kinds
from streamadapt.config.renamed import RENAMED
from streamadapt.config.tables import REQUIRED_TABLES, BaseKeys, Config, LimitKeys, SourceKeys
from streamadapt.drift.monitor import DriftMonitor
from streamadapt.errors import ConfigError
from streamadapt.pipeline.intervals import Intervals
from streamadapt.pipeline.panel import Panel

__all__ = ["ROOT", "Key", "Table", "find_tables", "tables"]

ROOT: Final = "top"
"""The path of the keys above the first table."""

_CLASSES: Final[Mapping[str, type]] = {
    "drift": DriftMonitor, "intervals": Intervals, "panel": Panel, "limits": LimitKeys,
    "source": SourceKeys, "base": BaseKeys,
}  # fmt: skip
"""Table -> the class that describes the keys that all kinds of this table have."""
_FROM_ELSEWHERE: Final[Mapping[str, str]] = {
    "base.persistence.horizon": "task.horizon",
    "fields.outputs": "task.outputs",
    "fields.text_numbers": "true for CSV files, else false",
    "panel.max_ahead": "limits.max_ahead, else 1d or 16 steps, whichever is longer",
    "sink.kafka.servers": "the servers of a Kafka source",
    "sink.kafka.security": "source.security, if the servers are the source's too",
    "dead_letters.kafka.servers": "the servers of a Kafka source",
    "dead_letters.kafka.security": "source.security, if the servers are the source's too",
    "keys.path": "a folder in the folder of the checkpoints",
}
"""Defaults that come from another key of the config."""
_NOT_A_KEY: Final = frozenset({"fields.classes"})
"""Arguments that are not keys: `codec_fields` takes their values from ``[task]``."""


class Key(NamedTuple):
    """One key of a table.

    Attributes
    ----------
    default : str or None
        The default as TOML text; None if the key is needed.
    """

    name: str
    type: str
    default: str | None
    meaning: str


class Table(NamedTuple):
    """One table of a config, or the keys that one kind adds to it.

    Attributes
    ----------
    path : str
        ``source``, or ``source.kafka`` for a kind.
    header : str
        The table's header in TOML: ``[source]``, ``[[learners]]``.
    kind : str
        Empty if the keys are those of all kinds.
    needed : bool
        Whether a config must have this table.
    summary : str
        The purpose of the table, one paragraph of Markdown.
    """

    path: str
    header: str
    kind: str
    needed: bool
    summary: str
    keys: tuple[Key, ...]


def tables() -> list[Table]:
    """Return the tables in the order of `Config`, each followed by its kinds and the tables inside
    it."""
    about, hints = described(Config), typing.get_type_hints(Config)
    scalars = {name for name, hint in hints.items() if not _is_table(hint)}
    top = _keys(Config, ROOT, only=scalars)
    found = [Table(ROOT, "", "", False, "Keys above the first table.", top)]
    nested: dict[type, str] = {}
    for name, hint in hints.items():
        if name not in scalars:
            found += _table(name, hint, about[name].text, nested)
    return found


def find_tables(path: str) -> list[Table]:
    """Return the table of a path such as ``source`` with its kinds and inner tables, or one kind
    (``learners.rls``).

    Raises
    ------
    ConfigError
        If there is no such table.
    """
    every = tables()
    wanted = path.strip("[] ")
    found = [
        table for table in every if table.path == wanted or table.path.startswith(f"{wanted}.")
    ]
    if not found:
        raise ConfigError(
            "TABLE",
            path,
            "one of " + ", ".join(table.path for table in every if "." not in table.path),
        )
    return found


def _table(name: str, hint: Any, summary: str, nested: dict[type, str]) -> Iterator[Table]:
    header = f"[[{name}]]" if typing.get_origin(_tables_hint(hint)) is list else f"[{name}]"
    shared = _shared(name, hint)
    keys = () if shared is None else _keys(shared, name)
    yield Table(name, header, "", name in REQUIRED_TABLES, summary, keys)
    makers = kinds_of_table(name)
    for kind, target in makers.items():
        path = f"{name}.{kind}"
        own = tuple(key for key in _keys(target, path) if key.name not in {k.name for k in keys})
        yield Table(path, header, kind, False, summary_of(target), own)
    for target in [shared, *makers.values()]:
        for key, described_by in _within(target, nested, name):
            path = f"{name}.{key}"
            yield Table(
                path, f"[{path}]", "", False, summary_of(described_by), _keys(described_by, path)
            )


def _shared(name: str, hint: Any) -> Any:
    """Return the class that describes the keys that all kinds of a table have; None if there are
    no such keys."""
    if name in _CLASSES:
        return _CLASSES[name]
    if name == "fields":
        return _hints(kinds("codecs")["json"].load())["fields"]
    member = _tables_hint(hint)
    return member if inspect.isclass(member) and issubclass(member, msgspec.Struct) else None


def _tables_hint(hint: Any) -> Any:
    """Return the type of a table, without ``| None``."""
    if not _is_optional(hint):
        return hint
    return next(member for member in typing.get_args(hint) if member is not type(None))


def _is_optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _is_table(hint: Any) -> bool:
    member = _tables_hint(hint)
    is_struct = inspect.isclass(member) and issubclass(member, msgspec.Struct)
    return is_struct or typing.get_origin(member) in (dict, list)


def _within(target: Any, nested: dict[type, str], name: str) -> Iterator[tuple[str, type]]:
    """Yield each documented table inside a table, unless an earlier table had it."""
    if target is None:
        return
    for key, hint in _hints(target).items():
        described_by = table_class(hint)
        if described_by is not None and described_by not in nested:
            nested[described_by] = f"{name}.{key}"
            yield key, described_by


def _keys(
    target: Callable[..., Any], path: str, only: Collection[str] | None = None
) -> tuple[Key, ...]:
    """Return the arguments of a class or function that a config can set, in the order of its
    signature; with `only`, just these names."""
    about, hints = described(target), _hints(target)
    keys = []
    for name, parameter in inspect.signature(target).parameters.items():
        hint = hints.get(name, Any)
        is_left_out = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        is_left_out |= f"{path}.{name}" in _NOT_A_KEY or (only is not None and name not in only)
        if not is_left_out and is_settable(hint):
            keys.append(_key(path, parameter, hint, about.get(name, Entry("", ""))))
    return tuple(keys)


def _key(path: str, parameter: inspect.Parameter, hint: Any, about: Entry) -> Key:
    name, default, place = parameter.name, parameter.default, f"{path}.{parameter.name}"
    documented = about.type
    if path.startswith("task.") and name in TASK_DURATIONS:
        hint, documented = str, "duration"
        default = duration_text(default) if isinstance(default, int) else default
    if place in _FROM_ELSEWHERE:
        shown: str | None = _FROM_ELSEWHERE[place]
    elif default is parameter.empty or default is msgspec.NODEFAULT:
        shown = "none" if _is_optional(hint) else None
    else:
        shown = default_text(default)
    old = next((old for old, new in RENAMED.get(path, {}).items() if new == name), None)
    meaning = about.text if old is None else f"{about.text} Old name: `{old}`."
    return Key(name, type_text(hint, documented, default), shown, meaning)


def _hints(target: Any) -> dict[str, Any]:
    """Return the types of the arguments, with their annotations; empty if the code of a third
    party uses names that cannot be resolved."""
    plain = is_dataclass(target) or (
        inspect.isclass(target) and issubclass(target, msgspec.Struct)
    )
    function = target if plain or not inspect.isclass(target) else target.__init__
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:
        return {}
