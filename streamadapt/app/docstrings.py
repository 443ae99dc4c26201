"""NumPy style docstrings, read back: the summary, and what is written under each parameter."""

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
"""Before a number such as .5, which TOML does not take."""


class Entry(NamedTuple):
    """What a docstring says of one name.

    Attributes
    ----------
    type : str
        What stands behind the colon: ``float, > 0``.
    text : str
        The description, as one line of Markdown.
    """

    type: str
    text: str


def summary_of(target: Any) -> str:
    """Return the first paragraph of a docstring as one line of Markdown; empty where there is
    none."""
    return _one_line((inspect.getdoc(target) or "").partition("\n\n")[0])


def described(target: Any, depth: int = 3) -> dict[str, Entry]:
    """Return what the docstring of a class or function says of each parameter or attribute.

    ``As for `Other`.`` is replaced by what `Other`, a name in its module, says; at most `depth`
    times.
    """
    found: dict[str, Entry] = {}
    for names, kind, text in _items(inspect.getdoc(target) or ""):
        elsewhere = ELSEWHERE.fullmatch(text)
        other = (
            getattr(sys.modules[target.__module__], elsewhere["name"], None) if elsewhere else None
        )
        if other is not None and depth:
            known = described(other, depth - 1)
            found |= {name: known[name] for name in names if name in known}
        else:
            found |= {name: Entry(kind, text) for name in names}
    return found


def described_names(docstring: str) -> list[str]:
    """Return the names that a docstring's parameters and attributes describe."""
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
    """Join the lines, leave references out, and write code as Markdown does."""
    return BARE_POINT.sub("0", REFERENCE.sub("", " ".join(text.split()).replace("``", "`")))
