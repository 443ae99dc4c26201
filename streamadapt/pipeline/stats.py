"""What a pipeline has counted so far: part of its state, so that a restart does not forget it.

Plain Python numbers and dictionaries only: the metrics, the final report and a checkpoint's
manifest need no torch to read it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["DRIFT_LOG", "Stats"]

DRIFT_LOG = 1000
"""How many drifts `Stats.drift_log` remembers."""
LABEL = "label:"
"""What the reasons of refused labels begin with in a saved state."""


@dataclass(slots=True)
class Stats:
    """Counts and sums of one pipeline since it was first started.

    Attributes
    ----------
    entries, predictions : int
        Accepted entries; predictions made (fewer, while the first window fills).
    labels : Counter of str
        By outcome: ``learned`` (whole), ``partial`` (learned, and outputs are still missing),
        ``corrected`` (did not agree with one that was not learned yet), ``absurd`` (not learned,
        in whole or in part: too far from anything so far), ``unpredicted`` (its entry came before
        the first full window), ``expired`` (a prediction whose time-to-live ended without a whole
        label), ``negative`` (an entry learned as a negative for want of a label), ``turned`` and
        ``confirmed`` (such an entry's label: a positive, a negative).
    absurd : int
        Values of accepted entries that were far outside what their stream had shown
        (`streamadapt.pipeline.screen`). What was predicted from them is the base's, and no loss
        counts it: one of 1e37 would be all there is in a sum for good.
    rejected : Counter of str
        Refused entries and labels by `streamadapt.errors.Reason` value.
    rejected_labels : Counter of str
        Of `rejected`, the labels that no loss knows of: all but those that came twice. Saved
        within ``rejected``.
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
        What drifts did: ``boost``, ``forget``, ``reset``, ``refit``, ``refit-kept``,
        ``refit-dropped`` -> count, one for each learner that it was done to.
    faults : Counter of str
        Part -> how often it raised an exception, and was left out for a while:
        ``learner:rls-0.99``, ``guard``, ``detector:adwin:loss``, ``reaction:forget``,
        ``intervals``, ``labelling``, ``signals``.
    times : Counter of str
        ``raised``: entries that came out of order and were taken with the newest time; ``leap``:
        leaps of event time ahead that were believed; ``back``: how often event time was wrong and
        went back.
    keys : Counter of str
        Where every key has a pipeline of its own: ``resident`` and ``stored`` now; ``evicted``,
        ``restored`` and ``forgotten`` so far. Else empty.
    weights : dict of str to float
        Each expert's share of the newest served prediction, averaged over the cells.
    signals : dict of str to float
        What learners tell about the newest entry.
    asked : int
        Labels asked for (`streamadapt.tasks.label_budget.LabelBudget`).
    asked_loss : dict of str to float
        ``base``, ``served`` -> sum of the losses of labels that were asked for, each over the
        probability of that.
    asked_weight : float
        Sum of one over these probabilities: about how many predictions they stand for.
    estimated, foreseen, seen : dict of str to float
        Sums of estimated losses (``base``, ``served``; with classes also ``base_accuracy``,
        ``served_accuracy``): over all predictions; over those whose label has come; and what these
        really were.
    estimated_count, seen_count : int, float
        How many predictions the sums are over; a label known in part counts in part.
    interval_cells, interval_hits : int
        Matured cells that had an interval; those of them whose target lay within.
    pending : int
        Predictions that still wait for a label.
    last_time : int, ns
        The newest event time that is believed, as of the newest accepted entry; 0 before the
        first.
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
        """Count a drift and remember when it was, forgetting the oldest beyond `DRIFT_LOG`."""
        self.drifts[name] += 1
        self.drift_log.append((name, time))
        del self.drift_log[:-DRIFT_LOG]

    def mean_loss(self, role: str) -> float | None:
        """Mean loss of `role` over all its matured cells so far; None before the first."""
        cells = self.loss_cells.get(role, 0)
        return self.loss_sum[role] / cells if cells else None

    def interval_coverage(self) -> float | None:
        """Share of the matured cells that lay within their interval as issued; None before the
        first."""
        return self.interval_hits / self.interval_cells if self.interval_cells else None

    def state_dict(self) -> dict[str, Any]:
        """Return a detached copy in plain JSON-able values."""
        state = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        labels = state.pop("rejected_labels")
        state["rejected"] |= {f"{LABEL}{reason}": count for reason, count in labels.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
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
