"""One caller at a time: the lock of a pipeline, and of a frozen model that several pipelines
share."""

from __future__ import annotations

import threading
from types import TracebackType

from streamadapt.errors import BusyError

__all__ = ["Turn"]


class Turn:
    """A lock: callers from other threads wait for their turn, and a call from within the same turn
    is an error.

    A copy or an unpickled one is a fresh lock that nobody holds: locks cannot be copied, and a
    copy of what is locked is a thing of its own.

    Parameters
    ----------
    what : str
        What is locked, for the error's message.
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
            If this very thread holds it already: waiting would never end.
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
        """Let the next caller go on."""
        self._holder = None
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[str]]:
        """Copy and pickle as a fresh one."""
        return Turn, (self.what,)
