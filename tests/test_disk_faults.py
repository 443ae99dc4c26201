"""A real full or read-only file system under the checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.faults.counts import Counts
from benchmarks.faults.disks import FailingDisk
from benchmarks.faults.memory_job import Job, final_state, written_by
from streamadapt.errors import CheckpointError
from streamadapt.state.store import CheckpointStore

RUN = """
import json, pathlib, subprocess, sys
from benchmarks.faults.counts import Counts
from benchmarks.faults.memory_job import Job, final_state, written_by
from streamadapt.errors import CheckpointError
from streamadapt.testing import SimulatedCrash

root, fault = pathlib.Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", root], check=True)
job, sinks, filler = Job(100, every=60), [], root / "filler"

def run(crash_at=None):
    engine, sink = job.engine(root / "state", crash_at=crash_at)
    sinks.append(sink)
    try:
        engine.run()
    except SimulatedCrash:
        return None, ""
    except CheckpointError as error:
        return None, str(error)
    return engine, ""

run(crash_at=50)  # some checkpoints are there
if fault == "full":
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
                file.flush()
        except OSError:
            pass
else:
    subprocess.run(["mount", "-o", "remount,ro", root], check=True)
_, output = run()
if fault == "full":
    filler.unlink()
else:
    subprocess.run(["mount", "-o", "remount,rw", root], check=True)
engine, after = run()
counts = Counts()
fine = engine is not None and job.judge(counts, final_state(engine), written_by(*sinks))
print(json.dumps({"fine": fine, "output": output, "after": after}))
"""
# A separate mount namespace: the mount is invisible elsewhere, and removed with the process.
ALONE = ("unshare", "--user", "--map-root-user", "--mount", "--")


def can_mount(folder):
    try:
        done = subprocess.run(
            [*ALONE, "mount", "-t", "tmpfs", "none", folder], capture_output=True, check=False
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"), [("full", "No space left"), ("read-only", "Read-only file system")]
)
def test_a_real_file_system_that_refuses_writes(tmp_path, fault, reason):
    """The engine stops with the kernel's reason; on a working disk it ends as an undisturbed
    run."""
    if not can_mount(tmp_path):
        pytest.skip("this machine gives us no file system of our own")
    done = subprocess.run(
        [*ALONE, sys.executable, "-c", RUN, tmp_path, fault],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert reason in found["output"]
    assert found["after"] == ""
    assert found["fine"]


@pytest.mark.parametrize("refused", range(5))
def test_a_folder_that_cannot_be_locked_is_released(tmp_path, refused):
    """Opening the lock and writing the pid fail with one of our errors, and no lock blocks a later
    try."""
    store = CheckpointStore(tmp_path / "store")
    # The first two create the folder, which exists.
    with FailingDisk(2 + refused) as broken, pytest.raises(CheckpointError, match="cannot lock"):
        store.acquire()
    steps = ["open", "open", "file write", "open", "fsync"]
    assert broken.operations[2:] == steps[: 1 + refused]
    store.close()
    with CheckpointStore(tmp_path / "store"):
        pass


def test_an_engine_that_cannot_read_its_state_releases_the_folder(tmp_path):
    """An engine that refuses its checkpoints holds no lock: after a repair the next one in this
    process can start."""
    job = Job(40, every=30)
    job.engine(tmp_path)[0].run()
    manifests = {path: path.read_bytes() for path in tmp_path.rglob("manifest.json")}
    for path in manifests:
        path.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="can be read"):
        job.engine(tmp_path)[0].run()
    for path, data in manifests.items():
        path.write_bytes(data)
    engine, sink = job.engine(tmp_path)
    engine.run()
    assert sink.predictions == []
    assert job.judge(
        Counts(), final_state(engine), [*dict(job.undisturbed[1]).items(), *written_by(sink)]
    )
