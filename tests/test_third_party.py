"""The package of docs/learners.md, word for word: built, installed, checked, and used by name in a
config."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import CONFIG, FILES, lines, logging_as_before, prepare

PAGE = Path(__file__).parent.parent / "docs" / "learners.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = dict(BLOCK.findall(TEXT))
"""File name -> the code block that starts with it as a comment."""
PACKAGE = ("pyproject.toml", "running_median.py")


@pytest.fixture(autouse=True)
def _logging():
    yield from logging_as_before()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which pip has installed a wheel of the package, built only from the page."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in (*PACKAGE, "check_median.py"):  # the files of a reader who follows the page
        (source / name).write_text(BLOCKS[name], encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    alone = [
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--no-cache-dir",
    ]  # with local packages, offline
    done = subprocess.run(
        [*pip, *alone, "--target", target, source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def python(installed, folder, *arguments):
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH", "")]))
    env = os.environ | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def written_config():
    """Write the tests' config with the page's table in place of its learners."""
    head, rest = CONFIG.split("[[learners]]", 1)
    text = head + BLOCKS["learners.toml"] + rest[rest.index("[[drift]]") :]
    return text.format(source=FILES[0], sink=FILES[1] + "\nexperts = true")


def test_the_package_has_fewer_than_forty_lines():
    assert set(BLOCKS) == {*PACKAGE, "learners.toml", "check_median.py", "compiled_median.py"}
    assert sum(len(BLOCKS[name].splitlines()) + 1 for name in PACKAGE) < 40


@pytest.mark.parametrize("compiles", ["0", "1"])
def test_the_compiled_learner_passes_the_checks(tmp_path, monkeypatch, compiles):
    """As the page says: uncompiled first, then compiled."""
    (tmp_path / "running_median.py").write_text(BLOCKS["compiled_median.py"])
    (tmp_path / "check_median.py").write_text(BLOCKS["check_median.py"])
    monkeypatch.setenv("STREAMADAPT_COMPILE", compiles)
    done = python("", tmp_path, "check_median.py")
    assert done.returncode == 0, done.stderr
    assert len(BLOCKS["compiled_median.py"].splitlines()) < 50


@pytest.mark.slow
def test_the_learner_passes_the_checks(installed, tmp_path):
    (tmp_path / "check_median.py").write_text(BLOCKS["check_median.py"])
    done = python(installed, tmp_path, "check_median.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_config_runs_it_by_name(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    (tmp_path / "config.toml").write_text(written_config())
    stranger = python("", tmp_path, "-m", "streamadapt", "check", "config.toml")
    assert stranger.returncode == 2, "without the package the kind does not exist"
    assert "learners[0].kind" in stranger.stderr
    found = python(installed, tmp_path, "-m", "streamadapt", "check", "config.toml", "--json")
    result = json.loads(found.stdout)
    assert (result["ok"], result["experts"]) == (True, ["base", "median"])
    wrong = python(
        installed,
        tmp_path,
        "-m",
        "streamadapt",
        "check",
        "config.toml",
        "--set",
        "learners.0.step=2",
    )
    assert wrong.returncode == 2
    done = python(installed, tmp_path, "-m", "streamadapt", "run", "config.toml", "--json")
    assert done.returncode == 0, done.stderr
    result = lines("predictions.jsonl")
    assert len(result) == json.loads(done.stdout)["predictions"] > 300
    corrections = [np.ravel(p["experts"]["median"])[0] - np.ravel(p["base"])[0] for p in result]
    assert corrections[0] == 0.0
    assert corrections[-1] == pytest.approx(3.0, abs=0.3), (
        "the rise of the labels half way is learned step by step"
    )
    assert all(set(p["weights"]) == {"base", "median"} for p in result)
    assert result[-1]["weights"]["median"] > 0.5


@pytest.mark.slow
def test_a_replay_names_the_learner(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    (tmp_path / "config.toml").write_text(written_config())
    done = python(
        installed, tmp_path, "-m", "streamadapt", "replay", "config.toml", "entries.csv", "--json"
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["served"] < summary["frozen"]
    assert "median" in done.stdout
