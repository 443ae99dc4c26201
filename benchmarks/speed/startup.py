"""The CPU time of ``streamadapt check``."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.speed.context import Context
from benchmarks.speed.processes import ROOT
from benchmarks.speed.rounds import Measured, Side

__all__ = ["check_cpu"]

LIMIT_S = 1.0
"""What a check may take."""


def _run(folder: Path, *arguments: str, python: tuple[str, ...] = ()) -> str:
    """Run the command line in a process; return its stderr."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "connectors")])
    done = subprocess.run(
        [sys.executable, *python, "-m", "streamadapt", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"streamadapt {arguments[0]}: {done.stderr.strip() or done.stdout}")
    return done.stderr


def _configured(folder: Path) -> None:
    """Write the config that ``streamadapt init`` writes, and fit its base."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = ["id,time,temperature,pressure,target"]
    for t, row in enumerate(rng.normal(size=(200, 3)).tolist()):
        stamp = f"2026-01-{1 + t // 24:02d}T{t % 24:02d}:00:00Z"
        lines.append(f"{t},{stamp},{row[0]:.4f},{row[1]:.4f},{row[0] + row[2]:.4f}")
    (folder / "history.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _run(folder, "init", "config.toml")
    _run(folder, "fit", "config.toml", "history.csv")


def check_cpu(name: str, ctx: Context) -> Measured:
    """Measure a whole process: its start, its imports, the check."""
    folder = ctx.folder / "check"
    _configured(folder)

    def once() -> float:
        before = _children()
        _run(folder, "check", "config.toml")
        return _children() - before

    times = _run(folder, "check", "config.toml", python=("-X", "importtime"))
    imported = any(line.split("|")[-1].strip() == "torch" for line in times.splitlines())
    rounds = ctx.compare(
        Side.of("ours", lambda: once), [Side.of("the limit of 1 s", lambda: lambda: LIMIT_S)]
    )
    text = (
        f"User and system time of the process `streamadapt check` on the config that "
        f"`streamadapt init` writes, its base fitted, no torch learner in it. There is no rival: "
        f"the ratio is {LIMIT_S:g} s divided by the time. torch was "
        f"{'imported' if imported else 'not imported'}."
    )
    return Measured(name, "s", text, rounds, more={"torch_imported": imported})


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
