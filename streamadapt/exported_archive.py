"""What a ``.pt2`` file holds, taken out of it without torch's own reader: a zip of JSON and raw numbers.

`torch.export.load` unpickles (sample inputs, weights with ``use_pickle``, custom and opaque objects), evaluates text
(symbolic sizes through ``sympify``), resolves names by ``getattr`` and generates Python from node names. So nothing of
the file reaches it: pickles, compiled libraries and everything else that is not on the lists below is never opened.
"""

from __future__ import annotations

import io
import json
import math
import re
import sys
import zipfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from streamadapt.files import MOST_WEIGHTS, read_regular

__all__ = ["TYPES", "Archive", "UnreadableError", "read_archive", "whole"]

SCHEMA: Final = 8
"""The major version of the schema that is read; torch 2.9 to 2.13 write it; minor versions only add fields."""
MOST_JSON: Final = 1 << 26
MOST_MEMBERS: Final = 1 << 17
IGNORED: Final = {".data/version", ".data/serialization_id", "data/sample_inputs/model.pt"}
"""There, and never opened: the sample inputs are a pickle."""
FIXED: Final = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": sys.byteorder.encode()}
PROGRAM: Final = "models/model.json"
TABLES: Final = {
    "weights": ("data/weights/model_weights_config.json", re.compile(r"weight_\d{1,6}")),
    "constants": ("data/constants/model_constants_config.json", re.compile(r"tensor_\d{1,6}")),
}
PAYLOAD: Final = re.compile(r"data/(weights/weight|constants/tensor)_\d{1,6}")
TYPES: Final = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
"""The schema's numbers of types; no complex and no quantised ones."""


class UnreadableError(ValueError):
    """The file is not one that is read; the text says what was found, and where there is a cure, the cure."""


class Archive:
    """The parts of a file.

    Attributes
    ----------
    program : dict
        The graph and its signature, as JSON; the schema's version has been checked.
    tensors : dict of str to Tensor
        Weights, buffers and constants by their names in the model, on the CPU.
    """

    def __init__(self, program: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.program = program
        self.tensors = tensors


def read_archive(path: Path) -> Archive:
    """Read what `torch.export.save` wrote.

    Raises
    ------
    OSError
        If it is no regular file that can be read.
    UnreadableError
        If it is anything but such an archive, of schema version 8, with nothing pickled or compiled in it.
    """
    data = read_regular(path, MOST_WEIGHTS)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = _members(file, len(data))
            return _parts({name: file.read(info) for name, info in members.items() if name not in IGNORED})
    except UnreadableError:
        raise
    except (zipfile.BadZipFile, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, MemoryError) as exc:
        raise UnreadableError(f"no whole archive: {type(exc).__name__}: {str(exc)[:200]}") from exc


def _members(file: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by their names below the one root folder; nothing has been opened yet."""
    infos = file.infolist()
    if not 0 < len(infos) <= MOST_MEMBERS:
        raise UnreadableError(f"{len(infos)} members")
    root = infos[0].orig_filename.partition("/")[0]
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        # The name as it is written: Python's own is cut at a NUL.
        folder, _, name = info.orig_filename.partition("/")
        if folder != root or not (name in FIXED or name in IGNORED or _is_payload(name)):
            raise UnreadableError(f"a member {info.orig_filename[:100]!r}, which a saved program has not{_cure(name)}")
        if name in found:
            raise UnreadableError(f"two members {name!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise UnreadableError(f"a packed or encrypted member {name!r}: torch stores them as they are")
        found[name] = info
    if sum(info.file_size for info in found.values()) > size:
        raise UnreadableError("members that lie over one another")
    missing = [*FIXED, PROGRAM, *(config for config, _ in TABLES.values())]
    for name in missing:
        if name not in found:
            raise UnreadableError(f"no member {name!r}: was it saved by torch.export.save of torch 2.9 or newer?")
        if found[name].file_size > MOST_JSON:
            raise UnreadableError(f"{name!r} of {found[name].file_size} bytes")
    return found


def _is_payload(name: str) -> bool:
    return (
        name == PROGRAM or PAYLOAD.fullmatch(name) is not None or any(name == config for config, _ in TABLES.values())
    )


def _cure(name: str) -> str:
    if name.startswith("data/aotinductor/"):
        return ": compiled libraries are not loaded; save the exported program itself"
    if name.startswith("extra/"):
        return ": save it without extra_files"
    if name.startswith("data/constants/"):
        return ": objects that are no tensors are pickled; export a model without them"
    return ""


def _parts(data: dict[str, bytes]) -> Archive:
    for name, wanted in FIXED.items():
        if data[name].strip() != wanted:
            raise UnreadableError(f"{name} {data[name][:20]!r}, not {wanted!r}")
    program = parse(data[PROGRAM])
    major = program["schema_version"]["major"]
    if type(major) is not int or major != SCHEMA:
        raise UnreadableError(f"schema version {str(major)[:20]}, not {SCHEMA}, which torch 2.9 to 2.13 write")
    tensors: dict[str, Tensor] = {}
    for part, (config, form) in TABLES.items():
        for name, meta in parse(data[config])["config"].items():
            if meta["use_pickle"] is not False or not isinstance(meta["path_name"], str):
                raise UnreadableError(f"{name[:80]!r} is pickled; save a program of plain dense tensors")
            if not form.fullmatch(meta["path_name"]) or name in tensors:
                raise UnreadableError(f"{name[:80]!r} at {meta['path_name'][:80]!r}")
            tensors[name] = _tensor(name, data[f"data/{part}/{meta['path_name']}"], meta["tensor_meta"])
    return Archive(program, tensors)


def parse(data: bytes) -> Any:
    """Parse JSON in which no name stands twice in one object."""
    try:
        return json.loads(data, object_pairs_hook=_once)
    except RecursionError:
        raise UnreadableError("JSON that is nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UnreadableError("JSON in which a name stands twice")
    return found


def whole(value: Any, least: int = 0) -> int:
    """Return a whole number as it is, or as ``{"as_int": 3}``."""
    value = value["as_int"] if isinstance(value, dict) and set(value) == {"as_int"} else value
    if type(value) is not int or not least <= value < 1 << 48:
        raise UnreadableError(f"a size or stride {str(value)[:80]}")
    return value


def _tensor(name: str, data: bytes, meta: dict[str, Any]) -> Tensor:
    dtype = TYPES.get(meta["dtype"]) if type(meta["dtype"]) is int else None
    if dtype is None or meta["layout"] != 7:
        raise UnreadableError(f"{name[:80]!r} of type {str(meta['dtype'])[:20]} and layout {str(meta['layout'])[:20]}")
    sizes, strides = [whole(n) for n in meta["sizes"]], [whole(n) for n in meta["strides"]]
    offset, count = whole(meta["storage_offset"]), math.prod(sizes)
    if count == 0:
        return torch.zeros(sizes, dtype=dtype)
    stored = len(data) // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    if len(data) % dtype.itemsize or last >= stored or count > stored:
        raise UnreadableError(f"{name[:80]!r} reaches beyond its {len(data)} bytes")
    tensor = torch.frombuffer(bytearray(data), dtype=dtype).as_strided(sizes, strides, offset)
    if dtype.is_floating_point and bool((tensor.isnan() if not meta["requires_grad"] else ~tensor.isfinite()).any()):
        raise UnreadableError(f"{name[:80]!r} holds numbers that are not finite")
    return tensor
