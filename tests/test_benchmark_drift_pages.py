"""The drift benchmark's page and files contain the counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.drift.__main__ import main
from benchmarks.drift.channels import Family
from benchmarks.drift.compare import Compared
from benchmarks.drift.measured import Sureness
from benchmarks.drift.page import page
from benchmarks.drift.plot import write_plot
from benchmarks.drift.score import Change, Tally, score

pytestmark = pytest.mark.slow

CHANGES = (Change(100, "away"), Change(200, "back"))


def compared() -> Compared:
    """Return two rows of one group by hand: one detects both, one detects neither and has one
    false alarm."""
    made = Compared()
    for row, alarms in ((("ddm", "error"), [7]), (("adwin", "loss"), [110, 111, 230])):
        key = ("abrupt", "sea-abrupt", 0, row)
        made.raw[key] = score(alarms, CHANGES, 50, 300)
        made.quiet[key] = score(alarms[:1] + alarms[2:], CHANGES, 50, 300)
        made.seconds[row], made.values[row] = (0.3, 300) if row[0] == "ddm" else (0.6, 300)
    return made


def test_the_page_by_hand(tmp_path: Path) -> None:
    """The detector that found more comes first, with its counts; costs are ratios to the
    cheapest."""
    family = Family("adwin", 0.002, "independent", 10, True, 1000, 4, 0.25, 2.5, 40.0)
    text = page(compared(), [family], Sureness(54, 500, 0.5, 0.2, 0.3))
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith(("| adwin:loss", "| ddm:error"))]
    assert rows[0].startswith("| adwin:loss | 1/1 | 1/1 | 0.8 | 20 | 0.0 | 1 | 2/2 | 0.0 | 0 |")
    assert rows[1].startswith("| ddm:error | 0/1 | 0/1 | 0.3 |  | 50.0 | 0 | 0/2 |")
    assert "| ddm:error | 1000.0 | 1.0 |" in lines
    assert "| adwin:loss | 2000.0 | 2.0 |" in lines
    assert "| adwin, independent, 0.002 | 10 | yes | 1,000 x 4 | 25.0 % | 2.5 | 40 |" in lines
    headings = [line for line in lines if line.startswith("## ")]
    assert not any(
        "glucose" in line for line in headings
    )  # no table for streams that were not run
    assert write_plot(compared(), tmp_path / "plots" / "drift.png")
    assert (tmp_path / "plots" / "drift.png").stat().st_size > 1000
    assert not write_plot(Compared(), tmp_path / "none.png")


def test_controls_have_no_detections() -> None:
    """In streams without changes, alarms are counted, fewest first."""
    made = Compared()
    for row, alarms in ((("ddm", "error"), [7, 9]), (("adwin", "loss"), [])):
        key = ("stationary", "sea-stationary", 0, row)
        made.raw[key] = made.quiet[key] = score(alarms, (), 50, 1000)
        made.seconds[row], made.values[row] = 0.1, 1000
    lines = page(made, [], None).splitlines()
    at = lines.index("| adwin:loss | 0 | 0.0 | 0.0 |")
    assert lines[at + 1] == "| ddm:error | 2 | 20.0 | 20.0 |"


def test_an_empty_tally_has_no_rates() -> None:
    """No entries, no changes: there is no division by zero."""
    empty = Tally()
    assert (empty.delay, empty.false_rate, empty.above_chance) == (None, None, 0.0)


def test_the_command(tmp_path: Path) -> None:
    """It writes the counts of the requested streams, and the page."""
    json_path, written = tmp_path / "drift.json", tmp_path / "drift.md"
    arguments = [
        "--json",
        str(json_path),
        "--markdown",
        str(written),
        "--only",
        "rbf-creeping",
        "--seeds",
        "1",
    ]
    assert main(arguments) == 0
    result = json.loads(json_path.read_text(encoding="utf-8"))
    assert list(result["streams"]) == ["rbf-creeping"]
    found = result["groups"]["creeping"]
    assert found["never-fire:loss"]["alarms"]["detected"] == 0
    assert found["always-fire:loss"]["alarms"]["detected"] == 1
    # A base far from the current concept is often wrong.
    assert found["hddm-w:error"]["alarms"]["detected"] == 1
    assert "## Classification, a drift that begins and goes on" in written.read_text(
        encoding="utf-8"
    )
