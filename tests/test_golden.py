"""Checkpoints of every released format load, and continue as when they were written."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from streamadapt.records import StreamPartition
from streamadapt.state.store import FORMAT_VERSION, CheckpointStore

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)
CASES = sorted(path.parent for path in GOLDEN.glob("format-*/*/expected.json"))


@pytest.mark.parametrize("folder", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_golden_checkpoint_loads_and_continues(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "state")
    loaded = CheckpointStore(tmp_path / "state").load_latest("golden")
    assert loaded.positions == {StreamPartition("golden", 0): make.BEFORE}
    assert loaded.info.summary["entries"] > 0
    pipeline = make.PIPELINES[folder.name]()
    pipeline.load_state_dict(loaded.state)
    found = make.predict_all(pipeline, make.stream(folder.name)[make.BEFORE :])
    wanted = json.loads((folder / "expected.json").read_text())
    assert len(found) == len(wanted)
    for one, two in zip(found, wanted, strict=True):
        # The same arithmetic in the same order; other processors may round a last bit differently.
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    fresh = make.PIPELINES[folder.name]()
    fresh.on_rejected = lambda item, error: None  # labels of entries that it has not observed
    other = make.predict_all(fresh, make.stream(folder.name)[make.BEFORE :])
    assert not any(
        np.allclose(one, two, rtol=1e-4) for one, two in zip(other[-5:], wanted[-5:], strict=True)
    ), "the earlier learning must matter here"


def test_the_current_format_has_golden_checkpoints():
    """A new format needs its own, and a reader for earlier ones."""
    there = {path.parent.name for path in CASES if path.name in make.PIPELINES}
    assert f"format-{FORMAT_VERSION}" in there
    assert {path.name for path in CASES if path.parent.name == f"format-{FORMAT_VERSION}"} == set(
        make.PIPELINES
    )
