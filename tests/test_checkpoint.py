"""Checkpoints: bit for bit, complete or absent, one writer, no code executed, nothing outside the
folder."""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamadapt.errors import CheckpointError
from streamadapt.records import StreamPartition
from streamadapt.state.folder import LocalFolder
from streamadapt.state.manifest import checksum_of
from streamadapt.state.pack import pack
from streamadapt.state.store import FORMAT_VERSION, CheckpointStore
from streamadapt.state.tree import decode, encode, table_bytes

DIGEST = "sha256:aaaa"
AT = {StreamPartition("speeds", 3): 1042, StreamPartition("labels", 3): 2**60}


def save(store: CheckpointStore, value: Any, **kwargs: Any) -> Any:
    return store.save({"value": value}, AT, config_digest=DIGEST, summary={"entries": 1}, **kwargs)


def value_of(path: Path) -> Any:
    loaded = CheckpointStore(path).load_latest(DIGEST)
    assert loaded is not None
    return loaded.state["value"]


def bits(leaf: Any) -> Any:
    """Return a form in which equality means: same type, same shape, same bits."""
    if isinstance(leaf, torch.Tensor):
        return (
            "tensor",
            leaf.dtype,
            tuple(leaf.shape),
            leaf.reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(leaf, np.ndarray | np.generic):
        return (type(leaf), leaf.dtype.str, leaf.shape, leaf.tobytes())
    if isinstance(leaf, dict):
        return {key: bits(item) for key, item in leaf.items()}
    if isinstance(leaf, list | tuple):
        return [bits(item) for item in leaf]
    if isinstance(leaf, float):
        return ("float", leaf.hex() if leaf == leaf else "nan")
    return (type(leaf), leaf)


TENSORS = [
    torch.randn(3, 4, generator=torch.Generator().manual_seed(1)),
    torch.tensor(2.5, dtype=torch.float64),
    torch.tensor([float("nan"), float("inf"), -0.0]),
    torch.tensor([2**62, -(2**62)]),
    torch.tensor([[True], [False]]),
    torch.randn(5).to(torch.bfloat16),
    torch.randn(5).to(torch.float16),
    torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex128),
    torch.tensor([1, 65535], dtype=torch.uint16),
    torch.zeros(0, 7),
    torch.zeros(0, dtype=torch.complex64),
    torch.arange(12.0).reshape(3, 4).t(),
    torch.nn.Parameter(torch.ones(2)).data,
    torch.Generator().manual_seed(7).get_state(),
]
ARRAYS = [
    np.array([True, False]),
    np.arange(6, dtype=np.int64).reshape(2, 3).T,
    np.array(0.1),
    np.array([np.nan, -np.inf, -0.0], np.float32),
    np.zeros((0, 3)),
    np.array([1, 2], ">i4"),
    np.array(["a", "bc"]),
    np.array([1 + 1j]),
    np.array(["2026-01-01"], "datetime64[ns]"),
    np.array([2**64 - 1], np.uint64),
    np.float64(0.1),
    np.int64(-5),
    np.bool_(True),
    np.zeros((0,), "<u2"),
]
SCALARS = [
    None,
    True,
    False,
    0,
    -1,
    2**53 + 1,
    -(2**200),
    0.1,
    -0.0,
    5e-324,
    float("nan"),
    float("-inf"),
    "",
    "\ud800é$",
    b"",
    b"\x00\xff",
]


def assert_returns_bit_for_bit(path: Path, state: dict[str, Any]) -> None:
    with CheckpointStore(path) as store:
        store.save(state, AT, config_digest=DIGEST, summary={})
        loaded = store.load_latest(DIGEST)
    assert loaded is not None
    assert bits(loaded.state) == bits(state)
    assert loaded.positions == AT


