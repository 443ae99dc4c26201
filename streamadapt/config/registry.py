"""From a ``kind`` in a config to an object: entry points, and arguments checked against the
signature."""

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
    convert,
    is_callable_hint,
    join,
    meant,
    see,
    wrong,
)
from streamadapt.config.secrets import masked, scrubbed
from streamadapt.errors import ConfigError, StreamadaptError

__all__ = ["ROOTS", "arguments_of", "build", "call", "choose", "kinds", "prepare"]

BEHIND_ROOT: Final = r"[.\[].*"
"""What stands in a path behind the name of its table."""
ROOTS = frozenset(
    {
        "source", "fields", "task", "base", "learners", "drift", "guard", "sink", "dead_letters",
        "checkpoint", "metrics", "limits", "keys", "panel", "device", "seed", "threads",
    }
)  # fmt: skip
"""What the paths of a config start with."""

REMOVED = {
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
"""Kinds that were removed, by table and kind: what to use instead."""


def kinds(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of ``streamadapt.<group>`` by kind."""
    return {point.name: point for point in entry_points(group=f"streamadapt.{group}")}


def choose(known: Mapping[str, Any], path: str, table: Mapping[str, Any]) -> Any:
    """Return what ``table["kind"]`` names.

    Raises
    ------
    ConfigError
        If it names nothing that is known.
    """
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in known:
        if isinstance(kind, str) and (path, kind) in REMOVED:
            raise wrong(join(path, "kind"), kind, REMOVED[path, kind])
        raise wrong(
            join(path, "kind"),
            kind,
            "one of " + ", ".join(sorted(known)) + meant(kind, known) + see(path),
        )
    return known[kind]


def build(group: str, path: str, table: Mapping[str, Any], **given: Any) -> Any:
    """Make what ``table["kind"]`` names, with the table's other keys as arguments; see
    `prepare`."""
    return prepare(group, path, table, **given)()


def prepare(group: str, path: str, table: Mapping[str, Any], **given: Any) -> Callable[[], Any]:
    """Check all that can be checked without making it, and return what makes it.

    Parameters
    ----------
    group : str
        ``sources``, ``sinks``, ``learners``, ``bases``, ...
    path : str
        Where the table stands in the config, for errors.
    given : dict
        Arguments that do not come from the config; the ones the target does not take are left out.

    Raises
    ------
    ConfigError
        With the full path of the key, the value and what was expected; also from what is returned.
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
    """Return the call of `target` with a table's settings, each converted to what its signature
    says.

    Parameters
    ----------
    kind : str, optional
        Whose settings these are, where the table has kinds; for errors.
    """
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # a third party's names that exist for type checkers only
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
            None if kind is None else f"{re.sub(BEHIND_ROOT, '', path)}.{kind}",
        )
    needed = [n for n, p in named.items() if p.default is p.empty]
    # TOML has no null: leaving a key out is the way to say it.
    given = {
        n: None
        for n in needed
        if type(None) in typing.get_args(hints.get(n)) and n not in settings
    } | given
    check_needed(path, {**settings, **given}, needed)
    arguments = {
        name: _made_or_converted(value, hints.get(name, Any), join(path, name))
        for name, value in settings.items()
    }
    return partial(call, path, target, arguments | given)


def _made_or_converted(value: Any, hint: Any, path: str) -> Any:
    """Build what a table within a table describes; convert anything else.

    A class says with `config_group` that a table can stand for one of it: in which group of entry
    points its kinds are (`streamadapt.learners.base.Learner`).
    """
    if isinstance(value, Mapping):
        for one in (hint, *typing.get_args(hint)):
            group = getattr(one, "config_group", None) if inspect.isclass(one) else None
            if group is not None:
                return build(group, path, value)
    return convert(value, hint, path)


def call(path: str, target: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call `target`, giving the errors of its own checks the full path.

    Raises
    ------
    ConfigError
        If it refuses its arguments, in whatever way.
    """
    try:
        return target(**arguments)
    except ConfigError as error:
        raise wrong(_full(path, error.path), error.value, error.expected) from error
    except StreamadaptError:
        raise
    except Exception as error:  # a third party's own way of refusing
        reason = scrubbed(f"{type(error).__name__}: {error}")
        raise ConfigError(
            path, masked(path, dict(arguments)), f"arguments that fit ({reason})"
        ) from error


def _full(path: str, said: str) -> str:
    """Return the path of an error in the whole config, from the one its checker knows.

    The checker of ``learners[1]`` says ``rate`` or ``learners.rate``, or names another table:
    ``task.window``.
    """
    head, *_ = re.split(r"[.\[]", said)
    if head not in ROOTS:
        return join(path, said)
    rest = said[len(head) :]
    return path + rest if path.startswith(f"{head}[") and not rest.startswith("[") else said
