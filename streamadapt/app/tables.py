"""The tables that are printed at the end of a run."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamadapt.app.outcome import refusals
from streamadapt.app.terminal import safe
from streamadapt.engine.time_watch import order_warning

__all__ = ["print_result", "summary_text"]

DATES_SHOWN = 8
PIPE_WIDTH = 100


def _expert_table(
    experts: Mapping[str, float], served: float | None, weights: Mapping[str, float]
) -> Table:
    """Return a table of each expert's error, compared with the frozen model's; the last row is the
    served prediction's.

    Parameters
    ----------
    experts : mapping of str to float
        Mean losses; the frozen model's is called ``base``.
    """
    table = Table()
    table.add_column("expert")
    table.add_column("error", justify="right")
    table.add_column("against frozen", justify="right")
    table.add_column("weight now", justify="right")
    frozen = experts.get("base")
    for name, error in experts.items():
        shown = "frozen (base)" if name == "base" else name
        against = "" if name == "base" else _ratio(error, frozen)
        table.add_row(Text(shown), f"{error:.3f}", against, f"{weights.get(name, 0.0):.2f}")
    if served is not None:
        table.add_section()
        table.add_row("served", f"{served:.3f}", _ratio(served, frozen), "", style="bold")
    return table


def _ratio(error: float, frozen: float | None) -> str:
    return "" if not frozen else f"{100.0 * (error / frozen - 1.0):+.1f} %"


def _count_table(summary: Mapping[str, Any]) -> Table:
    """Return a table of the counts of records, labels, drifts, reactions and faults."""
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    for name in ("entries", "predictions", "pending"):
        table.add_row(name, f"{summary[name]:,}")
    for group, word in (("labels", "label"), ("drifts", "drift"), ("dead_letters", "dead letter")):
        for name, count in sorted(summary[group].items()):
            table.add_row(Text(f"{word}s: {name}"), f"{count:,}")
        if not summary[group]:
            table.add_row(f"{word}s", "none")
    _add_losses_before_labels(table, summary)
    for group, what in (
        ("reactions", "reactions"),
        ("times", "event times"),
        ("faults", "raised"),
        ("restored", "restored"),
    ):
        for name, count in sorted(summary.get(group, {}).items()):
            table.add_row(Text(f"{what}: {name}"), f"{count:,}")
    return table


def _add_losses_before_labels(table: Table, summary: Mapping[str, Any]) -> None:
    """Add what is known of losses without all labels: from those asked for, and by estimate."""
    if summary.get("asked"):
        table.add_row("labels asked for", f"{summary['asked']:,}")
    for role, loss in sorted(summary.get("asked_loss", {}).items()):
        table.add_row(f"loss of all, by asked labels: {role}", f"{loss:.3f}")
    for measure, means in sorted(summary.get("estimated", {}).items()):
        parts = (f"{which} {value:.3f}" for which, value in means.items() if value is not None)
        table.add_row(f"estimated: {measure}", ", ".join(parts))


def _drift_dates(summary: Mapping[str, Any]) -> list[str]:
    """Return one line per detector with the event times of its newest drifts."""
    lines = []
    for name in sorted(summary["drifts"]):
        times = [time for fired, time in summary["drift_log"] if fired == name]
        dates = [
            datetime.fromtimestamp(time / 1e9, UTC).strftime("%Y-%m-%d %H:%M")
            for time in times[-DATES_SHOWN:]
        ]
        more = "... " if len(dates) < summary["drifts"][name] else ""
        lines.append(f"Drifts of {name}, event time UTC: {more}{', '.join(dates)}")
    return lines


def labels_note(summary: Mapping[str, Any]) -> str:
    """Return the share of labels used for the losses; empty if no label was refused."""
    used = summary.get("labels_used")
    if not used:
        return ""
    why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(used["refused"].items()))
    return f", over {used['used']:,} of {used['of']:,} labels: refused were {why}"


def _out_of_order(summary: Mapping[str, Any]) -> str:
    """Return a warning about entries out of order; empty if there were only a few."""
    refused = summary["dead_letters"].get("time_backwards", 0)
    raised = summary.get("times", {}).get("raised", 0)
    return order_warning(
        summary["entries"] + refused, refused, raised, summary.get("out_of_order", "")
    )


def print_result(
    console: Console, errors: Mapping[str, float], summary: Mapping[str, Any], *, what: str
) -> None:
    """Print the summary of a run.

    Parameters
    ----------
    errors : mapping of str to float
        Mean errors by expert; the frozen model's is called ``base``, the mixture's ``served``.
    summary : mapping
        See `streamadapt.engine.summary.summarise`.
    what : str
        The name of the errors, with their unit.
    """
    if warning := _out_of_order(summary):
        console.print(
            warning,
            style="bold red",
            highlight=False,
            markup=False,
            soft_wrap=not console.is_terminal,
        )
    experts = {name: error for name, error in errors.items() if name != "served"}
    if experts:
        console.print(
            f"Error of every expert: {what}{labels_note(summary)}", highlight=False, soft_wrap=True
        )
        console.print(_expert_table(experts, errors.get("served"), summary["weights"]))
    console.print(_count_table(summary))
    for line in _drift_dates(summary):
        console.print(Text(line), highlight=False, soft_wrap=not console.is_terminal)
    _print_refusals(console, summary)


def _print_refusals(console: Console, summary: Mapping[str, Any]) -> None:
    """Print for each reason of refusals an example and the setting that would fix it."""
    reasons = refusals(summary["run"]) if "run" in summary else []
    if reasons:
        console.print("Refused, with an example of each reason:")
    for one in reasons:
        example = safe(f"{one['position']}: {one['detail']}")
        line = f"  {one['reason']} ({one['count']:,}): {example}. {one['setting']}"
        console.print(Text(line), highlight=False, soft_wrap=True)


class _Buffer(io.StringIO):
    """A text buffer with the encoding of standard output, on which the characters of a table
    depend."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.stdout, "encoding", None) or "utf-8"


def summary_text(summary: Mapping[str, Any]) -> str:
    """Return a run's summary as plain text."""
    errors = {**summary["experts"], "served": summary["served"]}
    known = {name: error for name, error in errors.items() if error is not None}
    out = _Buffer()
    width = Console().width if sys.stdout.isatty() else PIPE_WIDTH
    print_result(Console(file=out, width=width), known, summary, what="mean loss of matured cells")
    return out.getvalue().rstrip()
