"""A state as one run of bytes, and back, bit for bit: what leaves memory one by one, by the
thousands.

The same tree and table as in a checkpoint (`streamadapt.state.tree`), in the same safe forms, JSON
and safetensors. But the table is one tensor of bytes with its parts' types and shapes in the JSON:
a state has dozens of small tensors, and safetensors takes as long for each of them as for a large
one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from streamadapt.errors import CheckpointError
from streamadapt.state.tree import NATIVE_TENSORS, decode, encode, table_bytes

__all__ = ["pack", "unpack"]

_ALIGNED = 16  # bytes; tensors are read where they lie


def pack(state: Mapping[str, Any]) -> bytes:
    """Return `state` as bytes; equal states are equal bytes.

    Raises
    ------
    CheckpointError
        Naming the path of a leaf or key that has no safe form.
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
    """Return the state that `pack` made bytes of.

    Raises
    ------
    CheckpointError
        If it is none.
    """
    import safetensors.torch
    import torch

    try:
        found = safetensors.torch.load(data)
        tree, index = json.loads(found["head"].numpy().tobytes())
        table = {}
        for name, kind, shape, at in index:
            if kind not in NATIVE_TENSORS:
                raise ValueError(f"{kind!r} is no tensor type")
            dtype: torch.dtype = getattr(torch, kind)
            size = math.prod(shape) * dtype.itemsize
            if min(at, size, *shape) < 0 or at + size > len(found["data"]):
                raise ValueError(f"{name!r} lies outside of the data")
            # Not before its size is known to be there: a shape is only a promise.
            tensor = torch.empty(shape, dtype=dtype)
            if size:
                tensor = found["data"][at : at + size].view(dtype).reshape(shape).clone()
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
        raise CheckpointError(f"no packed state: {type(exc).__name__}: {exc}") from exc
    return state


def _bytes(data: bytes) -> Any:
    import torch

    return (
        torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if data
        else torch.empty(0, dtype=torch.uint8)
    )
