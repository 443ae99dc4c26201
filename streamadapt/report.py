"""What a run came to, from the statistics of its partitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from streamadapt.stats import Stats

__all__ = ["summarise"]


def summarise(stats: Sequence[Stats]) -> dict[str, Any]:
    """Add up the partitions.

    Returns
    -------
    dict
        ``frozen``, ``served``: mean loss; ``experts``: name -> mean loss; ``entries``, ``predictions``, ``pending``;
        ``labels``, ``dead_letters``, ``drifts``, ``restored``: name -> count; ``drift_log``: the newest drifts as
        [name, event time in ns]; ``weights``: expert -> mean share now.
    """
    sums: Counter[str] = Counter()
    cells: Counter[str] = Counter()
    for one in stats:
        sums.update(one.loss_sum)
        cells.update(one.loss_cells)
    means = {role: sums[role] / cells[role] if cells[role] else None for role in cells}
    experts = {role: mean for role, mean in means.items() if role != "served"}
    weights = {name: sum(s.weights.get(name, 0.0) for s in stats) / len(stats) for name in experts} if stats else {}
    restored = {n: c for n in experts if (c := sum(s.updates.get(n, Counter())["restored"] for s in stats))}
    return {
        "frozen": means.get("base"),
        "served": means.get("served"),
        "experts": experts,
        "matured_cells": cells["base"],
        "entries": sum(s.entries for s in stats),
        "predictions": sum(s.predictions for s in stats),
        "pending": sum(s.pending for s in stats),
        "labels": _total(s.labels for s in stats),
        "dead_letters": _total(s.rejected for s in stats),
        "drifts": _total(s.drifts for s in stats),
        "drift_log": [list(drift) for s in stats for drift in s.drift_log],
        "restored": restored,
        "weights": weights,
    }


def _total(counters: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return dict(total)
