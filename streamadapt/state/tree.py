"""Converts a pipeline's state to a tree of plain values and a flat table of tensors, and back, bit
for bit.

The tree is stored as JSON and the table as safetensors. Neither format can refer to code, so
neither can run code.

========================  ==========================================================
in the state              in the JSON tree
========================  ==========================================================
None, bool, int, str      itself (integers of any size; string subclasses as ``str``)
finite float              itself; ``nan``, ``inf`` and ``-inf`` as ``{"$": "float", "v": "nan"}``
list, tuple               a list
mapping with str keys     an object (``{"$": "dict", "v": [[key, value], ...]}`` if a key is
                          ``"$"``)
tensor, array, bytes      ``{"$": "tensor" | "array" | "scalar" | "bytes", "at": name}``, the name
                          in the table
========================  ==========================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from streamadapt.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["NATIVE_TENSORS", "decode", "encode", "table_bytes"]

_MARK = "$"
# The types that every supported version of safetensors can store; other types are stored as raw
# bytes with the name of the type.
NATIVE_TENSORS = {
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
}
_NATIVE_ARRAYS = {"<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "|u1", "|b1"}
# Plain numeric and text types: no object arrays (they may contain code), no structured arrays.
_ARRAY_TYPE = re.compile(r"[<>|=][biufcmMSU]\d+(\[\w+\])?")
_TENSOR_TYPE = re.compile(r"[a-z]+\d*[a-z0-9_]*")


def table_bytes(table: Mapping[str, torch.Tensor]) -> bytes:
    """Return a table of contiguous CPU tensors as safetensors.

    ``safetensors.torch.save`` is avoided if possible: it creates a ctypes type for each length,
    and ctypes never frees it. A state that is saved repeatedly would leak some kilobytes for each
    new length.
    """
    import safetensors.numpy
    import safetensors.torch
    import torch

    if any(tensor.dtype == torch.bfloat16 for tensor in table.values()):  # unknown to numpy
        return bytes(safetensors.torch.save(dict(table)))
    return bytes(safetensors.numpy.save({name: tensor.numpy() for name, tensor in table.items()}))


def encode(state: Mapping[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split `state` into a tree that JSON can store and a table of contiguous CPU tensors that
    share no memory with it.

    Raises
    ------
    CheckpointError
        If a leaf or key has no safe form; the error names its path.
    """
    table: dict[str, torch.Tensor] = {}
    return _encode(state, "", table), table


