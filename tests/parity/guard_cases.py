"""Every guard with every task and scope."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from parity import models, streams
from parity.case import add
from parity.tasks import PIPELINES, STREAMS, TTL, one
from streamadapt import (
    RLS,
    Bias,
    Forecast,
    Gain,
    Hedge,
    LastValue,
    NoGuard,
    Persistence,
    Pipeline,
    Supervised,
    TwoLayer,
)
from streamadapt.guard.base import Guard
from streamadapt.guard.two_layer import Mean
from streamadapt.learners import Learner

SCOPES: tuple[Any, ...] = ("global", "horizon", "cell")


def learners() -> list[Learner]:
    return [Bias((0.2, 0.05)), Gain(0.1), RLS(0.98), LastValue()]


def _guards() -> dict[str, Callable[[], Guard]]:
    prior = {"bias-0.2": 0.6, "rls-0.98": 0.2}
    found: dict[str, Callable[[], Guard]] = {
        "two-layer-plain": partial(TwoLayer, stack=False),
        "two-layer-prior": partial(TwoLayer, prior=prior),
        "hedge-slow": partial(Hedge, 0.3, 0.1, prior=prior),
        "mean": Mean,
        "none": partial(NoGuard, 2),
    }
    for scope in SCOPES:
        found[f"two-layer-{scope}"] = partial(TwoLayer, scope)
        found[f"hedge-{scope}"] = partial(Hedge, scope=scope)
    return found


def _piped(task: str, guard: Callable[[], Guard]) -> Pipeline:
    return PIPELINES[task](learners, guard=guard())


def _add_guards() -> None:
    for task in PIPELINES:
        for name, guard in _guards().items():
            if task == "one" and name not in ("two-layer-horizon", "hedge-horizon"):
                continue  # the regression of two outputs has them all
            if task == "classes" and name == "two-layer-plain":
                continue  # no stack mixes distributions
            name = f"{task}-guard-{name}"
            add(name, partial(_piped, task, guard), STREAMS[task])


def _add_losses() -> None:
    """Experts are compared by losses other than the absolute error."""
    for loss in ("squared", "pinball-0.9"):
        add(
            f"forecast-loss-{loss}",
            partial(PIPELINES["forecast"], learners, loss=loss),
            STREAMS["forecast"],
        )
        add(f"one-loss-{loss}", partial(one, learners, task={"loss": loss}), STREAMS["one"])


def _add_unscaled() -> None:
    """The base has no scaling: it is estimated, and learners are rebuilt where it was wrong."""

    def series() -> Pipeline:
        return Pipeline(Forecast(6, 3), Persistence(3), learners(), seed=1, device="cpu")

    def labels() -> Pipeline:
        task = Supervised(3, outputs=2, ttl=TTL)
        return Pipeline(task, models.two_outputs, learners(), seed=1, device="cpu")

    add("forecast-unscaled", series, STREAMS["forecast"])
    add("two-unscaled", labels, STREAMS["two"])
    # The checkpoint lies where the memory for rebuilding is still full.
    quiet = partial(streams.regression, outputs=2)
    add("two-unscaled-early", labels, quiet, before=60)


_add_guards()
_add_losses()
_add_unscaled()
