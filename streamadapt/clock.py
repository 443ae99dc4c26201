"""The engine's only access to time."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """The engine's only access to time and sleep."""

    def time_ns(self) -> int:
        """Wall-clock time, ns since the Unix epoch (for lags and time stamps, never for
        intervals)."""
        ...

    def monotonic(self) -> float:
        """Seconds that only go forward."""
        ...


class SystemClock:
    """The clocks of the machine."""

    def time_ns(self) -> int:
        """Wall-clock time, ns since the Unix epoch."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Seconds that only go forward."""
        return time.monotonic()
