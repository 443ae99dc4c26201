"""The page of figures about labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.labels.conversions import PROTOCOL as CONVERSIONS
from benchmarks.labels.tables import CONDITIONS, PROTOCOL, Row

__all__ = ["page"]


def page(figures: Mapping[str, Any]) -> str:
    """Return the figures as a page of documentation."""
    lines = [
        "# Late, wrong and missing labels",
        "",
        "Written by `python -m benchmarks.labels --json FILE --markdown docs/labels.md`. Lower "
        "is better, except for "
        "calibration, which is best at 1, and for accuracy and correlation.",
        "",
        *_budget(figures["budgets"]),
        *_robustness(figures["robustness"]),
        *_estimates(figures["estimates"]),
        *_conversions(figures["conversions"]),
        "## Protocol",
        "",
        f"{PROTOCOL} Entries: "
        + ", ".join(f"{name} {n:,}" for name, n in figures["entries"].items())
        + ".",
        "",
        f"conversions: {CONVERSIONS}",
        "",
    ]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    marks = ["---"] * left + ["---:"] * (len(head) - left)
    return [f"| {' | '.join(cells)} |" for cells in (head, marks, *rows)] + [""]


def _n(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _budget(rows: Sequence[Row]) -> list[str]:
    text = [
        "## A budget of labels",
        "",
        "`LabelBudget(rate)` compared with the same number of labels picked at random "
        "(`floor = 1`). 'estimated' is the loss of all predictions, estimated from the labels "
        "that were asked for, each with the weight 1 / (its probability); 'true' is the true "
        "loss.",
        "",
    ]
    head = [
        "stream",
        "picked",
        "rate",
        "asked",
        "base",
        "served",
        "best expert",
        "worst block",
        "base estimated / true",
        "served estimated / true",
    ]
    body = [
        [
            r["stream"],
            r["picked"],
            f"{r['rate']:.0%}",
            f"{r['asked']:.2%}",
            _n(r["base"]),
            _n(r["served"]),
            f"{_n(r['best'])} {r['best_name']}",
            f"{r['worst_block']:.2f}",
            *(f"{_n(r['told'][role])} / {_n(r['true'][role])}" for role in ("base", "served")),
        ]
        for r in rows
    ]
    return text + _table(head, body)


def _robustness(rows: Sequence[Row]) -> list[str]:
    text = [
        "## Bad labels",
        "",
        "'ratio' is served divided by base, over all and in the worst block. From labels of other "
        "entries only their distribution can be learned: the best constant in hindsight has the "
        "smallest possible loss. An invalid class is refused on arrival, and so is a second label "
        "for one entry; an outlier value is not learned (`Supervised(absurd=100)`).",
        "",
    ]
    head = [
        "stream",
        "labels",
        "base",
        "served",
        "best expert",
        "best constant",
        "ratio",
        "worst block",
    ]
    body = [
        [
            r["stream"],
            CONDITIONS[r["condition"]],
            _n(r["base"]),
            _n(r["served"]),
            f"{_n(r['best'])} {r['best_name']}",
            _n(r["constant"]),
            f"{r['ratio']:.3f}",
            f"{r['worst_block']:.3f}",
        ]
        for r in rows
    ]
    return text + _table(head, body)


def _estimates(rows: Sequence[Row]) -> list[str]:
    text = [
        "## Losses estimated without labels",
        "",
        "The loss of the served predictions in each block, estimated at the time of each "
        "prediction: mean relative error of the estimate, and its correlation with the true loss. "
        "'matured' is the alternative without an estimate: the mean over the newest 500 labels "
        "known by then. 'constant' is the overall mean, known in hindsight only.",
        "",
    ]
    head = [
        "stream",
        "labels",
        "blocks",
        "true",
        "estimated",
        "error",
        "error of matured",
        "error of constant",
        "correlation",
        "of matured",
        "accuracy",
        "estimated accuracy",
    ]
    body = [
        [
            r["stream"],
            CONDITIONS[r["condition"]],
            str(r["blocks"]),
            _n(r["true"]),
            _n(r["estimated"]),
            *(f"{r[k]:.1%}" for k in ("error", "matured_error", "constant_error")),
            *(f"{r[k]:.2f}" for k in ("correlation", "matured_correlation")),
            *(_n(r.get(k)) for k in ("accuracy", "estimated_accuracy")),
        ]
        for r in rows
    ]
    return text + _table(head, body)


def _conversions(rows: Sequence[Row]) -> list[str]:
    text = [
        "## Late positive labels",
        "",
        "`Supervised(classes=2, negative_after=...)`: an entry without a label is learned as a "
        "negative; see the protocol.",
        "",
    ]
    keys = ("calibration", "loss", "calibration_after", "loss_after")
    head = ["learned", "expert", "calibration", "loss", "calibration after", "loss after"]
    body = [
        [r["mode"], r["expert"], *(f"{r[key]:.3f} ± {r['spread'][key]:.3f}" for key in keys)]
        for r in rows
    ]
    return text + _table(head, body)
