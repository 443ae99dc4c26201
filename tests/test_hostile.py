"""Every entrance for outside data, fed with hostile files: an error names the file, no code is
run, and no state is partly loaded."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from core_helpers import built, pipeline_of, spec_of, stream_of, walk
from safetensors.torch import save_file
from states import assert_same_state
from streamadapt_connectors.codecs import FieldMap, JsonCodec
from streamadapt_connectors.files import JsonlSink, read_history
from torch import nn

from streamadapt import Batch, Linear, River
from streamadapt.config.tables import load_config
from streamadapt.engine.partition import PartitionRunner
from streamadapt.errors import (
    CheckpointError,
    ConfigError,
    ConnectorError,
    EntryError,
    StreamadaptError,
)
from streamadapt.learners import Liquid, Spec
from streamadapt.learners.tta.samples import source_samples
from streamadapt.models.builtin import load_module
from streamadapt.models.fit import fit_forecast
from streamadapt.models.onnx import OnnxBase
from streamadapt.records import Position, Record, StreamPartition
from streamadapt.state.key_store import DirectoryKeyStore
from streamadapt.state.manifest import checksum_of
from streamadapt.state.pack import pack, unpack
from streamadapt.state.river_pickle import loads_river
from streamadapt.state.store import CheckpointStore

SPEC: Spec = spec_of("classification", 1, 1, 1, 3)


def net() -> nn.Module:
    """The factory of the module base."""
    return nn.Sequential(nn.Flatten(), nn.Linear(2, 1))


def _liquid(path: Path) -> Any:
    built(Liquid(update="none", weights=path), spec_of("forecast", 4, 2, 1, 2))


LOADERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "linear": ("base.safetensors", Linear.load),
    "module": ("base.safetensors", lambda path: load_module("test_hostile:net", path)),
    "onnx": ("model.onnx", OnnxBase),
    "liquid": ("liquid.safetensors", _liquid),
    "samples, safetensors": (
        "a.safetensors",
        lambda path: source_samples("fisher", path, SPEC, 2),
    ),
    "samples, npy": ("a.npy", lambda path: source_samples("fisher", path, SPEC, 2)),
    "samples, npz": ("a.npz", lambda path: source_samples("fisher", path, SPEC, 2)),
    "config": ("config.toml", load_config),
}
"""Loaders that read a file completely or not at all: name -> a file's name, and the function that
reads it."""

FIELDS = FieldMap(values=("x",), id=None, time=None)
STREAMS = ("in.jsonl", "in.csv", "in.jsonl.gz", "in.csv.gz")
NAMES = tuple(hostile.files(Path("unused")))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def refused(
    load: Callable[[Path], Any], path: Path, canary: Path, kind: type[Exception] = ConfigError
) -> None:
    """Check that `load` raises one of our errors that names the file; no code ran and no secret is
    shown."""
    with pytest.raises(kind) as caught:
        load(path)
    text = str(caught.value)
    assert path.name in text, text
    assert hostile.SECRET not in text
    assert len(text) < 2_000, "a person can read the error"
    assert not canary.exists()


ONE_READER = ("module", "liquid", "samples, safetensors")
"""These loaders use `read_tensors`, as "linear" does, which gets all cases; each decides what a
type means."""
FEW = (
    "empty", "pickle", "torch.save", "safetensors, cut", "safetensors, nested 100,000 deep",
    "safetensors, NaN", "safetensors, F8", "safetensors, C64", "safetensors, I64",
    "safetensors, BOOL", "safetensors, 2**62 times nothing",
)  # fmt: skip


@pytest.mark.parametrize(
    ("loader", "what"),
    [(name, what) for name in LOADERS for what in (FEW if name in ONE_READER else NAMES)],
)
def test_hostile_bytes_are_refused(loader: str, what: str, tmp_path: Path, canary: Path) -> None:
    name, load = LOADERS[loader]
    path = tmp_path / name
    path.write_bytes(hostile.files(canary)[what])
    if loader == "config" and what == "empty":
        pytest.skip("an empty config is TOML; the missing source is reported later")
    refused(load, path, canary)


@pytest.mark.parametrize("what", hostile.PLACES)
@pytest.mark.parametrize("loader", LOADERS)
def test_paths_that_are_not_regular_files_are_refused(
    loader: str, what: str, tmp_path: Path, canary: Path
) -> None:
    """Pipes without a writer, devices without an end, folders, links: refused at once, and without
    showing the content of their target."""
    name, load = LOADERS[loader]
    hostile.PLACES[what](tmp_path / name)
    if loader == "config" and what == "a pipe":
        # An empty config: a shell's <(command) is a pipe.
        with pytest.raises(ConfigError, match="source"):
            load(tmp_path / name)
        return
    refused(load, tmp_path / name, canary)


@pytest.mark.parametrize("what", hostile.PLACES)
@pytest.mark.parametrize("name", STREAMS)
def test_inputs_that_are_not_files_are_refused(
    name: str, what: str, tmp_path: Path, canary: Path
) -> None:
    if what == "a link to a secret" and not name.endswith(".gz"):
        pytest.skip("a file of text: its lines are records, which the codec refuses")
    hostile.PLACES[what](tmp_path / name)
    refused(lambda path: read_history(path, FIELDS), tmp_path / name, canary, ConnectorError)


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize(
    "name", ["in.jsonl", "in.csv.gz"]
)  # each row format, and each way of opening, once
def test_hostile_inputs_have_no_good_row(
    name: str, what: str, tmp_path: Path, canary: Path
) -> None:
    path = tmp_path / name
    data = hostile.files(canary)[what]
    for form in (data, gzip.compress(data)) if name.endswith(".gz") else (data,):
        path.write_bytes(form)
        # A CSV file is already refused because of its columns.
        with pytest.raises((ConnectorError, ConfigError)):
            read_history(path, FIELDS)
    assert not canary.exists()


@pytest.mark.parametrize("what", NAMES)
def test_hostile_messages_are_refused(what: str, canary: Path) -> None:
    """Records of a topic pass through the codec alone."""
    codec = JsonCodec(FIELDS, streams=["t"])
    with pytest.raises(EntryError):
        codec.decode(Record(Position("t", 0, 0), None, hostile.files(canary)[what], 0))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.csv.gz"])
def test_damaged_gz_is_an_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    """Also if the damage is inside the compressed data, for which the library has an error of its
    own."""
    rows = "".join(f"{i},{random.Random(i).random()}\n" for i in range(3_000))
    packed = gzip.compress(rows.encode(), mtime=0)
    path, seen = tmp_path / name, 0
    for at in range(12, len(packed), len(packed) // 40):
        path.write_bytes(packed[:at] + bytes([packed[at] ^ 0xFF]) + packed[at + 1 :])
        with pytest.raises((ConnectorError, ConfigError), match=name):
            read_history(path, FIELDS)
        seen += 1
    assert seen > 30


GENUINE = {
    "linear": lambda path: fit_forecast(Batch(walk(60, 3), torch.arange(60).numpy()), 4, 2).save(
        path
    ),
    "module": lambda path: save_file(net().state_dict(), path),
    "samples, safetensors": lambda path: save_file({"inputs": torch.ones(4, 1, 1)}, path),
}


@pytest.mark.parametrize("loader", GENUINE)
def test_a_truncated_or_damaged_file_is_loaded_completely_or_not_at_all(
    loader: str, tmp_path: Path
) -> None:
    """Flipped bits in numbers cannot be detected without a checksum; every other one gives one of
    our errors."""
    name, load = LOADERS[loader]
    path = tmp_path / name
    GENUINE[loader](path)
    load(path)
    data = path.read_bytes()
    for at in range(0, len(data), max(1, len(data) // 60)):
        path.write_bytes(data[:at])
        with pytest.raises(ConfigError, match=name):
            load(path)
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        with contextlib.suppress(ConfigError):
            load(path)


def test_loaded_weights_do_not_depend_on_the_file(tmp_path: Path) -> None:
    """The file is read, not mapped: a process that overwrites or truncates it changes no running
    model and crashes none."""
    path = tmp_path / "base.safetensors"
    fit_forecast(Batch(walk(60, 3), torch.arange(60).numpy()), 4, 2).save(path)
    base = Linear.load(path)
    before = base.weights.clone()
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.truncate(100)
    assert torch.equal(base.weights, before)


def test_half_a_weights_file_changes_nothing_in_a_module(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    save_file({"1.weight": torch.ones(1, 2), "1.bias": torch.ones(1, dtype=torch.int64)}, path)
    with pytest.raises(ConfigError, match=r"1\.bias as torch.float32, not torch.int64"):
        load_module("test_hostile:net", path)


# -- checkpoints

AT = {StreamPartition("t", 0): 7}
PARTS = ("manifest.json", "state.json", "state.safetensors")


def stored(path: Path, state: Any) -> Path:
    with CheckpointStore(path) as store:
        store.save(state, AT, config_digest="d", summary={})
    return path / "000000000001"


def sealed(folder: Path, name: str, data: bytes) -> None:
    """Replace the bytes and make the manifest agree, as anyone with write access to the folder
    can."""
    import hashlib

    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del manifest["checksum"]
    manifest["checksum"] = checksum_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def load_newest(path: Path) -> Any:
    return CheckpointStore(path).load_latest("d")


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("part", PARTS)
def test_hostile_bytes_in_a_checkpoint(part: str, what: str, tmp_path: Path, canary: Path) -> None:
    """Also if the checksums agree."""
    folder = stored(tmp_path / "state", {"value": torch.ones(3), "more": b"x"})
    data = hostile.files(canary)[what]
    if part == "manifest.json":
        (folder / part).write_bytes(data)
    else:
        sealed(folder, part, data)
    with pytest.raises(CheckpointError, match="none of the 1"):
        load_newest(folder.parent)
    assert not canary.exists()


@pytest.mark.parametrize("what", [what for what in hostile.PLACES if what != "missing"])
@pytest.mark.parametrize("part", PARTS)
def test_paths_in_a_checkpoint_that_are_not_files_are_refused(
    part: str, what: str, tmp_path: Path
) -> None:
    folder = stored(tmp_path / "state", {"value": torch.ones(3)})
    (folder / part).unlink()
    hostile.PLACES[what](folder / part)
    with pytest.raises(CheckpointError, match="none of the 1"):
        load_newest(folder.parent)


TREES: dict[str, Any] = {
    "a float that is too large": {"value": {"$": "float", "v": 10**400}},
    "a float that is no number": {"value": {"$": "float", "v": [1]}},
    "an unknown mark": {"value": {"$": "pickle", "at": "0:value"}},
    "a mark that is a list": {"value": {"$": [], "at": "0:value"}},
    "a tensor that is not there": {"value": {"$": "tensor", "at": "os.system"}},
    "a name that is a list": {"value": {"$": "tensor", "at": ["0:value"]}},
    "a type that is a function": {
        "value": {"$": "tensor", "at": "0:value", "type": "load", "shape": [3]}
    },
    "a type that is quantised": {
        "value": {"$": "tensor", "at": "0:value", "type": "quint8", "shape": [12]}
    },
    "a shape that is too large": {
        "value": {"$": "tensor", "at": "0:value", "type": "int8", "shape": [2**62, 4]}
    },
    "an array of objects": {"value": {"$": "array", "at": "0:value", "type": "|O8", "shape": [1]}},
    "an array of a large type": {
        "value": {"$": "array", "at": "0:value", "type": "<U999999999", "shape": []}
    },
    "pairs that are none": {"value": {"$": "dict", "v": [[1]]}},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_inconsistent_trees_are_damage(tree: Any, tmp_path: Path) -> None:
    folder = stored(tmp_path / "state", {"value": torch.ones(3)})
    sealed(folder, "state.json", json.dumps(tree).encode())
    with pytest.raises(CheckpointError, match="none of the 1"):
        load_newest(folder.parent)


@pytest.mark.parametrize("what", NAMES)
def test_hostile_keys(what: str, tmp_path: Path, canary: Path) -> None:
    """In the store by its checksum, and in a packed state whatever the checksum is."""
    data = hostile.files(canary)[what]
    store = DirectoryKeyStore(tmp_path / "keys")
    store.begin(set())
    name = "000000000001"
    checksum = store.put(name, pack({"value": torch.ones(2)}))
    store.sync()
    (tmp_path / "keys" / f"{name}.safetensors").write_bytes(data)
    again = DirectoryKeyStore(tmp_path / "keys")
    again.begin({name})
    with pytest.raises(CheckpointError, match=name):
        again.get(name, checksum)
    with pytest.raises(CheckpointError):
        unpack(data)
    assert not canary.exists()


@pytest.mark.parametrize("what", [what for what in hostile.PLACES if what != "missing"])
def test_stored_keys_that_are_not_files_are_refused(what: str, tmp_path: Path) -> None:
    store = DirectoryKeyStore(tmp_path)
    store.begin(set())
    name = "000000000001"
    hostile.PLACES[what](tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=name):
        store.get(name, "0" * 64)


INDEXES: dict[str, Any] = {
    "2**40 numbers of nothing": [["x", "float32", [2**40], 0]],
    "2**62 numbers": [["x", "float32", [2**31, 2**31], 0]],
    "beyond the end": [["x", "float32", [1], 10_000]],
    "before the start": [["x", "float32", [1], -4]],
    "a negative shape": [["x", "float32", [-1, -1], 0]],
    "a shape of text": [["x", "float32", "11", 0]],
    "a type that is a function": [["x", "load", [1], 0]],
    "a type that is a list": [["x", [], [1], 0]],
    "no index": 7,
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES.keys())
def test_inconsistent_indexes_are_refused_before_memory_is_allocated(index: Any) -> None:
    from safetensors.torch import save

    head = json.dumps([{"value": {"$": "tensor", "at": "x"}}, index]).encode()
    parts = {
        "head": torch.frombuffer(bytearray(head), dtype=torch.uint8),
        "data": torch.zeros(16, dtype=torch.uint8),
    }
    with pytest.raises(CheckpointError, match="not a packed state"):
        unpack(save(parts))


# -- river's objects


@pytest.mark.parametrize("what", NAMES)
def test_hostile_river_objects(what: str, canary: Path) -> None:
    learner = built(River("linear_model.LinearRegression"), spec_of("regression", 1, 2, 1, 1))
    before = learner.get_extra_state()
    data = hostile.files(canary)[what]
    # It begins with a pickle of a number, which is not one of river's objects.
    if what != "torch.save, legacy":
        with pytest.raises(CheckpointError):
            loads_river(data)
    with pytest.raises(StreamadaptError):
        learner.set_extra_state(data)
    assert learner.get_extra_state() == before
    assert not canary.exists()


@pytest.mark.parametrize("form", ["key", "set", "frozenset", "set by a call"])
def test_a_pickle_that_takes_forever_to_hash_is_refused(form: str) -> None:
    """Sixty nested tuples of two make 2**60 parts, and hashing visits each."""
    import pickle

    code = pickle.PROTO + b"\x04" + (pickle.MARK if form != "key" else pickle.EMPTY_DICT)
    if form == "set by a call":
        code = (
            pickle.PROTO
            + b"\x04\x8c\x08builtins\x8c\x03set"
            + pickle.STACK_GLOBAL
            + pickle.EMPTY_LIST
        )
    code += pickle.EMPTY_TUPLE
    for i in range(60):
        code += (
            pickle.BINPUT.replace(b"q", pickle.MEMOIZE)
            + pickle.BINGET
            + bytes([i])
            + pickle.TUPLE2
        )
    end = {
        "key": pickle.NONE + pickle.SETITEM,
        "set": b"",
        "frozenset": pickle.FROZENSET,
        "set by a call": pickle.APPEND + pickle.TUPLE1 + pickle.REDUCE,
    }[form]
    if form == "set":
        code = pickle.PROTO + b"\x04" + pickle.EMPTY_SET + code[2:]
        end = pickle.ADDITEMS
    with pytest.raises(CheckpointError, match=r"keys of more than|call of builtins\.set"):
        loads_river(code + end + pickle.STOP)


# -- a pipeline loads a state completely or not at all


def restored(path: Path, state: dict[str, Any]) -> PartitionRunner:
    stored(path, state)
    runner = PartitionRunner(0, ["t"], pipeline_of("own labels"), CheckpointStore(path), 0.0, 1)
    runner.restore("d")
    return runner


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("names"), lambda s: s.pop("guard"), lambda s: s.update(learners=[]),
        lambda s: s.update(task=[1]), lambda s: s.update(spec={"rows": 1 << 40}),
        lambda s: s.update(drift=None), lambda s: s.clear(),
    ],
)  # fmt: skip
def test_a_valid_checkpoint_of_another_program_is_an_error_that_names_it(
    change: Any, tmp_path: Path
) -> None:
    pipeline = pipeline_of("own labels")
    for entry in stream_of("own labels", 30):
        pipeline.observe([entry])
    state = pipeline.state_dict()
    assert_same_state(restored(tmp_path / "fine", state).pipeline.state_dict(), state)
    change(state)
    with pytest.raises(CheckpointError, match="000000000001"):
        restored(tmp_path / "foreign", state)


def test_a_sink_does_not_damage_a_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "image.bin"
    with path.open("wb") as file:
        file.truncate(70 << 20)
    with pytest.raises(ConnectorError, match=r"image\.bin.*not a file of JSON lines"):
        JsonlSink(path)
    assert path.stat().st_size == 70 << 20


@pytest.mark.parametrize(
    "what", ["endless zeros", "an empty device", "a folder", "a pipe", "a link to itself"]
)
def test_a_sink_path_that_is_not_a_file(what: str, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    hostile.PLACES[what](path)
    with pytest.raises(ConnectorError, match=r"out\.jsonl"):
        JsonlSink(path).close()


CONFIGS = {
    "100,000 brackets": "a=" + "[" * 100_000,
    "100,000 tables in tables": "a=" + "{a=" * 100_000,
    "5,000 digits": "a=" + "1" * 5_000,
    "five million characters": "#" * 5_000_000,
    "no UTF-8": "\udcff",
}


@pytest.mark.parametrize("text", CONFIGS.values(), ids=CONFIGS.keys())
def test_configs_that_crash_the_parser_are_refused(
    text: str, tmp_path: Path, canary: Path
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(load_config, path, canary)


# -- memory

BOMBS = """
import gzip, resource, sys, zipfile
from pathlib import Path
import hostile
from core_helpers import spec_of
import test_hostile as t
from streamadapt.errors import StreamadaptError
from streamadapt_connectors.files import read_history
from streamadapt.learners.tta.samples import source_samples

