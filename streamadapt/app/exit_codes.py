"""With which codes the command ends."""

from __future__ import annotations

import signal
from typing import Final

__all__ = ["EXIT_INTERRUPTED", "EXIT_REFUSED", "EXIT_SIGNALLED"]


EXIT_SIGNALLED = 128  # a shell's way to name the signal
EXIT_INTERRUPTED = EXIT_SIGNALLED + signal.SIGINT


EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_BAD_SHARE = 3


EXIT_REFUSED: Final = 3
"""As when the engine itself stops because nearly everything is refused: starting again would not
help."""
