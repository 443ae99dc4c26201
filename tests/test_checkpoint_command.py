"""``streamadapt checkpoint list|inspect|rollback``: their output, and their effect on a run."""

from __future__ import annotations

import json
import shutil

import pytest
from cli_helpers import logging_as_before, prepare

from streamadapt.app.commands import run_command
from streamadapt.records import StreamPartition
from streamadapt.state.store import CheckpointStore

_logging = pytest.fixture(autouse=True)(logging_as_before)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Return a folder of checkpoints with a state."""
    path = tmp_path_factory.mktemp("ran") / "state"
    for partition in (0, 1):
        store = CheckpointStore(path / f"entries-{partition}")
        for i in (1, 2, 3):
            summary = {
                "entries": 100 * i,
                "weights": {"base": 0.25, "bias": 0.75},
                "updates": {"bias": {"restored": 1}},
            }
            at = {StreamPartition("entries", partition): 100 * i}
            store.save({"a": i}, at, config_digest="sha256:aa", summary=summary)
        store.close()
    return path


@pytest.fixture
def state(ran, tmp_path):
    return shutil.copytree(ran, tmp_path / "state")


def test_list_shows_all_partitions_and_marks_damaged_checkpoints(state, capsys):
    """A row each; a damaged checkpoint is not left out."""
    (state / "entries-1" / "000000000002" / "manifest.json").write_text("{}")
    assert run_command(["checkpoint", "list", str(state), "--json"]).code == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["partition"], r["sequence"]) for r in rows] == [
        (f"entries-{p}", s) for p in (0, 1) for s in (1, 2, 3)
    ]
    assert "damaged" in rows[4]["problem"]
    assert rows[5]["positions"] == {"entries[1]": 300}
    assert rows[5]["entries"] == 300
    assert run_command(["checkpoint", "list", str(state)]).code == 0
    assert "damaged" in capsys.readouterr().out


def test_inspect_shows_guard_and_health_and_finds_flipped_bits(state, capsys):
    """Plain JSON; one flipped bit of a file is found, by name."""
    one = state / "entries-0"
    assert run_command(["checkpoint", "inspect", str(one)]).code == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["sequence"] == 3
    assert seen["summary"]["weights"] == {"base": 0.25, "bias": 0.75}
    assert seen["summary"]["updates"]["bias"]["restored"] == 1
    assert run_command(["checkpoint", "inspect", str(one), "1"]).code == 0
    capsys.readouterr()
    damaged = one / "000000000003" / "state.json"
    data = bytearray(damaged.read_bytes())
    data[3] ^= 1
    damaged.write_bytes(data)
    assert run_command(["checkpoint", "inspect", str(one)]).code == 1
    assert "state.json does not match its checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{state}"], "several partitions"),
        (["inspect", "{state}/entries-0", "9"], "no checkpoint 9; there are 1, 2, 3"),
        (["rollback", "{state}/entries-0", "9", "--yes"], "no checkpoint 9"),
        (["list", "{state}/nowhere"], "cannot be read"),
        (["list", "{state}/entries-0/000000000001"], "no checkpoints here"),
    ],
)
def test_a_missing_checkpoint_is_reported(state, capsys, arguments, message):
    """One line and exit code 1; nothing is deleted."""
    assert run_command(["checkpoint", *(a.format(state=state) for a in arguments)]).code == 1
    assert message in capsys.readouterr().err
    assert CheckpointStore(state / "entries-0").sequences() == [1, 2, 3]


def test_rollback_refuses_while_an_engine_runs_and_for_a_damaged_checkpoint(state, capsys):
    """While another process owns the folder, or if the requested checkpoint is damaged, everything
    stays."""
    one = state / "entries-0"
    with CheckpointStore(one):
        assert run_command(["checkpoint", "rollback", str(one), "1", "--yes"]).code == 1
    assert "another engine" in capsys.readouterr().err
    (one / "000000000001" / "state.safetensors").write_bytes(b"")
    assert run_command(["checkpoint", "rollback", str(one), "1", "--yes"]).code == 1
    assert CheckpointStore(one).sequences() == [1, 2, 3]
    assert run_command(["checkpoint", "rollback", str(one), "2", "--yes"]).code == 0
    assert CheckpointStore(one).sequences() == [1, 2]


def test_a_run_after_a_rollback_ends_in_the_same_state(tmp_path, monkeypatch, capsys):
    """Back to an earlier checkpoint and run again: the same summary as before."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    run = [
        "run",
        "config.toml",
        "--json",
        "--set",
        "checkpoint.every_entries=50",
        "--set",
        "checkpoint.keep=90",
    ]
    run += ["--set", "source.batch=50"]  # checkpoints are made between two batches
    capsys.readouterr()
    assert run_command(run).code == 0
    first = json.loads(capsys.readouterr().out)
    (store,) = (p for p in (tmp_path / "state").iterdir() if p.is_dir())
    there = CheckpointStore(store).sequences()
    assert len(there) > 1
    assert run_command(["checkpoint", "rollback", str(store), str(there[0]), "--yes"]).code == 0
    capsys.readouterr()
    assert run_command(run).code == 0
    assert json.loads(capsys.readouterr().out) == first


def test_check_tells_whether_a_run_would_resume(tmp_path, monkeypatch, capsys):
    """After a run: yes; with another learner: no, and the setting is named; with another sink:
    yes."""
    monkeypatch.chdir(tmp_path)
    config = prepare(tmp_path) / "config.toml"
    often = ["--set", "checkpoint.every_entries=50", "--set", "source.batch=50"]
    assert run_command(["run", "config.toml", *often]).code == 0
    before, newest = CheckpointStore(next((tmp_path / "state").iterdir())).sequences()[-2:]
    capsys.readouterr()
    assert run_command(["check", "config.toml"]).code == 0
    assert f", checkpoint {newest}\n" in capsys.readouterr().out
    assert (
        run_command(["check", "config.toml", "--set", "sink.path=elsewhere.jsonl", "--json"]).code
        == 0
    )
    found = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [(one["sequence"], one["resumes"], one["problem"]) for one in found] == [
        (newest, True, "")
    ]
    assert run_command(["check", "config.toml", "--set", "learners.1.forgetting=0.9"]).code == 0
    said = capsys.readouterr()
    assert "learners[1].forgetting: 0.98 -> 0.9" in said.err
    assert "Safe to change" in said.err
    assert "resumes" not in said.out
    (damaged,) = (tmp_path / "state").glob(f"*/{newest:012d}/state.json")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert run_command(["check", "config.toml"]).code == 0
    said = capsys.readouterr()
    assert f"checkpoint {newest}: damaged, will be skipped: " in said.err
    assert f"resumes from entries.csv-0, checkpoint {before}\n" in said.out
    for manifest in (tmp_path / "state").glob("*/*/manifest.json"):
        manifest.write_text("{}")
    assert run_command(["check", "config.toml"]).code == 0
    assert (
        f"would not resume from entries.csv-0, checkpoint {newest}: none can be read"
        in capsys.readouterr().err
    )
    config.write_text(config.read_text().replace('path = "state"', 'path = "memory://nowhere"'))
    assert run_command(["check", "config.toml", "--json"]).code == 0
    assert "checkpoints" not in json.loads(capsys.readouterr().out)
