"""Detected changes against false alarms, one point per detector."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.drift.compare import DUMMIES, GROUPS, Compared
from benchmarks.drift.signals import MOVING
from benchmarks.plots import BASE, BEST, EXPERT, SERVED, save

__all__ = ["SHOWN", "write_plot"]

SHOWN = ("abrupt", "gradual", "regression", "glucose")
SIGNAL = {"loss": SERVED, MOVING: "#e0a030", "error": BEST, "input": BASE}


def write_plot(compared: Compared, path: Path) -> bool:
    """Write the picture; False if none of its groups was run."""
    shown = [group for group in SHOWN if group in compared.groups()]
    if not shown:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    save(_draw(compared, shown), path)
    return True


def _draw(compared: Compared, groups: list[str]) -> Figure:
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.0 * len(groups), 3.6), layout="constrained")
        panels = figure.subplots(1, len(groups), squeeze=False)[0]
        for axes, group in zip(panels, groups, strict=True):
            seen: dict[tuple[int, int], int] = {}
            for detector, signal in compared.rows(group):
                tally = compared.total((detector, signal), group, quiet=True)
                if detector in DUMMIES or not tally.count:
                    continue
                x, y = tally.false_rate or 0.0, 100.0 * tally.detected / tally.count
                axes.plot(x, y, "o", markersize=4, color=SIGNAL.get(signal, EXPERT))
                place = (round(x), round(y / 5.0))
                # Names of points that coincide are placed below each other.
                up = seen[place] = seen.get(place, -1) + 1
                axes.annotate(
                    f"{detector}:{signal}",
                    (x, y),
                    (3, 2 - 7 * up),
                    textcoords="offset points",
                    fontsize=5.5,
                )
            axes.set_ylim(-4, 106)
            axes.set_xscale("symlog", linthresh=1.0)
            axes.set_xlim(left=-0.1)
            axes.set_title(GROUPS[group])
            axes.set_xlabel("false alarms per 10,000 entries, with cool-down")
            axes.set_ylabel("changes detected, %")
    return figure
