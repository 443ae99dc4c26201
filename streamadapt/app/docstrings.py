"""Parses NumPy style docstrings: the summary, and the type and description of each parameter."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any, Final, NamedTuple

__all__ = ["Entry", "described", "described_names", "summary_of"]

HEADING: Final = re.compile(r"^(?P<name>[A-Z][A-Za-z ]+)\n-{3,}$", re.MULTILINE)
SECTIONS: Final = ("Parameters", "Attributes")
ELSEWHERE: Final = re.compile(r"As for `(?P<name>\w+)`\.")
REFERENCE: Final = re.compile(r",? ?\[\d+\]_")
BARE_POINT: Final = re.compile(r"(?<![\w.)\]])(?=\.\d)")
"""Matches before a number such as .5, which TOML does not allow."""


class Entry(NamedTuple):
    """The description of one name in a docstring.

    Attributes
    ----------
    type : str
        The text after the colon: ``float, > 0``.
    text : str
        The description, as one line of Markdown.
    """

    type: str
    text: str


def summary_of(target: Any) -> str:
    """Return the first paragraph of a docstring as one line of Markdown; empty if there is no
    docstring."""
    return _one_line((inspect.getdoc(target) or "").partition("\n\n")[0])


def described(target: Any, depth: int = 3) -> dict[str, Entry]:
    """Return the description of each parameter and attribute in the docstring of a class or
    function.

    ``As for `Other`.`` is replaced by the description in the docstring of `Other`, a name in the
    same module; at most `depth` such references are followed.
    """
    entries: dict[str, Entry] = {}
    for names, kind, text in _items(inspect.getdoc(target) or ""):
        elsewhere = ELSEWHERE.fullmatch(text)
        other = (
            getattr(sys.modules[target.__module__], elsewhere["name"], None) if elsewhere else None
        )
        if other is not None and depth:
            known = described(other, depth - 1)
            entries |= {name: known[name] for name in names if name in known}
        else:
            entries |= {name: Entry(kind, text) for name in names}
    return entries


def described_names(docstring: str) -> list[str]:
    """Return the names of the parameters and attributes that a docstring describes."""
    return [name for names, _, _ in _items(inspect.cleandoc(docstring)) for name in names]


def _items(docstring: str) -> list[tuple[list[str], str, str]]:
    """Return names, type and text of each item of the sections that describe arguments."""
    parts = HEADING.split(docstring)  # text, heading, text, heading, text ...
    items: list[tuple[list[str], str, str]] = []
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        if heading not in SECTIONS:
            continue
        for block in re.split(r"\n(?=\S)", body.strip("\n")):
            first, _, rest = block.partition("\n")
            names, _, kind = first.partition(" : ")
            items.append(
                ([name.strip() for name in names.split(",")], kind.strip(), _one_line(rest))
            )
    return items


def _one_line(text: str) -> str:
    """Join the lines, remove references, and mark code as in Markdown."""
    return BARE_POINT.sub("0", REFERENCE.sub("", " ".join(text.split()).replace("``", "`")))
