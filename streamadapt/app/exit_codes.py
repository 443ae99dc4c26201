"""The exit codes of the command."""

from __future__ import annotations

import signal
from typing import Final

__all__ = [
    "EXIT_CONFIG",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_REFUSED",
    "EXIT_SIGNALLED",
]

EXIT_FAILED: Final = 1
"""A restart may help: a broker did not answer, or a disk was full."""
EXIT_CONFIG: Final = 2
"""The config or the command line is wrong."""
EXIT_REFUSED: Final = 3
"""Nearly all records were refused, or nothing was predicted or learned; a restart cannot help."""
EXIT_SIGNALLED: Final = 128
"""A signal ended the command: 128 plus the signal's number, as in a shell."""
EXIT_INTERRUPTED: Final = EXIT_SIGNALLED + signal.SIGINT
