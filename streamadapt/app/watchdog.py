"""The watchdog: reports a stuck loop in the metrics, in the log with all stacks, and at
``/ready``."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Self

from streamadapt.compiled import compilations, compiling
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics

__all__ = ["Watchdog"]

_LOG = logging.getLogger("streamadapt")

CHECKS = 4
"""Number of checks within the time after which a loop counts as stuck."""
CHECK_INTERVAL_S = 1.0
"""Interval of the checks of source and sinks: their faults must be logged even while the loop
waits for one of them."""
COMPILING = (
    "compiling learners and guard (first start of this installation, up to a minute); "
    "streamadapt warm does it beforehand"
)


class Watchdog:
    """Watches an engine's loop from a separate thread; a context manager.

    Parameters
    ----------
    engine : Engine
    metrics : Metrics
    stuck_after_s : float, s
        A loop without a heartbeat for this time counts as stuck. It must be far longer than one
        batch of records or one step of a checkpoint takes.
    """

    def __init__(self, engine: Engine, metrics: Metrics, stuck_after_s: float) -> None:
        self._engine = engine
        self._metrics = metrics
        self._after_s = stuck_after_s
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="streamadapt-watchdog", daemon=True
        )
        self.stalled = False

    def ready(self) -> tuple[bool, str]:
        """Return whether the engine works, and the reason if it does not."""
        if self.stalled:
            return False, f"the loop has not moved for {self._after_s:g} s"
        if self._engine.stopping:
            return False, "draining"
        if compiling() or (self._engine.preparing and compilations()):
            return False, COMPILING
        if not self._engine.opened:
            return False, "its state is being restored"
        if why := self._engine.trouble:
            return False, why
        state = self._engine.source.state
        return state != "connecting", f"source is {state}"

    def live(self) -> tuple[bool, str]:
        """Return whether the engine's loop has not ended, and its state in words.

        A stuck loop is alive.
        """
        alive = self._engine.alive
        return alive, "the loop runs" if alive else "the loop has ended"

    def __enter__(self) -> Self:
        self._metrics.stalled(False)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        seen, still = self._engine.heartbeat, 0
        every_s = self._after_s / CHECKS
        due = time.monotonic() + every_s
        while not self._stop.wait(min(CHECK_INTERVAL_S, max(0.0, due - time.monotonic()))):
            with suppress(Exception):  # the loop calls `look`, too, and handles errors there
                self._engine.look()
            if time.monotonic() < due:
                continue
            due += every_s
            heartbeat = self._engine.heartbeat
            still = still + 1 if heartbeat == seen and not compiling() else 0
            seen = heartbeat
            stalled = still >= CHECKS
            if stalled != self.stalled:
                if stalled:
                    _LOG.error(
                        "the loop has not moved for %g s; every thread:\n%s",
                        self._after_s,
                        _stacks(),
                    )
                else:
                    _LOG.warning("the loop moves again")
                self._metrics.stalled(stalled)
                self.stalled = stalled


def _stacks() -> str:
    """Return the stack of every thread, without the values of variables: one may be a secret."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
