"""Where the command starts and ends: signals before the first import that takes long, and the exit
code."""

from __future__ import annotations

import os
import signal
import sys

from streamadapt.app.signals import STOPPING, leave

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
    # Nothing is open before a command takes over, and an exception out of a half-done import is
    # nothing to look at.
    for number in STOPPING:
        signal.signal(number, leave)
    _fill_closed_streams()
    from streamadapt.app.commands import run_command
    from streamadapt.app.logs import report_dead_threads

    report_dead_threads()
    outcome = run_command(sys.argv[1:])
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # too late to stop anything
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # whoever read it has gone
            outcome = outcome._replace(stuck=True)
    if outcome.stuck:
        os._exit(outcome.code)  # a thread that waits for an absent broker would be waited for
    raise SystemExit(outcome.code)


def _fill_closed_streams() -> None:
    """Put something in place of a standard stream that is closed: else the next file that is
    opened would be it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