def test_every_kind_of_leaf_returns_bit_for_bit(tmp_path: Path) -> None:
    nested = {
        "$": "escaped",
        "": {"a.b": [1, [2, {}]], "a": {"b": []}},
        "__metadata__": {"$": {"$": torch.ones(1)}},
    }
    state = {
        "tensors": TENSORS,
        "arrays": ARRAYS,
        "scalars": SCALARS,
        "nested": nested,
        "tuple": [(1, 2)],
    }
    assert_returns_bit_for_bit(tmp_path / "new" / "folder", state)


def test_tensors_that_share_memory_are_restored_separately_and_stay_usable(
    tmp_path: Path,
) -> None:
    weights = torch.zeros(4)
    with CheckpointStore(tmp_path) as store:
        save(store, [weights, weights[1:], weights[:2].numpy()])
        weights += 1
        first, second, third = value_of(tmp_path)
    first += 5
    third += 7
    assert second.tolist() == [0, 0, 0]


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.text(), TREES, max_size=4))
def test_any_tree_survives_json(state: dict[str, Any]) -> None:
    tree, table = encode(state)
    assert bits(decode(json.loads(json.dumps(tree, allow_nan=False)), table)) == bits(state)


@pytest.mark.parametrize(
    ("leaf", "path"),
    [
        (object(), r"state\.value\[1\]"),
        ({1: 2}, "keys must be str"),
        (np.array([object()]), "object"),
        (np.zeros(1, [("a", "f8")]), r"state\.value\[1\]"),
        (lambda: None, "function"),
        (torch.ones(2, 2).to_sparse(), "Tensor cannot be saved"),
        ({1, 2}, "set"),
    ],
)
def test_objects_without_a_safe_form_are_refused_by_path_and_nothing_is_written(
    tmp_path: Path, leaf: Any, path: str
) -> None:
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(CheckpointError, match=path):
            save(store, [0, leaf])
        assert store.list() == []


@pytest.mark.parametrize(
    "tree",
    [
        {"$": "code", "at": "0:x"},
        {"$": "tensor", "at": "missing"},
        {"$": "array", "at": "0:x", "type": "|O8", "shape": [1]},
        {"$": "array", "at": "0:x", "type": "<f8", "shape": [99]},
        {"$": "tensor", "at": "0:x", "type": "load", "shape": [1]},
        {"$": "tensor", "at": "0:x", "type": "float64", "shape": [3]},
        {"$": "float", "v": None},
        {"$": []},
    ],
)
def test_an_invalid_tree_is_an_error(tree: Any) -> None:
    with pytest.raises(CheckpointError):
        decode({"x": tree}, {"0:x": torch.zeros(8, dtype=torch.uint8)})


STEPS = [
    "encode", "mkdir", "write state.safetensors", "write state.json", "write manifest.json",
    "sync folder", "rename", "sync parent", "prune",
]  # fmt: skip


def test_the_steps_are_the_ones_that_the_crash_tests_know(tmp_path: Path) -> None:
    seen: list[str] = []
    with CheckpointStore(tmp_path) as store:
        save(store, 1, on_step=seen.append)
    assert seen == STEPS


class Crash(BaseException):
    pass


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_crash_before_any_step_leaves_the_previous_or_the_new_one(
    tmp_path: Path, step: str, before: int
) -> None:
    def crash(name: str) -> None:
        if name == step:
            raise Crash

    with CheckpointStore(tmp_path) as store:
        for value in range(before):
            save(store, value)
        with pytest.raises(Crash):
            save(store, before, on_step=crash)
    published = STEPS.index(step) > STEPS.index("rename")
    loaded = CheckpointStore(tmp_path).load_latest(DIGEST)
    if not published and not before:
        assert loaded is None
    else:
        assert loaded is not None
        assert loaded.state["value"] == (before if published else before - 1)
    with CheckpointStore(tmp_path) as store:
        save(store, "after")
        assert value_of(tmp_path) == "after"
    assert not list(tmp_path.glob(".tmp-*"))


