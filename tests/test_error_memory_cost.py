"""The cost benchmark measures what it says, and says that memory is flat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import memory_cost


@pytest.mark.parametrize("name", memory_cost.STORES)
def test_what_is_fed_is_in_the_store_and_takes_no_more_room(name: str) -> None:
    costs = memory_cost.measure(memory_cost.STORES[name], (600, 2500), blocks=2)
    assert [c.seen for c in costs] == [600, 2500]
    assert costs[0].size == costs[1].size
    assert costs[0].ratio == 1.0
    learner = memory_cost.STORES[name]()
    learner.build(memory_cost.spec())
    memory_cost.feed(learner, 2500, torch.Generator().manual_seed(0))
    memory = learner.state.memory
    seen = memory.clock if name == "sketch" else memory.count
    assert seen.item() == 2500


def test_the_command_writes_the_figures_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_cost, "ENTRIES", 2)
    to = (tmp_path / "cost.json", tmp_path / "cost.md")
    assert (
        memory_cost.main(["--seen", "10", "30", "--json", str(to[0]), "--markdown", str(to[1])])
        == 0
    )
    figures = json.loads(to[0].read_text())
    assert {c["seen"] for name in memory_cost.STORES for c in figures[name]} == {10, 30}
    assert "entry at a time" in figures["protocol"]
    assert to[1].read_text().count("\n| ") == 2 + 2 * len(memory_cost.STORES)
