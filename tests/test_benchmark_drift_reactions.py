"""The ablation of the reactions measures what it claims."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import reactions_runs
from benchmarks.reactions_page import change, page
from benchmarks.reactions_runs import (
    CASES,
    NONE,
    REACTIONS,
    Case,
    Prepared,
    Run,
    _Truth,
    ablate,
    once,
    summary,
)
from streamadapt import Batch, Bias, Entry, Pipeline, Supervised
from streamadapt.learners import Learner
from streamadapt.models.fit import fit_supervised

pytestmark = pytest.mark.slow


def quiet(text: str) -> None:
    del text


def jumping(rows: int = 900, jump: float = 8.0) -> Prepared:
    """A line whose intercept jumps, with a base that knows the line before the jump."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows + 300, 1)).astype(np.float32)
    y = 2.0 * x + 0.1 * rng.normal(size=x.shape)
    y[300 + 2 * rows // 3 :] += jump
    batch = Batch(x, np.arange(len(x), dtype=np.int64), y.astype(np.float32))
    base = fit_supervised(Batch(x[:300], batch.times[:300], batch.labels[:300]), window=1)  # type: ignore[index]
    items = list(batch.entries())[300:]

    def make(learners: Any) -> Pipeline:
        return Pipeline(Supervised(1), base, learners, device="cpu")

    def learners() -> list[Learner]:
        return [Bias(0.02)]

    def judge() -> Any:
        one = _Truth(items, classes=False)
        return one, one.losses.arrays

    return Prepared(items, make, learners, judge)


def test_a_summary_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means, roots if requested, and the worst of the blocks."""
    monkeypatch.setattr(reactions_runs, "BLOCK", 2)
    losses = {"base": np.array([1.0, 1.0, 2.0, 2.0]), "served": np.array([1.0, 1.0, 8.0, 8.0])}
    losses["bias"] = losses["base"] / 4.0
    plain = summary(losses, ["base", "bias"], root=False, alarms=3, done={}, each=0.0)
    assert (plain.served, plain.base, plain.best, plain.worst_block) == (4.5, 1.5, 0.375, 4.0)
    rooted = summary(losses, ["base", "bias"], root=True, alarms=3, done={}, each=0.0)
    assert rooted.served == pytest.approx(4.5**0.5)
    assert rooted.worst_block == 2.0
    assert rooted.as_json()["alarms"] == 3


def test_without_a_reaction_it_is_the_plain_pipeline() -> None:
    """The served error equals that of a pipeline without monitors; each reaction does what its
    name says."""
    prepared = jumping()
    runs = ablate("jumping", Path(), quiet, case=Case(lambda _: prepared, "absolute error", ""))
    plain = prepared.make(prepared.learners())
    predictions = plain.observe(list(prepared.items))
    labels = {item.id: item.label for item in prepared.items if isinstance(item, Entry)}
    served = np.mean([abs(float(p.served[0, 0]) - float(labels[p.id][0])) for p in predictions])  # type: ignore[index]
    assert runs[NONE].served == pytest.approx(served, rel=1e-6)
    assert (runs[NONE].alarms, runs[NONE].done) == (0, {})
    for reaction in REACTIONS:
        assert runs[reaction].alarms >= 1
        assert runs[reaction].done[reaction] >= 1
        assert runs[reaction].base == runs[NONE].base
    assert runs["boost"].served < runs[NONE].served  # a slow bias, a large jump: faster is better


def test_without_alarms_no_run_is_repeated() -> None:
    """No jump, no alarm, no difference."""
    runs = ablate(
        "still", Path(), quiet, case=Case(lambda _: jumping(300, 0.0), "absolute error", "")
    )
    assert runs["boost"].alarms == 0
    assert runs["reset"] == runs["forget"] == runs["refit"]
    assert {run.served for run in runs.values()} == {runs[NONE].served}


def test_long_streams_are_cut() -> None:
    """Only the first part of a long case is run."""
    runs = ablate(
        "still",
        Path(),
        quiet,
        part=0.5,
        case=Case(lambda _: jumping(600, 30.0), "", "", long=True),
    )
    assert runs["boost"].alarms == 0  # the jump is later


def test_runs_are_repeatable() -> None:
    """A run leaves no state for the next."""
    prepared = jumping(450)
    one, two = (once(prepared, "reset", root=False, progress=quiet) for _ in range(2))
    assert (one.served, one.alarms, one.done) == (two.served, two.alarms, two.done)


def test_the_page_says_where_each_reaction_helps() -> None:
    """Better, worse and no difference, from the figures."""
    run = partial(Run, base=2.0, best=0.9, worst_block=1.1)
    made = {
        NONE: run(1.0),
        "boost": run(0.9, alarms=4),
        "forget": run(1.1),
        "reset": run(1.0),
        "refit": run(1.00001),
    }
    text = page({"cgm-6h": made, "elec2": {name: run(1.0) for name in (NONE, *REACTIONS)}}, 0.25)
    assert change(made, "boost") == pytest.approx(-0.1)
    assert "* `boost`: better on cgm-6h (-10.0 %); no difference (under 0.05%) on elec2." in text
    assert "* `forget`: worse on cgm-6h (+10.0 %)" in text
    assert "* `refit`: no difference (under 0.05%) on cgm-6h, elec2." in text
    assert "regression; the first 25% of the stream; mean absolute error, mg/dL." in text
    assert "| cgm-6h | 4 | -10.0 % | +10.0 % | 0.0 % | 0.0 % |" in text


def test_all_drifting_scenarios_are_included() -> None:
    """The names are those of the quality benchmark, and of river's streams."""
    wanted = {
        "cgm-6h",
        "cgm-sparse",
        "etth1-weak",
        "etth1-strong",
        "los-weak",
        "los-strong",
        "elec2",
        "linkload",
    }
    assert wanted < set(CASES)
