"""Characters that standard output cannot encode, or output without a reader, never change a
command's work or exit code."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import logging_as_before

from streamadapt.app.commands import run_command

NAME = "Wärme-温度-🌡"
CONFIG = f"""
[source]
kind = "files"
path = "{NAME}.jsonl"
[fields]
id = "id"
time = "t"
time_format = "unix_s"
values = ["{NAME}"]
label = "y"
[task]
kind = "supervised"
window = 1
[base]
kind = "linear"
weights = "base.safetensors"
[[learners]]
kind = "bias"
rate = 0.1
[sink]
kind = "files"
path = "out.jsonl"
[checkpoint]
path = "state-{NAME}"
"""
ENCODINGS = ["cp1252", "latin-1", "ascii", "cp437", "koi8-r", "utf-16"]


@pytest.fixture(autouse=True)
def _logging():
    yield from logging_as_before()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(CONFIG, encoding="utf-8")
    rows = [{"id": f"e{i}", "t": i, NAME: i % 5, "y": i % 5 + 1} for i in range(30)]
    rows[7][NAME] = f"no number: {NAME}"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(f"{NAME}.jsonl").write_text(text, encoding="utf-8")
    assert run_command(["fit", "c.toml", f"{NAME}.jsonl"]).code == 0
    return tmp_path


COMMANDS = [
    ["run", "c.toml"],
    ["run", "c.toml", "--json"],
    ["replay", "c.toml", f"{NAME}.jsonl", "--out", f"out-{NAME}"],
    ["check", "c.toml"],
    ["fit", "c.toml", f"{NAME}.jsonl", "--out", f"w-{NAME}"],
    ["init", f"new-{NAME}.toml"],
    ["dlq", "list", "c.toml"],
    ["dlq", "list", "c.toml", "--json"],
    ["checkpoint", "list", f"state-{NAME}"],
    ["checkpoint", "inspect", f"state-{NAME}"],
    ["check", f"nowhere-{NAME}.toml"],
    ["replay", "c.toml", f"nowhere-{NAME}.jsonl"],
]


def outcomes(monkeypatch, make_stream):
    """Return the exit codes of all commands, and the text that each wrote."""
    codes, texts = [], []
    for command in COMMANDS:
        streams = make_stream(), make_stream()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            codes.append(run_command(command).code)
        texts.append(streams)
    return codes, texts


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_encoding_without_some_characters_changes_no_exit_code(folder, monkeypatch, encoding):
    """Tables are drawn in ASCII there, and a missing character is replaced."""
    made = lambda: io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # noqa: E731
    codes, texts = outcomes(monkeypatch, made)
    assert codes == [0] * 10 + [2, 1]
    for command, (out, err) in zip(COMMANDS, texts, strict=True):
        shown = []
        for stream in (out, err):
            stream.flush()
            shown.append(stream.buffer.getvalue().decode(encoding))
        assert "Traceback" not in shown[1], command
        if (
            encoding != "utf-16"
            and command[0] in ("run", "replay")
            and "--json" not in command
            and shown[0]
        ):
            assert "│" not in shown[0]
            assert "| served" in shown[0]


def test_dead_letters_in_json_lines_survive_every_encoding(folder, monkeypatch):
    """The output of `dlq list --json` is read as UTF-8 by `dlq replay`: in other encodings all but
    ASCII is escaped."""
    assert run_command(["run", "c.toml"]).code == 0
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert run_command(["dlq", "list", "c.toml", "--json"]).code == 0
    out.flush()
    letter = json.loads(out.buffer.getvalue().decode("ascii"))
    assert json.loads(letter["value"])[NAME] == f"no number: {NAME}"


class Closed(io.StringIO):
    """A pipe without a reader."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


def test_output_without_a_reader_changes_nothing(folder, monkeypatch):
    codes, _ = outcomes(monkeypatch, Closed)
    assert codes == [0] * 10 + [2, 1]
    assert len(Path("out.jsonl").read_text().splitlines()) == 29
    letter = json.loads(Path("out.jsonl.dead-letters").read_text())
    value = json.dumps({"id": "e7", "t": 7, NAME: 1, "y": 1})
    Path("fixed.jsonl").write_text(json.dumps(letter | {"value": value}) + "\n")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        assert run_command(["dlq", "replay", "c.toml", "fixed.jsonl", "--yes"]).code == 0
    lines = Path(f"{NAME}.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1]) == json.loads(value), "sent, although its report had no reader"


def test_missing_standard_streams_change_nothing(folder, monkeypatch):
    """Python has None for a standard stream that was closed when it started."""
    codes, _ = outcomes(monkeypatch, lambda: None)
    assert codes == [0] * 10 + [2, 1]


@pytest.mark.parametrize("way", ["cp1252", "head", "closed"])
def test_through_the_shell(folder, way):
    """The whole process, to its end: the exit code is 0, and nothing is written to the wrong
    stream."""
    command = f"{sys.executable} -m streamadapt run c.toml"
    if way == "head":
        command = f"{{ {command}; echo code $? >&2; }} | head -c 0"
    if way == "closed":
        command = f"{command} >&- 2>&-"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    if way == "cp1252":
        env["PYTHONIOENCODING"] = "cp1252"
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    if way == "head":
        assert b"code 0" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    predictions = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(predictions) == 29


def test_names_in_brackets_are_not_markup(folder, capsys):
    """A learner's or a class's name is shown unchanged, although tables interpret brackets."""
    from streamadapt.app.tables import summary_text

    summary = {
        "experts": {"base": 1.0, "[red]x[/red]": 1.0, "[/]": 2.0}, "served": 1.0, "weights": {},
        "entries": 1, "predictions": 1, "pending": 0, "labels": {"[b]y": 1}, "drifts": {"[i]": 1},
        "dead_letters": {}, "restored": {}, "reactions": {"[a]": 1}, "drift_log": [["[i]", 0]],
    }  # fmt: skip
    text = summary_text(summary)
    for name in ("[red]x[/red]", "[/]", "[b]y", "[i]", "[a]"):
        assert name in text
