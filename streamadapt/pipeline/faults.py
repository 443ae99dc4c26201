"""Exceptions of parts: they are counted, and logged once with their traceback, and the stream
continues."""

from __future__ import annotations

import logging

from streamadapt.models.device import is_fatal
from streamadapt.pipeline.stats import Stats

__all__ = ["Faults"]

_LOG = logging.getLogger("streamadapt")


class Faults:
    """Counts the exceptions of parts, and logs the first error of each class from each part.

    Memory: one item per part and class of error. Not part of the state: after a restart each error
    is logged once more.
    """

    def __init__(self) -> None:
        self.stats = Stats()  # the pipeline puts its own here
        self._logged: set[tuple[str, str]] = set()

    def join(self, other: Faults) -> None:
        """Share the set of logged errors with `other`; each keeps its own counts."""
        self._logged = other._logged

    def note(self, part: str, error: Exception, *, count: bool = True) -> None:
        """Count and log an error that a part raised; call it while the error is being handled.

        Parameters
        ----------
        part : str
            Such as ``learner:rls-0.99``, ``guard`` or ``detector:adwin:loss``.
        error : Exception
            Raised again if it is a fault of the machine (memory).
        count : bool
            False for `Pipeline.predict`, which changes nothing.
        """
        if is_fatal(error):
            raise error
        if count:
            self.stats.faults[part] += 1
        kind = (part, type(error).__qualname__)
        if kind not in self._logged:
            self._logged.add(kind)
            _LOG.error(
                "%s raised %s; the stream goes on. More errors of this kind from it are "
                "counted, and not logged.",
                part,
                kind[1],
                exc_info=error,
            )
