"""Objects that show the arguments they were made with: ``RLS(forgetting=0.998)``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

__all__ = ["ShowsArguments"]

MOST_CHARACTERS: Final = 60
"""Of one value; what is longer is cut off."""
MOST_ITEMS: Final = 20
"""Of a list or table."""


class ShowsArguments:
    """Gives a class the ``repr`` of its constructor's call, in the order of the signature.

    Shown are the arguments that differ from their defaults. They are kept as text: the values
    themselves, a model or an array of samples, would be held in memory, and copied and pickled
    with the object.

    Examples
    --------
    >>> class Smoother(ShowsArguments):
    ...     def __init__(self, rate: float, steps: int = 3) -> None: ...
    >>> Smoother(0.5), Smoother(0.1, steps=4)
    (Smoother(rate=0.5), Smoother(rate=0.1, steps=4))
    """

    _arguments: str

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make the object and remember its arguments; copies and unpickled objects get them with
        their state."""
        made = super().__new__(cls)
        made.__dict__["_arguments"] = _arguments_text(cls, args, kwargs)
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.__dict__.get('_arguments', '')})"


def _arguments_text(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return ``name=value`` for each argument that is not its default; empty where the call is
    wrong."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]  # of this class and no other
    renamed = getattr(cls, "renamed_arguments", {})  # see `streamadapt.config.renamed`
    named = {k if k in signature.parameters else renamed.get(k, k): v for k, v in kwargs.items()}
    try:
        bound = signature.bind(None, *args, **named)
    except TypeError:  # `__init__` says it better
        return ""
    parameters = list(signature.parameters.values())[1:]
    given = [(p, bound.arguments[p.name]) for p in parameters if p.name in bound.arguments]
    return ", ".join(
        f"{p.name}={_shown(value)}" for p, value in given if not _same(value, p.default)
    )


def _same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    try:
        return type(value) is type(default) and bool(value == default)
    except Exception:  # an array, or a third party's own way of comparing
        return False


def _shown(value: Any) -> str:
    """Return a short text for a value."""
    if isinstance(value, ShowsArguments):
        return repr(value)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        items = [_shown(item) for item in value[:MOST_ITEMS]] + ["..."] * (len(value) > MOST_ITEMS)
        text = ", ".join(items) + "," * (isinstance(value, tuple) and len(value) == 1)
        return f"({text})" if isinstance(value, tuple) else f"[{text}]"
    # An array or a tensor, whose library need not be loaded here.
    if isinstance(getattr(value, "shape", None), tuple):
        return f"{type(value).__name__}{tuple(value.shape)}"
    if callable(value):  # a function, or a torch module, whose own text has a line for each layer
        return getattr(value, "__qualname__", f"{type(value).__name__}(...)")
    try:
        text = repr(str(value) if isinstance(value, Path) else value)
    except Exception:  # a third party's own text
        text = f"{type(value).__name__}(...)"
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
