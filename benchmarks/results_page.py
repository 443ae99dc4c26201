"""The results page: every sentence with a number is generated from the measured figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

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
"""A protocol that shares this part of its sentences with an earlier one is printed only by its
differences."""

_INTRODUCTION = f"""# Results

Written by `python -m benchmarks.quality --json build/quality.json --markdown docs/results.md`; each figure is computed
from the emitted predictions and the data, outside the pipeline, and compared with the pipeline's counters where they
count the same.

`served` is what the pipeline emits: the guarded mixture of `base`, the frozen model, and the learners. *Italic* rows
are not part of the mixture. Where a run depends on random numbers, a figure is the mean over three seeds, ± their
standard deviation. In brackets: the worst block of {BLOCK} predictions, as a ratio to the base's error in that block
(above 1: worse than no adaptation there).

The default settings of the learners were chosen by results on the streams of the cgm, etth1 and los scenarios, so those
figures are slightly optimistic. The protocols of the other scenarios say which of their settings were chosen, and how.
"""  # noqa: E501

_WORDS = """## Where each learner helps, has no effect, or harms

Against the frozen base, by the first measure of each scenario: in per cent of the base's figure, or, where higher is
better, in points of the measure. Changes of less than 0.05 %, or less than the spread over the seeds, count as no effect.
"""  # noqa: E501

_COST = """## Cost

CPU time per entry in ms, one thread, predicting, learning and mixing included; measured on a 2-core machine with other
load, so the ratios are more reliable than the times. `base only` is a pipeline without learners and guard; the row of a
learner is the time that it adds to that when it is the only one; `all, with guard` is the scenario's pipeline.
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


class Described(Protocol):
    """A result of any benchmark, with its protocol."""

    @property
    def name(self) -> str:
        """The name of the scenario."""

    @property
    def protocol(self) -> str:
        """What was measured, and how."""


def protocols(results: Sequence[Described]) -> str:
    """Return one item for each scenario; sentences of an earlier protocol are not repeated."""
    printed: dict[str, list[str]] = {}
    lines = []
    for m in results:
        text = m.protocol.removeprefix(f"{m.name}: ")
        sentences = _sentences(text)
        like = max(printed, key=lambda name: _shared(sentences, printed[name]), default=None)
        if like is not None and _shared(sentences, printed[like]) >= ALIKE * len(sentences):
            new = " ".join(s for s in sentences if s not in printed[like])
            text = f"as `{like}`, except: {new}" if new else f"as `{like}`"
        else:
            printed[m.name] = sentences
        lines.append(f"* `{m.name}`: {text}")
    return "\n".join(lines) + "\n"


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z-])", text)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(s in other for s in one)
