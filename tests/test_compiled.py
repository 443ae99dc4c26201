"""The folder of compiled code: it never holds code that has changed since, and nothing that others
wrote."""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamadapt
from streamadapt import compiled as module
from streamadapt import kernel_folder
from streamadapt.compiled import ENABLED, Kernel, cache_folder, compiled, fingerprint

needs_compiler = pytest.mark.skipif(not ENABLED, reason="nothing is compiled")

HELPER = """
from enum import IntEnum
from typing import NamedTuple
import numpy as np
from streamadapt.compiled import compiled

RATE = 0.5
LIMIT = 9.0
TABLE = np.arange(5000.0)
PAIR = (1.0, np.arange(5000.0))
times = [1, 2]

class Point(NamedTuple):
    x: float
    y: float = 2.0

class Level(IntEnum):
    LOW = 1
    HIGH = 7

def spare(x):
    return x - 1.0

def deeper(x):
    return x + 0.25

@compiled
def weigh(x, power=1.0, *, shift=0.0):
    return RATE * x * power + shift + deeper(0.0) - 0.25
"""
MAIN = """
import numpy as np
import helper
from helper import PAIR, TABLE, Level, Point, weigh

def step(values):
    total = 0.0
    for value in values:
        total += weigh(value)
    if total > helper.LIMIT:
        return TABLE[0] + PAIR[0] + Level.HIGH + Point(1.0).y + values.times
    return total
"""
PROGRAM = """
import json, logging, resource, sys
import numpy as np
from streamadapt.compiled import Kernel
from simple import step
logging.basicConfig()
if sys.argv[1:] == ["full"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, -1))
kernel = Kernel(step)
ready = kernel.ready
value = kernel(np.arange(4.0))
stats = getattr(kernel.call, "stats", None)
hits = 0 if stats is None else sum(stats.cache_hits.values())
found = {"value": value, "ready": ready, "hits": hits, "numba": "numba" in sys.modules}
print(json.dumps(found))
"""
SIMPLE = """
from weights import weigh

def step(values):
    total = 0.0
    for value in values:
        total += weigh(value)
    return total
"""
WEIGHTS = """
from streamadapt.compiled import compiled
@compiled
def weigh(x):
    return 0.5 * x
"""


def digest_of(folder: Path, helper: str, main: str) -> str:
    """Write two modules, import them afresh, and return the digest of `step`."""
    for name, text in (("helper", helper), ("main", main)):
        (folder / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return fingerprint(importlib.import_module("main").step)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("helper", "main"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("return RATE * x", "return RATE + x"),
        ("return x + 0.25", "return x + 0.125"),
        ("RATE = 0.5", "RATE = 0.25"),
        ("LIMIT = 9.0", "LIMIT = 8.0"),
        ("TABLE = np.arange(5000.0)", "TABLE = np.arange(5000.0)\nTABLE[2500] = 0.0"),
        ("PAIR = (1.0, np.arange(5000.0))", "PAIR = (1.0, -np.arange(5000.0))"),
        ("power=1.0", "power=2.0"),
        ("shift=0.0", "shift=0.1"),
        ("y: float = 2.0", "y: float = 3.0"),
        ("x: float\n", "z: float\n"),
        ("HIGH = 7", "HIGH = 8"),
        ("total = 0.0", "total = 1.0"),
        ("for value in values", "for value in values[1:]"),
    ],
)
def test_a_digest_changes_with_what_is_used(modules: Path, before: str, after: str) -> None:
    assert before in HELPER + MAIN
    first = digest_of(modules, HELPER, MAIN)
    assert digest_of(modules, HELPER.replace(before, after), MAIN.replace(before, after)) != first


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("return x - 1.0", "return x - 2.0"),
        ("times = [1, 2]", "times = [1, 2, 3]"),
        ("RATE = 0.5", "# A comment.\n\n\nRATE = 0.5"),
    ],
)
def test_and_with_nothing_else(modules: Path, before: str, after: str) -> None:
    first = digest_of(modules, HELPER, MAIN)
    assert digest_of(modules, HELPER.replace(before, after), MAIN) == first


def test_a_digest_changes_with_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(sum_checked)
    monkeypatch.setattr(module, "_versions", lambda: ("another",))
    assert fingerprint(sum_checked) != first


@needs_compiler
def test_a_digest_changes_with_the_options_of_a_compiled_function() -> None:
    import numba

    def half(x: float) -> float:
        return 0.5 * x

    found = [fingerprint(numba.njit(**options)(half)) for options in ({}, {"fastmath": True})]
    assert found[0] != found[1]


def test_a_digest_changes_with_the_mark_of_an_inlined_function() -> None:
    def half(x: float) -> float:
        return 0.5 * x

    first = fingerprint(half)
    module.inlined(half)
    assert fingerprint(half) != first


A_LIST, A_MODULE = [1.0, 2.0], np


