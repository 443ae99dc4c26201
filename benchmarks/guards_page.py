"""The page of guards: tables and words."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.guards_runs import COVERAGE, GUARDS, PRIOR_HEDGE, SEED, Compared

__all__ = ["cell", "page"]


def cell(compared: Compared, row: str) -> str:
    """Return a figure with its worst block, or nothing if there is none."""
    if row not in compared.figures:
        return ""
    block = f" ({compared.blocks[row]:.3f})" if row in compared.blocks else ""
    return f"{compared.figures[row]:.4f}{block}"


def page(found: Sequence[Compared]) -> str:
    """Return the page."""
    blocks = [_table(group) for group in _groups(found)]
    return "\n".join([HEAD, *blocks, _summary(found), TAIL, _intervals(found)])


HEAD = f"""# Guards compared

Written by `python -m benchmarks.guards --json build/guards.json --markdown docs/guards.md`. One pass through each
scenario of docs/results.md with all guards side by side in the deployed pipeline. The experts' predictions do not depend
on the guard. Each guard's loss is that of its own prediction, when the label arrives. One seed ({SEED}), where
docs/results.md has the mean over three. All guards have one setting, the default of their kind: scope `horizon`,
losses in units of the base's running error, capped at 5 of them, no prior. `boa` and `ml-poly` are the rules of the R
package opera; `adahedge` and `simplex stack` use linearised losses as those do; `hedge` is fixed share (0.01) on plain
losses. `two-layer` is the default guard, whose result is `served` in docs/results.md. A config can name `two-layer`, `hedge`, `mean`
and `none` (one expert, unchanged). The other guards are in `benchmarks/plain_guards.py`, for this comparison only: over
all scenarios none of them is closer to the best expert than `two-layer` (last table). `best expert` is the best one in
hindsight. In brackets: the worst block of 500 predictions, as a ratio to the base's error in that block (above 1: worse
than no adaptation there). The two layers and their rules were chosen by results on the cgm, etth1, los and elec2 streams;
the other streams were not used for any choice. A ridge stack cannot mix distributions. The dictionary scenarios have
nothing to mix.
"""  # noqa: E501
TAIL = f"""
On the digits streams one entry in twenty gets a label, 50 entries late. No weights can be learned from that, and all
guards except `{PRIOR_HEDGE}` start without the prior that was chosen there (docs/results.md). The guarantee of each rule is
in docs/regret.md.
"""  # noqa: E501

SPARSE = """Intervals guarantee the coverage of the labels that arrive. In cgm-sparse every 72nd row has a label. These
rows are predicted soonest after a label was learned, so they are the easiest ones (mean absolute error 16.5 instead of
18.7). Of the rows without a label, fewer lie within the interval."""  # noqa: E501


def _groups(found: Sequence[Compared]) -> list[list[Compared]]:
    """Group scenarios with the same measure, into tables of at most eight."""
    groups: list[list[Compared]] = []
    for compared in found:
        if not groups or groups[-1][0].measure != compared.measure or len(groups[-1]) == 8:
            groups.append([])
        groups[-1].append(compared)
    return groups


def _table(group: Sequence[Compared]) -> str:
    rows = [
        row
        for row in ("base", "best expert", *GUARDS, PRIOR_HEDGE)
        if any(row in c.figures for c in group)
    ]
    lines = [
        f"{group[0].measure[0].upper()}{group[0].measure[1:]}.",
        "",
        "| guard | " + " | ".join(c.name for c in group) + " |",
        "| --- |" + " ---: |" * len(group),
    ]
    for row in rows:
        name = f"**{row}**" if row == "two-layer" else row
        lines.append(f"| {name} | " + " | ".join(cell(c, row) for c in group) + " |")
    named = ", ".join(f"{c.best} ({c.name})" for c in group)
    return "\n".join([*lines, "", f"Best experts: {named}.", ""])


def _summary(found: Sequence[Compared]) -> str:
    """Rank the guards over the scenarios that all of them can mix, except digits, where no guard
    learns."""
    judged = [c for c in found if not c.higher]
    if not judged:
        return ""
    lines = [
        "Over the scenarios above except digits: the error of each guard relative to the best "
        "expert in hindsight "
        "(geometric mean of the ratios, below 1: better than it), and relative to the base in its "
        "worst block.",
        "",
        "| guard | to the best expert | to the base | worst block of all | of scenarios |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for guard in GUARDS:
        having = [c for c in judged if guard in c.figures]
        if not having:
            continue
        best = _mean([c.figures[guard] / c.figures["best expert"] for c in having])
        base = _mean([c.figures[guard] / c.figures["base"] for c in having])
        worst = max(c.blocks[guard] for c in having)
        name = f"**{guard}**" if guard == "two-layer" else guard
        lines.append(f"| {name} | {best:.4f} | {base:.4f} | {worst:.3f} | {len(having)} |")
    return "\n".join([*lines, ""])


def _intervals(found: Sequence[Compared]) -> str:
    """Return the coverage and width of the intervals around the default guard."""
    lines = [
        "## Prediction intervals",
        "",
        f"`Intervals({COVERAGE:g})` around the predictions of the default guard, in the same "
        "pass, with default settings. Judged: the share of the targets of all judged predictions "
        "that lie within the interval, including targets whose label never arrives. Counted: the "
        "pipeline's own count, over the labels that arrived, including the warm-up. Rate and "
        "scale of the intervals were chosen by results on cgm-6h, cgm-sparse, los-strong and "
        "etth1-strong.",
        "",
        "| scenario | judged | counted | mean width |",
        "| --- | ---: | ---: | ---: |",
    ]
    for c in found:
        if c.intervals:
            coverage = c.intervals
            lines.append(
                f"| {c.name} | {coverage['judged']:.4f} | {coverage['counted']:.4f} | "
                f"{coverage['width']:.4g} |"
            )
    return "\n".join([*lines, "", SPARSE, ""])


def _mean(ratios: Sequence[float]) -> float:
    product = 1.0
    for ratio in ratios:
        product *= ratio
    return product ** (1.0 / len(ratios))
