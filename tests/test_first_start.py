"""The first start of an installation compiles everything before it reads, and says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cli_helpers import CONFIG, ROWS, logging_as_before, prepare

import streamadapt
from streamadapt.app import watchdog as module
from streamadapt.app.demo.broker import free_port
from streamadapt.app.watchdog import COMPILING, Watchdog
from streamadapt.compiled import ENABLED
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import NullMetrics
from streamadapt.testing import IdentityCodec, MemoryDeadLetters, MemorySink, MemorySource

_logging = pytest.fixture(autouse=True)(logging_as_before)


def made_engine() -> Engine:
    from test_engine import make_pipeline, stream

    return Engine(
        MemorySource(*stream(50)), make_pipeline, MemorySink(), IdentityCodec(),
        MemoryDeadLetters(),
    )  # fmt: skip


def test_nothing_is_read_before_the_kernels_are_prepared() -> None:
    engine = made_engine()
    opened = []
    engine.kernels = [(name, lambda: opened.append(engine.opened)) for name in "ab"]
    assert engine.run()["entries"] == 50
    assert opened == [False, False]
    assert not engine.preparing


def test_a_component_that_cannot_be_prepared_is_left_to_the_pipeline() -> None:
    def fails() -> None:
        raise ValueError("no such size")

    engine = made_engine()
    engine.kernels = [("a", fails)]
    assert engine.run()["entries"] == 50


def test_a_stop_ends_the_preparation() -> None:
    engine = made_engine()
    engine.kernels = [("a", engine.stop), ("b", lambda: pytest.fail("stopped before"))]
    assert engine.run()["entries"] == 0


def test_ready_says_that_kernels_are_compiled_and_the_loop_is_not_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, free = made_engine(), threading.Event()
    engine.kernels = [("a", lambda: None if free.wait(60) else pytest.fail("too late"))]
    monkeypatch.setattr(module, "compiling", lambda: not free.is_set())
    loop = threading.Thread(target=engine.run)
    with Watchdog(engine, NullMetrics(), 0.2) as watchdog:
        loop.start()
        time.sleep(1.0)
        assert watchdog.ready() == (False, COMPILING)
        assert not watchdog.stalled
        free.set()
        loop.join(60)
    assert watchdog.ready()[1] != COMPILING


def ready_at(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"
    except OSError:
        return ""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not ENABLED, reason="nothing is compiled")
def test_a_run_compiles_before_it_reads_with_progress_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    port = free_port()
    text = CONFIG.format(
        source='kind = "files"\npath = "entries.csv"', sink='kind = "files"\npath = "out.jsonl"'
    )
    (tmp_path / "config.toml").write_text(f'{text}[metrics]\nport = {port}\nhost = "127.0.0.1"\n')
    root = Path(streamadapt.__file__).parents[1]
    env = {
        **os.environ, "STREAMADAPT_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "connectors")]),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "streamadapt", "run", "config.toml", "--json", "--log-json",
        "--log-level", "debug",
    ]  # fmt: skip
    seen = set()
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        while process.poll() is None:
            seen.add(ready_at(port))
            time.sleep(0.2)
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["entries"] == ROWS
    assert any(one.startswith("503") and COMPILING in one for one in seen), seen
    lines = [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines()]
    done = [i for i, line in enumerate(lines) if line.startswith("everything is compiled")]
    assert len(done) == 1
    assert any(line.startswith("compiled the guard (1 of ") for line in lines[: done[0]])
    assert not [line for line in lines[done[0] :] if line.startswith("compiling ")]