folder, N = Path(sys.argv[1]), 320 << 20

def bomb(path, head=b"", tile=bytes(1 << 24)):
    path.write_bytes(gzip.compress(head) + gzip.compress(tile, 1) * (N // len(tile)))

bomb(folder / "zeros.jsonl.gz")
bomb(folder / "zeros.csv.gz", b"x\\n")
bomb(folder / "header.csv.gz")
unclosed = b"\\n" + b"a" * 100_000 + b'","'  # one row without an end
bomb(folder / "quotes.csv.gz", b'x\\n"', unclosed * 160)
with zipfile.ZipFile(folder / "zeros.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
    with file.open("inputs.npy", "w", force_zip64=True) as member:
        member.write(hostile.npy("<f4", f"({80 << 20}, 1, 1)", b""))
        for _ in range(20):
            member.write(bytes(1 << 24))

status = open("/proc/self/status").read()
used = int(status.split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
for name in ("zeros.jsonl.gz", "zeros.csv.gz", "header.csv.gz", "quotes.csv.gz"):
    try:
        read_history(folder / name, t.FIELDS)
    except StreamadaptError as exc:
        print(name, "refused", type(exc).__name__)
try:
    source_samples("fisher", folder / "zeros.npz", t.SPEC, 2)
except StreamadaptError as exc:
    print("zeros.npz", "refused", type(exc).__name__)
"""


def test_a_decompression_bomb_uses_little_memory(tmp_path: Path) -> None:
    """320 MiB compressed to a few hundred KiB, in a process that may use 200 MiB more than it
    has."""
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=200, cwd=tests.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "zeros.jsonl.gz refused ConnectorError",
        "zeros.csv.gz refused ConnectorError",
        "header.csv.gz refused ConnectorError",
        "quotes.csv.gz refused ConnectorError",
        "zeros.npz refused ConfigError",
    ]
