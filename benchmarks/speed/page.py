"""The page of the speed benchmark, and its plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.plots import BASE, BEST, SERVED, save
from benchmarks.results_page import protocols
from benchmarks.speed.rounds import Measured

__all__ = ["draw", "page", "write_plot"]

_INTRODUCTION = """# Speed

Written by `python -m benchmarks.speed --json build/speed.json`. CPU time of the process, one thread; the two sides of
each scenario take turns, round by round, and each figure is the median of {rounds} rounds. The ratio is the median of the
rounds' ratios, the rival's time divided by ours (above 1: ours is faster), with its quartiles in brackets. Times are
from one machine; the ratios are more reliable.
"""  # noqa: E501

PLOT = "speed.png"


def page(results: Sequence[Measured], plot: str) -> str:
    """Return the page in Markdown.

    Parameters
    ----------
    plot : str
        Path of the plot, relative to the page; empty if there is none.
    """
    counts = sorted({len(m.rounds.ours) for m in results if m.rounds is not None})
    rounds = " or ".join(map(str, counts)) or "no"
    lines = [_INTRODUCTION.format(rounds=rounds), "| scenario | ours | rival | its time | ratio |"]
    lines.append("| --- | ---: | --- | ---: | ---: |")
    lines += [_row(m, m.as_json()) for m in results]
    lines += [_other(m.name, *one) for m in results for one in _others(m)]
    if plot:
        lines += ["", f"![ratios of all scenarios, with their quartiles]({plot})"]
    lines += ["", "## Protocol", "", protocols(results).rstrip()]
    problems = [
        f"* `{m.name}`: {problem}" for m in results if (problem := m.as_json().get("error"))
    ]
    if problems:
        lines += ["", "## Not measured", "", *problems]
    return "\n".join(lines) + "\n"


def _row(measured: Measured, figures: dict[str, Any]) -> str:
    if figures["ours"] is None:
        return f"| {measured.name} | {'skipped' if measured.skipped else 'failed'} | | | |"
    own = _time(figures["ours"], measured.unit)
    if figures["ratio"] is None:
        return f"| {measured.name} | {own} | failed | | |"
    low, high = figures["quartiles"]["ratio"]
    theirs = _time(figures["rival"], measured.unit)
    return (
        f"| {measured.name} | {own} | {_cell(figures['rival_name'])} | {theirs} | "
        f"**{_ratio(figures['ratio'])}** ({_ratio(low)} to {_ratio(high)}) |"
    )


def _others(measured: Measured) -> list[tuple[str, dict[str, float], str]]:
    others = measured.as_json().get("others", {})
    return [(rival, figures, measured.unit) for rival, figures in others.items()]


def _other(name: str, rival: str, figures: dict[str, float], unit: str) -> str:
    time, ratio = _time(figures["rival"], unit), _ratio(figures["ratio"])
    return f"| {name} | | {_cell(rival)} | {time} | {ratio} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _time(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{number} {unit.split()[0]}"


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_plot(results: Sequence[Measured], folder: Path) -> Path | None:
    """Write the plot into `folder`, which is created if needed; None if no ratio was measured."""
    found = {m.name: figures for m in results if (figures := m.as_json())["ratio"] is not None}
    if not found:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return save(draw(found), folder / PLOT)


def draw(found: dict[str, dict[str, Any]]) -> Figure:
    """Draw the ratios as bars from 1, on a logarithmic axis."""
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.2, 0.9 + 0.24 * len(found)), layout="constrained")
        axes = figure.subplots()
        names = list(reversed(found))  # bars are drawn upwards
        ratios = np.array([found[name]["ratio"] for name in names])
        ends = np.array([found[name]["quartiles"]["ratio"] for name in names])
        places = np.arange(len(names))
        colours = [BEST if ratio >= 1.0 else SERVED for ratio in ratios]
        axes.barh(places, ratios - 1.0, left=1.0, color=colours, height=0.75)
        axes.hlines(places, ends[:, 0], ends[:, 1], color="black", linewidth=0.8)
        axes.axvline(1.0, color=BASE, linewidth=0.8)
        axes.set_xscale("log")
        for place, name, ratio, end in zip(places, names, ratios, ends, strict=True):
            label = f" {_ratio(ratio)}, {found[name]['rival_name']}"
            axes.text(max(1.0, ratio, *end), place, label, va="center", fontsize=6.5)
        low, high = min(0.8, ends.min() / 1.2), max(1.0, ends.max(), ratios.max())
        axes.set_xlim(low, high * (high / low) ** 0.6)
        axes.set_yticks(places, names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel("times faster than the rival named beside the bar (line: quartiles)")
    return figure
