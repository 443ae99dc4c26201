"""The counts of a pipeline; they are part of its state, so that a restart does not lose them.

They consist of plain Python numbers and dictionaries, so the metrics, the final report and the
manifest of a checkpoint need no torch to read them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["DRIFT_LOG", "Stats"]

DRIFT_LOG = 1000
"""The largest number of drifts in `Stats.drift_log`."""
LABEL = "label:"
"""The prefix of the reasons of refused labels in a saved state."""


@dataclass(slots=True)
class Stats:
    """Counts and sums of one pipeline since it was first started.

    Attributes
    ----------
    entries, predictions : int
        Accepted entries, and predictions (fewer, since the first window must fill).
    labels : Counter of str
        By outcome: ``learned`` (complete), ``partial`` (learned, but outputs are still missing),
        ``corrected`` (different from an earlier label that was not learned yet), ``absurd`` (an
        outlier, which was not learned, completely or in part), ``unpredicted`` (its entry came
        before the first full window), ``expired`` (a prediction whose time-to-live ended without a
        complete label), ``negative`` (an entry without a label, learned as a negative), ``turned``
        and ``confirmed`` (the later label of such an entry: positive or negative).
    absurd : int
        Outliers among the values of accepted entries (`streamadapt.pipeline.screen`). Predictions
        from them are the base's, and are not part of any loss: a loss of 1e37 would dominate a sum
        forever.
    rejected : Counter of str
        Refused entries and labels by `streamadapt.errors.Reason` value.
    rejected_labels : Counter of str
        The refused labels that are not part of any loss: all refused labels except duplicates.
        They are also in `rejected`, and are saved within it.
    updates : dict of str to Counter of str
        Learner -> result -> count; results are ``ok`` and ``restored``.
    loss_sum, loss_cells : dict of str to float, int
        Role (``base``, each learner's name, ``served``) -> sum of the task's loss over matured
        cells, and their number.
    drifts : Counter of str
        ``detector:signal`` -> count.
    drift_log : list of (str, int)
        The newest `DRIFT_LOG` drifts: ``detector:signal`` and the entry's event time in ns.
    reactions : Counter of str
        Reaction -> count, once for each learner that it changed: ``boost``, ``forget``, ``reset``,
        ``refit``, ``refit-kept``, ``refit-dropped``.
    faults : Counter of str
        Component -> how often it raised an exception and was suspended:
        ``learner:rls-0.99``, ``guard``, ``detector:adwin:loss``, ``reaction:forget``,
        ``intervals``, ``labelling``, ``signals``.
    times : Counter of str
        ``raised``: entries that came out of order and were accepted with the newest time;
        ``leap``: accepted jumps of event time ahead; ``back``: how often event time was wrong and
        was set back.
    keys : Counter of str
        If every key has a pipeline of its own: keys that are ``resident`` and ``stored`` now, and
        keys ``evicted``, ``restored`` and ``forgotten`` so far. Else empty.
    weights : dict of str to float
        Each expert's share of the newest served prediction, averaged over the cells.
    signals : dict of str to float
        The learners' signals for the newest entry.
    asked : int
        Requested labels (`streamadapt.tasks.label_budget.LabelBudget`).
    asked_loss : dict of str to float
        ``base``, ``served`` -> sum of the losses of requested labels, each divided by the
        probability of the request.
    asked_weight : float
        Sum of one over these probabilities: about the number of predictions that they represent.
    estimated, foreseen, seen : dict of str to float
        Sums of losses (``base``, ``served``; for classes also ``base_accuracy``,
        ``served_accuracy``): estimates over all predictions; estimates over predictions with a
        label; true losses of these.
    estimated_count, seen_count : int, float
        The numbers of predictions in the sums; a label known in part counts in part.
    interval_cells, interval_hits : int
        Matured cells that had an interval, and the number of them whose target was inside.
    pending : int
        Predictions that still wait for a label.
    last_time : int, ns
        The newest accepted event time, as of the newest accepted entry; 0 before the first entry.
    """

    entries: int = 0
    predictions: int = 0
    absurd: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    rejected_labels: Counter[str] = field(default_factory=Counter)
    updates: dict[str, Counter[str]] = field(default_factory=dict)
    loss_sum: dict[str, float] = field(default_factory=dict)
    loss_cells: dict[str, int] = field(default_factory=dict)
    drifts: Counter[str] = field(default_factory=Counter)
    drift_log: list[tuple[str, int]] = field(default_factory=list)
    reactions: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    times: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    weights: dict[str, float] = field(default_factory=dict)
    signals: dict[str, float] = field(default_factory=dict)
    asked: int = 0
    asked_loss: dict[str, float] = field(default_factory=dict)
    asked_weight: float = 0.0
    estimated: dict[str, float] = field(default_factory=dict)
    foreseen: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    estimated_count: int = 0
    seen_count: float = 0.0
    interval_cells: int = 0
    interval_hits: int = 0
    pending: int = 0
    last_time: int = 0

    def add_drift(self, name: str, time: int) -> None:
        """Count a drift and append it to `drift_log`, which keeps the newest `DRIFT_LOG`."""
        self.drifts[name] += 1
        self.drift_log.append((name, time))
        del self.drift_log[:-DRIFT_LOG]

    def mean_loss(self, role: str) -> float | None:
        """Return the mean loss of `role` over all its matured cells; None before the first."""
        cells = self.loss_cells.get(role, 0)
        return self.loss_sum[role] / cells if cells else None

    def interval_coverage(self) -> float | None:
        """Return the share of matured cells inside their issued interval; None before the first
        cell."""
        return self.interval_hits / self.interval_cells if self.interval_cells else None

    def state_dict(self) -> dict[str, Any]:
        """Return a copy as plain values that JSON can store."""
        state = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        labels = state.pop("rejected_labels")
        state["rejected"] |= {f"{LABEL}{reason}": count for reason, count in labels.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        for name in ("entries", "predictions", "asked", "estimated_count", "pending", "last_time"):
            setattr(self, name, int(state[name]))
        self.absurd = int(state.get("absurd", 0))
        for name in ("interval_cells", "interval_hits"):
            setattr(self, name, int(state[name]))
        for name in ("asked_weight", "seen_count"):
            setattr(self, name, float(state[name]))
        for name in ("labels", "rejected", "drifts", "reactions", "keys"):
            setattr(self, name, Counter(state[name]))
        self.faults = Counter(state.get("faults", {}))  # absent in older checkpoints
        self.times = Counter(state.get("times", {}))
        for name in (
            "loss_sum",
            "loss_cells",
            "weights",
            "signals",
            "asked_loss",
            "estimated",
            "foreseen",
            "seen",
        ):
            setattr(self, name, dict(state[name]))
        marked = {
            reason: self.rejected.pop(reason)
            for reason in state["rejected"]
            if reason.startswith(LABEL)
        }
        self.rejected_labels = Counter(
            {reason.removeprefix(LABEL): count for reason, count in marked.items()}
        )
        self.updates = {learner: Counter(results) for learner, results in state["updates"].items()}
        self.drift_log = [(name, int(time)) for name, time in state["drift_log"]]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
