"""One pipeline for each task, for any learners and guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from parity import models, streams
from parity.streams import STEP, Item
from streamadapt import Forecast, Persistence, Pipeline, Supervised
from streamadapt.learners import Learner

TTL = 24 * STEP
Learners = Callable[[], Sequence[Learner]]


def forecast(learners: Learners, *, horizon: int = 3, loss: str = "absolute", **more: Any) -> Any:
    """Two channels, a window of six entries; the last value is the base."""
    base = models.scaled(Persistence(horizon), 2, 2)
    return Pipeline(
        Forecast(6, horizon, loss=loss), base, learners(), seed=1, device="cpu", **more
    )


def one(learners: Learners, *, task: dict[str, Any] | None = None, **more: Any) -> Any:
    """A regression of one output."""
    base = models.scaled(models.one_output, 2, 1)
    return Pipeline(
        Supervised(3, ttl=TTL, **(task or {})), base, learners(), seed=1, device="cpu", **more
    )


def two(learners: Learners, **more: Any) -> Any:
    """A regression of two outputs, whose labels often have one of them only."""
    base = models.scaled(models.two_outputs, 2, 2)
    return Pipeline(
        Supervised(3, outputs=2, ttl=TTL), base, learners(), seed=1, device="cpu", **more
    )


def classes(learners: Learners, **more: Any) -> Any:
    """Three classes."""
    base = models.scaled(models.three_classes, 2)
    return Pipeline(
        Supervised(2, classes=3, ttl=TTL), base, learners(), seed=1, device="cpu", **more
    )


PIPELINES: dict[str, Callable[..., Pipeline]] = {
    "forecast": forecast,
    "one": one,
    "two": two,
    "classes": classes,
}
STREAMS: dict[str, Callable[[], list[Item]]] = {
    "forecast": streams.series,
    "one": streams.regression,
    "two": partial(streams.regression, outputs=2),
    "classes": streams.classes,
}
