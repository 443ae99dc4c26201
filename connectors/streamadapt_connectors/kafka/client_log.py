"""kafka-python's own warnings, let through into our log, but each at most once a minute."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from kafka import errors as kafka_errors

__all__ = ["ClientLog", "let_client_speak"]

EVERY_S: Final = 60.0
MOST: Final = 256
"""Different messages that are remembered."""
NUMBER: Final = re.compile(r"0x[0-9a-f]+|\d+")

HARMLESS: Final = (
    # Our own answer to requests that a given-up producer still tries to send: the loss itself
    # was already logged.
    "this producer says nothing more",
    # A step of the client that took more than 100 ms: so it is on any machine that is busy, and
    # nothing waits longer.
    "It is blocking the event loop",
)


class ClientLog(logging.Handler):
    """Pass on what a library logs: of messages that differ only in numbers one in `EVERY_S`, with
    how many there were.

    Parameters
    ----------
    out : logging.Logger
        Where they go.
    clock : callable () -> float, optional
        Monotonic time in seconds.
    """

    def __init__(self, out: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._out = out
        self._clock = clock
        self._guard = threading.Lock()
        self._said: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on, or count it."""
        # A command without a log, such as `dlq`, says itself what failed.
        if not self._out.hasHandlers():
            return
        text = record.getMessage()
        if any(harmless in text for harmless in HARMLESS):
            return
        repeats = self._repeats(f"{record.name} {NUMBER.sub('#', text)}")
        if repeats is None:
            return
        more = f" ({repeats} more like it since the last line)" if repeats else ""
        error = record.exc_info[1] if record.exc_info else None
        # Where it stood says no more than what it was.
        usual = isinstance(error, OSError | kafka_errors.KafkaError)
        if usual:
            text = f"{text}: {error}"
        # No error of ours: what the client calls one is tried again, and what cannot be mended so
        # is raised.
        self._out.warning(
            "%s: %s%s", record.name, text, more, exc_info=None if usual else record.exc_info
        )

    def _repeats(self, key: str) -> int | None:
        """Return how often a message came since it was passed on; None if it is not to be passed
        on now."""
        now = self._clock()
        with self._guard:
            at, repeats = self._said.pop(key, (float("-inf"), 0))
            due = now - at >= EVERY_S
            self._said[key] = (now, 0) if due else (at, repeats + 1)
            while len(self._said) > MOST:
                self._said.popitem(last=False)
        return repeats if due else None


def let_client_speak() -> None:
    """Have kafka-python's warnings come into our log.

    A level or a handler that somebody has set is left alone.
    """
    logger = logging.getLogger("kafka")
    mute = all(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    if logger.level == logging.NOTSET and mute:
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(ClientLog(logging.getLogger("streamadapt.kafka.client")))
