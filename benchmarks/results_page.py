"""The page of results: every sentence with a number in it is written from the measured figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from benchmarks.results_page_tables import (
    against_table,
    costs_table,
    figures_table,
    groups_of,
    parts_table,
)
from benchmarks.results_page_words import served_words, words
from benchmarks.scenarios.measure import BLOCK, Measured

__all__ = ["protocols", "results_page"]

ALIKE = 0.6
"""A protocol that shares this part of its sentences with one already told is told by what
differs."""

_INTRODUCTION = f"""# Results

Written by `python -m benchmarks.quality --json build/quality.json --markdown docs/results.md`; each figure is computed
from the emitted predictions and the data, outside the pipeline, and, where the pipeline counts the same, checked
against its counters.

`served` is what the pipeline emits: the guarded mixture of `base`, the frozen model, and the learners. *Italic* rows
stand beside the mixture and are not part of it. Where anything is random a figure is the mean over three seeds, ± their
standard deviation. In brackets: the worst block of {BLOCK} predictions, as a ratio to the base's error in that block
(above 1: worse than doing nothing there).

The default learners' settings were chosen with the streams of the cgm, etth1 and los scenarios in sight: read those
figures as slightly optimistic. What was chosen for the others is in their protocols.
"""  # noqa: E501

_WORDS = """## Where each one helps, where it does nothing, where it harms

Against the frozen base, by the first measure of each scenario: in per cent of the base's figure, or, where higher is
better, in points of the measure. Changes of less than .05 % or less than the spread over the seeds are called nothing.
"""  # noqa: E501

_COST = """## Cost

CPU time per entry in ms, one thread, predicting, learning and mixing included; measured on a noisy 2-core machine, with
other work beside it, so that the ratios say more than the times. `base only` is a pipeline without learners and guard;
a learner's row is what it adds to that when it is the only one; `all, with guard` is the scenario's pipeline.
"""  # noqa: E501


def results_page(results: Sequence[Measured], plots: Mapping[str, str] | None = None) -> str:
    """Return the page in Markdown.

    Parameters
    ----------
    plots : mapping of str to str, optional
        Scenario -> path of its plot, relative to the page.
    """
    groups = groups_of(results)
    parts = [_INTRODUCTION, "## Figures\n"]
    for group in groups:
        parts += [
            figures_table(group),
            *(parts_table(m) for m in group),
            *(_image(m, plots or {}) for m in group),
        ]
    parts += [
        "## Served, against the base and the best single expert\n",
        against_table(results),
        served_words(results),
    ]
    parts += [_WORDS, words(results)]
    costs = [table for group in groups if (table := costs_table(group))]
    parts += [_COST, *costs] if costs else []
    parts += ["## Protocol\n", protocols(results)]
    return "\n".join(part for part in parts if part)


def _image(measured: Measured, plots: Mapping[str, str]) -> str:
    path = plots.get(measured.name)
    return (
        f"![{measured.name}: the figures of all "
        f"experts{', and losses over time' if measured.losses else ''}]({path})\n"
        if path
        else ""
    )


def protocols(results: Sequence[Measured]) -> str:
    """One item per scenario; of what an earlier one said word for word, only that it did."""
    told: dict[str, list[str]] = {}
    lines = []
    for m in results:
        text = m.protocol.removeprefix(f"{m.name}: ")
        sentences = _sentences(text)
        like = max(told, key=lambda name: _shared(sentences, told[name]), default=None)
        if like is not None and _shared(sentences, told[like]) >= ALIKE * len(sentences):
            new = " ".join(s for s in sentences if s not in told[like])
            text = f"as `{like}`, but for this: {new}" if new else f"as `{like}`"
        else:
            told[m.name] = sentences
        lines.append(f"* `{m.name}`: {text}")
    return "\n".join(lines) + "\n"


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z-])", text)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(s in other for s in one)
