"""Where the command starts and ends: signals before the first import that takes long, and the exit code."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["main"]

EXIT_SIGNALLED = 128  # a shell's way to name the signal
EXIT_INTERRUPTED = EXIT_SIGNALLED + signal.SIGINT
STOPPING = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Run the command line of this process."""
    # Nothing is open before a command takes over, and an exception out of a half-done import is nothing to look at.
    for number in STOPPING:
        signal.signal(number, _leave)
    from streamadapt.app.commands import run_command
    from streamadapt.app.logs import report_dead_threads

    report_dead_threads()
    outcome = run_command(sys.argv[1:])
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # too late to stop anything
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # whoever read it has gone
            outcome = outcome._replace(stuck=True)
    if outcome.stuck:
        os._exit(outcome.code)  # a thread that waits for an absent broker would be waited for
    raise SystemExit(outcome.code)


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    os.write(2, b"streamadapt: interrupted\n")
    os._exit(EXIT_SIGNALLED + number)
