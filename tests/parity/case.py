"""What a case is: a pipeline, a stream, and where the checkpoint lies in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.streams import Item
from streamadapt import Entry, KeyedPipeline, Pipeline

BEFORE = 500
"""The entries that are learned from before the checkpoint, unless a case says otherwise."""
AFTER = 1000
"""The entries after the checkpoint; each is predicted."""

CASES: dict[str, Case] = {}
"""All cases by name; a name is also that of the case's file."""


@dataclass(frozen=True, slots=True)
class Case:
    """One golden file.

    Attributes
    ----------
    name : str
        ``task-part-setting``.
    make : callable of Path -> Pipeline or KeyedPipeline
        Makes the pipeline from nothing; the folder is for keys that leave memory.
    stream : callable of () -> list of Entry and Label
    before, after : int
        The number of entries before and after the checkpoint; a panel makes one prediction of
        several entries.
    quick : bool
        Whether the comparison runs in `make test` too.
    """

    name: str
    make: Callable[[Path], Pipeline | KeyedPipeline]
    stream: Callable[[], list[Item]]
    before: int = BEFORE
    after: int = AFTER
    quick: bool = False

    def parts(self) -> tuple[list[Item], list[Item]]:
        """Return the items before and after the checkpoint."""
        items = self.stream()
        entries = [i for i, item in enumerate(items) if isinstance(item, Entry)]
        start = entries[self.before]
        stop = [*entries, len(items)][min(self.before + self.after, len(entries))]
        return items[:start], items[start:stop]


def add(
    name: str,
    make: Callable[[], Pipeline],
    stream: Callable[[], list[Item]],
    **more: Any,
) -> None:
    """Add a case whose pipeline needs no folder."""
    add_stored(name, lambda folder: make(), stream, **more)


def add_stored(
    name: str,
    make: Callable[[Path], Pipeline | KeyedPipeline],
    stream: Callable[[], list[Item]],
    **more: Any,
) -> None:
    """Add a case."""
    if name in CASES:
        raise ValueError(f"two cases have the name {name}")
    CASES[name] = Case(name, make, stream, **more)
