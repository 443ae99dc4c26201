"""``streamadapt run`` receives SIGTERM at any moment, and two runs meet on one checkpoint
folder."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from cli_helpers import lines, logging_as_before, prepare, rows, write_csv
from fault_counts import trials
from kafka_helpers import until
from states import assert_same_state

from streamadapt.state.store import CheckpointStore

pytestmark = pytest.mark.slow

ROWS = 2000
DOCUMENTED = {0, 128 + signal.SIGTERM}
# The interpreter itself was still starting: a shell gives 143 here, too.
TOO_EARLY = -signal.SIGTERM


@pytest.fixture(autouse=True)
def _logging():
    yield from logging_as_before()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with everything for a run, an undisturbed run of it, and its duration, s."""
    fresh, undisturbed = tmp_path_factory.mktemp("fresh"), tmp_path_factory.mktemp("calm") / "job"
    with contextlib.chdir(fresh):
        prepare(fresh)
    config = fresh / "config.toml"
    config.write_text(config.read_text().replace('every = "100ms"', 'every = "20ms"'))
    write_csv(fresh / "entries.csv", rows(ROWS))
    shutil.copytree(fresh, undisturbed)
    begun = time.monotonic()
    assert run(undisturbed) == 0, log(undisturbed)
    return fresh, undisturbed, time.monotonic() - begun


def start(folder):
    with (folder / "log").open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "streamadapt", "run", "config.toml"],
            cwd=folder,
            stdout=file,
            stderr=file,
        )


def run(folder, after_s=None):
    """Run to the end, or send SIGTERM after a while; return the exit code."""
    process = start(folder)
    try:
        if after_s is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(after_s)
            process.send_signal(signal.SIGTERM)
        return process.wait(120)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def log(folder):
    return (folder / "log").read_text()


def store_of(folder):
    found = [path for path in (folder / "state").glob("*") if path.is_dir()]
    return CheckpointStore(found[0]) if found else None


def read_predictions(folder):
    """Return id -> prediction; repeated ones must be equal."""
    found = {}
    for one in lines(folder / "predictions.jsonl"):
        assert found.setdefault(one["id"], one) == one
    return found


def assert_as_undisturbed(folder, undisturbed):
    assert_same_state(
        store_of(folder).load_latest().state, store_of(undisturbed).load_latest().state
    )
    assert read_predictions(folder) == read_predictions(undisturbed)


def test_sigterm_at_any_moment(job, tmp_path):
    """While importing, restoring, running, checkpointing, ending: a documented code, an intact
    folder, the same final state."""
    fresh, undisturbed, whole_s = job
    rng = random.Random(time.time_ns())
    codes = []
    for trial in range(trials(3, 60)):
        folder = tmp_path / f"{trial}"
        shutil.copytree(fresh, folder)
        for _ in range(2):  # the second one has something to restore
            codes.append(run(folder, rng.uniform(0.0, 1.1 * whole_s)))
            assert codes[-1] in DOCUMENTED or codes[-1] == TOO_EARLY, (codes, log(folder))
            if (store := store_of(folder)) is not None and store.sequences():
                assert store.load_latest() is not None
                assert store.damaged == 0
        assert run(folder) == 0, log(folder)
        assert_as_undisturbed(folder, undisturbed)
    print(json.dumps(codes))


def test_sigterm_while_the_command_is_still_importing(tmp_path):
    """It ends at once, with a shell's exit code, and without a traceback."""
    (tmp_path / "program.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from streamadapt.app.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", "--version"], capture_output=True, check=False
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == b"streamadapt: interrupted\n"


def test_a_second_engine_on_the_folder_is_refused(job, tmp_path):
    """As two processes: the second names the first one's pid and changes nothing; the first
    continues to the undisturbed end."""
    fresh, undisturbed, _ = job
    folder = tmp_path / "job"
    shutil.copytree(fresh, folder)
    first = start(folder)
    try:
        until(
            lambda: (store := store_of(folder)) is not None and bool(store.sequences()),
            lambda: time.sleep(0.01),
        )
        # The first still runs, and does not end before the second one starts.
        first.send_signal(signal.SIGSTOP)
        assert run(folder) == 1
        assert f"another engine (pid {first.pid}) writes checkpoints here" in log(folder)
        first.send_signal(signal.SIGCONT)
        assert first.wait(120) == 0, log(folder)
    finally:
        if first.poll() is None:
            first.kill()
            first.wait()
    assert_as_undisturbed(folder, undisturbed)
