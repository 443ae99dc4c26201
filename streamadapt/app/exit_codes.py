"""With which codes the command ends."""

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
"""Starting again may help: a broker was away, a disk was full."""
EXIT_CONFIG: Final = 2
"""The config or the command line is wrong."""
EXIT_REFUSED: Final = 3
"""Nearly everything was refused, or nothing came of it: starting again would not help."""
EXIT_SIGNALLED: Final = 128
"""A signal ended it: 128 and the signal's number, as in a shell."""
EXIT_INTERRUPTED: Final = EXIT_SIGNALLED + signal.SIGINT
