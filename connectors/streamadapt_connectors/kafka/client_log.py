"""Passes kafka-python's own warnings to our log, each at most once per minute."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from kafka import errors as kafka_errors

__all__ = ["ClientLog", "forward_client_log"]

EVERY_S: Final = 60.0
MAX_MESSAGES: Final = 256
"""The largest number of different messages that are stored."""
NUMBER: Final = re.compile(r"0x[0-9a-f]+|\d+")

HARMLESS: Final = (
    # Our own answer to requests that an abandoned producer still tries to send: the loss was
    # already logged.
    "this producer sends no more requests",
    # A step of the client took more than 100 ms: this happens on any busy machine.
    "It is blocking the event loop",
)


class ClientLog(logging.Handler):
    """Passes on the log messages of a library: of messages that differ only in numbers, one in
    `EVERY_S`, with the number of the others.

    Parameters
    ----------
    out : logging.Logger
        The logger that gets the messages.
    clock : callable () -> float, optional
        Monotonic time in seconds.
    """

    def __init__(self, out: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._out = out
        self._clock = clock
        self._guard = threading.Lock()
        self._logged: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on, or count it."""
        # A command without a log, such as `dlq`, reports failures by itself.
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
        # For these errors the traceback gives no more information than the message.
        usual = isinstance(error, OSError | kafka_errors.KafkaError)
        if usual:
            text = f"{text}: {error}"
        # A warning, not an error: the client tries again, and an error that this cannot solve is
        # raised.
        self._out.warning(
            "%s: %s%s", record.name, text, more, exc_info=None if usual else record.exc_info
        )

    def _repeats(self, key: str) -> int | None:
        """Return how often a message came since it was last passed on; None if it must not be
        passed on now."""
        now = self._clock()
        with self._guard:
            at, repeats = self._logged.pop(key, (float("-inf"), 0))
            due = now - at >= EVERY_S
            self._logged[key] = (now, 0) if due else (at, repeats + 1)
            while len(self._logged) > MAX_MESSAGES:
                self._logged.popitem(last=False)
        return repeats if due else None


def forward_client_log() -> None:
    """Pass kafka-python's warnings to our log, unless its logger already has a level or a
    handler."""
    logger = logging.getLogger("kafka")
    mute = all(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    if logger.level == logging.NOTSET and mute:
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(ClientLog(logging.getLogger("streamadapt.kafka.client")))
