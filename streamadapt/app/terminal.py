"""Helpers of both dead-letter commands: safe text, and progress while a long topic is read."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress", "safe"]

ASCII = re.compile(r"[ -~]*")


def safe(text: str) -> str:
    """Return text that is safe to print: control characters, line breaks and characters that
    change the text's direction become escapes."""
    if ASCII.fullmatch(text):
        return text
    return "".join(
        _escaped(c) if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" else c
        for c in text
    )


def _escaped(c: str) -> str:
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(c)
    if named is not None:
        return named
    code = ord(c)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on a terminal, and yield the function that updates it; yield None if
    standard error is not a terminal.

    Parameters
    ----------
    what : str
        What is being read.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(safe(what), total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
