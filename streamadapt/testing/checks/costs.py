"""What a learner costs, counted and not timed: bytes held, lines run, operations done."""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from streamadapt.learners.base import Learner
from streamadapt.learners.compiled import CompiledLearner

__all__ = ["count_work", "size_of"]

_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def size_of(learner: Learner) -> int:
    """Return the bytes of everything a learner reaches: what it saves and what it only remembers.

    What stands behind compiled objects cannot be walked; it is counted by the blobs that they are
    saved as.
    """
    blobs = sum(len(v) for v in learner.snapshot().values() if isinstance(v, bytes))
    # The holders that kernels are called with repeat the state, and vary by a few bytes.
    root = learner.__getstate__() if isinstance(learner, CompiledLearner) else learner
    return blobs + _deep(root, set())


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


class _Operations(TorchDispatchMode):
    """Counts torch operations and the numbers that they touch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        self.numbers += sum(
            t.numel() for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)
        )
        return result


def count_work(run: Callable[[], object]) -> dict[str, int]:
    """Count what `run` does: a clock would measure the machine."""
    lines = 0

    def trace(frame: types.FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    previous = sys.gettrace()
    with _Operations() as counter:
        sys.settrace(trace)
        try:
            run()
        finally:
            sys.settrace(previous)
    return {
        "Python lines": lines,
        "torch operations": counter.operations,
        "numbers touched": counter.numbers,
    }
