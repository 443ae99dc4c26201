"""The lock of a pipeline, and of a frozen model that several pipelines share: one caller at a
time."""

from __future__ import annotations

import threading
from types import TracebackType

from streamadapt.errors import BusyError

__all__ = ["Turn"]


class Turn:
    """A lock: callers from other threads wait; a call by the thread that holds it is an error.

    A copied or unpickled lock is new and free: locks cannot be copied, and a copy of the locked
    object needs its own lock.

    Parameters
    ----------
    what : str
        The name of the locked object, for the error message.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._lock = threading.Lock()
        self._holder: int | None = None

    def __enter__(self) -> None:
        """Wait for the turn.

        Raises
        ------
        BusyError
            If the same thread already holds the lock: waiting would never end.
        """
        me = threading.get_ident()
        if self._holder == me:
            raise BusyError(
                f"{self.what} was called from within itself (from on_rejected, a learner, or "
                f"the base)"
            )
        self._lock.acquire()
        self._holder = me

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the lock."""
        self._holder = None
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[str]]:
        """Copy and pickle as a new, free lock."""
        return Turn, (self.what,)
