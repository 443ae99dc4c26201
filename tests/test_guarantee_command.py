"""`guarantee` in a config file: `check` reports contradictory settings before anything runs."""

from __future__ import annotations

import json

import pytest
from cli_helpers import CONFIG, FILES, lines, logging_as_before, prepare

from streamadapt.app.commands import run_command

as_before = pytest.fixture(autouse=True)(logging_as_before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return prepare(tmp_path)


def config(guarantee, sink=FILES[1], **changes):
    text = f'guarantee = "{guarantee}"\n' + CONFIG.format(source=FILES[0], sink=sink)
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return text


KAFKA = 'kind = "kafka"\nservers = "127.0.0.1:9"\ntopic = "out"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            config("at-most-once"),
            "guarantee: expected one of at-least-once, effectively-once, exactly-once",
        ),
        (
            config("exactly-once"),
            "guarantee: expected another guarantee: this sink has no transactions",
        ),
        (
            config(
                "effectively-once", none=('[checkpoint]\npath = "state"\nevery = "100ms"\n', "")
            ),
            "guarantee: expected at-least-once, or a table [checkpoint]",
        ),
        (
            config("exactly-once", KAFKA, one=("[checkpoint]", "[checkpoint]\nkeep = 1")),
            "checkpoint.keep: expected",
        ),
        (
            config("exactly-once", KAFKA, slow=('"100ms"', '"2m"')),
            "at most half of sink.transaction_timeout, 60s",
        ),
    ],
)
def test_check_reports_contradictory_settings(folder, capsys, text, message):
    (folder / "config.toml").write_text(text)
    assert run_command(["check", "config.toml"]).code == 2
    assert message in capsys.readouterr().err
    assert not (folder / "predictions.jsonl").exists()


@pytest.mark.parametrize("text", [config("effectively-once"), config("exactly-once", KAFKA)])
def test_check_accepts_matching_settings(folder, capsys, text):
    (folder / "config.toml").write_text(text)
    assert run_command(["check", "config.toml"]).code == 0


def test_a_second_run_over_a_file_predicts_nothing_twice(folder):
    """The checkpoints are gone, the output exists: everything is learned again, and nothing is
    written again."""
    (folder / "config.toml").write_text(config("effectively-once"))
    assert run_command(["run", "config.toml"]).code == 0
    before = lines("predictions.jsonl")
    for path in sorted((folder / "state").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert run_command(["run", "config.toml"]).code == 0
    assert lines("predictions.jsonl") == before
    assert len({json.dumps(one["id"]) for one in before}) == len(before) > 100
