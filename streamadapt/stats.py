"""What a pipeline has counted so far: part of its state, so that a restart does not forget it.

Plain Python numbers and dictionaries only: the metrics, the final report and a checkpoint's manifest need no torch to
read it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["DRIFT_LOG", "Stats"]

DRIFT_LOG = 1000
"""How many drifts `Stats.drift_log` remembers."""


@dataclass(slots=True)
class Stats:
    """Counts and sums of one pipeline since it was first started.

    Attributes
    ----------
    entries, predictions : int
        Accepted entries; predictions made (fewer, while the first window fills).
    labels : Counter of str
        By outcome: ``learned``, ``unpredicted`` (its entry came before the first full window), ``expired`` (a
        prediction whose time-to-live ended without a label).
    rejected : Counter of str
        Refused entries and labels by `streamadapt.errors.Reason` value.
    updates : dict of str to Counter of str
        Learner -> result -> count; results are ``ok`` and ``restored``.
    loss_sum, loss_cells : dict of str to float, int
        Role (``base``, each learner's name, ``served``) -> sum of the task's loss over matured cells, and their number.
    drifts : Counter of str
        ``detector:signal`` -> count.
    drift_log : list of (str, int)
        The newest `DRIFT_LOG` drifts: ``detector:signal`` and the entry's event time in ns.
    weights : dict of str to float
        Each expert's share of the newest served prediction, averaged over the cells.
    signals : dict of str to float
        What learners tell about the newest entry.
    pending : int
        Predictions that still wait for a label.
    last_time : int, ns
        Event time of the newest accepted entry; 0 before the first.
    """

    entries: int = 0
    predictions: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    updates: dict[str, Counter[str]] = field(default_factory=dict)
    loss_sum: dict[str, float] = field(default_factory=dict)
    loss_cells: dict[str, int] = field(default_factory=dict)
    drifts: Counter[str] = field(default_factory=Counter)
    drift_log: list[tuple[str, int]] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    signals: dict[str, float] = field(default_factory=dict)
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

    def state_dict(self) -> dict[str, Any]:
        """Return a detached copy in plain JSON-able values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for name in ("entries", "predictions", "pending", "last_time"):
            setattr(self, name, int(state[name]))
        for name in ("labels", "rejected", "drifts"):
            setattr(self, name, Counter(state[name]))
        for name in ("loss_sum", "loss_cells", "weights", "signals"):
            setattr(self, name, dict(state[name]))
        self.updates = {learner: Counter(results) for learner, results in state["updates"].items()}
        self.drift_log = [(name, int(time)) for name, time in state["drift_log"]]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
