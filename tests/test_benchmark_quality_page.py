"""The report of the measured figures: JSON, tables, words and plots follow from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import quality
from benchmarks.plots import draw, moving_mean, write_plot
from benchmarks.results_page import protocols, results_page
from benchmarks.results_page_tables import groups_of
from benchmarks.results_page_words import change_of, served_words
from benchmarks.scenarios import plain
from benchmarks.scenarios.measure import MAE, Figure, Measure, Measured, mean_of

pytestmark = pytest.mark.slow

AUC = Measure("auc", "area under the curve", higher=True)
LOSS = Measure("log_loss", "log loss")
MIXED = ("base", "good", "bad", "same")


def of_errors(name: str = "m", **errors: list[float]) -> Measured:
    """A scenario of one measure and one seed."""
    run = {k: np.array(v) for k, v in errors.items()}
    return Measured.of_errors(
        name, f"{name}: protocol", [run], tuple(k for k in run if k in MIXED)
    )


def several() -> Measured:
    """A scenario of two measures, one of them better when higher, over seeds."""
    rows = {"base": (0.7, 0.6), "good": (0.9, 0.3), "bad": (0.6, 0.8), "served": (0.91, 0.29)}
    figures = {
        k: {"auc": Figure(auc, 0.01), "log_loss": Figure(loss)} for k, (auc, loss) in rows.items()
    }
    losses = {k: np.linspace(0.0, 2.0 * loss, 900) for k, (_, loss) in rows.items()}
    mixed = ("base", "good", "bad")
    return Measured(
        "two", "two: text", (AUC, LOSS), figures, mixed, losses, "log loss", marks=(450,)
    )


def same() -> Measured:
    return of_errors(
        base=[2.0, 2.0],
        good=[1.0, 1.0],
        bad=[3.0, 3.0],
        same=[2.0, 2.0],
        plain=[4.0, 4.0],
        served=[1.0, 1.0],
    )


def test_the_worst_block_is_the_largest_ratio() -> None:
    """Blocks of 500; a short rest belongs to the block before it."""
    served = [0.5] * 500 + [1.0] * 500 + [4.0] * 100
    measured = of_errors(base=[1.0] * 1100, served=served)
    assert measured.worst_block("served") == pytest.approx((500 + 400) / 600)
    assert replace(measured, root=True).worst_block("served") == pytest.approx(
        np.sqrt((500 + 400) / 600)
    )
    assert replace(measured, losses={}).worst_block("served") is None
    assert measured.as_json() == {
        "base": 1.0,
        "served": pytest.approx(1150 / 1100),
        "protocol": "m: protocol",
    }


def test_a_figure_is_the_mean_over_seeds_and_their_deviation() -> None:
    assert mean_of([1.0, 2.0, 6.0]) == (3.0, pytest.approx(np.sqrt(7.0)))
    assert mean_of([2.0, 2.0, 2.0]) == (2.0, None), "nothing is random"
    assert mean_of([2.0]) == (2.0, None)


def test_the_json_of_several_measures_and_seeds() -> None:
    """Experts, protocol and spread at one level; an object of measures if there are several."""
    result = several().as_json()
    assert result["served"] == {"auc": 0.91, "log_loss": 0.29}
    assert result["protocol"] == "two: text"
    assert result["spread"] == {name: {"auc": 0.01} for name in ("base", "good", "bad", "served")}
    assert set(result) == {"base", "good", "bad", "served", "protocol", "spread"}
    assert json.loads(json.dumps(result)) == result
    runs = [{"base": np.array([1.0]), "served": np.array([v])} for v in (1.0, 3.0)]
    result = Measured.of_errors("m", "p", runs, ("base",)).as_json()
    assert result == {
        "base": 1.0,
        "served": 2.0,
        "protocol": "p",
        "spread": {"served": pytest.approx(np.sqrt(2.0))},
    }


def test_rows_of_the_digits_become_a_scenario() -> None:
    """The unadapted network is the base; batches are listed beside the mixture; figures of parts
    have their own table."""
    rows: dict[str, dict[str, float]] = {
        "source": {"mean": 0.5, "spread": 0.0},
        "per-entry": {"mean": 0.7, "spread": 0.02},
        "tent-64": {"mean": 0.9, "spread": 0.0},
        "served": {"mean": 0.69, "spread": 0.01},
        "worst served - source": {"mean": -0.1, "spread": 0.01},
        "source @ iid-fog": {"mean": 0.4, "spread": 0.01},
        "served @ iid-fog": {"mean": 0.6, "spread": 0.01},
    }
    measured = plain.digits_measured("digits-sorted", rows)
    assert measured.mixed == ("base", "per-entry")
    assert measured.best() == "per-entry"
    result = measured.as_json()
    assert {k: v for k, v in result.items() if isinstance(v, float)} == {
        "base": 0.5, "per-entry": 0.7, "tent-64": 0.9, "served": 0.69,
    }  # fmt: skip
    assert result["spread"] == {"per-entry": 0.02, "served": 0.01}
    assert result["details"] == {
        "served - base @ worst stream": -0.1,
        "base @ iid-fog": 0.4,
        "served @ iid-fog": 0.6,
    }
    page = results_page([measured])
    assert "| per-entry | 0.7000 ± 0.0200 |" in page
    assert "| *tent-64* | 0.9000 |" in page
    assert "| digits-sorted | worst stream | iid-fog |" in page
    assert "| base |  | 0.4000 |" in page


def test_rows_of_the_dictionary_become_a_scenario() -> None:
    """A measure for each number of entries; there is no base to compare with."""
    rows: dict[str, dict[str, float]] = {
        "entry, 5,000": {"mean": 0.97, "spread": 0.01},
        "entry, 20,000": {"mean": 0.99, "spread": 0.0},
        "sklearn (alpha 0.1, batch 16), 5,000": {"mean": 0.98, "spread": 0.0},
        "sklearn (alpha 0.1, batch 16), 20,000": {"mean": 0.985, "spread": 0.0},
    }
    measured = plain.dictionary_measured("dictionary-n20", rows)
    assert measured.as_json()["sklearn"] == {"after_5000": 0.98, "after_20000": 0.985}
    assert measured.as_json()["spread"] == {"entry": {"after_5000": 0.01}}
    assert measured.protocol.endswith("Here: sklearn (alpha 0.1, batch 16).")
    assert (measured.best(), measured.best("after_20000")) == ("sklearn", "entry")
    page = results_page([measured, same()])
    assert "| entry | 0.9700 ± 0.0100 | 0.9900 |" in page
    assert "`entry`" not in page


def test_the_best_expert_follows_the_measure() -> None:
    measured = several()
    figures = {**measured.figures, "bad": {"auc": Figure(0.99), "log_loss": Figure(0.8)}}
    measured = replace(measured, figures=figures)
    assert measured.best() == "bad"
    assert measured.best("log_loss") == "good"


def test_the_page_says_whether_each_expert_is_better_or_worse() -> None:
    """Words follow the signs of the figures, whichever way is better."""
    page = results_page([same(), several()])
    assert "* `good`: helps on m (-50.0 %), two (+0.200); no block worse than the base's." in page
    assert "* `bad`: harms on m (+50.0 %), two (-0.100); in its worst block +50.0 % (m)." in page
    assert "* `same`: has no effect on m (0.0 %); no block worse" in page
    assert "* `m`: protocol" in page


def test_a_protocol_similar_to_an_earlier_one_is_described_by_the_difference() -> None:
    first = replace(
        same(), protocol="m: Rows of a file. One in 2. Labels come late. Frozen: 1.5 units."
    )
    second = replace(
        several(), protocol="two: Rows of a file. One in 3. Labels come late. Frozen: 1.5 units."
    )
    other = replace(same(), name="other", protocol="other: Something else. Labels come late.")
    assert protocols([first, second, other]).splitlines() == [
        f"* `{first.name}`: {first.protocol.removeprefix(first.name + ': ')}",
        f"* `two`: as `{first.name}`, except: One in 3.",
        "* `other`: Something else. Labels come late.",
    ]


def test_a_change_within_the_spread_is_not_a_difference() -> None:
    measured = several()
    rows = {**measured.figures, "good": {"auc": Figure(0.705, 0.01), "log_loss": Figure(0.3)}}
    assert change_of(measured, "good")[0] == 1
    assert change_of(replace(measured, figures=rows), "good")[0] == 0


def test_plain_rows_and_all_experts_are_in_the_tables() -> None:
    page = results_page([same(), several()])
    assert "| *plain* | 4.0000 (2.000) |" in page, "a row beside the mixture, with its worst block"
    assert "| **served** | 0.9100 ± 0.0100 | 0.2900 (" in page
    assert "| expert | two auc | two log_loss |" in page
    assert "Area under the curve (higher is better); log loss (lower is better)." in page


def test_served_is_compared_with_the_best_single_expert() -> None:
    page = results_page([same(), several()])
    assert "| m | 2.0000 | good: 1.0000 | **1.0000** | 50.00 % better | the same |" in page
    assert (
        "| two, auc | 0.7000 | good: 0.9000 | **0.9100** | 30.00 % better | 1.11 % better |"
        in page
    )
    assert served_words([same(), several()]).count("nowhere") == 2
    worse = of_errors("w", base=[1.0], good=[0.5], served=[1.1])
    assert "frozen base: w (10.00 % worse)." in served_words([worse])
    assert "0.5 %: w (120.00 % worse)." in served_words([worse])


def test_scenarios_with_the_same_experts_share_a_narrow_table() -> None:
    names = [f"s{i}" for i in range(9)]
    groups = groups_of([replace(same(), name=name) for name in names] + [several()])
    assert [[m.name for m in group] for group in groups] == [names[:7], names[7:], ["two"]]


def test_plots_show_every_expert_and_are_small(tmp_path: Path) -> None:
    """A panel for each of two measures and one of the losses over time; without losses there is no
    such panel."""
    figure = draw(several())
    bars, second, curves = figure.axes
    assert [label.get_text() for label in bars.get_yticklabels()] == [
        "bad",
        "base",
        "good",
        "served",
    ], "best on top"
    assert [bar.get_width() for bar in second.patches] == [0.8, 0.6, 0.3, 0.29]
    assert [line.get_label() for line in curves.get_lines()][:3] == [
        "base",
        "good (best single)",
        "served",
    ]
    (alone,) = draw(replace(same(), losses={})).axes
    assert [label.get_text() for label in alone.get_yticklabels()][:2] == ["plain", "bad"], (
        "the worst at the bottom"
    )
    path = write_plot(several(), tmp_path / "plots")
    assert path == tmp_path / "plots" / "two.png"
    assert path.stat().st_size < 60_000
    with Image.open(path) as image:
        assert image.size[0] > 600
    first = path.read_bytes()
    assert write_plot(several(), tmp_path / "plots").read_bytes() == first


def test_a_moving_mean_is_that_of_its_neighbours() -> None:
    np.testing.assert_allclose(moving_mean(np.array([1.0, 2.0, 6.0, 4.0]), 3), [3.0, 4.0])


def test_the_command_writes_after_every_scenario(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scenario that fails loses no earlier results; the page links to its plots."""

    def broken(folder: Path, progress: Any) -> Measured:
        raise RuntimeError("out of memory")

    made = {"m": lambda folder, progress: same(), "late": broken}
    monkeypatch.setattr(quality, "SCENARIOS", made)
    json_path, page = tmp_path / "build" / "q.json", tmp_path / "results.md"
    with pytest.raises(RuntimeError, match="out of memory"):
        quality.main(["--json", str(json_path), "--markdown", str(page)])
    assert json.loads(json_path.read_text())["m"]["served"] == 1.0
    assert "](plots/m.png)" in page.read_text()
    assert (tmp_path / "plots" / "m.png").exists()


def test_the_default_measure_is_the_mean_absolute_error() -> None:
    assert same().measure is MAE
    assert not MAE.higher
