"""The tables a person sees at the end of a run."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

__all__ = ["expert_table", "summary_text"]


def expert_table(
    experts: Mapping[str, float], served: float | None, weights: Mapping[str, float], *, what: str
) -> Table:
    """Return every expert's error, the served one last, each against the frozen model's.

    Parameters
    ----------
    experts : mapping of str to float
        Mean losses; the frozen model's is called ``base``.
    what : str
        What the figures are, with their unit.
    """
    table = Table(title=f"Error of every expert: {what}", title_justify="left")
    table.add_column("expert")
    table.add_column("error", justify="right")
    table.add_column("against frozen", justify="right")
    table.add_column("weight now", justify="right")
    frozen = experts.get("base")
    for name, error in experts.items():
        shown = "frozen (base)" if name == "base" else name
        table.add_row(shown, f"{error:.3f}", _ratio(error, frozen), f"{weights.get(name, 0.0):.2f}")
    if served is not None:
        table.add_section()
        table.add_row("served", f"{served:.3f}", _ratio(served, frozen), "", style="bold")
    return table


def _ratio(error: float, frozen: float | None) -> str:
    return "" if not frozen else f"{100.0 * (error / frozen - 1.0):+.1f} %"


def count_table(summary: Mapping[str, Any]) -> Table:
    """Return what was read, learned and refused."""
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    for name in ("entries", "predictions", "pending"):
        table.add_row(name, f"{summary[name]:,}")
    for group, word in (
        ("labels", "labels"),
        ("drifts", "drifts"),
        ("dead_letters", "dead letters"),
        ("restored", "restored"),
    ):
        for name, count in sorted(summary[group].items()):
            table.add_row(f"{word}: {name}", f"{count:,}")
    return table


def summary_text(summary: Mapping[str, Any]) -> str:
    """Return a run's summary as plain text."""
    parts: list[RenderableType] = [count_table(summary)]
    experts = {name: loss for name, loss in summary["experts"].items() if loss is not None}
    if experts:
        parts.insert(0, expert_table(experts, summary["served"], summary["weights"], what="mean loss of matured cells"))
    out = io.StringIO()
    Console(file=out, width=100).print(Group(*parts))
    return out.getvalue().rstrip()
