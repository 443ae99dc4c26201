"""What the statistics tell about labels that are asked for, and about losses without labels, as samples of metrics."""

from __future__ import annotations

from collections.abc import Iterator

from streamadapt.metrics_start import Zeros
from streamadapt.stats import Stats

__all__ = ["label_samples"]


def label_samples(stats: Stats, zeros: Zeros) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """Yield name (without ``streamadapt_``), label values (without the partition's) and value; nothing where nothing
    is asked for or estimated."""
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
