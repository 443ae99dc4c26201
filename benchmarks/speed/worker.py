"""Takes one pipeline through a stream, in a process of its own: ours, or that of an old commit.

``python worker.py JOB.json``. A line of JSON on stdin asks for work, a line of JSON on stdout
answers. It imports nothing of this package: `streamadapt` comes from the folder in PYTHONPATH.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import streamadapt
from streamadapt import Entry, Forecast, Label, Linear, Pipeline, Supervised
from streamadapt.drift.monitor import DriftMonitor
from streamadapt.learners.defaults import default_learners

LOT = 1024
"""Items of a lot."""
FLOOR = 1e-6
"""The lowest probability of the actual class, as in the pipeline's own log loss."""


class Stream:
    """The items of a stream: what is left of them."""

    def __init__(self, path: str) -> None:
        with np.load(path) as arrays:
            self.values, self.times = arrays["values"], arrays["times"]
            self.labels = arrays.get("labels")
            self.is_label = arrays["is_label"]
            self.ids = [str(number) for number in arrays["ids"].tolist()]
        self.at = 0

    def take(self, items: int) -> slice:
        """Return the places of the next items."""
        if self.at + items > len(self.values):
            raise ValueError(f"{items} more items, {len(self.values) - self.at} are left")
        self.at += items
        return slice(self.at - items, self.at)

    def objects(self, some: slice) -> list[Entry | Label]:
        """Return items as objects."""
        return [self.item(i) for i in range(some.start, some.stop)]

    def item(self, i: int) -> Entry | Label:
        """Return one item as an object."""
        time, id_ = int(self.times[i]), self.ids[i]
        if self.is_label[i]:
            assert self.labels is not None
            return Label(id_, self.labels[i], time)
        if self.labels is None or math.isnan(self.labels[i, 0]):
            return Entry(self.values[i], time, id_)
        return Entry(self.values[i], time, id_, label=self.labels[i])

    def columns(self, some: slice) -> Any:
        """Return items as columns, which an old commit does not have."""
        labels = None if self.labels is None else self.labels[some]
        return streamadapt.Columns(
            self.values[some], self.times[some], self.ids[some], labels, self.is_label[some]
        )


def as_columns(pipeline: Pipeline, stream: Stream, some: slice) -> float:
    """Observe lots; `Columns` are made within the time."""
    start = time.process_time()
    for first in range(some.start, some.stop, LOT):
        lot: Any = pipeline
        lot.observe_lot(stream.columns(slice(first, min(first + LOT, some.stop))))
    return time.process_time() - start


def as_objects(pipeline: Pipeline, stream: Stream, some: slice) -> float:
    """Observe a list of objects, which are made before the time begins."""
    items = stream.objects(some)
    start = time.process_time()
    pipeline.observe(items)
    return time.process_time() - start


def one_by_one(pipeline: Pipeline, stream: Stream, some: slice) -> float:
    """Observe one object in a call; objects are made within the time."""
    start = time.process_time()
    for i in range(some.start, some.stop):
        pipeline.observe([stream.item(i)])
    return time.process_time() - start


WAYS: dict[str, Callable[[Pipeline, Stream, slice], float]] = {
    "columns": as_columns,
    "objects": as_objects,
    "one": one_by_one,
}


def pipeline_for(job: dict[str, Any]) -> Pipeline:
    """Return a pipeline with the default learners and the default guard."""
    kind, window = job["kind"], job["window"]
    base = Linear.load(Path(job["base"]))
    task: Any = Forecast(window, job["horizon"]) if kind == "forecast" else Supervised(window)
    if kind == "classification":
        task = Supervised(window, classes=2)
    drift = [] if kind == "forecast" else [DriftMonitor("adwin", "loss")]
    return Pipeline(task, base, default_learners(kind), drift=drift, device="cpu")


def log_loss(pipeline: Pipeline, stream: Stream, some: slice) -> float:
    """Return the mean log loss of what is served for some entries with their own labels."""
    total = 0.0
    for first in range(some.start, some.stop, LOT):
        lot = slice(first, min(first + LOT, some.stop))
        for prediction in pipeline.observe(stream.objects(lot)):
            assert stream.labels is not None
            truth = int(stream.labels[int(prediction.id) - int(stream.ids[0]), 0])
            total -= math.log(max(float(prediction.served[0, truth]), FLOOR))
    return total / (some.stop - some.start)


def answer(pipeline: Pipeline, stream: Stream, way: str, asked: dict[str, int]) -> dict[str, Any]:
    """Do what one line asks for."""
    if "judge" in asked:
        return {"log_loss": log_loss(pipeline, stream, stream.take(asked["judge"]))}
    some = stream.take(asked["items"])
    took = WAYS[way](pipeline, stream, some)
    return {"seconds": took, "entries": int((~stream.is_label[some]).sum())}


def main() -> None:
    """Answer each line of stdin."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = Path(streamadapt.__file__).resolve()
    if not found.is_relative_to(Path(job["root"]).resolve()):
        raise SystemExit(f"streamadapt is {found}, and should come from {job['root']}")
    pipeline, stream = pipeline_for(job), Stream(job["stream"])
    for line in sys.stdin:
        result = answer(pipeline, stream, job["way"], json.loads(line))
        answers.write(json.dumps(result) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
