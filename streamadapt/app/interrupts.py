"""A command that has something to clean up ends in order at SIGINT and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from streamadapt.app.exit_codes import EXIT_SIGNALLED
from streamadapt.app.signals import STOPPING

__all__ = ["interruptible"]


class _Signalled(KeyboardInterrupt):
    """A signal came.

    Parameters
    ----------
    number : int
        Which.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[None]:
    """Make SIGINT and SIGTERM exceptions, so that what is open is closed; then say so, and exit
    with 130 or 143."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        raise _Signalled(number)

    before = {number: signal.signal(number, on_signal) for number in STOPPING}
    try:
        yield
    except (KeyboardInterrupt, typer.Abort) as error:
        # At a prompt Ctrl-C, an answer that never comes and a "no" are the same exception; only
        # what it hides differs.
        hidden = error.__context__ if isinstance(error, typer.Abort) else error
        if not isinstance(hidden, KeyboardInterrupt):
            raise
        say("interrupted")
        number = hidden.number if isinstance(hidden, _Signalled) else signal.SIGINT
        raise SystemExit(EXIT_SIGNALLED + number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
