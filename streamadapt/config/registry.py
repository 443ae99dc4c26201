"""Make an object from a table with a ``kind``: find its entry point, and check the arguments
against the signature."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from streamadapt.config.convert import (
    check_keys,
    check_needed,
    config_error,
    convert,
    did_you_mean,
    is_callable_hint,
    join,
    see,
)
from streamadapt.config.secrets import masked, scrubbed
from streamadapt.errors import ConfigError, StreamadaptError

__all__ = ["ROOT_KEYS", "arguments_of", "build", "call", "choose", "kinds", "prepare"]

AFTER_ROOT_KEY: Final = r"[.\[].*"
"""The part of a path after the name of its table."""
ROOT_KEYS = frozenset(
    {
        "source", "fields", "task", "base", "learners", "drift", "guard", "sink", "dead_letters",
        "checkpoint", "metrics", "limits", "keys", "panel", "device", "seed", "threads",
    }
)  # fmt: skip
"""The first names of the paths of a config."""

REMOVED_KINDS = {
    ("base", "export"): (
        '"onnx": the kind "export" was removed; convert the model once by torch.onnx.export, as '
        "docs/models.md shows"
    ),
    **{
        ("guard", kind): (
            f'"two-layer", "hedge", "mean" or "none": "{kind}" was removed from the package, it '
            f"is a comparison in "
            "benchmarks/plain_guards.py (docs/guards.md)"
        )
        for kind in ("adahedge", "boa", "median", "ml-poly", "ridge", "simplex")
    },
}
"""Removed kinds: table and kind -> what to use instead."""


def kinds(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of ``streamadapt.<group>`` by kind."""
    return {point.name: point for point in entry_points(group=f"streamadapt.{group}")}


def choose(known: Mapping[str, Any], path: str, table: Mapping[str, Any]) -> Any:
    """Return the known object that ``table["kind"]`` names.

    Raises
    ------
    ConfigError
        If no known object has that name.
    """
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in known:
        if isinstance(kind, str) and (path, kind) in REMOVED_KINDS:
            raise config_error(join(path, "kind"), kind, REMOVED_KINDS[path, kind])
        raise config_error(
            join(path, "kind"),
            kind,
            "one of " + ", ".join(sorted(known)) + did_you_mean(kind, known) + see(path),
        )
    return known[kind]


def build(group: str, path: str, table: Mapping[str, Any], **given: Any) -> Any:
    """Make the object that ``table["kind"]`` names, with the table's other keys as arguments; see
    `prepare`."""
    return prepare(group, path, table, **given)()


def prepare(group: str, path: str, table: Mapping[str, Any], **given: Any) -> Callable[[], Any]:
    """Check a table as far as possible without making its object; return a function that makes
    it.

    Parameters
    ----------
    group : str
        ``sources``, ``sinks``, ``learners``, ``bases``, ...
    path : str
        The table's path in the config, for errors.
    given : dict
        Arguments that do not come from the config; those that the object does not take are left
        out.

    Raises
    ------
    ConfigError
        With the full path of the key, the value and the expected form; the returned function
        raises it too.
    """
    point: EntryPoint = choose(kinds(group), path, table)
    try:
        target = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            join(path, "kind"), point.name, f"a kind that can be imported ({error})"
        ) from error
    return arguments_of(
        target, path, {k: v for k, v in table.items() if k != "kind"}, point.name, **given
    )


def arguments_of(
    target: Callable[..., Any],
    path: str,
    settings: Mapping[str, Any],
    kind: str | None = None,
    /,
    **given: Any,
) -> Callable[[], Any]:
    """Return the call of `target` with a table's settings, each converted to the type in its
    signature.

    Parameters
    ----------
    kind : str, optional
        The kind that the settings belong to, if the table has kinds; for errors.
    """
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # a third party's annotation with a name that only type checkers see
        hints = {}
    parameters = inspect.signature(target).parameters
    named = {
        n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    given = {name: value for name, value in given.items() if name in named}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        allowed = {n for n in named.keys() - given.keys() if not is_callable_hint(hints.get(n))}
        check_keys(
            path,
            settings,
            allowed,
            None if kind is None else f"{re.sub(AFTER_ROOT_KEY, '', path)}.{kind}",
        )
    needed = [n for n, p in named.items() if p.default is p.empty]
    for name in needed:
        # TOML has no null: a missing key stands for it.
        if type(None) in typing.get_args(hints.get(name)) and name not in settings:
            given.setdefault(name, None)
    check_needed(path, {**settings, **given}, needed)
    arguments = {
        name: _made_or_converted(value, hints.get(name, Any), join(path, name))
        for name, value in settings.items()
    }
    return partial(call, path, target, arguments | given)


def _made_or_converted(value: Any, hint: Any, path: str) -> Any:
    """Build the object that a table inside a table describes; convert any other value.

    A class with `config_group` can be described by a table: `config_group` names the group of
    entry points that has its kinds (`streamadapt.learners.base.Learner`).
    """
    if isinstance(value, Mapping):
        for one in (hint, *typing.get_args(hint)):
            group = getattr(one, "config_group", None) if inspect.isclass(one) else None
            if group is not None:
                return build(group, path, value)
    return convert(value, hint, path)


def call(path: str, target: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call `target`; an error of its own checks gets the full path.

    Raises
    ------
    ConfigError
        If `target` raises any exception for its arguments, except another `StreamadaptError`.
    """
    try:
        return target(**arguments)
    except ConfigError as error:
        raise config_error(_full(path, error.path), error.value, error.expected) from error
    except StreamadaptError:
        raise
    except Exception as error:  # a third party's class may raise any exception
        reason = scrubbed(f"{type(error).__name__}: {error}")
        raise ConfigError(
            path, masked(path, dict(arguments)), f"arguments that fit ({reason})"
        ) from error


def _full(path: str, reported: str) -> str:
    """Return the path of an error in the whole config, from the path that the check reported.

    The check of ``learners[1]`` reports ``rate`` or ``learners.rate``, or a key of another table:
    ``task.window``.
    """
    head, *_ = re.split(r"[.\[]", reported)
    if head not in ROOT_KEYS:
        return join(path, reported)
    rest = reported[len(head) :]
    return path + rest if path.startswith(f"{head}[") and not rest.startswith("[") else reported
