"""The commands as a person or a supervisor uses them: exit codes and output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import ROWS, lines, logging_as_before, prepare, rows, write_csv
from safetensors.torch import load_file
from states import assert_same_state

from streamadapt import RLS, Bias, DriftMonitor, Linear, Pipeline, Supervised
from streamadapt.app.commands import run_command
from streamadapt.state.store import CheckpointStore


@pytest.fixture(autouse=True)
def _logging():
    yield from logging_as_before()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return prepare(tmp_path)


# -- fit, check, replay


def test_fit_reports_its_result(folder, capsys):
    """Rows, refused rows and the file; as JSON if requested."""
    capsys.readouterr()
    assert (
        run_command(["fit", "config.toml", "entries.csv", "--out", "b.safetensors", "--json"]).code
        == 0
    )
    assert json.loads(capsys.readouterr().out) == {
        "rows": ROWS,
        "skipped": 1,
        "weights": "b.safetensors",
    }
    assert Linear.load(folder / "b.safetensors").window == 3
    assert not list(folder.glob("*.part"))


def test_fit_joins_labels_from_their_own_file(folder, capsys):
    """The same weights as from one file."""
    (folder / "x.jsonl").write_text(
        "".join(json.dumps({"id": i, "time": t, "x": x}) + "\n" for i, t, x, _ in rows()[:100])
    )
    (folder / "y.jsonl").write_text(
        "".join(json.dumps({"id": i, "time": t, "y": y}) + "\n" for i, t, _, y in rows()[:100])
    )
    out = folder / "apart.safetensors"
    assert (
        run_command(
            ["fit", "config.toml", "x.jsonl", "--labels", "y.jsonl", "--out", str(out)]
        ).code
        == 0
    )
    apart, together = load_file(out), load_file(folder / "base.safetensors")
    torch.testing.assert_close(apart, together)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["check", "nowhere.toml"], 2, "config: config: expected a readable UTF-8 file"),
        (["check", "config.toml", "--set", "task.windw=1"], 2, "config: task.windw: "),
        (
            ["run", "config.toml", "--set", "task.window=4"],
            2,
            "config: task.window: expected 3, which the base",
        ),
        (
            ["run", "config.toml", "--set", "source.path=nowhere.csv"],
            1,
            "file nowhere.csv: not found",
        ),
        (["run", "config.toml", "--set", "source.path=entries.txt"], 2, "config: source.path: "),
        (
            ["run", "config.toml", "--set", "sink.path=."],
            2,
            "config: sink.path: expected a regular file",
        ),
        (["run", "config.toml", "--log-level", "loud"], 2, "config: --log-level: "),
        (["replay", "config.toml", "nowhere.csv"], 1, "file nowhere.csv: not found"),
        (["replay", "config.toml", "torn.csv.gz"], 1, "file torn.csv.gz: cannot be read"),
        (["replay", "config.toml", "entries.csv", "--out", "no/where/"], 0, ""),
        (["fit", "config.toml", "nowhere.csv"], 1, "nowhere.csv: cannot be read"),
        (
            ["fit", "config.toml", "entries.csv", "--out", "no/where.safetensors"],
            2,
            "config: base.weights: ",
        ),
        (["fit", "config.toml", "entries.csv", "--ridge", "-1"], 2, "config: --ridge: "),
        (["init", "no/where.toml"], 2, "config: config: expected a file that can be written"),
        (["demo", "--labels", "few"], 2, "config: --labels: expected all or sparse"),
        (["demo", "--limit", "3"], 2, "config: --limit: "),
        (["demo", "--speed", "0"], 2, "config: --speed: "),
        (["demo", "--json", "no/where.json"], 2, "config: --json: "),
        (["demo", "--keep", "."], 2, "config: --keep: "),
        (["dance"], 2, "No such command"),
        (["run"], 2, "Missing argument"),
    ],
)
def test_errors_are_one_line_and_a_code(folder, capsys, arguments, code, message):
    """User errors give no traceback."""
    (folder / "torn.csv.gz").write_bytes(b"\x1f\x8b\x08\x00rest")
    capsys.readouterr()
    assert run_command(arguments).code == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    if code and "such command" not in message and "argument" not in message:
        assert [line for line in error.splitlines() if line.startswith("streamadapt: ")] == [
            error.splitlines()[-1]
        ]


def test_check_writes_nothing(folder, capsys):
    """Not even the files that a run would open; it lists the experts."""
    before = sorted(path.name for path in folder.iterdir())
    capsys.readouterr()
    assert run_command(["check", "config.toml", "--json"]).code == 0
    result = json.loads(capsys.readouterr().out)
    found = {
        "path": "entries.csv",
        "columns": ["id", "time", "x", "y"],
        "records": 20,
        "refused": 0,
    }
    assert result == {
        "ok": True,
        "experts": ["base", "bias-0.1", "bias-0.01", "rls-0.98"],
        "files": [found],
    }
    assert run_command(["check", "config.toml", "--json", "--set", "task.window=x"]).code == 2
    result = json.loads(capsys.readouterr().out)
    assert result == {
        "ok": False,
        "error": {"path": "task.window", "value": "'x'", "expected": "a whole number"},
    }
    assert sorted(path.name for path in folder.iterdir()) == before


def by_hand(table):
    from streamadapt import Entry

    base = Linear.load(Path("base.safetensors"))
    pipeline = Pipeline(
        Supervised(3), base, [Bias((0.1, 0.01)), RLS(0.98)], drift=[DriftMonitor("adwin")]
    )
    entries = (Entry(np.array([x]), t * 10**9, i, label=np.array([y])) for i, t, x, y in table)
    return pipeline, pipeline.observe(entries)


def test_replay_gives_the_results_of_the_python_api(folder, capsys):
    """The same numbers bit for bit, from a file or through the API; only the requested file is
    written."""
    pipeline, predictions = by_hand(rows())
    before = sorted(path.name for path in folder.iterdir())
    capsys.readouterr()
    assert run_command(["replay", "config.toml", "entries.csv", "--json"]).code == 0
    summary = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert summary["frozen"] == pipeline.stats.mean_loss("base")
    assert summary["served"] == pipeline.stats.mean_loss("served")
    assert summary["entries"] == ROWS
    assert summary["dead_letters"] == {"wrong_type": 1}
    for _ in range(2):  # the second replay replaces its file
        assert (
            run_command(["replay", "config.toml", "entries.csv", "--out", "out.jsonl"]).code == 0
        )
        assert [line["served"][0] for line in lines("out.jsonl")] == [
            p.served[0, 0] for p in predictions
        ]
        assert [line["reason"] for line in lines("out.jsonl.dead-letters")] == ["wrong_type"]
    table = capsys.readouterr().out
    for text in ("frozen (base)", "served", "entries", "dead letters: wrong_type", "drift"):
        assert text in table


def test_replay_reads_labels_from_their_own_file(folder, capsys):
    """Also JSON beside CSV: then a number may be text in either."""
    write_csv(folder / "y.csv", [(i, t + 600, x, y) for i, t, x, y in rows()])
    (folder / "x.jsonl").write_text(
        "".join(json.dumps({"id": i, "time": t, "x": x}) + "\n" for i, t, x, _ in rows())
    )
    capsys.readouterr()
    assert (
        run_command(["replay", "config.toml", "x.jsonl", "--labels", "y.csv", "--json"]).code == 0
    )
    summary = json.loads(capsys.readouterr().out)
    assert summary["labels"] == {"learned": ROWS - 2, "unpredicted": 2}
    assert summary["entries"] == ROWS
    assert summary["dead_letters"] == {}


# -- run on files


def test_run_on_files_writes_everything_and_continues(folder, capsys):
    """Predictions, dead letters and a checkpoint; after an interruption in the middle the rest is
    the same as without it."""
    capsys.readouterr()
    assert run_command(["run", "config.toml", "--json", "--log-json"]).code == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["entries"] == ROWS
    events = [json.loads(line) for line in output.err.splitlines()]
    assert [event["message"] for event in events][
        -1
    ] == f"stopped: {ROWS} entries, {ROWS - 2} predictions"
    assert all(event.keys() >= {"time", "level", "logger", "message"} for event in events)
    assert len(lines("predictions.jsonl")) == ROWS - 2
    assert [line["value"] for line in lines("predictions.jsonl.dead-letters")] == [
        '{"id":"bad","time":"45300","x":"dirty","y":"1.0"}'
    ]
    whole = [line["served"] for line in lines("predictions.jsonl")]
    final = CheckpointStore(folder / "state" / "entries.csv-0").load_latest()
    # Half of the file first: for the engine this equals an interruption before the rest.
    full = (folder / "entries.csv").read_text()
    (folder / "entries.csv").write_text("".join(full.splitlines(keepends=True)[:200]))
    again = ["--set", "sink.path=second.jsonl", "--set", "checkpoint.path=second"]
    assert run_command(["run", "config.toml", *again]).code == 0
    assert 0 < len(lines("second.jsonl")) < len(whole)
    (folder / "entries.csv").write_text(full)
    assert run_command(["run", "config.toml", *again]).code == 0
    assert [line["served"] for line in lines("second.jsonl")] == whole
    resumed = CheckpointStore(folder / "second" / "entries.csv-0").load_latest()
    assert_same_state(final.state, resumed.state)


def test_log_json_holds_errors_too(folder, capsys):
    """If a machine reads standard error, the last message is JSON as well."""
    capsys.readouterr()
    assert (
        run_command(["run", "config.toml", "--log-json", "--set", "source.path=nowhere.csv"]).code
        == 1
    )
    (event,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (event["level"], event["message"]) == ("error", "file nowhere.csv: not found")


def test_an_error_in_the_users_model_has_a_traceback(folder, capsys, monkeypatch):
    """It is not a config error: nothing was predicted, and the log has the traceback, on one line
    if the log is JSON."""
    (folder / "mine.py").write_text(
        "def make():\n    def model(x):\n        raise ZeroDivisionError('mine')\n    return "
        "model\n"
    )
    monkeypatch.syspath_prepend(folder)
    own = ["--set", 'base={kind="module", factory="mine:make"}']
    assert run_command(["replay", "config.toml", "entries.csv", *own]).code == 3
    output = capsys.readouterr()
    assert "mine.py" in output.err
    assert "the base raised ZeroDivisionError: mine" in output.out.splitlines()[0]
    assert run_command(["run", "config.toml", "--log-json", *own]).code == 3
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (raised,) = [event for event in events if "exception" in event]
    assert "mine.py" in raised["exception"]


def test_an_exit_code_reaches_the_shell(folder):
    """Through the real entry point, together with the environment's settings."""
    done = subprocess.run(
        [sys.executable, "-m", "streamadapt", "check", "config.toml"], capture_output=True,
        text=True, check=False, env=os.environ | {"STREAMADAPT__TASK__WINDOW": "9"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "(set by STREAMADAPT__TASK__WINDOW)" in done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "typer",
        "streamadapt.build",
        "streamadapt.app.running",
        "streamadapt_connectors.files.source",
    ],
)
def test_an_interrupt_during_imports_ends_cleanly(folder, module):
    """Exit code 130 and one line, at any import."""
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "from streamadapt.app.cli import main\n"
        f"[sys.modules.pop(name) for name in list(sys.modules) if name == {module!r}]\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['streamadapt', 'run', 'config.toml']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "streamadapt: interrupted\n")
