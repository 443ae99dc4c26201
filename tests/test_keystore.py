"""Keys on disk: complete, checksummed, never changed, and kept as long as a checkpoint refers to
them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from states import assert_same_state

from streamadapt.errors import CheckpointError
from streamadapt.state.key_store import DirectoryKeyStore
from streamadapt.state.pack import pack, unpack

STATE = {
    "a": torch.arange(6, dtype=torch.float64).reshape(2, 3),
    "b": [np.array([1.5, np.nan], np.float32), None, float("inf"), 7, "text"],
    "c": {"$": torch.zeros(0), "empty": {}, "bool": True},
}


DATA = pack(STATE)


def names(path):
    return sorted(name.split(".")[0].lstrip("0") for name in os.listdir(path))


def opened(path, keep=3, live=()):
    store = DirectoryKeyStore(path, keep=keep)
    store.begin(set(live))
    return store


def test_a_state_is_packed_bit_for_bit():
    """Tensors of every kind, arrays, numbers, text; and equal states are equal bytes."""
    kinds = (torch.float16, torch.float64, torch.int8, torch.bool, torch.complex64)
    state = STATE | {str(kind): torch.tensor([1.0, 0.0, 3.0]).to(kind) for kind in kinds}
    state |= {"none": torch.zeros(2, 0), "one": torch.tensor(2.5), "scalar": np.float32(0.1)}
    data = pack(state)
    assert_same_state(state, unpack(data))
    assert pack(unpack(data)) == data == pack(state)
    short = torch.tensor([1.5, -0.0]).bfloat16()
    assert torch.equal(
        unpack(pack({"short": short}))["short"].view(torch.int16), short.view(torch.int16)
    )
    assert pack(unpack(pack({}))) == pack({})


@pytest.mark.parametrize(
    "spoiled", [b"", b"x" * 100, DATA[:-1], DATA.replace(b"float64", b"pickle_")]
)
def test_what_was_never_packed_is_refused(spoiled):
    """Also what names a type that is none."""
    with pytest.raises(CheckpointError, match="not a packed state"):
        unpack(spoiled)
    with pytest.raises(CheckpointError, match="cannot be saved"):
        pack({"code": print})


def test_a_state_comes_back(tmp_path):
    """The same bytes return under the same name; equal states have equal checksums."""
    store = opened(tmp_path / "deep" / "keys")
    checksum = store.put("1", DATA)
    assert store.get("1", checksum) == DATA
    assert store.put("2", bytes(DATA)) == checksum


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "link", "other"])
def test_a_damaged_state_is_refused(tmp_path, damage):
    """A clear error names the file and says what to do."""
    store = opened(tmp_path)
    checksum = store.put("1", DATA)
    file = tmp_path / "1.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[:-5])
    elif damage == "gone":
        file.unlink()
    elif damage == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        store.put("1", pack({"another": 1}))
    with pytest.raises(
        CheckpointError, match=r"1\.safetensors: a key's state is damaged.*roll back"
    ):
        store.get("1", checksum)


def test_a_disk_error_is_a_clear_error(tmp_path):
    """A file in place of the folder; a folder in place of the file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot list"):
        opened(tmp_path / "file")
    store = opened(tmp_path / "keys")
    (tmp_path / "keys" / "1.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="cannot write 1"):
        store.put("1", DATA)
    with pytest.raises(CheckpointError, match="keep"):
        DirectoryKeyStore(tmp_path, keep=-1)


def test_a_released_state_stays_while_a_kept_checkpoint_may_refer_to_it(tmp_path):
    """With three kept checkpoints: until the third checkpoint after its release is complete."""
    store = opened(tmp_path, keep=3)
    store.put(f"{1:012d}", DATA)
    store.sync()
    store.checkpointed()  # refers to it
    store.release(f"{1:012d}")
    for _ in range(2):
        store.sync()
        store.checkpointed()
        assert names(tmp_path) == ["1"]
    store.sync()
    store.checkpointed()  # now the last three do not
    assert names(tmp_path) == []


def test_released_while_a_checkpoint_is_being_written_counts_from_that_one(tmp_path):
    """The state may still become part of that checkpoint."""
    store = opened(tmp_path, keep=1)
    store.put(f"{1:012d}", DATA)
    store.sync()
    store.release(f"{1:012d}")
    store.checkpointed()
    assert names(tmp_path) == ["1"], "the newest checkpoint refers to it"
    store.sync()
    store.checkpointed()
    assert names(tmp_path) == []


def test_a_state_unknown_to_checkpoints_is_deleted_at_once(tmp_path):
    """Written and released between two checkpoints; or if there are no checkpoints at all."""
    store = opened(tmp_path, keep=3)
    store.put(f"{1:012d}", DATA)
    store.release(f"{1:012d}")
    assert names(tmp_path) == []
    store = opened(tmp_path, keep=0)
    store.put(f"{2:012d}", DATA)
    store.sync()
    store.release(f"{2:012d}")
    assert names(tmp_path) == []


def test_leftover_files_are_kept_for_older_checkpoints_and_overwritten_by_the_replay(tmp_path):
    """After a start it is unknown which older checkpoints refer to a file that the newest does
    not."""
    store = opened(tmp_path, keep=2)
    for i in (1, 2, 3):
        store.put(f"{i:012d}", pack({"i": i}))
    store = opened(tmp_path, keep=2, live=[f"{2:012d}"])
    checksum = store.put(f"{3:012d}", b"again")
    for _ in range(2):
        assert names(tmp_path) == ["1", "2", "3"]
        store.sync()
        store.checkpointed()
    assert names(tmp_path) == ["2", "3"]
    assert store.get(f"{3:012d}", checksum) == b"again"


def test_a_missing_state_is_found_at_the_start(tmp_path):
    """Not when its key returns, days later."""
    with pytest.raises(
        CheckpointError, match=r"1 of the 1 keys .* missing.* 000000000007\.safetensors"
    ):
        opened(tmp_path, live=[f"{7:012d}"])


def test_a_temporary_folder_is_removed_on_close():
    """For runs without checkpoints."""
    store = opened(None, keep=0)
    checksum = store.put("1", DATA)
    assert store.get("1", checksum) == DATA
    path = store.folder.path
    store.close()
    store.close()
    assert not path.exists()
