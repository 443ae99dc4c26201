"""The catalogue of metrics and the recorder that the engine writes to; no client library is needed to record.

The engine's thread records, a scrape's thread reads: every method takes one short lock and reads return copies.
`streamadapt.app.exposition` turns what `Metrics.samples` returns into Prometheus' text format.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from streamadapt import __version__
from streamadapt.metrics_labels import label_samples
from streamadapt.ports import Clock, StreamPartition, SystemClock
from streamadapt.stats import Stats

__all__ = [
    "CATALOGUE",
    "STAGES",
    "STAGE_BOUNDS_S",
    "Histogram",
    "MetricSpec",
    "Metrics",
    "NullMetrics",
    "Samples",
    "StageTiming",
]

STAGES = ("decode", "learn", "predict", "emit", "checkpoint")
# From one cheap decode to a checkpoint on a slow disk; beyond the last bound only the count is known.
STAGE_BOUNDS_S = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row of the catalogue.

    Attributes
    ----------
    name : str
        As it is exposed, suffix included.
    labels : tuple of str
        Their values are bounded by the configuration; never a record's key or id.
    unit : str
        What one is.
    action : str
        What to do when it rises (or, where that is what hurts, falls).
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    unit: str
    action: str


_P = ("partition",)

CATALOGUE: tuple[MetricSpec, ...] = (
    MetricSpec(
        "streamadapt_entries_total", "counter", "Entries accepted into the pipeline.", _P, "entries",
        "Nothing; when its rate falls to 0, look at source_connected and dead_letters_total.",
    ),
    MetricSpec(
        "streamadapt_predictions_total", "counter", "Predictions made.", _P, "predictions",
        "Nothing; it stays behind entries_total only while the first window fills.",
    ),
    MetricSpec(
        "streamadapt_labels_total", "counter",
        "Labels by what became of them: learned, partial, corrected, absurd, unpredicted, expired, negative, turned, "
        "confirmed.",
        (*_P, "outcome"), "labels",
        "When expired rises, labels come later than their time-to-live: raise it, or mend the label stream.",
    ),
    MetricSpec(
        "streamadapt_updates_total", "counter", "Learner updates by result: ok, or restored (it broke, and went back).",
        (*_P, "learner", "result"), "updates",
        "When restored rises, the learner diverges: lower its learning rate, or remove it.",
    ),
    MetricSpec(
        "streamadapt_matured_loss_total", "counter",
        "Loss summed over matured cells, by role: base, each learner, served; "
        "its rate over the rate of matured_cells_total is the mean loss of a window.",
        (*_P, "role"), "loss (the task's)",
        "When served rises above base, the guard is still finding out: look at guard_weight_ratio and drifts_total.",
    ),
    MetricSpec(
        "streamadapt_matured_cells_total", "counter", "Cells of predictions whose label has come, by role.",
        (*_P, "role"), "cells", "Nothing; when its rate falls to 0, labels have stopped.",
    ),
    MetricSpec(
        "streamadapt_guard_weight_ratio", "gauge", "Share of each expert in the newest served prediction.",
        (*_P, "expert"), "ratio; they sum to 1", "When base nears 1, the learners do not help: look at updates_total.",
    ),
    MetricSpec(
        "streamadapt_signal", "gauge", "What learners tell about the newest entry, such as dictionary-error.",
        (*_P, "signal"), "the learner's",
        "When it stays above its usual level, the inputs have changed: look at them, or give it a drift monitor.",
    ),
    MetricSpec(
        "streamadapt_drifts_total", "counter", "Drifts seen, by detector and signal.",
        (*_P, "detector", "signal"), "drifts",
        "When it rises often while the loss (matured_loss_total) stays the same, make the detector less sensitive.",
    ),
    MetricSpec(
        "streamadapt_reactions_total", "counter", "What drifts did, once for each learner that it was done to.",
        (*_P, "reaction"), "reactions",
        "When it rises and the served loss does not fall, the reaction does not pay: set it to alert.",
    ),
    MetricSpec(
        "streamadapt_keys", "gauge", "Keys with a pipeline of their own, by place: resident (in memory) or stored.",
        (*_P, "place"), "keys",
        "When stored nears keys.max_stored, raise that: beyond it the key used least recently is forgotten.",
    ),
    MetricSpec(
        "streamadapt_key_moves_total", "counter", "Keys evicted from memory, restored to it, or forgotten.",
        (*_P, "move"), "keys",
        "When restored rises nearly as fast as entries_total, raise keys.max_keys; forgotten keys start from nothing.",
    ),
    MetricSpec(
        "streamadapt_dead_letters_total", "counter",
        "Records refused, by reason and stage; nothing was learned from them.", ("reason", "stage"), "records",
        "Read the newest dead letters; if all have one reason, mend the producer or the codec's configuration.",
    ),
    MetricSpec(
        "streamadapt_late_labels_total", "counter", "Labels refused since their prediction had expired.",
        (), "labels", "Raise the labels' time-to-live, or make labels come sooner.",
    ),
    MetricSpec(
        "streamadapt_asked_labels_total", "counter", "Labels asked for, with a budget of labels.",
        _P, "labels", "Nothing; its rate over that of predictions_total is the budget's.",
    ),
    MetricSpec(
        "streamadapt_asked_loss", "gauge",
        "Loss over all predictions, from the asked labels, each weighted by one over its probability.",
        (*_P, "role"), "loss (the task's)", "As matured_loss_total, which is over the labelled only.",
    ),
    MetricSpec(
        "streamadapt_estimated_loss_total", "counter",
        "Losses (and, with classes, accuracies) as estimated at the time of the prediction, summed by measure: base, "
        "served, base_accuracy, served_accuracy; of all predictions, or of those whose label has come (known).",
        (*_P, "measure", "labels"), "loss (the task's)",
        "When its rate over estimated_predictions_total rises, expect losses to rise before the labels tell.",
    ),
    MetricSpec(
        "streamadapt_estimated_predictions_total", "counter", "What estimated_loss_total is summed over.",
        (*_P, "labels"), "predictions", "Nothing; all less known have no label yet.",
    ),
    MetricSpec(
        "streamadapt_true_loss_total", "counter",
        "What the measures of estimated_loss_total really were, over the known ones.",
        (*_P, "measure"), "loss (the task's)",
        "When it leaves estimated_loss_total of the known, the labels have changed in a way that no input shows.",
    ),
    MetricSpec(
        "streamadapt_interval_cells_total", "counter", "Matured cells with a prediction interval.",
        (*_P, "result"), "cells", "The share of within comes to the coverage asked for; if not, raise intervals.rate.",
    ),
    MetricSpec(
        "streamadapt_consumer_lag_records", "gauge", "Records in the source that are not yet delivered.",
        ("stream", *_P), "records",
        "When it keeps rising, add engines up to the number of partitions, or remove a slow learner.",
    ),
    MetricSpec(
        "streamadapt_event_time_lag_seconds", "gauge", "Age of the newest accepted entry by its own time stamp.",
        _P, "seconds", "With lag near 0 the producer is late or silent; otherwise as consumer_lag_records.",
    ),
    MetricSpec(
        "streamadapt_pending_labels", "gauge", "Predictions that still wait for a label.",
        _P, "predictions", "When it stays at its limit, labels are missing or late: look at labels_total.",
    ),
    MetricSpec(
        "streamadapt_checkpoint_age_seconds", "gauge", "Time since the newest checkpoint of this run was complete.",
        _P, "seconds", "Above a few intervals, checkpoints fail or the sink does not flush: read the log.",
    ),
    MetricSpec(
        "streamadapt_checkpoint_duration_seconds", "gauge", "Time that the newest checkpoint took.",
        _P, "seconds", "When it nears the interval, use a faster disk or a longer interval.",
    ),
    MetricSpec(
        "streamadapt_checkpoint_size_bytes", "gauge", "Size of the newest checkpoint.",
        _P, "bytes",
        "It is bounded by the configuration; when it surprises, lower windows, memories or pending labels.",
    ),
    MetricSpec(
        "streamadapt_stage_duration_seconds", "histogram", "Time of one call of a stage.",
        ("stage",), "seconds", "The stage that grew is where to look; learn and predict grow with the learners.",
    ),
    MetricSpec(
        "streamadapt_source_connected", "gauge", "1 while the source is connected, 0 while it is trying to be.",
        (), "0 or 1", "At 0 for long: check the servers, the network and the credentials.",
    ),
    MetricSpec(
        "streamadapt_build_info", "gauge", "1, with the version that runs.", ("version",), "1",
        "Nothing; it marks releases on graphs.",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many durations fell up to each bound (not cumulative, one more for those beyond), and their sum."""

    counts: tuple[int, ...]
    sum_s: float


