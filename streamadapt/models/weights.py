"""Weights from a file: safetensors, vetted before the library sees it, and copied into memory of
our own.

Copied: the library's own reader maps the file, so that whoever writes to it later writes to the
running model.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.files import MOST_WEIGHTS, read_regular

__all__ = ["read_tensors"]

MOST_HEADER: Final = 1 << 24
"""The largest header: 16 MiB, a hundred thousand tensors."""
TYPES: Final = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"})
FIELDS: Final = {"dtype", "shape", "data_offsets"}


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
        On the CPU, sharing memory with nothing; plain floating-point, whole and truth values only.
    dict of str to str
        The file's metadata.

    Raises
    ------
    ConfigError
        If it is no regular file, not whole, names a tensor twice, or holds types or numbers that
        weights do not have.
    """
    try:
        data = read_regular(file, MOST_WEIGHTS)
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
    """Check what the library takes on trust; return the metadata.

    It checks offsets, sizes and overlaps itself.
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
                f"{name[:80]!r} has the type {str(entry['dtype'])[:80]}, and not one that "
                f"weights have"
            )
    return metadata


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found
