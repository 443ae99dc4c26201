"""The metrics that the engine records, without a client library.

The engine's thread records, and the thread of a scrape reads: every method takes one short lock,
and reads return copies. `streamadapt.app.exposition` writes the samples of `Metrics.samples` in
Prometheus' text format.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from streamadapt.clock import Clock, SystemClock
from streamadapt.engine.conditions import NOTHING, Standing
from streamadapt.engine.metrics_catalogue import CATALOGUE, MetricSpec
from streamadapt.engine.metrics_start import DEAD_LETTERS, Zeros
from streamadapt.errors import Loss
from streamadapt.pipeline.stats import Stats
from streamadapt.records import StreamPartition
from streamadapt.version import __version__

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
    "label_samples",
]

STAGES = ("decode", "learn", "predict", "emit", "checkpoint")
# From one cheap decode to a checkpoint on a slow disk; longer durations are only counted.
STAGE_BOUNDS_S = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of durations between the bounds (not cumulative; the last count is above all
    bounds), and their sum."""

    counts: tuple[int, ...]
    sum_s: float


Samples = dict[str, list[tuple[tuple[str, ...], "float | Histogram"]]]


class Metrics:
    """The metrics of one engine.

    A write costs about a microsecond; memory grows only with the number of label values.

    Parameters
    ----------
    clock : Clock
        Ages and lags are computed at the time of a scrape.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._counts = {stage: [0] * (len(STAGE_BOUNDS_S) + 1) for stage in STAGES}
        self._sums = dict.fromkeys(STAGES, 0.0)
        self._pipelines: dict[int, Stats] = {}
        self._dead: Counter[tuple[str, str]] = Counter()
        self._zeros: dict[int, Zeros] = {}
        self._lag: dict[StreamPartition, int] = {}
        self._checkpoints: dict[int, tuple[float, int, float]] = {}
        self._source_state: str | None = None
        self._standings: Callable[[], Mapping[str, Standing]] = dict
        self._damaged: Counter[int] = Counter()
        self._lost: Counter[tuple[int, str]] = Counter()
        self._late = 0
        self._stalled: bool | None = None

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

    def expect(self, partition: int, zeros: Zeros) -> None:
        """Show all counters of a partition, and of the dead letters, from now on, also those at
        0."""
        with self._lock:
            self._zeros[partition] = zeros
            for known in DEAD_LETTERS:
                self._dead[known] += 0
            for cause in Loss:
                self._lost[partition, cause.value] += 0

    def pipeline(self, partition: int, stats: Stats) -> None:
        """Store a copy of a pipeline's newest counts; called after each poll."""
        copy = Stats(
            entries=stats.entries,
            predictions=stats.predictions,
            absurd=stats.absurd,
            labels=Counter(stats.labels),
            updates={learner: Counter(results) for learner, results in stats.updates.items()},
            loss_sum=dict(stats.loss_sum),
            loss_cells=dict(stats.loss_cells),
            drifts=Counter(stats.drifts),
            reactions=Counter(stats.reactions),
            faults=Counter(stats.faults),
            times=Counter(stats.times),
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
        """Remove the metrics of a partition that another engine owns now: they become absent
        instead of keeping their last values."""
        with self._lock:
            self._pipelines.pop(partition, None)
            self._checkpoints.pop(partition, None)
            self._damaged.pop(partition, None)
            self._zeros.pop(partition, None)
            for cause in Loss:
                self._lost.pop((partition, cause.value), None)
            self._lag = {
                where: lag for where, lag in self._lag.items() if where.partition != partition
            }

    def dead_letter(self, reason: str, stage: str) -> None:
        """Count one refused record."""
        with self._lock:
            self._dead[reason, stage] += 1

    def late_label(self) -> None:
        """Count one label whose prediction had expired."""
        with self._lock:
            self._late += 1

    def lag(self, records: Mapping[StreamPartition, int]) -> None:
        """Replace the lags, in records not yet processed; partitions that are not in `records`
        become unknown."""
        with self._lock:
            self._lag = dict(records)

    def checkpoint(
        self, partition: int, duration_s: float, size_bytes: int, at_monotonic: float
    ) -> None:
        """Note a complete checkpoint; `at_monotonic` is the clock's `monotonic` time in
        seconds."""
        with self._lock:
            self._checkpoints[partition] = (duration_s, size_bytes, at_monotonic)

    def damaged_checkpoints(self, partition: int, count: int) -> None:
        """Count damaged checkpoints that were skipped when a partition's state was loaded; 0 only
        starts the counter."""
        with self._lock:
            self._damaged[partition] += count

    def transaction_lost(self, partition: int, cause: str) -> None:
        """Count one lost transaction; `cause` is a value of `streamadapt.errors.Loss`."""
        with self._lock:
            self._lost[partition, cause] += 1

    def source_state(self, state: str) -> None:
        """Note `Source.state`."""
        self._source_state = state

    def standings(self, ask: Callable[[], Mapping[str, Standing]]) -> None:
        """Store the function that returns the condition of source, sink and dead letters; it is
        called at any time and from any thread."""
        self._standings = ask

    def stalled(self, stalled: bool) -> None:
        """Note whether the engine's loop is stuck; called only if a watchdog runs."""
        self._stalled = stalled

    def samples(self) -> Samples:
        """Return every known sample: metric name -> (label values in the catalogue's order,
        value). Thread-safe."""
        found: Samples = {spec.name: [] for spec in CATALOGUE}
        with self._lock:
            pipelines, zeros = dict(self._pipelines), dict(self._zeros)
            self._add_checkpoints(found)
            self._add_records(found)
            self._add_stages(found)
        now_ns = self._clock.time_ns()
        for partition, stats in pipelines.items():
            _add_pipeline(found, str(partition), stats, zeros.get(partition, Zeros()), now_ns)
        self._add_conditions(found)
        found["streamadapt_build_info"].append(((__version__,), 1.0))
        return found

    def _add_checkpoints(self, found: Samples) -> None:
        """Add what is known about each partition's checkpoints and transactions; needs the
        lock."""
        now = self._clock.monotonic()
        for partition, (duration_s, size_bytes, at) in self._checkpoints.items():
            labels = (str(partition),)
            found["streamadapt_checkpoint_age_seconds"].append((labels, max(0.0, now - at)))
            found["streamadapt_checkpoint_duration_seconds"].append((labels, duration_s))
            found["streamadapt_checkpoint_size_bytes"].append((labels, size_bytes))
        found["streamadapt_damaged_checkpoints_total"] = [
            ((str(partition),), count) for partition, count in self._damaged.items()
        ]
        found["streamadapt_transactions_lost_total"] = [
            ((str(partition), cause), count) for (partition, cause), count in self._lost.items()
        ]

    def _add_records(self, found: Samples) -> None:
        """Add the counts of records that wait, were refused or came too late; needs the lock."""
        found["streamadapt_consumer_lag_records"] = [
            ((at.stream, str(at.partition)), records) for at, records in self._lag.items()
        ]
        found["streamadapt_dead_letters_total"] = list(self._dead.items())
        found["streamadapt_late_labels_total"] = [((), self._late)]

    def _add_stages(self, found: Samples) -> None:
        """Add the durations of the stages that have run; needs the lock."""
        found["streamadapt_stage_duration_seconds"] = [
            ((name,), Histogram(tuple(counts), self._sums[name]))
            for name, counts in self._counts.items()
            if any(counts)
        ]

    def _add_conditions(self, found: Samples) -> None:
        """Add the conditions of source, sink, dead letters and loop."""
        state = self._source_state
        standings = dict(self._standings())
        if state in ("connected", "connecting"):  # an ended source is neither up nor down
            works = state == "connected" and not standings.get("source", NOTHING).trouble
            found["streamadapt_source_connected"].append(((), float(works)))
        for side, standing in standings.items():
            _add_standing(found, side, standing)
        if self._stalled is not None:
            found["streamadapt_loop_stalled"].append(((), float(self._stalled)))


def _add_standing(found: Samples, side: str, standing: Standing) -> None:
    if side != "source":
        found["streamadapt_sink_connected"].append(((side,), float(not standing.trouble)))
    holds = [
        ((side, condition.value), float(holds)) for condition, holds in standing.holds.items()
    ]
    found["streamadapt_condition_active"] += holds
    found["streamadapt_conditions_total"] += [
        ((side, what.value), n) for what, n in standing.began.items()
    ]
    if standing.unacknowledged_s is not None:
        found["streamadapt_unacknowledged_seconds"].append(((side,), standing.unacknowledged_s))
    skipped = [
        ((stream, str(partition)), n) for (stream, partition), n in standing.skipped.items()
    ]
    found["streamadapt_skipped_records_total"] += skipped


class NullMetrics(Metrics):
    """Records nothing: for engines without monitoring."""

    def stage(self, name: str, seconds: float) -> None:
        """Do nothing."""

    def expect(self, partition: int, zeros: Zeros) -> None:
        """Do nothing."""

    def pipeline(self, partition: int, stats: Stats) -> None:
        """Do nothing."""

    def dead_letter(self, reason: str, stage: str) -> None:
        """Do nothing."""

    def late_label(self) -> None:
        """Do nothing."""

    def lag(self, records: Mapping[StreamPartition, int]) -> None:
        """Do nothing."""

    def checkpoint(
        self, partition: int, duration_s: float, size_bytes: int, at_monotonic: float
    ) -> None:
        """Do nothing."""

    def damaged_checkpoints(self, partition: int, count: int) -> None:
        """Do nothing."""

    def transaction_lost(self, partition: int, cause: str) -> None:
        """Do nothing."""

    def source_state(self, state: str) -> None:
        """Do nothing."""

    def standings(self, ask: Callable[[], Mapping[str, Standing]]) -> None:
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


def _add_pipeline(found: Samples, partition: str, stats: Stats, zeros: Zeros, now_ns: int) -> None:
    stats = zeros.under(stats)

    def add(name: str, items: Iterable[tuple[tuple[str, ...], float]]) -> None:
        found[f"streamadapt_{name}"] += [((partition, *labels), value) for labels, value in items]

    add("entries_total", [((), stats.entries)])
    add("predictions_total", [((), stats.predictions)])
    add("absurd_values_total", [((), stats.absurd)])
    add("pending_labels", [((), stats.pending)])
    add("labels_total", (((outcome,), n) for outcome, n in stats.labels.items()))
    add(
        "updates_total",
        (
            ((name, res), n)
            for name, results in stats.updates.items()
            for res, n in results.items()
        ),
    )
    add("matured_loss_total", (((role,), loss) for role, loss in stats.loss_sum.items()))
    add("matured_cells_total", (((role,), cells) for role, cells in stats.loss_cells.items()))
    add("guard_weight_ratio", (((expert,), weight) for expert, weight in stats.weights.items()))
    add("signal", (((name,), value) for name, value in stats.signals.items()))
    add(
        "drifts_total",
        (
            ((name.partition(":")[0], name.partition(":")[2]), n)
            for name, n in stats.drifts.items()
        ),
    )
    add("reactions_total", (((what,), n) for what, n in stats.reactions.items()))
    add("faults_total", (((part,), n) for part, n in stats.faults.items()))
    add("event_times_total", (((what,), stats.times[what]) for what in ("raised", "leap", "back")))
    places = ("resident", "stored")
    add("keys", (((place,), n) for place, n in stats.keys.items() if place in places))
    add("key_moves_total", (((move,), n) for move, n in stats.keys.items() if move not in places))
    for name, labels, value in label_samples(stats, zeros):
        add(name, [(labels, value)])
    if stats.last_time:
        add("event_time_lag_seconds", [((), (now_ns - stats.last_time) / 1e9)])


def label_samples(stats: Stats, zeros: Zeros) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """Yield the samples of label requests, loss estimates and intervals.

    Yields the name (without ``streamadapt_``), the label values (without the partition's) and the
    value; nothing if none of these is in use.
    """
    if stats.interval_cells or zeros.intervals:
        yield "interval_cells_total", ("within",), stats.interval_hits
        yield "interval_cells_total", ("outside",), stats.interval_cells - stats.interval_hits
    if stats.asked or zeros.asks:
        yield "asked_labels_total", (), stats.asked
    for role, total in stats.asked_loss.items():
        yield "asked_loss", (role,), total / stats.asked_weight
    if not stats.estimated_count and not zeros.measures:
        return
    none = dict.fromkeys(zeros.measures, 0.0)
    for which, sums in (("all", stats.estimated), ("known", stats.foreseen)):
        for measure, total in {**none, **sums}.items():
            yield "estimated_loss_total", (measure, which), total
    yield "estimated_predictions_total", ("all",), stats.estimated_count
    yield "estimated_predictions_total", ("known",), stats.seen_count
    for measure, total in {**none, **stats.seen}.items():
        yield "true_loss_total", (measure,), total
