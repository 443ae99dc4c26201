"""The speed benchmark, on tiny sizes: its figures, its page, and what it says of failures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.scenarios.forecast import FORECASTS
from benchmarks.speed import command, pipelines
from benchmarks.speed.context import Context
from benchmarks.speed.learners import adcsd_sides, memory_sides
from benchmarks.speed.page import page
from benchmarks.speed.processes import OLD_COMMIT, ROOT, OldCommit, running
from benchmarks.speed.rounds import Measured, Rounds, Side, alternate
from benchmarks.speed.scenarios import SCENARIOS
from benchmarks.speed.streams import LATE, sensors
from streamadapt import RLS, Bias, Columns, ErrorMemory, Pipeline, Supervised
from streamadapt.models.contract import BaseOutput, Spec

pytestmark = pytest.mark.slow

IDS = [
    *("regression-lot", "regression-one", "classification-lot", "regression-river"),
    *("forecast-etth1", "forecast-los", "adcsd-7", "adcsd-207", "adcsd-883"),
    *("memory-1e3", "memory-1e4", "memory-1e5", "memory-1e6", "sketch-flat"),
    *("dictionary-20", "dictionary-50", "dictionary-256", "check-cpu"),
]
KEYS = {"ratio", "ours", "rival", "rival_name", "unit", "quartiles", "protocol"}


def side(name: str, *times: float) -> Side:
    """A side whose rounds take the given times, after one that does not count."""
    left = iter((99.0, *times))
    return Side.of(name, lambda: lambda: next(left))


def compared(*rivals: Side) -> Measured:
    ours = side("ours", 2.0, 4.0, 1.0)
    return Measured("x", "us an entry", "text.", alternate(ours, rivals, 3, lambda _: None))


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the command on tiny sizes; return its exit status and its figures."""
    path = tmp_path / "speed.json"
    tiny = ["--rounds", "2", "--share", "0.01", "--json", str(path)]
    status = command.main([*tiny, *arguments])
    return status, json.loads(path.read_text(encoding="utf-8"))