def test_killing_the_process_between_two_steps_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from streamadapt.state.store import CheckpointStore\n"
        "store = CheckpointStore(pathlib.Path(sys.argv[1]))\n"
        "store.save({'value': 1}, {}, config_digest='sha256:aaaa', summary={})\n"
        "die = lambda step: os.kill(os.getpid(), 9) if step == 'rename' else None\n"
        "store.save({'value': 2}, {}, config_digest='sha256:aaaa', summary={}, on_step=die)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr
    assert value_of(tmp_path) == 1
    with CheckpointStore(tmp_path) as store:  # the dead process's lock is gone, too
        assert save(store, 3).sequence == 2


def test_only_the_newest_are_kept_and_numbers_go_on(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep=2) as store:
        for value in range(5):
            save(store, value)
    with CheckpointStore(tmp_path, keep=2) as store:
        assert save(store, 5).sequence == 6
        assert [info.sequence for info in store.list()] == [5, 6]
    there = sorted(entry.name for entry in tmp_path.iterdir())
    assert there == [".fence-000002", ".lock", "000000000005", "000000000006"]


def newest(path: Path, name: str) -> Path:
    return sorted(path.glob("0*"))[-1] / name


FILES = ["state.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "longer"])
def test_a_torn_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, ["old", torch.ones(3)])
        save(store, ["new", torch.ones(3)])
    file = newest(tmp_path, name)
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(
            {"empty": b"", "half": data[: len(data) // 2], "longer": data + b"x"}[damage]
        )
    with caplog.at_level(logging.WARNING):
        assert value_of(tmp_path)[0] == "old"
    assert "000000000002" in caplog.text
    assert name in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_every_single_flipped_bit_is_detected(tmp_path: Path, name: str) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, ["old", torch.arange(3)])
        save(store, ["new", torch.arange(3)])
    file = newest(tmp_path, name)
    data = file.read_bytes()
    for i in range(len(data)):
        file.write_bytes(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :])
        found = value_of(tmp_path)
        # White space of the manifest may change without changing its content; anything else is
        # noticed.
        assert found[0] == "old" or (name == "manifest.json" and data[i : i + 1].isspace()), (
            i,
            data[i : i + 1],
        )


def test_if_no_checkpoint_can_be_read_it_is_an_error_and_not_an_empty_start(
    tmp_path: Path,
) -> None:
    with CheckpointStore(tmp_path) as store:
        assert store.load_latest() is None
        for value in range(2):
            save(store, value)
    for file in tmp_path.glob("0*/state.json"):
        file.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints can be read"):
        CheckpointStore(tmp_path).load_latest()


def test_a_newer_format_is_reported_and_the_older_checkpoint_is_not_silently_used(
    tmp_path: Path,
) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, "old")
    with CheckpointStore(tmp_path, format_version=FORMAT_VERSION + 1) as store:
        save(store, "new")
    message = rf"format {FORMAT_VERSION + 1} is newer than format {FORMAT_VERSION}, .* upgrade"
    with pytest.raises(CheckpointError, match=message):
        CheckpointStore(tmp_path).load_latest(DIGEST)


def test_an_older_format_is_reported_with_a_remedy(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, format_version=FORMAT_VERSION - 1) as store:
        save(store, "old")
    message = (
        rf"format {FORMAT_VERSION - 1} is older than format {FORMAT_VERSION}, .* another "
        rf"checkpoint path"
    )
    with pytest.raises(CheckpointError, match=message):
        CheckpointStore(tmp_path).load_latest(DIGEST)


