"""Golden files of the scenarios of `benchmarks.quality`.

``PYTHONPATH=.:tests python -m parity.scenarios --data FOLDER [--only NAME ...]``

Of every scenario: every n-th prediction, served and of each expert, of a part of its cells; and
the figures, each expert's mean loss. Experts that repeat values of the data are kept as a checksum
only: the data sets are not ours to pass on. The bases are trained when a scenario is made, so the
comparison needs the machine that wrote the files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.scenarios import dictionary
from parity.files import pack, record_of
from parity.machine import machine
from parity.make import changes, commit
from parity.recording import Record, Run, arrays_of, facts_of, losses_of, step_of
from parity.scenario_pipelines import SCENARIOS, made
from parity.streams import digest
from streamadapt import Prediction
from streamadapt.learners.dictionary import OrthogonalDictionary

FOLDER = Path(__file__).parent / "scenarios"
MANIFEST = FOLDER / "manifest.json"
ROOT = Path(__file__).parent.parent.parent
CELLS = 20
"""About so many cells of a wide output are kept."""
NUMBERS = 8000
"""About so many numbers are kept of a thousand predictions."""
COPIES = ("persistence", "seasonal-1d")
"""Experts that repeat values of the data."""
DICTIONARY_ENTRIES = 5000
METHODS: dict[str, dict[str, Any]] = {
    "entry": {},
    "plain": {"normalise": False},
    "tracking": {"floors": (0.05, 0.05)},
}
NAMES = (*SCENARIOS, *dictionary.NAMES)


def data_folder() -> Path:
    """Return the folder with ETTh1.csv, los_speed.csv and elec.csv."""
    return Path(os.environ.get("STREAMADAPT_DATA", ROOT.parent / "shared" / "data"))


def measured(name: str, folder: Path) -> Record:
    """Run one scenario."""
    if name in dictionary.NAMES:
        return of_dictionary(name)
    pipeline, items = made(name, folder)
    run = Run(pipeline, narrowed)
    run.take(items)
    every = step_of(run.predictions[0], NUMBERS)
    arrays = arrays_of(run.predictions[::every]) | {"loss_sum": losses_of(pipeline)}
    facts = facts_of(pipeline, run.predictions, run.refused, every)
    facts["copies"] = {
        copy: hashlib.sha256(arrays.pop(f"expert:{copy}").tobytes()).hexdigest()
        for copy in COPIES
        if f"expert:{copy}" in arrays
    }
    return Record(arrays, facts | {"stream": digest(items)})


def narrowed(prediction: Prediction) -> Prediction:
    """Keep every n-th cell of a wide output."""
    step = -(-prediction.served.size // CELLS)
    if step == 1:
        return prediction
    step += 1 - step % 2  # odd: not one column alone
    experts = {name: said.ravel()[::step][None] for name, said in prediction.experts.items()}
    return replace(prediction, served=prediction.served.ravel()[::step][None], experts=experts)


def of_dictionary(name: str) -> Record:
    """Return the dictionaries learned from the first entries, by each of our methods."""
    setting = replace(dictionary.NAMES[name], marks=(DICTIONARY_ENTRIES,))
    entries, atoms = dictionary.entries_and_atoms(setting, 0, setting.marks)
    found, scores = {}, []
    for method, more in METHODS.items():
        batch = 8 if method == "tracking" else 1
        learned = OrthogonalDictionary(
            setting.n, generator=torch.Generator().manual_seed(0), **more
        )
        for start in range(0, len(entries), batch):
            rows = torch.from_numpy(entries[start : start + batch])
            learned.update(rows[0] if batch == 1 else rows)
        matrix = learned.dictionary.numpy().copy()
        found[f"expert:{method}"] = matrix.reshape(-1, 1)[::7]
        scores.append(dictionary.recovery(atoms[DICTIONARY_ENTRIES], matrix))
    stream = hashlib.sha256(entries.tobytes()).hexdigest()
    facts = {"names": list(METHODS), "loss_cells": {}, "stream": stream}
    return Record({**found, "loss_sum": np.array(scores)}, facts)


def figures(recorded: Record) -> dict[str, float]:
    """Return each expert's mean loss."""
    sums = recorded.arrays["loss_sum"].tolist()
    cells = recorded.facts["loss_cells"]
    if not cells:
        return dict(zip(METHODS, sums, strict=True))
    pairs = zip(cells, sums, strict=True)
    return {name: total / cells[name] for name, total in pairs if cells[name]}


def recorded(name: str) -> Record:
    """Return what was recorded."""
    return record_of(FOLDER / f"{name}.zip")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m parity.scenarios", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_folder(), metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if changes():
        print("the working tree has changes: commit them first", file=sys.stderr)
        return 1
    made_by = commit()
    FOLDER.mkdir(exist_ok=True)
    stated = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {"scenarios": {}}
    for name in asked.only or NAMES:
        start = time.process_time()
        found = measured(name, asked.data)
        pack(FOLDER / f"{name}.zip", {}, found)
        took = time.process_time() - start
        print(f"{name}: {took:.0f} s of CPU time", file=sys.stderr, flush=True)
        stated["scenarios"][name] = {"commit": made_by, "figures": figures(found)}
        stated["machine"] = machine()
        MANIFEST.write_text(json.dumps(stated, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
