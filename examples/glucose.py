"""Correct the calibration of a glucose sensor, in this process: no Kafka, no config.

    python examples/glucose.py [READINGS]

The base is a linear calibration on the last six sensor currents, fitted on the first fifth of the
readings and frozen. The labels arrive six hours after their reading, as they do if a person has
to take a blood sample for them.
"""

import heapq
import sys

import numpy as np

from streamadapt import Batch, Entry, Label, Pipeline, Supervised
from streamadapt.app.demo.cgm import LABEL_DELAY, read_glucose
from streamadapt.learners.defaults import default_learners
from streamadapt.models.fit import fit_supervised


def nanoseconds(moment):
    return int(moment.timestamp()) * 10**9


def items(readings):
    """Return entries and labels in the order of event time."""
    entries = (Entry(np.array([r.isig], np.float32), nanoseconds(r.time), r.id) for r in readings)
    labels = (
        Label(r.id, np.array([r.glucose], np.float32), nanoseconds(r.time + LABEL_DELAY))
        for r in readings
    )
    return heapq.merge(entries, labels, key=lambda item: item.time)


def main(limit):
    # A sensor without a signal reports "nil".
    readings = [r for r in read_glucose() if not isinstance(r.isig, str)]
    split = len(readings) // 5
    history, stream = readings[:split], readings[split:][:limit]
    batch = Batch(
        np.array([[r.isig] for r in history], np.float32),
        np.array([nanoseconds(r.time) for r in history]),
        np.array([[r.glucose] for r in history], np.float32),
    )
    base = fit_supervised(batch, window=6)
    pipeline = Pipeline(Supervised(window=6), base, default_learners("regression"))
    predictions = {p.id: p for p in pipeline.observe(items(stream))}
    truth = {r.id: r.glucose for r in stream}
    for name in (*pipeline.names, "served"):
        errors = [
            abs((p.served if name == "served" else p.experts[name])[0, 0] - truth[i])
            for i, p in predictions.items()
        ]
        print(f"{name:20s} {np.mean(errors):7.2f} mg/dL")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