def test_another_configuration_is_refused_with_both_digests_and_a_remedy(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
        with pytest.raises(
            CheckpointError, match=r"sha256:aaaa, but this one is sha256:bbbb; .*use .* path"
        ):
            store.load_latest("sha256:bbbb")


def rewrite(path: Path, **changes: Any) -> None:
    """Change a manifest as an attacker would, with a matching checksum."""
    file = newest(path, "manifest.json")
    manifest = json.loads(file.read_text()) | changes
    del manifest["checksum"]
    file.write_text(json.dumps(manifest | {"checksum": checksum_of(manifest)}))


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "state.json/../../secret", ""]
)
def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
    (tmp_path / "secret").write_text("{}")
    files = json.loads(newest(tmp_path, "manifest.json").read_text())["files"]
    rewrite(tmp_path, files=files | {name: {"bytes": 2, "sha256": ""}})
    with pytest.raises(CheckpointError, match="none of the 1"):
        CheckpointStore(tmp_path).load_latest()


@pytest.mark.parametrize(
    "changes", [{"sequence": 7}, {"format": "x"}, {"files": 3}, {"positions": 5}, {"files": {}}]
)
def test_an_invalid_manifest_is_damaged(tmp_path: Path, changes: dict[str, Any]) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
    rewrite(tmp_path, **changes)
    with pytest.raises(CheckpointError, match="none of the 1"):
        CheckpointStore(tmp_path).load_latest()


@pytest.mark.parametrize("name", FILES)
def test_links_are_not_followed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "store"
    with CheckpointStore(path) as store:
        save(store, 1)
    file = newest(path, name)
    file.rename(tmp_path / name)
    file.symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match="none of the 1"):
        CheckpointStore(path).load_latest()


