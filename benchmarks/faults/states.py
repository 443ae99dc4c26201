"""Comparing state trees bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from streamadapt.state.river_pickle import loads_river
from streamadapt.state.store import Loaded

__all__ = ["assert_same_state", "canonical", "differing", "flat", "same_state"]


def canonical(thing: Any, seen: dict[int, tuple[int, Any]] | None = None) -> Any:
    """A river object as nested tuples.

    Its pickle's bytes also depend on which equal strings are one object, which is not state.
    """
    seen = {} if seen is None else seen
    if thing is None or isinstance(thing, bool | int | str | bytes | type):
        return thing
    if isinstance(thing, float):
        return thing.hex()
    if id(thing) in seen:
        return ("seen", seen[id(thing)][0])
    seen[id(thing)] = (len(seen), thing)  # kept alive, since its id could be reused
    if isinstance(thing, dict):
        return (
            "dict",
            type(thing).__name__,
            tuple((canonical(k, seen), canonical(v, seen)) for k, v in thing.items()),
        )
    if isinstance(thing, list | tuple):
        return ("list", tuple(canonical(x, seen) for x in thing))
    if callable(thing) and not hasattr(thing, "__dict__"):
        return ("callable", repr(thing))
    how = thing.__reduce_ex__(4)
    return (
        "object",
        type(thing).__name__,
        tuple(canonical(list(x) if hasattr(x, "__next__") else x, seen) for x in how[1:]),
    )


def flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a state tree as (path, value that compares bit for bit)."""
    if isinstance(tree, dict):
        for key in sorted(tree):
            yield from flat(tree[key], f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for i, leaf in enumerate(tree):
            yield from flat(leaf, f"{path}/{i}")
    elif isinstance(tree, torch.Tensor):
        yield path, (str(tree.dtype), tuple(tree.shape), tree.numpy().tobytes())
    elif isinstance(tree, np.ndarray):
        yield path, (str(tree.dtype), tree.shape, tree.tobytes())
    elif isinstance(tree, bytes):
        yield path, canonical(loads_river(tree))
    else:
        yield path, tree


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return the paths of leaves that exist in one only, or differ in their bits."""
    left, right = dict(flat(a)), dict(flat(b))
    return sorted(
        path
        for path in left.keys() | right.keys()
        if left.get(path, flat) != right.get(path, flat)
    )


def same_state(one: Loaded | None, two: Loaded | None) -> bool:
    """Return whether two checkpoints have the same state, bit for bit, and the same positions."""
    if one is None or two is None:
        return one is two
    return not differing(one.state, two.state) and one.positions == two.positions


def assert_same_state(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Raise `AssertionError`, showing the first few differences, unless both are equal bit for
    bit."""
    left, right = dict(flat(a)), dict(flat(b))
    assert left.keys() == right.keys()
    assert (found := differing(a, b)) == [], {
        path: (left[path], right[path]) for path in found[:3]
    }
