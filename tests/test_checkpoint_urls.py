"""``checkpoint.path = "scheme://..."``: configs, commands and errors."""

from __future__ import annotations

import json
import uuid

import pytest
from cli_helpers import logging_as_before, prepare
from config_cases import make_weights, text_of

from streamadapt.app.commands import run_command
from streamadapt.build import check_config, make_engine
from streamadapt.config.tables import parse_config
from streamadapt.errors import ConfigError
from streamadapt.state.store import CheckpointStore

_logging = pytest.fixture(autouse=True)(logging_as_before)

KEYED = ["--set", "keys.max_keys=2", "--set", "fields.key=k"]


def with_keys(folder):
    """Return the entries with keys: five of them, in turn."""
    for name in ("entries.csv", "history.csv"):
        head, *rows = (folder / name).read_text().splitlines()
        (folder / name).write_text(
            "\n".join([f"{head},k", *(f"{row},k{i % 5}" for i, row in enumerate(rows))]) + "\n"
        )


@pytest.mark.parametrize("more", [[], KEYED], ids=["plain", "keyed"])
def test_a_run_with_its_state_at_a_url_resumes_after_a_rollback(
    tmp_path, monkeypatch, capsys, more
):
    """As with a folder: the same summary as the run with its state on disk, then rolled back and
    run again."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    with_keys(tmp_path)
    run = [
        "run",
        "config.toml",
        "--json",
        "--set",
        "checkpoint.every_entries=50",
        "--set",
        "checkpoint.keep=90",
        *more,
    ]
    run += ["--set", "source.batch=50"]  # checkpoints are made between two batches
    url = f"local://{tmp_path}/away"
    summaries = []
    for path in ("state", url, url):
        capsys.readouterr()
        assert run_command([*run, "--set", f"checkpoint.path={path}"]).code == 0
        summaries.append(json.loads(capsys.readouterr().out))
        if path == url:
            store = CheckpointStore(f"{url}/entries.csv-0")
            there = store.sequences()
            assert len(there) > 1
            assert not more or any(
                name.endswith(".safetensors") for name in store.folder.child("keys").names()
            )
            assert run_command(["checkpoint", "rollback", url, str(there[0]), "--yes"]).code == 0
    assert summaries[0] == summaries[1] == summaries[2]
    assert not (tmp_path / "local:").exists()


@pytest.mark.parametrize(
    ("key", "table"), [("checkpoint.path", "[checkpoint]"), ("keys.path", "[keys]")]
)
@pytest.mark.parametrize("make", [check_config, make_engine])
def test_a_missing_driver_is_reported_before_anything_connects(tmp_path, key, table, make):
    weights = make_weights(tmp_path / "base.safetensors")
    url = "s3://key:hunter22secret@bucket/state"
    text = (
        text_of(weights).replace('[checkpoint]\npath = "state"\n', "")
        + f'{table}\npath = "{url}"\n'
    )
    with pytest.raises(ConfigError, match="pip install s3fs") as caught:
        make(parse_config(text))
    assert caught.value.path == key
    assert "hunter22secret" not in str(caught.value) + repr(caught.value) + repr(
        parse_config(text)
    )


def test_the_location_of_the_state_is_not_part_of_the_digest(tmp_path):
    """The state can move from a disk to a bucket; the config settings in the manifest hold no
    credentials."""
    weights = make_weights(tmp_path / "base.safetensors")
    away = text_of(weights).replace(
        'path = "state"', f'path = "memory://me:hunter22secret@x/{uuid.uuid4().hex}"'
    )
    assert parse_config(away).digest() == parse_config(text_of(weights)).digest()
    assert "hunter22secret" not in json.dumps(parse_config(away).digest().settings) + repr(
        parse_config(away)
    )


def test_check_reports_it_on_the_command_line(tmp_path, monkeypatch, capsys):
    """One line and the exit code of a wrong config; the same for a listing of such a place."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    capsys.readouterr()
    wrong = run_command(
        ["check", "config.toml", "--set", "checkpoint.path=gs://bucket/state"]
    ).code
    assert "checkpoint.path: expected a folder, or a URL" in capsys.readouterr().err
    assert run_command(["checkpoint", "list", "gs://bucket/state"]).code == wrong != 0
    assert "pip install gcsfs" in capsys.readouterr().err