def test_what_could_change_unseen_is_refused() -> None:
    def uses_a_list(i: int) -> float:
        return A_LIST[i]

    def uses_a_module(x: float) -> Any:
        numbers = A_MODULE
        return numbers.float32(x)

    for function in (uses_a_list, uses_a_module):
        with pytest.raises(TypeError, match="a kernel may use functions, numbers, arrays"):
            fingerprint(function)


def start(folder: Path, cache: Path, *given: str, **more: Any) -> subprocess.Popen[str]:
    """Run `PROGRAM` beside the modules in `folder`."""
    (folder / "program.py").write_text(PROGRAM)
    path = [str(folder), str(Path(streamadapt.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    env = {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "STREAMADAPT_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1", **more.pop("env", {}),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, str(folder / "program.py"), *given],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """Return what it found, and its log."""
    out, log = process.communicate(timeout=200)
    assert process.returncode == 0, log
    found: dict[str, Any] = json.loads(out)
    return found, log


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    (tmp_path / "simple.py").write_text(SIMPLE)
    (tmp_path / "weights.py").write_text(WEIGHTS)
    return tmp_path


@needs_compiler
def test_changed_code_is_never_served_and_unchanged_code_is(simple: Path) -> None:
    """Also where the change is in another file than the loop: numba itself does not see that."""
    cache = simple / "cache"
    first, _ = finish(start(simple, cache))
    assert first == {"value": 3.0, "ready": False, "hits": 0, "numba": True}
    weights = simple / "weights.py"
    weights.write_text(WEIGHTS.replace("0.5 * x", "2.0 * x"))
    changed, _ = finish(start(simple, cache))
    assert changed == {"value": 12.0, "ready": False, "hits": 0, "numba": True}
    weights.write_text(WEIGHTS)
    again, log = finish(start(simple, cache))
    assert again == {"value": 3.0, "ready": True, "hits": 1, "numba": True}
    assert log == ""
    assert not list(simple.glob("**/__pycache__")), "nothing is kept anywhere else"


@needs_compiler
def test_two_processes_at_once_compile_once(simple: Path) -> None:
    both = [start(simple, simple / "cache") for _ in range(2)]
    found = [finish(process)[0] for process in both]
    assert [each["value"] for each in found] == [3.0, 3.0]
    assert sorted(each["hits"] for each in found) == [0, 1]


def test_without_compiling_numba_is_not_imported(simple: Path) -> None:
    for name, value in (("STREAMADAPT_COMPILE", "0"), ("NUMBA_DISABLE_JIT", "1")):
        found, _ = finish(start(simple, simple / "cache", env={name: value}))
        assert found == {"value": 3.0, "ready": True, "hits": 0, "numba": False}
    assert not (simple / "cache").exists()


@needs_compiler
def test_a_full_disk_costs_only_the_keeping(simple: Path) -> None:
    found, log = finish(start(simple, simple / "cache", "full"))
    assert found["value"] == 3.0
    assert "compiled code cannot be kept" in log


@needs_compiler
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="takes a right from root")
def test_a_folder_that_cannot_be_written_to_is_read(simple: Path) -> None:
    cache = simple / "cache"
    finish(start(simple, cache))
    for path in (cache, *cache.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        found, log = finish(start(simple, cache, preexec_fn=mind_modes))
        assert found == {"value": 3.0, "ready": True, "hits": 1, "numba": True}
        assert log == ""
        (simple / "weights.py").write_text(WEIGHTS.replace("0.5", "2.0"))
        found, _ = finish(start(simple, cache, preexec_fn=mind_modes))
        assert found == {"value": 12.0, "ready": False, "hits": 0, "numba": True}
    finally:
        for path in (cache, *cache.rglob("*")):
            path.chmod(0o755)


def mind_modes() -> None:
    """Take from root, in a new process, the right to write what its mode forbids."""
    drop_from_bounding_set, dac_override = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder for this process."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("STREAMADAPT_CACHE", str(folder))
    cache_folder.cache_clear()
    monkeypatch.setattr(module, "_not_kept", [])
    yield folder
    cache_folder.cache_clear()


@compiled
def checked(x: float) -> float:
    if x < 0.0:
        raise ValueError("x must not be negative")
    return x


def sum_checked(values: Any) -> float:
    total = 0.0
    for value in values:
        total += checked(value)
    return total


def test_an_exception_comes_through_and_harms_nothing(cache: Path) -> None:
    kernel = Kernel(sum_checked)
    for _ in range(2):
        with pytest.raises(ValueError, match="x must not be negative"):
            kernel(np.array([1.0, -1.0]))
        assert kernel(np.array([1.0, 2.0])) == 3.0
    with pytest.raises(ValueError, match="x must not be negative"):
        kernel(np.array([-1.0]))


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_not_used(
    cache: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir()
    cache.chmod(mode)
    assert cache_folder().path is None
    assert Kernel(sum_checked)(np.array([1.0])) == 1.0
    assert not list(cache.iterdir())
    if ENABLED:
        assert "can be written to by others" in caplog.text


@needs_compiler
def test_nor_a_kernel_that_others_can_write_to(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    before = os.umask(0)
    try:
        assert Kernel(sum_checked)(np.array([1.0])) == 1.0
        assert not caplog.text
        files = list(cache.rglob("*.nbc"))
        assert len(files) == 1
        assert not files[0].stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    finally:
        os.umask(before)
    files[0].write_bytes(b"another's code")
    files[0].chmod(0o666)
    assert Kernel(sum_checked)(np.array([1.0, 2.0])) == 3.0
    assert "it is compiled again" in caplog.text


def test_a_folder_is_made_for_its_user_alone(cache: Path) -> None:
    assert cache_folder() == (cache, "")
    assert cache.stat().st_mode & 0o777 == 0o700


@needs_compiler
def test_a_folder_that_cannot_be_made_costs_one_warning_for_all_kernels(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    del cache
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STREAMADAPT_CACHE", str(tmp_path / "file" / "cache"))
    for name in ("first", "second"):
        kernel = Kernel(sum_checked, name)
        assert not kernel.ready
        assert kernel(np.array([1.0])) == 1.0
    (line,) = caplog.messages
    for part in (str(tmp_path / "file" / "cache"), "each start", "a minute", "STREAMADAPT_CACHE"):
        assert part in line
    assert module.not_kept() in line


@needs_compiler
def test_no_home_folder_is_no_folder_in_the_working_directory(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del cache
    monkeypatch.chdir(tmp_path)
    for name in ("STREAMADAPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache_folder() == (None, "this user has no home folder")
    assert not list(tmp_path.iterdir())


def a_file_instead_of_the_kernels_folder(cache: Path, kernel: Kernel, patch: Any) -> None:
    del patch
    cache.mkdir()
    (cache / kernel._digest).write_text("")


def a_lock_that_cannot_be_taken(cache: Path, kernel: Kernel, patch: Any) -> None:
    del cache, kernel
    patch.setattr(kernel_folder, "LOCK_S", 0.0)
    patch.setattr(kernel_folder.FileLock, "acquire", refuse)


def a_file_system_without_locks(cache: Path, kernel: Kernel, patch: Any) -> None:
    del cache, kernel

    def no_locks(*given: Any, **named: Any) -> None:
        raise NotImplementedError("no locks here")

    patch.setattr(kernel_folder.FileLock, "acquire", no_locks)


def a_mark_that_cannot_be_written(cache: Path, kernel: Kernel, patch: Any) -> None:
    del cache, kernel
    patch.setattr(Path, "touch", refuse)


def a_source_that_cannot_be_read(cache: Path, kernel: Kernel, patch: Any) -> None:
    del cache, kernel
    patch.setattr(Path, "read_bytes", refuse)


def refuse(*given: Any, **named: Any) -> None:
    raise OSError("refused")


@needs_compiler
@pytest.mark.parametrize(
    "fault",
    [
        a_file_instead_of_the_kernels_folder,
        a_lock_that_cannot_be_taken,
        a_file_system_without_locks,
        a_mark_that_cannot_be_written,
        a_source_that_cannot_be_read,
    ],
)
def test_a_fault_of_the_folder_is_no_fault_of_the_kernel(
    cache: Path, fault: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(sum_checked)
    with monkeypatch.context() as patch:
        fault(cache, kernel, patch)
        assert kernel(np.array([1.0])) == 1.0
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "compiled code cannot be kept" in line


@needs_compiler
@pytest.mark.parametrize("suffix", ["nbc", "nbi"])
@pytest.mark.parametrize("content", [b"", b"damaged", b"\x80\x05X\x01"])
def test_a_damaged_file_is_replaced(cache: Path, suffix: str, content: bytes) -> None:
    assert Kernel(sum_checked)(np.array([1.0])) == 1.0
    (file,) = cache.rglob(f"*.{suffix}")
    file.write_bytes(content)
    assert Kernel(sum_checked)(np.array([1.0])) == 1.0
    assert file.read_bytes() != content
    third = Kernel(sum_checked)
    assert third(np.array([1.0])) == 1.0
    assert sum(third.call.stats.cache_hits.values()) == 1  # type: ignore[attr-defined]
    assert not module.not_kept()


@needs_compiler
def test_a_folder_that_was_removed_meanwhile_is_made_again(cache: Path) -> None:
    first = Kernel(sum_checked)
    assert first(np.array([1.0])) == 1.0
    shutil.rmtree(cache)
    assert first(np.array([1.0], np.float32)) == 1.0, "compiled for another type"
    assert Kernel(sum_checked, "other")(np.array([1.0])) == 1.0
    assert not module.not_kept()


@needs_compiler
def test_the_first_compilation_is_announced_once_for_whatever_kernel(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    del cache
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "_announced", threading.Event())
    for name in ("first", "second"):
        kernel = Kernel(sum_checked, name)
        kernel(np.array([1.0]))
        assert not module.compiling()
    (line,) = caplog.messages
    assert "streamadapt warm" in line
    caplog.clear()
    monkeypatch.setattr(module, "_announced", threading.Event())
    Kernel(sum_checked, "first")(np.array([1.0]))
    assert not caplog.messages, "it is loaded"
