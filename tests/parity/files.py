"""One zip archive for each case: the checkpoint as the product writes it, and the record.

::

    NAME.zip/state/000000000001/manifest.json, state.json, state.safetensors
    NAME.zip/keys/...                the keys that left memory, where a case has such
    NAME.zip/record.npz              `Record.arrays`, compressed
    NAME.zip/record.json             `Record.facts`, and the checksum of the stream
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity.case import Case
from parity.recording import Record, record
from parity.streams import digest
from streamadapt.clock import Clock
from streamadapt.records import StreamPartition
from streamadapt.state.store import CheckpointStore
from streamadapt.testing import ManualClock

FOLDER = Path(__file__).parent / "files"
MANIFEST = FOLDER / "manifest.json"
DIGEST = "golden"
_ZERO = (1980, 1, 1, 0, 0, 0)  # the same files have the same bytes, whenever they are written


def write_case(case: Case, target: Path, work: Path) -> None:
    """Run a case, and write its archive; `work` is an empty folder."""
    before, after = case.parts()
    pipeline = case.make(work)
    pipeline.on_rejected = lambda item, error: None
    pipeline.observe(before)
    save(pipeline, work, len(before))
    fresh = load(case, work)  # so that what is recorded is what follows from the file
    recorded = record(fresh, after)
    recorded.facts["stream"] = digest([*before, *after])
    pack(target, dict(_files(work)), recorded)


def save(pipeline: Any, folder: Path, position: int) -> None:
    """Write a checkpoint into ``folder/state``."""
    clock: Clock = ManualClock()
    with CheckpointStore(folder / "state", clock=clock) as store:
        store.save(
            pipeline.state_dict(),
            {StreamPartition("golden", 0): position},
            config_digest=DIGEST,
            summary=pipeline.stats.state_dict(),
        )


def load(case: Case, folder: Path) -> Any:
    """Return a pipeline that continues from the checkpoint in `folder`."""
    loaded = CheckpointStore(folder / "state").load_latest(DIGEST)
    assert loaded is not None, folder
    pipeline = case.make(folder)
    pipeline.load_state_dict(loaded.state)
    return pipeline


def _files(work: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files of checkpoint and keys; locks and fencing tokens stay behind."""
    for path in sorted(work.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield path.relative_to(work).as_posix(), path.read_bytes()


def pack(target: Path, files: dict[str, bytes], recorded: Record) -> None:
    """Write an archive."""
    arrays = io.BytesIO()
    np.savez(arrays, **recorded.arrays)  # type: ignore[arg-type]
    text = json.dumps(recorded.facts, separators=(",", ":")).encode()
    files = files | {"record.npz": arrays.getvalue(), "record.json": text}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _ZERO), data, zipfile.ZIP_LZMA)


def unpack(source: Path, folder: Path) -> Record:
    """Extract an archive's checkpoint and keys into `folder`; return the record."""
    with zipfile.ZipFile(source) as archive:
        for name in archive.namelist():
            if not name.startswith("record."):
                archive.extract(name, folder)
    return record_of(source)


def record_of(source: Path) -> Record:
    """Return an archive's record."""
    with zipfile.ZipFile(source) as archive:
        facts = json.loads(archive.read("record.json"))
        with np.load(io.BytesIO(archive.read("record.npz"))) as arrays:
            return Record({name: arrays[name] for name in arrays.files}, facts)
