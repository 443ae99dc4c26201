"""What an error memory remembers of an example, and how a prediction is put right by it.

A value is (planes, cells): the base's errors in scaled units, or labels and the base's outputs. A
cell is a row of a group's channel; if there is one group, of all columns. The planes of a cell are
all known or all unknown.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.learners.float32 import to_float32
from streamadapt.records import Array

__all__ = [
    "StoreShape",
    "ValueRoom",
    "fill_values",
    "make_distribution",
    "put_right",
    "value_room",
]


class StoreShape(NamedTuple):
    """The sizes of a store: keys are (groups, features), values (groups, planes, cells)."""

    groups: int
    features: int
    planes: int
    cells: int


class ValueRoom(NamedTuple):
    """`values` (planes, cells), float32, NaN where unknown: of an example. `mean` (planes, cells),
    `mass` and `known` (cells,): of a read; where it is not known, a mean is anything."""

    values: Array
    mean: Array
    mass: Array
    known: Array


def value_room(shape: StoreShape) -> ValueRoom:
    """Return room for the values of one group."""
    _, _, planes, cells = shape
    return ValueRoom(
        np.zeros((planes, cells), np.float32),
        np.zeros((planes, cells)),
        np.zeros(cells),
        np.zeros(cells, np.bool_),
    )


@compiled
def cell_of(columns: int, cells: int, rows: int, g: int, i: int) -> Any:
    """Return the row and the column of a group's cell."""
    return (i, g) if cells == rows else (i // columns, i % columns)


@compiled
def fill_values(c: Any, w: Any, x: Any, y: Any, g: int) -> bool:
    """Write what a group remembers of an example to ``w.values``; return whether any is known."""
    some = False
    planes, cells = w.values.shape
    rows, columns = y.target.shape
    for i in range(cells):
        h, j = cell_of(columns, cells, rows, g, i)
        for plane in range(planes):
            w.values[plane, i] = math.nan
        if y.known[h, j]:
            some = True
            if planes == 1:
                w.values[0, i] = to_float32((y.target[h, j] - x.base[h, j]) / c.output_scale[j])
            else:
                w.values[0, i] = in_scaled_units(c, y.target[h, j], j)
                w.values[1, i] = in_scaled_units(c, x.base[h, j], j)
    return some


@compiled
def in_scaled_units(c: Any, value: float, j: int) -> Any:
    """``(value - loc) / scale``, as a float32."""
    return to_float32((value - c.output_loc[j]) / c.output_scale[j])


@compiled
def put_right(c: Any, p: Any, w: Any, x: Any, g: int, out: Any) -> None:
    """``out = base + strength * scale * e`` in the cells of a group that the store knows, and the
    base elsewhere."""
    planes, cells = w.mean.shape
    rows, columns = out.shape
    for i in range(cells):
        h, j = cell_of(columns, cells, rows, g, i)
        out[h, j] = x.base[h, j]
        if w.known[i]:
            error = w.mean[0, i]
            if planes == 2:
                now = (x.base[h, j] - c.output_loc[j]) / c.output_scale[j]
                error -= p.gamma * now + (1.0 - p.gamma) * w.mean[1, i]
            out[h, j] += p.strength * c.output_scale[j] * error


@compiled
def make_distribution(known: Any, out: Any) -> None:
    """Clip probabilities (classes,) at 0 and divide them by their sum, if any was put right."""
    some = False
    total = 0.0
    for j in range(out.shape[0]):
        some = some or known[j]
        total += max(out[j], 0.0)
    if some and total > 0.0:
        for j in range(out.shape[0]):
            out[j] = max(out[j], 0.0) / total
