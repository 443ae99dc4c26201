"""Shared by the tests of the commands."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np

from streamadapt.app.commands import run_command

ROWS = 400

CONFIG = """
[source]
{source}
[fields]
id = "id"
time = "time"
time_format = "unix_s"
values = ["x"]
label = "y"
[task]
kind = "supervised"
window = 3
[base]
kind = "linear"
weights = "base.safetensors"
[[learners]]
kind = "bias"
rate = [0.1, 0.01]
[[learners]]
kind = "rls"
forgetting = 0.98
[[drift]]
detector = "adwin"
[sink]
{sink}
[checkpoint]
path = "state"
every = "100ms"
"""
FILES = 'kind = "files"\npath = "entries.csv"', 'kind = "files"\npath = "predictions.jsonl"'


def logging_as_before():
    """For a fixture: a command sets up the logging of its process, which is here the tests'
    process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def rows(n=ROWS):
    rng = np.random.default_rng(7)
    x = np.round(np.cumsum(rng.normal(size=n)) * 0.1, 6)
    y = np.round(2.0 * x + np.where(np.arange(n) < n // 2, 0.0, 3.0), 6)
    return [(f"e{i}", i * 300, float(x[i]), float(y[i])) for i in range(n)]


def write_csv(path, table):
    path.write_text("id,time,x,y\n" + "".join(",".join(map(str, row)) + "\n" for row in table))


def prepare(path):
    """Fill the current folder with a config, its history, its entries and a fitted base."""
    (path / "config.toml").write_text(CONFIG.format(source=FILES[0], sink=FILES[1]))
    table = rows()
    write_csv(path / "history.csv", table[:100])
    write_csv(path / "entries.csv", [*table[:150], ("bad", 151 * 300, "dirty", 1.0), *table[150:]])
    assert run_command(["fit", "config.toml", "history.csv"]).code == 0
    return path


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
