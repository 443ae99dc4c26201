"""Start and end of the command: signal handlers are set before the first slow import, and the exit
code is returned."""

from __future__ import annotations

import os
import signal
import sys

from streamadapt.app.signals import STOPPING, leave

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
    # Until a command runs there is nothing to clean up, and a traceback from the middle of an
    # import would not help anyone: so end the process at once.
    for number in STOPPING:
        signal.signal(number, leave)
    _fill_closed_streams()
    from streamadapt.app.commands import run_command
    from streamadapt.app.logs import report_dead_threads

    report_dead_threads()
    outcome = run_command(sys.argv[1:])
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # the command is done
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # the reader closed the pipe
            outcome = outcome._replace(stuck=True)
    if outcome.stuck:
        os._exit(outcome.code)  # a normal exit would wait for threads that may never end
    raise SystemExit(outcome.code)


def _fill_closed_streams() -> None:
    """Open the null device for each closed standard stream: otherwise the next opened file would
    get its descriptor."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
