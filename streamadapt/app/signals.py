"""Handlers of SIGINT and SIGTERM for the time when there is nothing to clean up."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType

from streamadapt.app.exit_codes import EXIT_SIGNALLED

__all__ = ["STOPPING", "leave", "too_late"]


STOPPING = (signal.SIGINT, signal.SIGTERM)
_done = False


def too_late() -> None:
    """Ignore signals from now on: the command is done, and its exit code is known."""
    global _done
    _done = True


def leave(number: int, frame: FrameType | None) -> None:
    """End the process at once with the exit code of a shell for this signal, unless `too_late` was
    called."""
    del frame
    if _done:
        return
    with suppress(OSError):
        os.write(2, b"streamadapt: interrupted\n")
    os._exit(EXIT_SIGNALLED + number)