Samples = dict[str, list[tuple[tuple[str, ...], "float | Histogram"]]]


class Metrics:
    """What one engine has measured. A write costs about a microsecond; memory grows with label values only.

    Parameters
    ----------
    clock : Clock
        Ages and lags are taken at the time of a scrape.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._counts = {stage: [0] * (len(STAGE_BOUNDS_S) + 1) for stage in STAGES}
        self._sums = dict.fromkeys(STAGES, 0.0)
        self._pipelines: dict[int, Stats] = {}
        self._dead: Counter[tuple[str, str]] = Counter()
        self._lag: dict[StreamPartition, int] = {}
        self._checkpoints: dict[int, tuple[float, int, float]] = {}
        self._source_state: str | None = None
        self._late = 0

    def stage(self, name: str, seconds: float) -> None:
        """Count one call of a stage of `STAGES`.

        Raises
        ------
        KeyError
            If there is no such stage.
        """
        with self._lock:
            self._counts[name][bisect_left(STAGE_BOUNDS_S, seconds)] += 1
            self._sums[name] += seconds

    def pipeline(self, partition: int, stats: Stats) -> None:
        """Take over a copy of a pipeline's newest counts; called after each poll."""
        copy = Stats(
            entries=stats.entries,
            predictions=stats.predictions,
            labels=Counter(stats.labels),
            updates={learner: Counter(results) for learner, results in stats.updates.items()},
            loss_sum=dict(stats.loss_sum),
            loss_cells=dict(stats.loss_cells),
            drifts=Counter(stats.drifts),
            reactions=Counter(stats.reactions),
            keys=Counter(stats.keys),
            weights=dict(stats.weights),
            signals=dict(stats.signals),
            asked=stats.asked,
            asked_loss=dict(stats.asked_loss),
            asked_weight=stats.asked_weight,
            estimated=dict(stats.estimated),
            foreseen=dict(stats.foreseen),
            seen=dict(stats.seen),
            estimated_count=stats.estimated_count,
            seen_count=stats.seen_count,
            interval_cells=stats.interval_cells,
            interval_hits=stats.interval_hits,
            pending=stats.pending,
            last_time=stats.last_time,
        )  # without the drift log, which no metric shows
        with self._lock:
            self._pipelines[partition] = copy

    def forget(self, partition: int) -> None:
        """Drop what is known about a partition that another engine owns now: absent, not frozen."""
        with self._lock:
            self._pipelines.pop(partition, None)
            self._checkpoints.pop(partition, None)
            self._lag = {where: lag for where, lag in self._lag.items() if where.partition != partition}

    def dead_letter(self, reason: str, stage: str) -> None:
        """Count one refused record."""
        with self._lock:
            self._dead[reason, stage] += 1

    def late_label(self) -> None:
        """Count one label whose prediction had expired."""
        with self._lock:
            self._late += 1

    def lag(self, records: Mapping[StreamPartition, int]) -> None:
        """Replace the lags, in records; partitions that are not in `records` become unknown."""
        with self._lock:
            self._lag = dict(records)

    def checkpoint(self, partition: int, duration_s: float, size_bytes: int, at_monotonic: float) -> None:
        """Note a complete checkpoint; `at_monotonic` is the clock's `monotonic` time in seconds."""
        with self._lock:
            self._checkpoints[partition] = (duration_s, size_bytes, at_monotonic)

    def source_state(self, state: str) -> None:
        """Note `Source.state`."""
        self._source_state = state

    def samples(self) -> Samples:
        """Return every known sample: metric name -> (label values in the catalogue's order, value). Thread-safe."""
        with self._lock:
            pipelines, checkpoints, lag = dict(self._pipelines), dict(self._checkpoints), dict(self._lag)
            dead, late, state = dict(self._dead), self._late, self._source_state
            stages = {name: Histogram(tuple(counts), self._sums[name]) for name, counts in self._counts.items()}
        found: Samples = {spec.name: [] for spec in CATALOGUE}
        for partition, stats in pipelines.items():
            _add_pipeline(found, str(partition), stats, self._clock.time_ns())
        now = self._clock.monotonic()
        for partition, (duration_s, size, at) in checkpoints.items():
            found["streamadapt_checkpoint_age_seconds"].append(((str(partition),), max(0.0, now - at)))
            found["streamadapt_checkpoint_duration_seconds"].append(((str(partition),), duration_s))
            found["streamadapt_checkpoint_size_bytes"].append(((str(partition),), size))
        for where, records in lag.items():
            found["streamadapt_consumer_lag_records"].append(((where.stream, str(where.partition)), records))
        found["streamadapt_dead_letters_total"] = list(dead.items())
        found["streamadapt_late_labels_total"].append(((), late))
        if state in ("connected", "connecting"):  # an ended source is neither up nor down
            found["streamadapt_source_connected"].append(((), float(state == "connected")))
        found["streamadapt_stage_duration_seconds"] = [((name,), h) for name, h in stages.items() if any(h.counts)]
        found["streamadapt_build_info"].append(((__version__,), 1.0))
        return found


