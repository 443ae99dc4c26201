"""Sends the demo's readings and labels to their topics, in the order of event time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from heapq import merge

from kafka import KafkaProducer

from streamadapt.app.demo.cgm import LABEL_DELAY, Reading

__all__ = ["Producer"]

CLOSE_S = 5.0


class Producer(threading.Thread):
    """A thread that sends all readings and labels.

    The time stamp of an entry's record is its event time, that of a label's record the time when
    the label became known.

    Parameters
    ----------
    topics : pair of str
        The topic of the entries and the topic of the labels.
    speed : float or None
        Entries per second; None is as fast as possible.

    Attributes
    ----------
    error : Exception or None
        The error that stopped the thread before it had sent everything.
    """

    def __init__(
        self,
        servers: str,
        topics: tuple[str, str],
        readings: Sequence[Reading],
        labelled: Sequence[Reading],
        speed: float | None,
    ) -> None:
        super().__init__(daemon=True, name="producer")
        self.error: Exception | None = None
        self._servers = servers
        self._topics = topics
        self._readings = readings
        self._labelled = labelled
        self._speed = speed
        self._enough = threading.Event()

    def stop(self) -> None:
        """Make the thread stop before its next record."""
        self._enough.set()

    def run(self) -> None:
        """Send everything; an error is stored in `error`."""
        try:
            self._send()
        except Exception as error:
            self.error = error

    def _send(self) -> None:
        producer = KafkaProducer(
            bootstrap_servers=self._servers,
            linger_ms=20,
            batch_size=1 << 17,
            enable_idempotence=True,
        )
        entries = ((reading.time, 0, reading) for reading in self._readings)
        labels = ((reading.time + LABEL_DELAY, 1, reading) for reading in self._labelled)
        start, sent = time.monotonic(), 0
        try:
            for at, which, reading in merge(entries, labels, key=lambda item: (item[0], item[1])):
                if which == 0:
                    due = (
                        0.0
                        if self._speed is None
                        else start + sent / self._speed - time.monotonic()
                    )
                    if due > 0.0:
                        self._enough.wait(due)
                    sent += 1
                if self._enough.is_set():
                    return
                value = reading.label() if which else reading.entry()
                producer.send(
                    self._topics[which],
                    value=value,
                    partition=0,
                    timestamp_ms=int(at.timestamp() * 1000),
                )
            producer.flush()
        finally:
            producer.close(timeout=0.0 if self._enough.is_set() else CLOSE_S)
