"""The measurements: rows of figures for each question about labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.labels.conversions import MODES, Conversions, figures, learners
from benchmarks.labels.conversions import run as run_conversions
from benchmarks.labels.streams import BLOCK, Run, Stream, blocks, run
from streamadapt.tasks.label_budget import LabelBudget

__all__ = ["CONDITIONS", "RATES", "Row", "budgets", "conversions", "estimates", "robustness"]

Row = dict[str, Any]
Progress = Callable[[str], None]

RATES = (0.01, 0.05, 0.1)
CONDITIONS = {
    "all": "every label",
    "shuffled": "labels of other entries",
    "dropped": "90 % dropped",
    "garbage": "5 % garbage within the range",
    "absurd": "5 % absurd (1e6)",
    "twice": "every label twice",
}
SEEDS = (0, 1, 2)


def budgets(stream: Stream, progress: Progress) -> list[Row]:
    """Compare a label budget with the same number of labels at random."""
    rows = []
    for rate in RATES:
        for how, floor in (("asked", 0.2), ("random", 1.0)):
            progress(f"{stream.name}: {rate:.0%}, {how}")
            found = run(stream, "asked", LabelBudget(rate, floor))
            stats = found.pipeline.stats
            rows.append(
                {
                    "stream": stream.name,
                    "rate": rate,
                    "picked": how,
                    "asked": found.asked / len(found.losses["base"]),
                    **_losses(found),
                    "told": {
                        role: stats.asked_loss[role] / stats.asked_weight
                        for role in ("base", "served")
                    },
                    "true": {role: found.mean(role) for role in ("base", "served")},
                }
            )
    return rows


def robustness(stream: Stream, progress: Progress) -> tuple[list[Row], list[Row]]:
    """Return served, base and best expert with bad labels, and the estimates of the runs with all
    and with few labels."""
    rows, estimated = [], []
    for kind in CONDITIONS:
        progress(f"{stream.name}: {CONDITIONS[kind]}")
        found = run(stream, kind)
        row = {"stream": stream.name, "condition": kind, **_losses(found)}
        row["constant"] = _best_constant(stream) if kind == "shuffled" else None
        row["refused"] = dict(found.pipeline.stats.rejected)
        row["labels"] = dict(found.pipeline.stats.labels)
        rows.append(row)
        if kind in ("all", "dropped"):
            estimated.append({"stream": stream.name, "condition": kind, **estimates(found)})
    return rows, estimated


def _losses(found: Run) -> Row:
    best = found.best()
    row: Row = {
        "base": found.mean("base"),
        "served": found.mean("served"),
        "best": found.mean(best),
        "best_name": best,
        "ratio": found.mean("served") / found.mean("base"),
        "worst_block": found.worst_block(),
    }
    if found.hits:
        row["accuracy"] = float(np.mean(found.hits["served"]))
    return row


def _best_constant(stream: Stream) -> float:
    """Return the loss of the best constant in hindsight."""
    if stream.classes is None:
        return float(np.abs(stream.truth - np.median(stream.truth)).mean())
    share = np.bincount(stream.truth.astype(int)) / len(stream.truth)
    return float(-(share * np.log(share)).sum())


def estimates(found: Run) -> Row:
    """Compare the estimated loss and the newest matured loss with the true one, block by block."""
    true, estimated, matured = (
        blocks(values) for values in (found.losses["served"], found.estimated, found.matured)
    )
    usable = np.isfinite(estimated) & np.isfinite(matured)
    true, estimated, matured = true[usable], estimated[usable], matured[usable]
    stats = found.pipeline.stats
    row = {
        "blocks": len(true),
        "true": float(true.mean()),
        "estimated": float(estimated.mean()),
        "error": float((np.abs(estimated - true) / true).mean()),
        "matured_error": float((np.abs(matured - true) / true).mean()),
        "constant_error": float((np.abs(true.mean() - true) / true).mean()),
        "correlation": float(np.corrcoef(estimated, true)[0, 1]),
        "matured_correlation": float(np.corrcoef(matured, true)[0, 1]),
    }
    if "served_accuracy" in stats.seen:
        row["accuracy"] = stats.seen["served_accuracy"] / stats.seen_count
        row["estimated_accuracy"] = stats.foreseen["served_accuracy"] / stats.seen_count
    return row


def conversions(entries: int, progress: Progress) -> list[Row]:
    """Return the figures for late positives, learned in each mode."""
    half = entries // 2
    before, after = slice(half // 3, half), slice(half + half // 6, half + half // 6 + half // 2)
    rows = []
    for mode in MODES:
        found: dict[str, list[tuple[float, ...]]] = {}
        for seed in SEEDS:
            progress(f"conversions: {mode}, stream {seed}")
            stream = Conversions.draw(entries, seed)
            outputs = run_conversions(stream, mode, learners())
            for name, values in outputs.items():
                found.setdefault(name, []).append(
                    (*figures(stream, values, before), *figures(stream, values, after))
                )
        keys = ("calibration", "loss", "calibration_after", "loss_after")
        for name in ("base", "served", "river-LogisticRegression"):
            mean, spread = np.mean(found[name], axis=0), np.std(found[name], axis=0, ddof=1)
            rows.append(
                {"mode": mode, "expert": name}
                | dict(zip(keys, mean.tolist(), strict=True))
                | {"spread": dict(zip(keys, spread.tolist(), strict=True))}
            )
    return rows


PROTOCOL = (
    "elec2: the scenario's frozen network (seed 0) and experts without its tree and forest, log "
    "loss in nats, a label "
    "comes before the next entry; glucose: the default experts, absolute error in mg/dL, a "
    "label comes 6 h after its "
    f"entry. Of each the first entries after the training part; blocks of {BLOCK} predictions. "
    f"Every prediction is "
    "judged, whether its label is delivered or not, by the true label, with labels of other "
    "entries by the label that "
    "was delivered. Default guard and settings throughout."
)
