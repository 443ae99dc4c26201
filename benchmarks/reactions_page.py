"""The page of the reactions; sentences with numbers are generated from the figures."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.reactions_runs import CASES, COOL_DOWN, DETECTOR, NONE, REACTIONS, SIGNAL, Run
from benchmarks.results_page_tables import percent, rows_of
from benchmarks.scenarios.measure import BLOCK

__all__ = ["page"]

Results = Mapping[str, Mapping[str, Run]]
ALIKE = 0.0005
"""Smaller relative differences count as no difference."""

INTRODUCTION = f"""# The benefit of reactions to drift

Written by `python -m benchmarks.reactions --json build/reactions.json --markdown docs/reactions.md`.

Served error without a reaction and with each reaction, with everything else the same: {DETECTOR.upper()} on `{SIGNAL}` at
river's defaults, a cool-down of {COOL_DOWN} values, reactions at their defaults on all learners, one seed. In brackets:
the worst block of {BLOCK} predictions, as a ratio to the base's error in that block. Without
any detector, learners forget by themselves, and the guard moves to the learners that are right again. A reaction has to be
better than that.
"""  # noqa: E501

PROTOCOL = """## Protocol

As in docs/results.md (the scenarios of the same name), except for the learners and the lengths, so that all runs together
take half an hour (`--part 1` runs the long streams in full):

"""  # noqa: E501


def page(results: Results, part: float) -> str:
    """Return the page in Markdown; `part` of the long streams was run."""
    cut = f"; the first {part:.0%} of the stream" if part < 1.0 else ""
    protocols = "\n".join(
        f"* `{name}`: {CASES[name].protocol}{cut if CASES[name].long else ''}; "
        f"{CASES[name].error}."
        for name in results
    )
    parts = [
        INTRODUCTION,
        "## Served error\n",
        _figures(results),
        _changes(results),
        _words(results),
    ]
    parts += ["## Actions and cost\n", _done(results), PROTOCOL + protocols + "\n"]
    return "\n".join(parts)


def _figures(results: Results) -> str:
    rows = [
        [
            name,
            f"{runs[NONE].base:.4f}",
            *(_cell(runs[r]) for r in (NONE, *REACTIONS)),
            f"{runs[NONE].best:.4f}",
        ]
        for name, runs in results.items()
    ]
    return rows_of(
        ["scenario", "base", "no reaction", *REACTIONS, "best single expert, no reaction"], rows
    )


def _cell(run: Run) -> str:
    return f"{run.served:.4f} ({run.worst_block:.3f})"


def change(runs: Mapping[str, Run], reaction: str) -> float:
    """Return the change of the served error by a reaction, relative to none; negative is
    better."""
    return runs[reaction].served / runs[NONE].served - 1.0


def _changes(results: Results) -> str:
    rows = [
        [name, str(runs[REACTIONS[0]].alarms), *(percent(change(runs, r)) for r in REACTIONS)]
        for name, runs in results.items()
    ]
    head = "Against no reaction (negative: better), and how often the detector fired.\n\n"
    return head + rows_of(["scenario", "alarms", *REACTIONS], rows)


def _words(results: Results) -> str:
    lines = ["## Where each reaction helps\n"]
    for reaction in REACTIONS:
        better = [n for n, runs in results.items() if change(runs, reaction) < -ALIKE]
        worse = [n for n, runs in results.items() if change(runs, reaction) > ALIKE]
        same = [n for n in results if n not in (*better, *worse)]
        parts = []
        for names, word in ((better, "better"), (worse, "worse")):
            if names:
                parts.append(
                    f"{word} on "
                    + ", ".join(f"{n} ({percent(change(results[n], reaction))})" for n in names)
                )
        if same:
            parts.append(f"no difference (under {ALIKE:.2%}) on {', '.join(same)}")
        lines.append(f"* `{reaction}`: {'; '.join(parts)}.")
    return "\n".join([*lines, "", _CONCLUSION])


def _done(results: Results) -> str:
    rows = [
        [
            name,
            *(_times(runs[r]) for r in REACTIONS),
            *(f"{runs[r].milliseconds:.1f}" for r in (NONE, *REACTIONS)),
        ]
        for name, runs in results.items()
    ]
    head = (
        "Learners acted on, counted once for every learner and alarm (refit: kept of tried), "
        "and process time, ms per "
        "item, on a shared machine.\n\n"
    )
    return head + rows_of(
        ["scenario", *REACTIONS, *(f"ms, {r}" for r in (NONE, *REACTIONS))], rows
    )


def _times(run: Run) -> str:
    if "refit" in run.done:
        return f"{run.done.get('refit-kept', 0)} of {run.done['refit']}"
    return str(sum(run.done.values()))


_CONCLUSION = """No reaction helps everywhere, so the default is `alert`: report the drift, and leave the served prediction to the guard.

* Try `refit` where the change is real and permanent and the learner has learned from its whole past (elec2,
  agrawal-abrupt). A new copy has to win its trial before it replaces the learner, so it is rarely much worse. It costs up
  to 50 % more time.
* `boost` helps where the learners follow too slowly (cgm-6h). If labels are noisy classes, it makes the learners follow
  noise.
* `forget` and `reset` discard knowledge: on slow or repeated drift (cgm-6h, etth1, los) the discarded learners would have
  been right again. `reset` helps where no part of the old concept is useful, as on agrawal-abrupt. It makes the worst block
  of cgm-6h better and its mean worse.

On cgm-sparse, with four labels a day, the detector never had enough values to fire.
"""  # noqa: E501
