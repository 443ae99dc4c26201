"""Counters start at 0 before the first event: if a series began at 1, PromQL's `increase()` would
miss that event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from streamadapt.errors import Reason
from streamadapt.pipeline.intervals import Intervals
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.pipeline.pipeline import Pipeline
from streamadapt.pipeline.stats import Stats
from streamadapt.tasks import Supervised

__all__ = ["DEAD_LETTERS", "Zeros", "zeros_of"]

DECODE: Final = ("decode",)
BOTH: Final = ("decode", "process")
LABEL: Final = (*BOTH, "label")
_STAGES: Final = {
    Reason.EMPTY_VALUE: DECODE,
    Reason.TOO_LARGE: ("decode", "write"),
    Reason.TOO_DEEP: DECODE,
    Reason.NOT_JSON: DECODE,
    Reason.WRONG_TYPE: ("decode", "label"),
    Reason.MISSING_FIELD: BOTH,
    Reason.WRONG_WIDTH: LABEL,
    Reason.NOT_FINITE: LABEL,
    Reason.BAD_TIME: BOTH,
    Reason.BAD_CLASS: LABEL,
    Reason.NO_KEY: ("write",),
}
"""The stages that can refuse a record for a reason; for all other reasons only ``process``."""

DEAD_LETTERS: Final = tuple(
    (reason.value, stage) for reason in Reason for stage in _STAGES.get(reason, ("process",))
)
"""Every reason and stage that can occur."""

_OUTCOMES: Final = (
    "learned",
    "partial",
    "corrected",
    "absurd",
    "unpredicted",
    "expired",
    "refused",
)
_NEGATIVES: Final = ("negative", "turned", "confirmed")
_MOVES: Final = ("evicted", "restored", "forgotten")


@dataclass(frozen=True)
class Zeros:
    """The counters of one partition at 0.

    Attributes
    ----------
    stats : Stats
        All counters that the partition can have, at 0.
    asks : bool
        Whether labels are asked for.
    intervals : bool
        Whether predictions have intervals.
    measures : tuple of str
        Names of the losses that are estimated before labels arrive; empty if none are estimated.
    """

    stats: Stats = field(default_factory=Stats)
    asks: bool = False
    intervals: bool = False
    measures: tuple[str, ...] = ()

    def under(self, stats: Stats) -> Stats:
        """Return `stats` with a 0 for every counter that has not counted yet."""
        zero = self.stats
        names = {*zero.updates, *stats.updates}
        return replace(
            stats,
            labels=Counter({**zero.labels, **stats.labels}),
            updates={
                n: Counter({**zero.updates.get(n, {}), **stats.updates.get(n, {})})
                for n in sorted(names)
            },
            loss_sum={**zero.loss_sum, **stats.loss_sum},
            loss_cells={**zero.loss_cells, **stats.loss_cells},
            drifts=Counter({**zero.drifts, **stats.drifts}),
            reactions=Counter({**zero.reactions, **stats.reactions}),
            keys=Counter({**zero.keys, **stats.keys}),
        )


def zeros_of(pipeline: Pipeline | KeyedPipeline) -> Zeros:
    """Return the counters of a pipeline at 0."""
    one = pipeline.template if isinstance(pipeline, KeyedPipeline) else pipeline
    outcomes: tuple[str, ...] = (
        _OUTCOMES if isinstance(one.task, Supervised) and one.task.labelled else ()
    )
    if getattr(one.task, "negative_after", None) is not None:
        outcomes += _NEGATIVES
    moves = _MOVES if isinstance(pipeline, KeyedPipeline) else ()
    stats = Stats(
        labels=Counter(dict.fromkeys(outcomes, 0)),
        updates={name: Counter(ok=0, restored=0) for name in one.names[1:]},
        loss_sum=dict.fromkeys((*one.names, "served"), 0.0),
        loss_cells=dict.fromkeys((*one.names, "served"), 0),
        drifts=Counter(
            dict.fromkeys((monitor.name for monitor in one.monitors.drift_monitors), 0)
        ),
        reactions=Counter(dict.fromkeys(_reactions(one), 0)),
        keys=Counter(dict.fromkeys(moves, 0)),
    )
    measures: tuple[str, ...] = ("base", "served")
    if one.label_requests.classify:
        measures += ("base_accuracy", "served_accuracy")
    return Zeros(
        stats,
        asks=one.label_requests.budget is not None,
        intervals=isinstance(one.intervals, Intervals),
        measures=() if one.label_requests.estimate is None else measures,
    )


def _reactions(pipeline: Pipeline) -> Iterator[str]:
    for monitor in pipeline.monitors.drift_monitors:
        if monitor.reaction != "alert":
            yield monitor.reaction
        if monitor.reaction == "refit":
            yield from ("refit-kept", "refit-dropped")
