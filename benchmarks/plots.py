"""The plots of the results page: bars of all experts, and the losses of three of them over
time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.scenarios.measure import Measure, Measured

__all__ = ["draw", "moving_mean", "save", "write_plot"]

SERVED, BASE, BESIDE, EXPERT, BEST = "#c8401f", "#444444", "#c9c9c9", "#8fb3d1", "#2c6fa6"
MOST_BARS_PANELS = 2
"""Measures that get a panel of bars; the tables have them all."""
POINTS = 500
"""Points of a curve: more would not be visible."""
WINDOWS = 100
"""A curve's moving mean covers the number of predictions divided by this."""
COLOURS = 48
DPI = 90


def write_plot(measured: Measured, folder: Path) -> Path:
    """Write ``<scenario>.png`` into `folder`, which is created if needed; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    return save(draw(measured), folder / f"{measured.name}.png")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a small PNG; return its path."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    buffer.seek(0)
    with Image.open(buffer) as image:  # few colours: a third of the bytes
        image.convert("RGB").quantize(COLOURS).save(path, optimize=True)
    return path


def draw(measured: Measured) -> Figure:
    """Draw one scenario: a panel of bars for each of its first measures, and the losses over time
    if there are any."""
    shown = measured.measures[:MOST_BARS_PANELS]
    timed = bool(measured.losses)
    widths = [1.0] * len(shown) + [1.35] * timed
    height = max(2.8, 0.9 + 0.24 * len(measured.figures))
    # Figures of the object interface draw with Agg and leave no state behind; rc settings hold
    # within the block only.
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.2 * sum(widths) / 1.0, height), layout="constrained")
        panels = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
        for i, (panel, measure) in enumerate(zip(panels, shown, strict=False)):
            _bars(panel, measured, measure, named=i == 0)
        if timed:
            _curves(panels[-1], measured)
        figure.suptitle(measured.name, fontsize=10, fontweight="bold")
    return figure


def _bars(axes: Any, measured: Measured, measure: Measure, *, named: bool) -> None:
    """One bar per expert, the best of the first measure on top."""
    # Bars are drawn upwards.
    ranked = sorted(measured.figures, key=measured.figure, reverse=not measured.measure.higher)
    values = [measured.figure(name, measure.key) for name in ranked]
    spreads = [measured.spread(name, measure.key) for name in ranked]
    colours = [_colour(measured, name) for name in ranked]
    places = np.arange(len(ranked))
    axes.barh(places, values, color=colours, height=0.75)
    axes.errorbar(
        values, places, xerr=spreads, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5
    )
    top = max(value + spread for value, spread in zip(values, spreads, strict=True))
    # Measures that end at 1 differ in their last part: from zero on, all bars would look alike.
    cut = measure.higher and min(values) > 0.5 * top
    left = min(values) - 0.5 * (top - min(values)) if cut else 0.0
    for place, value, spread in zip(places, values, spreads, strict=True):
        axes.text(
            value + spread + 0.01 * (top - left), place, f"{value:.4g}", va="center", fontsize=7
        )
    axes.set_yticks(places, ranked if named else [""] * len(ranked))
    for label, name in zip(axes.get_yticklabels(), ranked, strict=True):
        label.set_fontweight("bold" if name in ("served", "base") else "normal")
    axes.set_xlim(left, top + 0.16 * ((top - left) or 1.0))
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    direction = "higher" if measure.higher else "lower"
    axes.set_xlabel(f"{measure.title}\n({direction} is better{', axis cut' if cut else ''})")


def _colour(measured: Measured, name: str) -> str:
    if name in ("served", "base"):
        return SERVED if name == "served" else BASE
    if name == measured.best():
        return BEST
    return EXPERT if name in measured.mixed else BESIDE


def _curves(axes: Any, measured: Measured) -> None:
    """Draw moving means of the losses of the base, of the best single expert and of the served
    mixture."""
    count = len(measured.losses["base"])
    window = max(1, count // WINDOWS)
    best = measured.best()
    drawn = [] if best == "base" else [(best, BEST, 1.0)]
    lowest, highest = np.inf, 0.0
    for name, colour, width in (("base", BASE, 0.9), *drawn, ("served", SERVED, 1.3)):
        smooth = moving_mean(measured.losses[name], window)
        smooth = np.sqrt(smooth) if measured.root else smooth
        lowest, highest = min(lowest, float(smooth.min())), max(highest, float(smooth.max()))
        at = np.unique(np.linspace(0, len(smooth) - 1, POINTS).astype(int))
        label = f"{name} (best single)" if name == best else name
        axes.plot(at + window - 1, smooth[at], color=colour, linewidth=width, label=label)
    for mark in measured.marks:
        axes.axvline(mark, color="#999999", linewidth=0.5, linestyle=":")
    if lowest > 0.0 and highest > 30.0 * lowest:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0.0)
    axes.set_xlim(0, count)
    axes.set_xlabel("prediction" + (" (dotted: an event)" if measured.marks else ""))
    axes.set_ylabel(f"{measured.loss}, moving mean over {window}")
    axes.legend(frameon=False, fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def moving_mean(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Return the means of every `window` neighbours, (n - window + 1,)."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    means: npt.NDArray[np.float64] = (total[window:] - total[:-window]) / window
    return means
