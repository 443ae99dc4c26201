"""The figures in words: where each method helps, has no effect or harms."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.results_page_tables import compared, percent
from benchmarks.scenarios.measure import Measured

__all__ = ["change_of", "served_words", "words"]

ALIKE = 0.0005
"""Changes below this share of the base's figure count as no change, and so do those below the
spread over the seeds."""
LOSS_OF_BEST = 0.005
"""The served mixture should be behind the best single expert by at most this share of its
figure."""


def words(results: Sequence[Measured]) -> str:
    """Return one item per expert, over all scenarios that have it."""
    results = [m for m in results if m.adapts]
    names = dict.fromkeys(
        name for m in results for name in m.figures if name not in ("base", "served")
    )
    lines = [_sentence("served", results)] if results else []
    lines += [_sentence(name, [m for m in results if name in m.figures]) for name in names]
    return "\n".join(lines) + "\n"


def change_of(measured: Measured, name: str) -> tuple[int, str]:
    """Compare an expert with the base by the scenario's first measure.

    Returns
    -------
    sign : int
        1: it helps; -1: it harms; 0: no effect.
    text : str
        The size: in per cent of the base's figure, or in points of a measure that is better
        when higher.
    """
    figure, base = measured.figure(name), measured.figure("base")
    gain = figure - base if measured.measure.higher else base - figure
    nothing = abs(gain) <= max(ALIKE * abs(base), measured.spread(name))
    text = f"{figure - base:+.3f}" if measured.measure.higher else percent(figure / base - 1.0)
    return 0 if nothing else 1 if gain > 0.0 else -1, text


def _sentence(name: str, results: Sequence[Measured]) -> str:
    changes = [(m.name, *change_of(m, name)) for m in results]
    parts = []
    for wanted, verb in ((1, "helps on"), (0, "has no effect on"), (-1, "harms on")):
        if found := [f"{scenario} ({text})" for scenario, sign, text in changes if sign == wanted]:
            parts.append(f"{verb} {', '.join(found)}")
    return f"* `{name}`: " + "; ".join([*parts, *_blocks(name, results)]) + "."


def _blocks(name: str, results: Sequence[Measured]) -> list[str]:
    blocks = [(ratio, m.name) for m in results if (ratio := m.worst_block(name)) is not None]
    if not blocks:
        return []
    ratio, where = max(blocks)
    if ratio <= 1.0 + ALIKE:
        return ["no block worse than the base's"]
    return [f"in its worst block {percent(ratio - 1.0)} ({where})"]


def served_words(results: Sequence[Measured]) -> str:
    """Describe where the served mixture is worse than the base or the best single expert."""
    behind_base, behind_best = [], []
    for m in (m for m in results if m.adapts):
        for measure in m.measures:
            sign = 1.0 if measure.higher else -1.0
            title = f"{m.name} ({measure.key})" if len(m.measures) > 1 else m.name
            served, base, best = (
                m.figure(name, measure.key) for name in ("served", "base", m.best(measure.key))
            )
            if sign * (served / base - 1.0) < 0.0:
                behind_base.append(f"{title} ({compared(served, base, measure)})")
            if sign * (served / best - 1.0) < -LOSS_OF_BEST:
                behind_best.append(f"{title} ({compared(served, best, measure)})")
    return (
        "Worse than the frozen base: "
        + (", ".join(behind_base) or "nowhere")
        + f". Behind the best single expert in hindsight by more than "
        f"{LOSS_OF_BEST:.1%}: ".replace("%", " %")
        + (", ".join(behind_best) or "nowhere")
        + ".\n"
    )
