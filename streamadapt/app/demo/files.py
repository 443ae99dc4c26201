"""Writes the files that a user would write: a config and a history."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamadapt.app.demo.cgm import Reading

__all__ = ["write_config", "write_history"]

_CONFIG = """\
[source]
kind = "kafka"
servers = "{servers}"
topic = "{topics[0]}"
label_topic = "{topics[1]}"

[fields]
id = "id"
time = "time"
values = ["isig"]
label = "glucose"

[task]
kind = "supervised"
window = 6
ttl = "1d"

[base]
kind = "linear"
weights = "{folder}/base.safetensors"

[[drift]]
detector = "adwin"
signal = "loss"
reaction = "alert"

[sink]
kind = "kafka"
topic = "{topics[2]}"
experts = true

[dead_letters]
kind = "kafka"
topic = "{topics[3]}"

[checkpoint]
path = "{folder}/state"
every = "5s"

[metrics]
port = {port}
host = "127.0.0.1"
"""


def write_config(folder: Path, servers: str, port: int, topics: Sequence[str]) -> Path:
    """Write the engine's config; `topics` are those of entries, labels, predictions and dead
    letters."""
    path = folder / "demo.toml"
    path.write_text(
        _CONFIG.format(servers=servers, topics=topics, folder=folder.absolute(), port=port),
        encoding="utf-8",
    )
    return path


def write_history(folder: Path, readings: Sequence[Reading]) -> Path:
    """Write the readings on which the base is fitted, including the texts of failed readings."""
    path = folder / "history.csv"
    lines = [f"{r.id},{r.time.isoformat()},{r.isig},{r.glucose}" for r in readings]
    path.write_text("\n".join(["id,time,isig,glucose", *lines]) + "\n", encoding="utf-8")
    return path
