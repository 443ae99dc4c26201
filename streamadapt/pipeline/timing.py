"""The port for measuring the duration of a pipeline's stages; the core itself reads no clock."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

__all__ = ["NO_TIMING", "NoTiming", "Timing"]


class Timing(Protocol):
    """Measures stages."""

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Return a context manager around one run of the stage ``learn`` or ``predict``."""
        ...


class NoTiming:
    """Measures nothing."""

    def __init__(self) -> None:
        self._nothing = nullcontext()

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Return one shared context manager that does nothing."""
        del name
        return self._nothing


NO_TIMING = NoTiming()
