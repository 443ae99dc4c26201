"""Parts that raise: counted, and logged once with their traceback, while the stream goes on
without them."""

from __future__ import annotations

import logging

from streamadapt.models.device import is_fatal
from streamadapt.pipeline.stats import Stats

__all__ = ["Faults"]

_LOG = logging.getLogger("streamadapt")


class Faults:
    """Counts what parts raise, and logs the first error of each kind from each part.

    Memory: one entry per part and class of error. It is no part of the state: after a restart each
    is logged once more.
    """

    def __init__(self) -> None:
        self.stats = Stats()  # the pipeline puts its own here
        self._logged: set[tuple[str, str]] = set()

    def join(self, other: Faults) -> None:
        """Log nothing that `other` has logged, and the other way round; each counts for itself."""
        self._logged = other._logged

    def note(self, part: str, error: Exception, *, count: bool = True) -> None:
        """Take note of an error that a part raised; call it while the error is being handled.

        Parameters
        ----------
        part : str
            Such as ``learner:rls-0.99``, ``guard`` or ``detector:adwin:loss``.
        error : Exception
            Raised again if it is about the machine (memory).
        count : bool
            False for a question (`Pipeline.predict`), which changes nothing.
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