class NullMetrics(Metrics):
    """Records nothing: for engines nobody watches."""

    def stage(self, name: str, seconds: float) -> None:
        """Do nothing."""

    def pipeline(self, partition: int, stats: Stats) -> None:
        """Do nothing."""

    def dead_letter(self, reason: str, stage: str) -> None:
        """Do nothing."""

    def late_label(self) -> None:
        """Do nothing."""

    def lag(self, records: Mapping[StreamPartition, int]) -> None:
        """Do nothing."""

    def checkpoint(self, partition: int, duration_s: float, size_bytes: int, at_monotonic: float) -> None:
        """Do nothing."""

    def source_state(self, state: str) -> None:
        """Do nothing."""


class StageTiming:
    """Hands stage durations from the pipeline to the metrics."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self.clock = clock
        self.metrics = metrics

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure one run of a stage."""
        start = self.clock.monotonic()
        try:
            yield
        finally:
            self.metrics.stage(name, self.clock.monotonic() - start)


def _add_pipeline(found: Samples, partition: str, stats: Stats, now_ns: int) -> None:
    def add(name: str, items: Iterable[tuple[tuple[str, ...], float]]) -> None:
        found[f"streamadapt_{name}"] += [((partition, *labels), value) for labels, value in items]

    add("entries_total", [((), stats.entries)])
    add("predictions_total", [((), stats.predictions)])
    add("pending_labels", [((), stats.pending)])
    add("labels_total", (((outcome,), n) for outcome, n in stats.labels.items()))
    add("updates_total", (((name, res), n) for name, results in stats.updates.items() for res, n in results.items()))
    add("matured_loss_total", (((role,), loss) for role, loss in stats.loss_sum.items()))
    add("matured_cells_total", (((role,), cells) for role, cells in stats.loss_cells.items()))
    add("guard_weight_ratio", (((expert,), weight) for expert, weight in stats.weights.items()))
    add("signal", (((name,), value) for name, value in stats.signals.items()))
    add("drifts_total", (((name.partition(":")[0], name.partition(":")[2]), n) for name, n in stats.drifts.items()))
    add("reactions_total", (((what,), n) for what, n in stats.reactions.items()))
    places = ("resident", "stored")
    add("keys", (((place,), n) for place, n in stats.keys.items() if place in places))
    add("key_moves_total", (((move,), n) for move, n in stats.keys.items() if move not in places))
    for name, labels, value in label_samples(stats):
        add(name, [(labels, value)])
    if stats.last_time:
        add("event_time_lag_seconds", [((), (now_ns - stats.last_time) / 1e9)])
