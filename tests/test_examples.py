"""The examples of the README and of examples/ run, and give the stated results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(output):
    return {
        m[1]: float(m[2])
        for m in re.finditer(r"^(\S+)\s+([\d.]+)(?: mg/dL)?$", output, re.MULTILINE)
    }


def code_blocks(language):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readme_example_runs_and_prints_the_stated_output(tmp_path):
    """The README's Python block is at most ten lines, and its last comment is its output."""
    (block,) = code_blocks("python")
    lines = block.strip().splitlines()
    assert len([line for line in lines if line and not line.startswith("#")]) <= 10
    (tmp_path / "example.py").write_text(block)
    assert run(tmp_path / "example.py").strip() == lines[-1].removeprefix("# ").strip()


def test_the_readme_config_is_valid(tmp_path):
    """The README's TOML block passes the same check as any config."""
    from streamadapt.build import make_engine
    from streamadapt.config.tables import parse_config

    (block,) = code_blocks("toml")
    engine = make_engine(parse_config(block))
    assert "base" in engine.make_pipeline().names


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_examples_are_short(script):
    """Under 80 lines each."""
    assert len(script.read_text(encoding="utf-8").splitlines()) < 80


def test_glucose_in_process():
    """The mixture is better than the frozen calibration."""
    losses = figures(run(EXAMPLES / "glucose.py", 3000))
    assert losses["served"] < 0.8 * losses["base"]


def test_a_forecaster_corrected_from_a_csv(tmp_path):
    """A rhythm that gets faster after the training part: the served prediction follows it, the
    frozen forecaster does not."""
    rng = np.random.default_rng(0)
    t = np.arange(700)
    phase = 2 * np.pi * np.where(t < 450, t / 24, 450 / 24 + (t - 450) / 9)
    values = np.sin(phase)[:, None] * [1.0, 2.0] + 0.1 * rng.normal(size=(700, 2))
    panel = tmp_path / "panel.csv"
    rows = [f"2026-01-01 {i},{a},{b}" for i, (a, b) in enumerate(values)]
    rows[400] = rows[400].rpartition(",")[0] + ","  # a missing cell
    panel.write_text("\n".join(["date,a,b", *rows]) + "\n")
    losses = figures(
        run(EXAMPLES / "correct_forecaster.py", panel, "--window", 12, "--horizon", 4)
    )
    assert set(losses) == {
        "base",
        "adcsd",
        "adcsd-share-norm",
        "bias-0.02",
        "rls-0.9995",
        "served",
    }
    assert losses["served"] < 0.8 * losses["base"]
