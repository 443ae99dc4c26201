"""The catalogue of metrics: the name and meaning of each, and what to do when it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CATALOGUE", "MetricSpec"]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row of the catalogue.

    Attributes
    ----------
    name : str
        The name in Prometheus' text format, with its suffix.
    labels : tuple of str
        The number of label values is bounded by the configuration; a record's key or id is never
        a label.
    unit : str
        The unit of the value.
    action : str
        What to do when the value rises (or falls, if a fall is the problem).
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
        "streamadapt_entries_total",
        "counter",
        "Entries accepted into the pipeline.",
        _P,
        "entries",
        "Nothing; when its rate falls to 0, look at source_connected and dead_letters_total.",
    ),
    MetricSpec(
        "streamadapt_predictions_total",
        "counter",
        "Predictions made.",
        _P,
        "predictions",
        "Nothing; it stays behind entries_total only while the first window fills.",
    ),
    MetricSpec(
        "streamadapt_absurd_values_total",
        "counter",
        "Values far outside the earlier range of their stream: the base is served while they are "
        "in the window, and no learner learns from them.",
        _P,
        "values",
        "Look at the source: put a marker for missing values such as -9999 into fields.missing; "
        "or a sensor may be broken.",
    ),
    MetricSpec(
        "streamadapt_labels_total",
        "counter",
        "Labels by outcome: learned, partial, corrected, absurd (an outlier), unpredicted "
        "(its entry had no prediction), "
        "expired, negative, turned (positive after negative), confirmed (negative confirmed).",
        (*_P, "outcome"),
        "labels",
        "When expired rises, labels arrive after their time-to-live: raise it, or repair the "
        "label stream.",
    ),
    MetricSpec(
        "streamadapt_updates_total",
        "counter",
        "Learner updates by result: ok, or restored (the update diverged and was undone).",
        (*_P, "learner", "result"),
        "updates",
        "When restored rises, the learner diverges: lower its learning rate, or remove it.",
    ),
    MetricSpec(
        "streamadapt_matured_loss_total",
        "counter",
        "Loss summed over matured cells, by role: base, each learner, served; "
        "its rate over the rate of matured_cells_total is the mean loss of a window.",
        (*_P, "role"),
        "loss (the task's)",
        "When served rises above base, the guard has not adapted its weights yet: look at "
        "guard_weight_ratio and drifts_total.",
    ),
    MetricSpec(
        "streamadapt_matured_cells_total",
        "counter",
        "Cells of predictions whose label has arrived, by role.",
        (*_P, "role"),
        "cells",
        "Nothing; when its rate falls to 0, labels have stopped.",
    ),
    MetricSpec(
        "streamadapt_guard_weight_ratio",
        "gauge",
        "Share of each expert in the newest served prediction.",
        (*_P, "expert"),
        "ratio; they sum to 1, and with ridge one can be negative or above 1",
        "When base nears 1, the learners do not help: look at updates_total.",
    ),
    MetricSpec(
        "streamadapt_signal",
        "gauge",
        "Signals of the learners about the newest entry, such as dictionary-error.",
        (*_P, "signal"),
        "the learner's",
        "When it stays above its usual level, the inputs have changed: look at them, or give it "
        "a drift monitor.",
    ),
    MetricSpec(
        "streamadapt_drifts_total",
        "counter",
        "Drifts detected, by detector and signal.",
        (*_P, "detector", "signal"),
        "drifts",
        "When it rises often while the loss (matured_loss_total) stays the same, make the "
        "detector less sensitive.",
    ),
    MetricSpec(
        "streamadapt_reactions_total",
        "counter",
        "Reactions to drifts, once for each affected learner.",
        (*_P, "reaction"),
        "reactions",
        "When it rises and the served loss does not fall, the reaction does not help: set it to "
        "alert.",
    ),
    MetricSpec(
        "streamadapt_faults_total",
        "counter",
        "Exceptions raised by a part (a learner, the guard, a detector, a reaction); the engine "
        "continued without the part.",
        (*_P, "part"),
        "exceptions",
        "When it rises, read the traceback in the log (the first of each kind) and repair or "
        "remove that part.",
    ),
    MetricSpec(
        "streamadapt_keys",
        "gauge",
        "Keys with a pipeline of their own, by place: resident (in memory) or stored.",
        (*_P, "place"),
        "keys",
        "When stored nears keys.max_stored, raise that: beyond it the key used least recently "
        "is forgotten.",
    ),
    MetricSpec(
        "streamadapt_key_moves_total",
        "counter",
        "Keys evicted from memory, restored to it, or forgotten.",
        (*_P, "move"),
        "keys",
        "When restored rises nearly as fast as entries_total, raise keys.max_keys; forgotten "
        "keys start from nothing.",
    ),
    MetricSpec(
        "streamadapt_dead_letters_total",
        "counter",
        "Records refused, by reason and stage; nothing was learned from them.",
        ("reason", "stage"),
        "records",
        "Read the newest dead letters; if all have one reason, repair the producer or the codec's "
        "configuration.",
    ),
    MetricSpec(
        "streamadapt_late_labels_total",
        "counter",
        "Labels read after a newer entry; most are learned all the same.",
        (),
        "labels",
        "Raise source.label_wait, or make labels arrive sooner; refused ones are in "
        "dead_letters_total with the reason late_label.",
    ),
    MetricSpec(
        "streamadapt_asked_labels_total",
        "counter",
        "Labels asked for, with a budget of labels.",
        _P,
        "labels",
        "Nothing; its rate over the rate of predictions_total is the budget.",
    ),
    MetricSpec(
        "streamadapt_asked_loss",
        "gauge",
        "Loss over all predictions, from the asked labels, each weighted by one over its "
        "probability.",
        (*_P, "role"),
        "loss (the task's)",
        "As for matured_loss_total, which covers labelled predictions only.",
    ),
    MetricSpec(
        "streamadapt_estimated_loss_total",
        "counter",
        "Losses (and, with classes, accuracies) as estimated at the time of the prediction, "
        "summed by measure: base, served, base_accuracy, served_accuracy; over all predictions, "
        "or over those whose label has arrived (known).",
        (*_P, "measure", "labels"),
        "loss (the task's)",
        "When its rate over estimated_predictions_total rises, losses probably rise, before the "
        "labels show it.",
    ),
    MetricSpec(
        "streamadapt_estimated_predictions_total",
        "counter",
        "Number of predictions in estimated_loss_total.",
        (*_P, "labels"),
        "predictions",
        "Nothing; all minus known is the number of predictions without a label.",
    ),
    MetricSpec(
        "streamadapt_true_loss_total",
        "counter",
        "True values of the measures of estimated_loss_total, over predictions with a known "
        "label.",
        (*_P, "measure"),
        "loss (the task's)",
        "When it differs from estimated_loss_total of the known ones, the labels have changed in "
        "a way that the inputs do not show.",
    ),
    MetricSpec(
        "streamadapt_interval_cells_total",
        "counter",
        "Matured cells with a prediction interval.",
        (*_P, "result"),
        "cells",
        "The share of within should approach the requested coverage; if not, raise "
        "intervals.rate.",
    ),
    MetricSpec(
        "streamadapt_consumer_lag_records",
        "gauge",
        "Records that are not yet processed: those still in the source, and those that wait in "
        "the engine.",
        ("stream", *_P),
        "records",
        "When it keeps rising, add engines up to the number of partitions, or remove a slow "
        "learner.",
    ),
    MetricSpec(
        "streamadapt_event_time_lag_seconds",
        "gauge",
        "Age of the newest accepted entry by its own time stamp.",
        _P,
        "seconds",
        "If consumer_lag_records is near 0, the producer is late or silent; otherwise as for "
        "consumer_lag_records.",
    ),
    MetricSpec(
        "streamadapt_event_times_total",
        "counter",
        "Event times that are wrong or out of order: raised (an entry out of order, processed "
        "with the newest time), leap (an accepted jump ahead), back (a wrong newest time that was "
        "corrected).",
        (*_P, "what"),
        "times",
        "When back rises, look for a producer with a wrong clock; raised is harmless, with a "
        "panel it does not occur.",
    ),
    MetricSpec(
        "streamadapt_pending_labels",
        "gauge",
        "Predictions that wait for a label.",
        _P,
        "predictions",
        "When it stays at its limit, labels are missing or late: look at labels_total.",
    ),
    MetricSpec(
        "streamadapt_checkpoint_age_seconds",
        "gauge",
        "Time since the newest checkpoint of this run was complete.",
        _P,
        "seconds",
        "Above a few intervals, checkpoints fail or the sink does not flush: read the log.",
    ),
    MetricSpec(
        "streamadapt_checkpoint_duration_seconds",
        "gauge",
        "Time that the newest checkpoint took.",
        _P,
        "seconds",
        "When it nears the interval, use a faster disk or a longer interval.",
    ),
    MetricSpec(
        "streamadapt_checkpoint_size_bytes",
        "gauge",
        "Size of the newest checkpoint.",
        _P,
        "bytes",
        "It is bounded by the configuration; if it is too large, lower windows, memories or "
        "pending labels.",
    ),
    MetricSpec(
        "streamadapt_damaged_checkpoints_total",
        "counter",
        "Damaged checkpoints skipped at a start.",
        _P,
        "checkpoints",
        "Check the disk: a file that had been written completely was cut off or changed.",
    ),
    MetricSpec(
        "streamadapt_transactions_lost_total",
        "counter",
        "Transactions lost, by cause: no_answer, taken, expired, refused or failed; the "
        "partition restarts from its last commit.",
        (*_P, "cause"),
        "transactions",
        "no_answer: look at the brokers; taken: look for a second engine on this output, or raise "
        "sink.transaction_timeout; expired: raise the brokers' transactional.id.expiration.ms; "
        "refused, failed: read the log.",
    ),
    MetricSpec(
        "streamadapt_stage_duration_seconds",
        "histogram",
        "Duration of one call of a stage.",
        ("stage",),
        "seconds",
        "Look at the stage that grew; learn and predict grow with the learners.",
    ),
    MetricSpec(
        "streamadapt_source_connected",
        "gauge",
        "1 while the source is connected and answers, 0 while nothing can be read.",
        (),
        "0 or 1",
        "At 0: /ready and the log say why; check the servers, the network and the credentials.",
    ),
    MetricSpec(
        "streamadapt_sink_connected",
        "gauge",
        "1 while no fault is known that prevents deliveries, by side: sink or dead_letters.",
        ("side",),
        "0 or 1",
        "At 0: /ready and the log say why.",
    ),
    MetricSpec(
        "streamadapt_unacknowledged_seconds",
        "gauge",
        "Age of the oldest sent record that the output has not acknowledged; 0 if there is none.",
        ("side",),
        "seconds",
        "Above 5 s: read in the log what is wrong with the output's brokers.",
    ),
    MetricSpec(
        "streamadapt_condition_active",
        "gauge",
        "1 while a condition of docs/kafka.md holds, by side: source, sink or dead_letters.",
        ("side", "condition"),
        "0 or 1",
        "At 1: read the log line of its beginning, which says what to do.",
    ),
    MetricSpec(
        "streamadapt_conditions_total",
        "counter",
        "How often each condition has begun, or was seen, in this run.",
        ("side", "condition"),
        "conditions",
        "When it rises, look for the line in the log; docs/kafka.md explains all conditions.",
    ),
    MetricSpec(
        "streamadapt_skipped_records_total",
        "counter",
        "Offsets that this run skipped, because their records were deleted before they were read.",
        ("stream", "partition"),
        "offsets",
        "When it rises, raise the topic's retention, or add engines: records were lost unread.",
    ),
    MetricSpec(
        "streamadapt_loop_stalled",
        "gauge",
        "1 while the engine's loop has made no progress for `limits.stuck_after`.",
        (),
        "0 or 1",
        "At 1: the log shows the stack of every thread; often a sink waits for a broker that does "
        "not answer.",
    ),
    MetricSpec(
        "streamadapt_build_info",
        "gauge",
        "1, with the running version.",
        ("version",),
        "1",
        "Nothing; it marks releases on graphs.",
    ),
)