def with_price_files(folder: Path) -> Path:
    """Write a data folder whose Elec2 is short and random."""
    folder.mkdir()
    rows = np.random.default_rng(0).random((400, 7))
    rows[:, -1] = rows[:, 0] > 0.5
    lines = ["a,b,c,d,e,f,class", *(",".join(f"{v:.3f}" for v in row) for row in rows)]
    (folder / "elec.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_the_names_of_the_scenarios_are_permanent() -> None:
    assert list(SCENARIOS) == IDS


def test_figures_are_medians_and_the_ratio_is_that_of_rounds_side_by_side() -> None:
    figures = compared(side("slow", 8.0, 8.0, 8.0), side("fast", 4.0, 4.0, 5.0)).as_json()
    assert set(figures) == KEYS | {"others"}
    assert figures["rival_name"] == "fast", "the ratio is to the fastest rival"
    assert figures["ratio"] == 2.0, "of 2, 1 and 5"
    assert (figures["ours"], figures["rival"]) == (2e6, 4e6), "in microseconds"
    assert figures["quartiles"]["ratio"] == [1.5, 3.5]
    assert figures["others"] == {"slow": {"ratio": 4.0, "rival": 8e6}}


def test_the_sides_take_turns_and_begin_by_turns() -> None:
    order: list[str] = []

    def noted(name: str) -> Side:
        def work() -> float:
            order.append(name)
            return 1.0

        return Side.of(name, lambda: work)

    alternate(noted("ours"), [noted("rival")], 2, lambda _: None)
    assert order == ["ours", "rival", "ours", "rival", "rival", "ours"]


@pytest.mark.parametrize("when", ["start", "later"])
def test_a_rival_that_fails_is_reported_and_the_others_go_on(when: str) -> None:
    rounds = [1.0, 2.0] if when == "later" else []

    def broken() -> Callable[[], float]:
        def work() -> float:
            if not rounds:
                raise ValueError("no such rival")
            return rounds.pop()

        return work

    measured = compared(Side.of("broken", broken), side("fine", 4.0, 4.0, 4.0))
    figures = measured.as_json()
    assert measured.failed
    assert figures["error"] == "broken: ValueError: no such rival"
    assert figures["rival_name"] == "fine"
    assert "* `x`: broken: ValueError: no such rival" in page([measured], "")


def test_without_any_rival_there_is_no_ratio() -> None:
    def broken() -> Callable[[], float]:
        raise ImportError("not there")

    measured = compared(Side.of("broken", broken))
    figures = measured.as_json()
    assert (figures["ratio"], figures["rival"], figures["ours"]) == (None, None, 2e6)
    assert "| x | 2,000,000 us | failed | | |" in page([measured], "")


def test_a_broken_old_commit_is_reported_and_the_status_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without streamadapt: the process would import another copy, and says so."""
    (tmp_path / "empty").mkdir()
    old = ["--old", str(tmp_path / "empty")]
    status, figures = run(tmp_path, "--only", "regression-lot", *old)
    assert status == 1
    found = figures["regression-lot"]
    assert found["ratio"] is None
    assert found["ours"] > 0.0
    assert "should come from" in found["error"]
    assert "failed" in capsys.readouterr().err


def test_a_scenario_without_its_data_is_skipped_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ["classification-lot", "forecast-etth1", "forecast-los"]
    markdown = tmp_path / "docs" / "speed.md"
    status, figures = run(
        tmp_path, "--only", *only, "--data", str(tmp_path), "--markdown", str(markdown)
    )
    assert status == 0
    assert all(set(one) == KEYS | {"skipped"} for one in figures.values())
    assert f"no {tmp_path / 'elec.csv'}" in capsys.readouterr().err
    text = markdown.read_text(encoding="utf-8")
    assert "| forecast-los | skipped | | | |" in text
    assert "speed.png" not in text


def test_a_scenario_that_breaks_is_reported(tmp_path: Path) -> None:
    """No column of the file is a number."""
    (tmp_path / "elec.csv").write_text("a,class\nx,y\n", encoding="utf-8")
    status, figures = run(tmp_path, "--only", "classification-lot", "--data", str(tmp_path))
    assert status == 1
    assert "could not convert" in figures["classification-lot"]["error"]


def test_the_command_writes_figures_a_page_and_a_plot(tmp_path: Path) -> None:
    """Kernels, river and scikit-learn, each on a few entries; without a page unless asked for."""
    markdown = tmp_path / "docs" / "speed.md"
    only = ["regression-river", "adcsd-7", "memory-1e3", "sketch-flat", "dictionary-20"]
    status, figures = run(tmp_path, "--only", *only, "--markdown", str(markdown))
    assert status == 0
    assert list(figures) == [name for name in IDS if name in only], "in the order of the page"
    for found in figures.values():
        assert set(found) - {"others"} == KEYS
        assert found["ratio"] > 0.0
        assert all(len(quartiles) == 2 for quartiles in found["quartiles"].values())
    text = markdown.read_text(encoding="utf-8")
    assert "river: StandardScaler \\| LinearRegression" in text
    assert "the median of 2 rounds" in text
    assert all(f"* `{name}`: " in text for name in only)
    assert (markdown.parent / "plots" / "speed.png").stat().st_size > 1000


def test_the_default_set_of_both_commits_is_judged(tmp_path: Path) -> None:
    """The same checkout in both places serves the same."""
    data = with_price_files(tmp_path / "data")
    found: list[str] = []
    ctx = Context(data, tmp_path, OldCommit(tmp_path, ROOT), found.append, 1, 0.2)
    measured = pipelines.classification_lot("classification-lot", ctx)
    served = measured.as_json()["served_log_loss"]
    assert served["ours"] == served["old"] > 0.0
    assert served["change"] == 0.0
    assert not measured.failed


def test_the_process_predicts_what_the_pipeline_does(tmp_path: Path) -> None:
    """Its three ways count the same entries of the same stream, and it ends with the stream."""
    stream = sensors(60)
    job = {**stream.save(tmp_path, "sensors"), "kind": "regression", "window": 3}
    for way in ("columns", "objects", "one"):
        with running(ROOT, {**job, "way": way}, tmp_path) as worker:
            assert worker.ask(items=2 * LATE)["entries"] == LATE + LATE // 2
            assert worker.ask(items=10)["entries"] == 5
            with pytest.raises(RuntimeError, match="are left"):
                worker.ask(items=1000)


def test_labels_arrive_late_as_items_of_their_own() -> None:
    arrays = sensors(50).arrays
    entry_of, at = {}, 0
    for i, (is_label, number) in enumerate(zip(arrays["is_label"], arrays["ids"], strict=True)):
        if is_label:
            assert number == at - LATE
            assert not np.isnan(arrays["labels"][i]).any()
        else:
            assert number == at
            assert np.isnan(arrays["labels"][i]).all()
            entry_of[at], at = i, at + 1
    assert at == 50
    assert (np.diff(arrays["times"]) >= 0).all()


def test_the_regression_is_learned_from() -> None:
    """The base was fitted earlier, and the weights turn: served is better than the base."""
    stream = sensors(3_000)
    pipeline = Pipeline(Supervised(3), stream.base, [Bias(0.02), RLS(0.98)], device="cpu")
    arrays = stream.arrays
    ids = [str(number) for number in arrays["ids"].tolist()]
    rest = (arrays["labels"], arrays["is_label"])
    found = pipeline.observe_lot(Columns(arrays["values"], arrays["times"], ids, *rest))
    assert not found.refused
    told = arrays["labels"][arrays["is_label"], 0]  # of the entries 0, 1, ...
    entries = arrays["ids"][found.items][: len(told) - 2]
    errors = [
        np.abs(output[: len(entries), 0, 0] - told[entries]).mean()
        for output in (found.served, found.base)
    ]
    assert errors[0] < errors[1]


def test_the_eager_form_of_adcsd_computes_the_same() -> None:
    ours, eager = adcsd_sides(5)
    generator = torch.Generator().manual_seed(1)
    known = torch.rand(12, 5, generator=generator) < 0.8
    window = torch.zeros(12, 5)
    for _ in range(30):
        base = torch.randn(12, 5, generator=generator)
        target = base + torch.randn(12, 5, generator=generator)
        own = ours.predict(window, BaseOutput(base)).reshape(12, 5)
        theirs = eager.predict(base[None, ..., None])[0, ..., 0]
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)
        ours.learn(window, BaseOutput(base), target, known)
        eager.learn(base[None, ..., None], target[None, ..., None], known[None, ..., None])
    assert not torch.equal(own, base), "something was learned"


def test_the_rivals_of_the_memory_compute_the_same() -> None:
    """Brute force finds the same neighbours as our memory of the same entries."""
    zero, one = torch.zeros(1), torch.ones(1)
    classes = (torch.zeros(2), torch.ones(2))
    spec = Spec(
        "classification", 1, 1, 1, 2, zero, one, *classes, torch.device("cpu"), embedding=32
    )
    ours, brute = ErrorMemory(capacity=50), memory_sides(50)["brute-force torch"]()
    ours.build(spec)
    generator = torch.Generator().manual_seed(2)
    known, inputs = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 1)
    for t in range(150):
        embedding = torch.randn(32, generator=generator)
        label = torch.eye(2)[t % 2]
        base = torch.softmax(torch.randn(2, generator=generator), 0)
        own = ours.predict(inputs, BaseOutput(base[None], embedding)).reshape(2)
        theirs = brute.predict(embedding, base)
        if t >= 50:  # the entries that the rival began with are gone
            torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)
        ours.learn(inputs, BaseOutput(base[None], embedding), label[None], known)
        brute.learn(embedding, label)


def test_the_old_commit_is_checked_out_and_removed(tmp_path: Path) -> None:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "cat-file", "-e", f"{OLD_COMMIT}^{{commit}}"], check=False
    )
    if done.returncode:
        pytest.skip("this is no git checkout with its history")
    old = OldCommit(tmp_path)
    assert not (tmp_path / "old-commit").exists(), "not before it is needed"
    assert (old.path / "streamadapt" / "__init__.py").is_file()
    assert not (old.path / "streamadapt" / "columns.py").exists()
    old.remove()
    assert not old.folder.exists()


def test_a_commit_that_git_does_not_know_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.speed.processes.OLD_COMMIT", "0" * 40)
    with pytest.raises(RuntimeError, match="give a checkout of 0000000 with --old"):
        _ = OldCommit(tmp_path).path


def test_the_numeric_libraries_get_one_thread_before_they_load() -> None:
    code = (
        "import os, sys; import benchmarks.speed.__main__ as m;"
        "assert 'numpy' not in sys.modules; sys.argv = ['x', '--help']\n"
        "try: m.main()\n"
        "except SystemExit: pass\n"
        "import torch; print(os.environ['OMP_NUM_THREADS'], torch.get_num_threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "1 1"


def test_forecast_scenarios_are_those_of_the_quality_benchmark() -> None:
    names = {setting.name for setting in FORECASTS}
    assert {scenario for scenario, _, _ in pipelines.SETTINGS.values()} <= names


def test_seconds_are_those_of_a_limit_and_not_microseconds() -> None:
    measured = Measured("check-cpu", "s", "text.", Rounds([0.5], {"limit": [1.0]}))
    assert measured.as_json()["ours"] == 0.5
    assert "| check-cpu | 0.5 s | limit | 1 s | **2** (2 to 2) |" in page([measured], "")
