"""The tables of the results page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.scenarios.measure import PART, Measure, Measured

__all__ = [
    "against_table",
    "compared",
    "costs_table",
    "figures_table",
    "groups_of",
    "parts_table",
    "percent",
]

MOST_COLUMNS = 7
"""The largest number of figure columns in one table."""


def groups_of(results: Sequence[Measured]) -> list[list[Measured]]:
    """Group scenarios with the same experts and measures into tables that are not too wide."""
    groups: dict[tuple[object, ...], list[Measured]] = {}
    for measured in results:
        groups.setdefault((*measured.figures, *measured.measures), []).append(measured)
    narrow = []
    for group in groups.values():
        most = max(1, MOST_COLUMNS // len(group[0].measures))
        narrow += [group[i : i + most] for i in range(0, len(group), most)]
    return narrow


def percent(change: float) -> str:
    """``-12.3 %``; never ``-0.0 %``."""
    rounded = round(change, 3)
    return "0.0 %" if rounded == 0.0 else f"{rounded:+.1%}".replace("%", " %")


def compared(served: float, other: float, measure: Measure) -> str:
    """Describe how much better or worse a figure is than another, relative to the latter."""
    change = (served / other - 1.0) * (1.0 if measure.higher else -1.0)
    if abs(change) < 0.00005:
        return "the same"
    return f"{abs(change):.2%} {'better' if change > 0.0 else 'worse'}".replace("%", " %")


def rows_of(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown: the first column has names, the others numbers."""
    titles = list(header)
    lines = [titles, ["---", *(["---:"] * (len(titles) - 1))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def figures_table(group: Sequence[Measured]) -> str:
    """Return a table with experts as rows and scenarios (and their measures) as columns."""
    first = group[0]
    several = len(first.measures) > 1
    columns = [(measured, measure) for measured in group for measure in first.measures]
    rows = []
    for name in first.figures:
        beside = name not in first.mixed and name != "served"
        title = f"*{name}*" if beside else f"**{name}**" if name == "served" else name
        rows.append([title, *(_cell(m, measure, name) for m, measure in columns)])
    header = [
        "expert",
        *(f"{m.name} {measure.key}" if several else m.name for m, measure in columns),
    ]
    titles = "; ".join(
        f"{m.title} ({'higher' if m.higher else 'lower'} is better)" for m in first.measures
    )
    return f"{titles[0].upper()}{titles[1:]}.\n\n" + rows_of(header, rows)


def _cell(measured: Measured, measure: Measure, name: str) -> str:
    text = f"{measured.figure(name, measure.key):.4f}"
    if spread := measured.spread(name, measure.key):
        text += f" ± {spread:.4f}"
    block = measured.worst_block(name) if measure == measured.measures[-1] else None
    return text if block is None else f"{text} ({block:.3f})"


def parts_table(measured: Measured) -> str:
    """Return a table with experts as rows and the scenario's parts as columns; empty if it has
    none."""
    if not measured.details:
        return ""
    pairs = [name.split(PART, 1) for name in measured.details]
    experts, parts = dict.fromkeys(e for e, _ in pairs), list(dict.fromkeys(p for _, p in pairs))
    tables = []
    for start in range(0, len(parts), MOST_COLUMNS):
        shown = parts[start : start + MOST_COLUMNS]
        cells = ([measured.details.get(f"{e}{PART}{p}") for p in shown] for e in experts)
        rows = [
            [e, *("" if f is None else f"{f.mean:.4f}" for f in row)]
            for e, row in zip(experts, cells, strict=True)
        ]
        tables.append(rows_of([measured.name, *shown], rows))
    return "\n".join(tables)


def against_table(results: Sequence[Measured]) -> str:
    """Return a table of the served mixture against the base and the best single expert in
    hindsight, for every measure."""
    rows = []
    for m in (m for m in results if m.adapts):
        for measure in m.measures:
            best = m.best(measure.key)
            served, base, of_best = (
                m.figure(name, measure.key) for name in ("served", "base", best)
            )
            title = f"{m.name}, {measure.key}" if len(m.measures) > 1 else m.name
            beats = compared(served, base, measure), compared(served, of_best, measure)
            rows.append(
                [title, f"{base:.4f}", f"{best}: {of_best:.4f}", f"**{served:.4f}**", *beats]
            )
    return rows_of(
        [
            "scenario",
            "base",
            "best single expert",
            "served",
            "against base",
            "against best single",
        ],
        rows,
    )


def costs_table(group: Sequence[Measured]) -> str:
    """Return the costs of the timed scenarios; empty if there are none."""
    timed = [(m, m.cost) for m in group if m.cost is not None]
    if not timed:
        return ""

    def cell(ms: float, base: float) -> str:
        return f"{max(ms, 0.0):.2f} ({max(ms, 0.0) / base:.1f} x)"

    rows = [["base only", *(cell(cost.base, cost.base) for _, cost in timed)]]
    rows += [
        [f"+ {name}", *(cell(cost.learners[name], cost.base) for _, cost in timed)]
        for name in timed[0][1].learners
    ]
    rows.append(["all, with guard", *(cell(cost.full, cost.base) for _, cost in timed)])
    return rows_of(
        ["pipeline, ms per entry (ratio to base only)", *(m.name for m, _ in timed)], rows
    )
