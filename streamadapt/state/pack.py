"""Serialises a state to bytes, and back, bit for bit: for the states of evicted keys, of which
there are thousands.

The bytes contain the same tree and table as a checkpoint (`streamadapt.state.tree`), in the same
safe formats, JSON and safetensors. But the whole table is one tensor of bytes, and the types and
shapes of its parts are in the JSON: a state has dozens of small tensors, and for safetensors a
small tensor takes as long as a large one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from streamadapt.errors import CheckpointError
from streamadapt.state.tree import NATIVE_TENSORS, decode, encode, table_bytes

__all__ = ["pack", "unpack"]

_ALIGNED = 16  # bytes; tensors are read at their place in the data


def pack(state: Mapping[str, Any]) -> bytes:
    """Return `state` as bytes; equal states give equal bytes.

    Raises
    ------
    CheckpointError
        If a leaf or key has no safe form; the error names its path.
    """
    import torch

    tree, table = encode(state)
    parts, index, at = list[bytes](), list[list[Any]](), 0
    for name, tensor in table.items():
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        index.append([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), at])
        parts += [raw, bytes(-len(raw) % _ALIGNED)]
        at += len(raw) + len(parts[-1])
    head = json.dumps([tree, index], allow_nan=False, separators=(",", ":")).encode("ascii")
    return table_bytes({"head": _bytes(head), "data": _bytes(b"".join(parts))})


def unpack(data: bytes) -> dict[str, Any]:
    """Return the state that `pack` has serialised.

    Raises
    ------
    CheckpointError
        If the bytes are not a packed state.
    """
    import safetensors.torch
    import torch

    try:
        loaded = safetensors.torch.load(data)
        tree, index = json.loads(loaded["head"].numpy().tobytes())
        table = {}
        for name, kind, shape, at in index:
            if kind not in NATIVE_TENSORS:
                raise ValueError(f"{kind!r} is not a tensor type")
            dtype: torch.dtype = getattr(torch, kind)
            size = math.prod(shape) * dtype.itemsize
            if min(at, size, *shape) < 0 or at + size > len(loaded["data"]):
                raise ValueError(f"{name!r} lies outside of the data")
            # Only after this check: a false shape could ask for any amount of memory.
            tensor = torch.empty(shape, dtype=dtype)
            if size:
                tensor = loaded["data"][at : at + size].view(dtype).reshape(shape).clone()
            table[name] = tensor
        state: dict[str, Any] = decode(tree, table)
    except (
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        MemoryError,
        safetensors.SafetensorError,
    ) as exc:
        raise CheckpointError(f"not a packed state: {type(exc).__name__}: {exc}") from exc
    return state


def _bytes(data: bytes) -> Any:
    import torch

    return (
        torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if data
        else torch.empty(0, dtype=torch.uint8)
    )
