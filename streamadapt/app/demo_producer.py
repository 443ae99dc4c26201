"""Sends the demo's readings and labels to their topics, in the order of event time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from heapq import merge

from kafka import KafkaProducer

from streamadapt.app.cgm import LABEL_DELAY, Reading

__all__ = ["produce"]


def produce(
    servers: str,
    entries_topic: str,
    labels_topic: str,
    readings: Sequence[Reading],
    labelled: Sequence[Reading],
    speed: float | None,
) -> None:
    """Send everything; with `speed`, so many entries a second.

    Each record's time stamp is its event time, a label's the time it became known.
    """
    producer = KafkaProducer(bootstrap_servers=servers, linger_ms=20, batch_size=1 << 17, enable_idempotence=True)
    entries = ((reading.time, 0, reading) for reading in readings)
    labels = ((reading.time + LABEL_DELAY, 1, reading) for reading in labelled)
    start, sent = time.monotonic(), 0
    try:
        for at, which, reading in merge(entries, labels, key=lambda item: (item[0], item[1])):
            if which == 0:
                if speed is not None:
                    time.sleep(max(0.0, start + sent / speed - time.monotonic()))
                sent += 1
            topic = labels_topic if which else entries_topic
            value = reading.label() if which else reading.entry()
            producer.send(topic, value=value, partition=0, timestamp_ms=int(at.timestamp() * 1000))
        producer.flush()
    finally:
        producer.close(timeout=5)
