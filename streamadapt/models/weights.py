"""Read weights from a safetensors file: check its header before the library reads it, and copy the
tensors into memory.

The tensors are copied because the library maps the file into memory: a later write to the file
would change the running model.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.files import MAX_WEIGHTS_BYTES, read_regular

__all__ = ["check_fitted", "read_tensors"]

MOST_HEADER: Final = 1 << 24
"""The largest header that is read: 16 MiB, about a hundred thousand tensors."""
TYPES: Final = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"})
FIELDS: Final = {"dtype", "shape", "data_offsets"}


def check_fitted(file: Path, path: str) -> None:
    """Raise `ConfigError` with the command that makes a file, if ``streamadapt fit`` has not
    written it yet.

    Parameters
    ----------
    path : str
        The setting that the error names.
    """
    if not os.path.lexists(file):
        raise ConfigError(
            path,
            str(file),
            "a file that exists; this one is made from a file of past entries: streamadapt fit "
            "CONFIG HISTORY",
        )


def read_tensors(
    file: Path, path: str, *, finite: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file; a link to one is followed.

    Parameters
    ----------
    file : Path
    path : str
        The setting that an error names.
    finite : bool
        Whether a number that is not finite is an error.

    Returns
    -------
    dict of str to Tensor
        On the CPU, in memory of their own; floating-point numbers, integers and booleans only.
    dict of str to str
        The file's metadata.

    Raises
    ------
    ConfigError
        If the path is no regular file, or the file is incomplete, names a tensor twice, or has
        types or numbers that weights do not have.
    """
    try:
        data = read_regular(file, MAX_WEIGHTS_BYTES)
        metadata = _check_header(data)
        tensors = load(data)
    except (
        OSError,
        ValueError,
        RecursionError,
        RuntimeError,
        MemoryError,
        SafetensorError,
    ) as exc:
        raise ConfigError(path, str(file), f"a readable safetensors file ({exc})") from exc
    for name, tensor in tensors.items():
        if finite and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(path, str(file), f"finite numbers, but {name} holds others")
    return tensors, metadata


def _check_header(data: bytes) -> dict[str, str]:
    """Check the parts of the header that the library does not check; return the metadata.

    The library itself checks offsets, sizes and overlaps.
    """
    (size,) = struct.unpack_from("<Q", data) if len(data) >= 8 else (0,)
    if not 0 < size <= min(MOST_HEADER, len(data) - 8):
        raise ValueError(f"a header of {size} bytes in a file of {len(data)}")
    header = json.loads(data[8 : 8 + size], object_pairs_hook=_once)
    if not isinstance(header, dict):
        raise ValueError("the header is no table")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise ValueError("the metadata is no table of text")
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != FIELDS:
            raise ValueError(f"{name[:80]!r} is no tensor")
        if entry["dtype"] not in TYPES:
            raise ValueError(
                f"{name[:80]!r} has the type {str(entry['dtype'])[:80]}, which weights do not have"
            )
    return metadata


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name occurs twice")
    return table
