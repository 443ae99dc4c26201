"""Output to standard output and standard error that never makes a command fail."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from streamadapt.config.secrets import scrubbed

__all__ = ["print_alert", "print_line", "tolerant_output"]


class _Tolerant:
    """A text stream that replaces characters that its encoding lacks, and discards text after its
    reader has closed the pipe.

    Parameters
    ----------
    stream : text stream or None
        None if the process has no such stream.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        if self._stream is None:
            raise AttributeError(name)
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # it is closed
            return False

    def write(self, text: str) -> int:
        if self._stream is not None:
            with suppress(BrokenPipeError, ValueError):
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:
                    self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._stream is not None:
            with suppress(BrokenPipeError, ValueError):
                self._stream.flush()


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Make this process's standard streams tolerant: a character that their encoding lacks is
    replaced, and a closed pipe is ignored."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Tolerant(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def print_line(text: str) -> None:
    """Print a result on standard output, without the config's secrets; a full disk is not a
    failure."""
    with suppress(OSError):
        sys.stdout.write(scrubbed(text) + "\n")
        sys.stdout.flush()


def print_alert(text: str, *, err: bool = False) -> None:
    """Print an important line, in red on a terminal."""
    from rich.console import Console
    from rich.text import Text

    with suppress(OSError):
        console = Console(stderr=err)
        console.print(Text(scrubbed(text), style="bold red"), soft_wrap=True, highlight=False)
