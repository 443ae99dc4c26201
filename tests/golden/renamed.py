"""The release before its config keys were renamed has written the checkpoint in ``renamed/``:
``python tests/golden/renamed.py``, with that release, once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from streamadapt import Entry, KeyedPipeline, Label, Pipeline, Position
from streamadapt.build import make_pipeline
from streamadapt.config.tables import parse_config
from streamadapt.models.builtin import Linear
from streamadapt.records import StreamPartition
from streamadapt.state.store import CheckpointStore

FOLDER = Path(__file__).parent / "renamed"
BEFORE, AFTER = 160, 40
S = 10**9
OLD = """
[source]
kind = "files"
path = "entries.csv"
[fields]
values = ["a", "b"]
label = "y"
id = "id"
[task]
kind = "supervised"
window = 2
settle = "5s"
[base]
kind = "linear"
weights = "base.safetensors"
[sink]
kind = "files"
path = "out.jsonl"
[[learners]]
kind = "error_memory"
lam = 0.4
floor = 5.0
capacity = 20
[[learners]]
kind = "liquid"
units = 4
late = 16
[[learners]]
kind = "dictionary"
learner = { kind = "error_memory", lam = 0.5, capacity = 10 }
[[drift]]
detector = "page-hinkley"
params = { threshold = 1.0 }
reaction = "forget"
keep = 0.2
[[drift]]
detector = "page-hinkley"
params = { threshold = 2.0 }
reaction = "refit"
trial = 30
[checkpoint]
path = "state"
"""


def items() -> list[Entry | Label]:
    """Return entries a second apart, and labels three seconds late that jump after half of
    them."""
    rng = np.random.default_rng(7)
    n = BEFORE + AFTER
    x = rng.normal(size=(n, 2)).astype(np.float32)
    jump = np.where(np.arange(n) < 60, 0.0, 3.0)
    y = (x.sum(1) + jump).astype(np.float32)[:, None]
    at = [Position("golden", 0, i) for i in range(n)]
    entries = [Entry(x[i], i * S, f"e{i}", position=at[i]) for i in range(n)]
    labels = [Label(f"e{i}", y[i], (i + 3) * S, at[i]) for i in range(n - 3)]
    return sorted([*entries, *labels], key=lambda item: (item.time, isinstance(item, Entry)))


def predict_all(
    pipeline: Pipeline | KeyedPipeline, some: Sequence[Entry | Label]
) -> list[list[float]]:
    return [p.served.ravel().tolist() for p in pipeline.observe(some)]


def main() -> None:
    FOLDER.mkdir()
    os.chdir(FOLDER)
    shapes = {"input_loc": 2, "input_scale": 2, "output_loc": 1, "output_scale": 1}
    scaling = {n: torch.full((k,), float("scale" in n)) for n, k in shapes.items()}
    weights = torch.tensor([[0.1], [0.2], [0.9], [1.1], [0.0]])
    Linear("regression", weights, 2, subtract_last=False, scaling=scaling).save(
        Path("base.safetensors")
    )
    config = parse_config(OLD)
    pipeline = make_pipeline(config)
    pipeline.observe(items()[:BEFORE])
    with CheckpointStore(FOLDER / "state") as store:
        at = {StreamPartition("golden", 0): BEFORE}
        store.save(pipeline.state_dict(), at, config_digest=config.digest(), summary={})
    for name in (".lock", ".fence-000001"):
        (FOLDER / "state" / name).unlink(missing_ok=True)
    (FOLDER / "expected.json").write_text(
        json.dumps(predict_all(pipeline, items()[BEFORE:])) + "\n"
    )


if __name__ == "__main__":
    main()
