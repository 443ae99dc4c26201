"""Hostile files for every loader: pickles that would run code, archives that write outside,
headers with wrong sizes."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

SECRET = "opensesame-7f3a"
"""The content of a linked file: it must not show in an error."""


class Exploit:
    """Creates the canary's file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def safetensors(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    """Return a file with this header, as JSON or raw."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head) if size is None else size) + head + data


def one(
    name: str = "inputs", dtype: str = "F32", shape: Any = (1,), at: Any = (0, 4)
) -> dict[str, Any]:
    return {name: {"dtype": dtype, "shape": list(shape), "data_offsets": list(at)}}


def archive(*names: str, data: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, data)
    return buffer.getvalue()


def tar(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        info = tarfile.TarInfo(name)
        info.size = 1
        file.addfile(info, io.BytesIO(b"x"))
    return buffer.getvalue()


def pickles(canary: Path) -> dict[str, bytes]:
    """Return one exploit in every wrapping that a loader might open."""
    exploit, found = Exploit(canary), {}
    found["pickle"] = pickle.dumps(exploit)
    found["pickle, protocol 0"] = pickle.dumps(exploit, protocol=0)
    for legacy in (False, True):
        buffer = io.BytesIO()
        torch.save({"weights": exploit}, buffer, _use_new_zipfile_serialization=not legacy)
        found["torch.save" + ", legacy" * legacy] = buffer.getvalue()
    array = np.array([exploit], object)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    found["npy"] = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, inputs=array)
    found["npz"] = buffer.getvalue()
    found["pickle, gzipped"] = gzip.compress(pickle.dumps(exploit))
    found["zip of a pickle as an array"] = archive("inputs.npy", data=pickle.dumps(exploit))
    return found


def files(canary: Path) -> dict[str, bytes]:
    """Return bytes that no loader may accept; those that a loader runs create `canary`."""
    return pickles(canary) | _without_code()


@cache
def _without_code() -> dict[str, bytes]:
    """Return the inconsistent files without code."""
    whole = safetensors(one(), struct.pack("<f", 1.0))
    deep = b"[" * 100_000 + b"]" * 100_000
    twice = json.dumps(one())
    return {
        "empty": b"",
        "text": b"this is none\n",
        "zeros": bytes(4096),
        "zip with ..": archive("../../canary", "/canary"),
        "zip with an absolute array": archive("/inputs.npy", "../inputs.npy"),
        "tar with ..": tar("../../canary"),
        "safetensors, a header of 2**63": safetensors({}, size=2**63),
        "safetensors, a header longer than the file": safetensors(one(), size=10_000),
        "safetensors, nested 100,000 deep": safetensors(b'{"inputs":' + deep + b"}"),
        "safetensors, metadata nested": safetensors(b'{"__metadata__":{"format":' + deep + b"}}"),
        "safetensors, a name twice": safetensors(
            f"{twice[:-1]},{twice[1:]}".encode(), struct.pack("<f", 1.0)
        ),
        "safetensors, overlapping": safetensors(one() | one("b"), struct.pack("<f", 1.0)),
        "safetensors, beyond the end": safetensors(one(shape=(100,), at=(0, 400)), bytes(4)),
        "safetensors, offsets backwards": safetensors(one(at=(4, 0)), bytes(4)),
        "safetensors, negative shape": safetensors(one(shape=(-1,)), bytes(4)),
        "safetensors, 2**62 elements": safetensors(one(shape=(2**31, 2**31)), bytes(4)),
        "safetensors, 2**62 times nothing": safetensors(one(shape=(2**62, 0), at=(0, 0))),
        "safetensors, F8": safetensors(one(dtype="F8_E4M3", at=(0, 1)), b"\x01"),
        "safetensors, C64": safetensors(one(dtype="C64", at=(0, 8)), bytes(8)),
        "safetensors, I64": safetensors(one(dtype="I64", at=(0, 8)), bytes(8)),
        "safetensors, BOOL": safetensors(one(dtype="BOOL", at=(0, 1)), b"\x01"),
        "safetensors, a type that is none": safetensors(one(dtype="PICKLE"), bytes(4)),
        "safetensors, a field more": safetensors(
            {"inputs": one()["inputs"] | {"load": "os:system"}}, bytes(4)
        ),
        "safetensors, NaN": safetensors(one(), struct.pack("<f", float("nan"))),
        "safetensors, cut": whole[:-2],
        "safetensors, longer than its header says": whole + b"more",
        "npy, 2**62 elements": npy("<f4", f"({2**31}, {2**31})"),
        "npy, negative": npy("<f4", "(-1,)"),
        "npy, structured": npy("[('a', '<f4')]", "(1,)", raw=True),
        "npy, a call in the header": npy("<f4", "__import__('os').mkdir('canary')"),
        "npy, complex": npy("<c8", "(1,)"),
        "npy, text": npy("<U2", "(1,)"),
        "npy, short": npy("<f4", "(3, 1, 1)"),
        "npz, an array twice": doubled(),
    }


def npy(kind: str, shape: str, data: bytes = bytes(8), *, raw: bool = False) -> bytes:
    head = (
        f"{{'descr': {kind if raw else repr(kind)}, 'fortran_order': False, 'shape': {shape}, }}"
    ).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


def doubled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 1, 1), np.float32))
    first = zipfile.ZipInfo("inputs.npy")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for _ in range(2):
            file.NameToInfo.clear()  # otherwise it warns
            file.writestr(first, buffer.getvalue())
    return packed.getvalue()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _secret(path: Path) -> None:
    target = path.with_name("secret")
    target.write_text(f"{SECRET}\n{SECRET}\n")
    path.symlink_to(target)


def _loop(path: Path) -> None:
    path.symlink_to(path)


PLACES: dict[str, Callable[[Path], None]] = {
    "a folder": Path.mkdir,
    "a pipe": _fifo,
    "endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "an empty device": lambda path: path.symlink_to("/dev/null"),
    "a link to a secret": _secret,
    "a link to nothing": lambda path: path.symlink_to(path.with_name("gone")),
    "a link to itself": _loop,
    "missing": lambda path: None,
}
"""Objects in the place of a file."""