def test_a_linked_folder_and_a_pipe_are_refused_without_hanging(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with CheckpointStore(path) as store:
        save(store, 1)
    newest(path, "").rename(tmp_path / "elsewhere")
    (path / "000000000001").symlink_to(tmp_path / "elsewhere")
    (path / "000000000002").mkdir()
    os.mkfifo(path / "000000000002" / "manifest.json")
    with pytest.raises(CheckpointError, match="none of the 2"):
        CheckpointStore(path).load_latest()


def test_a_second_writer_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as first:
        save(first, 1)
        second = CheckpointStore(tmp_path)
        with pytest.raises(CheckpointError, match=rf"another engine \(pid {os.getpid()}\)"):
            second.acquire()
        with pytest.raises(CheckpointError, match="another engine"):
            save(second, 2)
        code = (
            "import sys, pathlib\nfrom streamadapt.state.store import CheckpointStore\n"
            "CheckpointStore(pathlib.Path(sys.argv[1])).acquire()"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"another engine (pid {os.getpid()})" in other.stderr
        assert [info.sequence for info in second.list()] == [1]  # reading needs no lock
    second.acquire()
    second.close()
    second.close()


def test_the_lock_of_a_killed_writer_is_released(tmp_path: Path) -> None:
    """Also if the folder had been locked before, and from another thread."""
    code = (
        "import sys, pathlib, time\nfrom streamadapt.state.folder import LocalFolder\n"
        "held = LocalFolder(pathlib.Path(sys.argv[1]))\nheld.lock()\n"
        "folder = LocalFolder(pathlib.Path(sys.argv[1]) / "
        "'b')\nfolder.make()\nfolder.lock()\nfolder.unlock()\n"
        "print('locked', flush=True)\ntime.sleep(600)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(CheckpointError, match=rf"another engine \(pid {other.pid}\)"):
            LocalFolder(tmp_path).lock()
        (tmp_path / ".lock").write_text("not written by a lock, longer than any pid")
        with pytest.raises(CheckpointError, match=r"another engine \(pid unknown\)"):
            LocalFolder(tmp_path).lock()
        LocalFolder(tmp_path / "b").lock()
    finally:
        other.kill()
        other.wait()
        assert other.stdout is not None
        other.stdout.close()
    mine = LocalFolder(tmp_path)
    mine.lock()
    thread = threading.Thread(target=mine.unlock)
    thread.start()
    thread.join()
    again = LocalFolder(tmp_path)
    again.lock()
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    again.unlock()


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="cannot lock"):
        CheckpointStore(tmp_path / "state").acquire()
    assert (tmp_path / "elsewhere").read_text() == "precious"


def test_list_reads_positions_and_summary_without_torch(tmp_path: Path) -> None:
    summary = {"entries": 7, "loss": float("nan"), "by": {"a": (1, 2.5)}}
    with CheckpointStore(tmp_path) as store:
        written = store.save({"w": torch.ones(1000)}, AT, config_digest=DIGEST, summary=summary)
        assert store.list() == [written]
    assert written.summary == {"entries": 7, "loss": None, "by": {"a": [1, 2.5]}}
    assert written.positions == AT
    assert written.size_bytes > 4000
    assert written.time_ns > 0
    assert "torch" not in json.dumps(json.loads(newest(tmp_path, "manifest.json").read_text()))
    with (
        CheckpointStore(tmp_path) as store,
        pytest.raises(CheckpointError, match="summary must hold JSON"),
    ):
        store.save({}, AT, config_digest=DIGEST, summary={"x": object()})


def test_a_rollback_removes_only_newer_checkpoints(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        for value in range(3):
            save(store, value)
        store.rollback(2)
        assert [info.sequence for info in store.list()] == [1, 2]
        with pytest.raises(CheckpointError, match="cannot roll back"):
            store.rollback(9)
    assert value_of(tmp_path) == 1


def test_a_disk_error_is_one_of_our_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot lock"):
        save(CheckpointStore(tmp_path / "file" / "store"), 1)
    with pytest.raises(CheckpointError, match="keep must be at least 1"):
        CheckpointStore(tmp_path, keep=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_tensors_are_saved_as_cpu_tensors(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, torch.arange(3, device="cuda"))
    assert value_of(tmp_path).device.type == "cpu"
    assert value_of(tmp_path).tolist() == [0, 1, 2]


def test_foreign_files_are_not_removed_and_stop_nothing(tmp_path: Path) -> None:
    """A name that only looks like ours belongs to another program."""
    for name in (".tmp-foo", ".tmp-1", ".tmp-000000000001"):
        (tmp_path / name).mkdir()
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
    assert sorted(p.name for p in tmp_path.glob(".tmp-*")) == [".tmp-1", ".tmp-foo"]


@pytest.mark.parametrize("name", FILES)
def test_a_far_too_large_file_is_damaged_and_not_read(tmp_path: Path, name: str) -> None:
    """A sparse terabyte uses no space on the disk, but would in memory."""
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
        save(store, 2)
        newest = tmp_path / f"{store.sequences()[-1]:012d}" / name
        os.truncate(newest, 1 << 40)
        loaded = store.load_latest()
    assert loaded is not None
    assert loaded.info.sequence == 1


def test_repeated_saving_leaves_nothing_behind(tmp_path: Path) -> None:
    """For any lengths: a state's blobs and windows have different lengths each time."""

    def array_types() -> int:
        gc.collect()
        return sum(type(thing) is type(ctypes.c_byte * 1) for thing in gc.get_objects())

    def save_all(store: CheckpointStore, lengths: range) -> None:
        for length in lengths:
            state = {"blob": bytes(length), "tensor": torch.zeros(length, dtype=torch.float64)}
            save(store, state)
            pack(state)

    with CheckpointStore(tmp_path) as store:
        save_all(store, range(1, 4))
        before = array_types()
        save_all(store, range(1000, 1040))
        assert array_types() <= before, (
            "array types of other tests may have been collected meanwhile"
        )


def test_the_table_equals_that_of_safetensors() -> None:
    table = {
        "f": torch.randn(3, 4), "scalar": torch.tensor(5), "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True]), "half": torch.randn(3).half(),
        "double": torch.randn(2, dtype=torch.float64), "bytes": torch.arange(7).byte(),
    }  # fmt: skip
    assert table_bytes(table) == safetensors.torch.save(table)
    table["brain"] = torch.randn(3).bfloat16()
    assert table_bytes(table) == safetensors.torch.save(table)
