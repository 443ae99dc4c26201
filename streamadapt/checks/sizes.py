"""How many bytes an object holds on to."""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from streamadapt.learners.base import Learner

__all__ = ["size_of"]

_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def size_of(learner: Learner) -> int:
    """Return the bytes of everything a learner reaches: what it saves and what it only remembers.

    What stands behind compiled objects cannot be walked; it is counted by the blobs that they are saved as.
    """
    blobs = sum(len(v) for v in learner.snapshot().values() if isinstance(v, bytes))
    return blobs + _deep(learner, set())


def _deep(root: Any, seen: set[int]) -> int:
    total = 0
    left: deque[Any] = deque([root])
    while left:
        item = left.pop()
        if id(item) in seen or isinstance(item, _CODE):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            total += item.numel() * item.element_size()
            continue
        total += item.nbytes if isinstance(item, np.ndarray) else sys.getsizeof(item)
        if isinstance(item, Mapping):
            left.extend(item.keys())
            left.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset | deque):
            left.extend(item)
        if hasattr(item, "__dict__"):
            left.append(vars(item))
    return total
