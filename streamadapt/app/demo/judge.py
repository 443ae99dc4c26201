"""Reads the demo's predictions back from their topic and judges them against the true glucose."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from kafka import KafkaConsumer, TopicPartition

from streamadapt.app.demo.cgm import Reading
from streamadapt.errors import StreamadaptError

__all__ = ["Judgement", "judge"]

READ_S = 30.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """The errors of the predictions in the topic.

    Attributes
    ----------
    errors : dict of str to float, mg/dL
        Expert (and ``served``) -> mean absolute error over all predictions.
    count : int
        The number of predictions; repetitions are not counted.
    """

    errors: dict[str, float]
    count: int


def judge(
    servers: str, predictions: str, readings: Sequence[Reading], *, expected_predictions: int
) -> Judgement:
    """Read all predictions and compare them with the true glucose.

    Raises
    ------
    StreamadaptError
        If the topic has fewer predictions than the engine has counted.
    """
    truth = {reading.id: reading.glucose for reading in readings}
    sums: dict[str, float] = {}
    seen: set[str] = set()
    with closing(_values(servers, predictions)) as values:
        while len(seen) < expected_predictions:
            value = next(values, None)
            if value is None:
                break
            prediction = json.loads(value)
            if prediction["entry"] in seen:
                continue  # at least once: a restart may have repeated it, with the same value
            seen.add(prediction["entry"])
            outputs = {**prediction["experts"], "served": prediction["served"]}
            for name, output in outputs.items():
                sums[name] = sums.get(name, 0.0) + abs(output[0] - truth[prediction["entry"]])
    if len(seen) != expected_predictions or not seen:
        raise StreamadaptError(
            f"{len(seen)} predictions in topic {predictions}, {expected_predictions} were made"
        )
    return Judgement({name: total / len(seen) for name, total in sums.items()}, len(seen))


def _values(servers: str, topic: str) -> Generator[bytes, None, None]:
    """Yield a topic's values until no record has come for `READ_S`: not every broker reports the
    true end of a topic."""
    at = TopicPartition(topic, 0)
    consumer = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    try:
        consumer.assign([at])
        consumer.seek(at, 0)
        last = time.monotonic()
        while time.monotonic() - last < READ_S:
            for record in consumer.poll(timeout_ms=500, max_records=5000).get(at, ()):
                last = time.monotonic()
                yield record.value
    finally:
        consumer.close()
