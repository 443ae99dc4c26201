"""The summary of a run, from the statistics of its partitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from streamadapt.pipeline.stats import Stats

__all__ = ["summarise"]


def summarise(stats: Sequence[Stats]) -> dict[str, Any]:
    """Add up the statistics of all partitions.

    Returns
    -------
    dict
        ``frozen``, ``served``: mean loss; ``experts``: name -> mean loss; ``entries``,
        ``predictions``, ``pending``; ``labels_used``: if labels were refused, the number ``used``
        ``of`` all, and the ``refused`` by reason; ``labels``, ``dead_letters``,
        ``drifts``, ``reactions``, ``times``, ``faults`` (see `Stats`), ``restored``: name ->
        count; ``drift_log``: the newest drifts as [name, event time in ns]; ``weights``: expert ->
        current mean share; ``asked``: number of labels asked for; ``asked_loss``: role -> loss
        over all predictions, computed from the asked labels; ``estimated``: measure -> mean
        estimate over ``all`` predictions, over the ``labelled`` and the ``unlabelled`` ones, and
        the true mean (``really``) of the labelled ones. Dicts are empty if there is no data.
    """
    sums: Counter[str] = Counter()
    cells: Counter[str] = Counter()
    for one in stats:
        sums.update(one.loss_sum)
        cells.update(one.loss_cells)
    means = {role: sums[role] / cells[role] if cells[role] else None for role in cells}
    experts = {role: mean for role, mean in means.items() if role != "served"}
    return {
        "frozen": means.get("base"),
        "served": means.get("served"),
        "experts": experts,
        "matured_cells": cells["base"],
        "labels_used": _labels_used(stats),
        "entries": sum(s.entries for s in stats),
        "predictions": sum(s.predictions for s in stats),
        "pending": sum(s.pending for s in stats),
        "labels": _total(s.labels for s in stats),
        "dead_letters": _total(s.rejected for s in stats),
        "drifts": _total(s.drifts for s in stats),
        "reactions": _total(s.reactions for s in stats),
        "times": _total(s.times for s in stats),
        "faults": {part: n for part, n in _total(s.faults for s in stats).items() if n},
        "drift_log": [list(drift) for s in stats for drift in s.drift_log],
        "restored": _restored(stats, experts),
        "weights": _mean_weights(stats, experts),
        "asked": sum(s.asked for s in stats),
        "asked_loss": _asked(stats),
        "estimated": _estimated(stats),
    }


def _mean_weights(stats: Sequence[Stats], experts: Iterable[str]) -> dict[str, float]:
    """Return the guard's weight of each expert, as a mean over the partitions."""
    return {name: sum(s.weights.get(name, 0.0) for s in stats) / len(stats) for name in experts}


def _restored(stats: Sequence[Stats], experts: Iterable[str]) -> dict[str, int]:
    """Return how often each expert was restored, without those that never were."""
    counts = {
        name: sum(s.updates[name]["restored"] for s in stats if name in s.updates)
        for name in experts
    }
    return {name: count for name, count in counts.items() if count}


def _labels_used(stats: Sequence[Stats]) -> dict[str, Any]:
    """Return how many labels the losses were computed from, if some labels were refused."""
    refused = _total(s.rejected_labels for s in stats)
    if not refused:
        return {}
    used = sum(s.labels[outcome] for s in stats for outcome in ("learned", "turned", "confirmed"))
    return {"used": used, "of": used + sum(refused.values()), "refused": refused}


def _asked(stats: Sequence[Stats]) -> dict[str, float]:
    weight = sum(s.asked_weight for s in stats)
    if not weight:
        return {}
    return {role: total / weight for role, total in _sums(s.asked_loss for s in stats).items()}


def _estimated(stats: Sequence[Stats]) -> dict[str, dict[str, float | None]]:
    count, known = sum(s.estimated_count for s in stats), sum(s.seen_count for s in stats)
    estimated, foreseen = _sums(s.estimated for s in stats), _sums(s.foreseen for s in stats)
    really = _sums(s.seen for s in stats)

    def mean(total: float, n: float) -> float | None:
        return total / n if n > 0.0 else None

    return {
        measure: {
            "all": mean(total, count),
            "labelled": mean(foreseen.get(measure, 0.0), known),
            "really": mean(really.get(measure, 0.0), known),
            "unlabelled": mean(total - foreseen.get(measure, 0.0), count - known),
        }
        for measure, total in estimated.items()
    }


def _sums(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for part in parts:
        sums.update(part)
    return dict(sums)


def _total(counters: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return dict(total)
