"""The page of results: every sentence with a number in it is written from the measured figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.scenarios.measure import BLOCK, Measured

__all__ = ["results_page"]

ALIKE = 0.0005
"""Relative differences below this are called none."""

_INTRODUCTION = f"""# Results

Written by `python -m benchmarks.quality --json build/quality.json --markdown docs/results.md`; each figure is computed
from the emitted predictions and the data, outside the pipeline, and checked against the pipeline's own counters.

Mean absolute error in original units; lower is better. In brackets: the worst block of {BLOCK} predictions, as a ratio
to the base's error in that block (above 1: worse than doing nothing there). `served` is what the pipeline emits: the
guarded mixture of `base` and the learners. *Italic* rows stand beside the mixture and are not part of it.

The default learners' settings were chosen with these very streams in sight: read the figures as slightly optimistic.
"""

_COST = """## Cost

CPU time per entry in ms, one thread, predicting, learning and mixing included; measured on a noisy 2-core machine, so
that the ratios say more than the times. `base only` is a pipeline without learners and guard; a learner's row is what
it adds to that when it is the only one; `all, with guard` is the default pipeline.
"""


def results_page(results: Sequence[Measured]) -> str:
    """Return the page in Markdown."""
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for measured in results:
        groups.setdefault(tuple(measured.errors), []).append(measured)
    parts = [_INTRODUCTION, "## Figures\n"]
    parts += [_figures(group) for group in groups.values()]
    parts += ["## Where each one helps, and where it harms\n"]
    parts += [_words(group) for group in groups.values()]
    parts += [_COST, *(_costs(group) for group in groups.values())]
    parts += ["## Protocol\n", "\n".join(f"* {_coded(m.protocol, m.name)}" for m in results) + "\n"]
    return "\n".join(parts)


def _coded(protocol: str, name: str) -> str:
    return protocol.replace(name, f"`{name}`", 1)


def _rows(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(header)
    lines = [titles, ["---", *(["---:"] * (len(titles) - 1))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _figures(group: Sequence[Measured]) -> str:
    def cell(measured: Measured, name: str) -> str:
        return f"{measured.figure(name):.4f} ({measured.worst_block(name):.3f})"

    first = group[0]
    rows = []
    for name in first.errors:
        beside = name not in first.mixed and name != "served"
        title = f"*{name}*" if beside else f"**{name}**" if name == "served" else name
        rows.append([title, *(cell(m, name) for m in group)])
    gain = ["served against base", *(_percent(m.figure("served") / m.figure("base") - 1.0) for m in group)]
    return _rows(["expert", *(m.name for m in group)], [*rows, gain])


def _words(group: Sequence[Measured]) -> str:
    lines = [f"* `{name}`: " + _verdict(group, name) for name in group[0].errors if name != "base"]
    return "\n".join(lines) + "\n"


def _verdict(group: Sequence[Measured], name: str) -> str:
    """Say in which scenarios an expert is better than the base, in which worse, and where in blocks."""
    change = {m.name: m.figure(name) / m.figure("base") - 1.0 for m in group}

    def listed(chosen: Callable[[float], bool]) -> str:
        return ", ".join(f"{scenario} ({_percent(c)})" for scenario, c in change.items() if chosen(c))

    better, worse = listed(lambda c: c < -ALIKE), listed(lambda c: c > ALIKE)
    same = ", ".join(scenario for scenario, c in change.items() if abs(c) <= ALIKE)
    parts = [f"better than the base on {better}"] if better else []
    parts += [f"worse on {worse}" if better else f"worse than the base on {worse}"] if worse else []
    parts += [f"no different on {same}"] if same else []
    blocks = [(m.worst_block(name), m.name) for m in group]
    ratio, where = max(blocks)
    if ratio > 1.0 + ALIKE:
        parts.append(f"at its worst {_percent(ratio - 1.0)} over a block of {where}")
    else:
        parts.append("no block worse than the base's")
    if name == "served":
        parts.append(_against_best(group))
    return "; ".join(parts) + "."


def _against_best(group: Sequence[Measured]) -> str:
    said = []
    for m in group:
        best = min(m.mixed, key=m.figure)
        said.append(f"{_percent(m.figure('served') / m.figure(best) - 1.0)} against {best} on {m.name}")
    return "against the best single expert in hindsight: " + ", ".join(said)


def _percent(change: float) -> str:
    rounded = round(change, 3)
    return "0.0 %" if rounded == 0.0 else f"{rounded:+.1%}".replace("%", " %")


def _costs(group: Sequence[Measured]) -> str:
    timed = [(m, m.cost) for m in group if m.cost is not None]
    if not timed:
        return ""

    def cell(ms: float, base: float) -> str:
        return f"{max(ms, 0.0):.2f} ({max(ms, 0.0) / base:.1f} x)"

    rows = [["base only", *(cell(cost.base, cost.base) for _, cost in timed)]]
    rows += [
        [f"+ {name}", *(cell(cost.learners[name], cost.base) for _, cost in timed)] for name in timed[0][1].learners
    ]
    rows.append(["all, with guard", *(cell(cost.full, cost.base) for _, cost in timed)])
    return _rows(["pipeline, ms per entry (ratio to base only)", *(m.name for m, _ in timed)], rows)
