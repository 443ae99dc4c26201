"""Interrupts for commands that have resources to close at SIGINT and SIGTERM."""

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
    """A signal arrived.

    Parameters
    ----------
    number : int
        The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into exceptions, so that resources are closed; then print a message
    and exit with code 130 or 143."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        raise _Signalled(number)

    before = {number: signal.signal(number, on_signal) for number in STOPPING}
    try:
        yield
    except (KeyboardInterrupt, typer.Abort) as error:
        # At a prompt, Ctrl-C, the end of the input and the answer "no" all raise `typer.Abort`;
        # only its context differs.
        hidden = error.__context__ if isinstance(error, typer.Abort) else error
        if not isinstance(hidden, KeyboardInterrupt):
            raise
        say("interrupted")
        number = hidden.number if isinstance(hidden, _Signalled) else signal.SIGINT
        raise SystemExit(EXIT_SIGNALLED + number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