def decode(tree: Any, table: Mapping[str, torch.Tensor]) -> Any:
    """Join a tree and a table from `encode` to the state.

    Raises
    ------
    CheckpointError
        If the tree contains an unknown mark, or refers to a tensor that is not in `table`.
    """
    if isinstance(tree, list):
        return [decode(item, table) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if _MARK not in tree:
        return {key: decode(value, table) for key, value in tree.items()}
    return _decode_marked(tree, table)


def _encode(node: Any, path: str, table: dict[str, torch.Tensor]) -> Any:
    if node is None or isinstance(node, bool):
        return node
    if isinstance(node, np.ndarray | np.generic):  # before float: np.float64 is a float
        return _store_array(node, path, table)
    if isinstance(node, str):
        return str.__str__(node)
    if isinstance(node, int):
        return int(node)
    if isinstance(node, float):
        return float(node) if math.isfinite(node) else {_MARK: "float", "v": repr(float(node))}
    if isinstance(node, bytes | bytearray | memoryview):
        return _store_bytes(bytes(node), path, table)
    if isinstance(node, Mapping):
        return _encode_mapping(node, path, table)
    if isinstance(node, list | tuple):
        return [_encode(item, f"{path}[{i}]", table) for i, item in enumerate(node)]
    return _store_tensor(node, path, table)


def _encode_mapping(node: Mapping[Any, Any], path: str, table: dict[str, torch.Tensor]) -> Any:
    for key in node:
        if not isinstance(key, str):
            raise CheckpointError(
                f"state{path}: keys must be str, got {key!r}; turn the mapping into a list of "
                f"pairs"
            )
    items = {
        str.__str__(key): _encode(value, f"{path}.{key}", table) for key, value in node.items()
    }
    return (
        {_MARK: "dict", "v": [list(item) for item in items.items()]} if _MARK in items else items
    )


def _put(tensor: torch.Tensor, path: str, table: dict[str, torch.Tensor]) -> str:
    # The number makes each name unique; the path is for people who open the file.
    name = f"{len(table)}:{path.lstrip('.')}".encode("utf-8", "replace").decode()
    table[name] = tensor
    return name


def _store_tensor(node: Any, path: str, table: dict[str, torch.Tensor]) -> Any:
    import torch

    if not isinstance(node, torch.Tensor) or node.layout != torch.strided or node.is_quantized:
        raise CheckpointError(
            f"state{path}: a {type(node).__qualname__} cannot be saved; allowed are dense "
            "tensors, numpy arrays, int, float, str, bool, None, bytes, and dicts, lists and "
            "tuples of them"
        )
    # A copy also on the CPU: the caller may continue to train the tensor, and safetensors refuses
    # tensors that share memory.
    flat = node.detach().resolve_conj().resolve_neg().to("cpu", copy=True).contiguous()
    kind = str(node.dtype).removeprefix("torch.")
    if kind in NATIVE_TENSORS:
        return {_MARK: "tensor", "at": _put(flat, path, table)}
    raw = flat.reshape(-1).view(torch.uint8)
    return {_MARK: "tensor", "at": _put(raw, path, table), "type": kind, "shape": list(flat.shape)}


def _store_array(
    node: np.ndarray[Any, Any] | np.generic, path: str, table: dict[str, torch.Tensor]
) -> Any:
    import torch

    array = np.array(node, order="C")  # a copy, C-contiguous
    kind = array.dtype.str
    if not _ARRAY_TYPE.fullmatch(kind):
        raise CheckpointError(
            f"state{path}: an array of {array.dtype} cannot be saved; use numbers, bool or bytes"
        )
    mark = {_MARK: "scalar" if isinstance(node, np.generic) else "array"}
    if kind in _NATIVE_ARRAYS:
        return mark | {"at": _put(torch.from_numpy(array), path, table)}
    raw = (
        torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8)
        if array.nbytes
        else torch.empty(0, dtype=torch.float32)
    )
    return mark | {
        "at": _put(raw.to(torch.uint8), path, table),
        "type": kind,
        "shape": list(array.shape),
    }


def _store_bytes(blob: bytes, path: str, table: dict[str, torch.Tensor]) -> Any:
    import torch

    # torch.frombuffer refuses empty buffers.
    raw = (
        torch.frombuffer(bytearray(blob), dtype=torch.uint8)
        if blob
        else torch.empty(0, dtype=torch.uint8)
    )
    return {_MARK: "bytes", "at": _put(raw, path, table)}


def _decode_marked(tree: dict[str, Any], table: Mapping[str, torch.Tensor]) -> Any:
    kind = tree[_MARK]
    try:
        if kind == "float":
            return float(tree["v"])
        if kind == "dict":
            return {str(key): decode(value, table) for key, value in tree["v"]}
        stored = table[tree["at"]]
        if kind == "tensor":
            return _load_tensor(tree, stored)
        if kind == "bytes":
            return stored.numpy().tobytes()
        if kind in ("array", "scalar"):
            array = _load_array(tree, stored)
            return array[()] if kind == "scalar" else array
    except (
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
    ) as exc:
        raise CheckpointError(
            f"state: cannot read a stored {kind!r} ({type(exc).__name__}: {exc})"
        ) from exc
    raise CheckpointError(f"state: unknown kind {kind!r}")


def _load_tensor(tree: dict[str, Any], stored: torch.Tensor) -> torch.Tensor:
    import torch

    if "type" not in tree:
        return stored
    dtype = getattr(torch, tree["type"]) if _TENSOR_TYPE.fullmatch(tree["type"]) else None
    # A quantised tensor would also need its scale.
    if not isinstance(dtype, torch.dtype) or tree["type"].startswith("q"):
        raise ValueError(f"{tree['type']!r} is not a tensor type")
    return stored.view(dtype).reshape(tree["shape"])


def _load_array(tree: dict[str, Any], stored: torch.Tensor) -> np.ndarray[Any, Any]:
    if "type" not in tree:
        return stored.numpy()
    if not _ARRAY_TYPE.fullmatch(tree["type"]):
        raise ValueError(f"{tree['type']!r} is not an array type")
    return (
        np.frombuffer(stored.numpy().tobytes(), dtype=tree["type"]).reshape(tree["shape"]).copy()
    )
