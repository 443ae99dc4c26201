"""ONNX models for tests."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper
from torch import nn

OPSET = 20
Shape = Sequence[int | str | None]


def export(
    model: nn.Module, path: Path, *, dynamic: bool = False, external: bool = False, window: int = 6
) -> Path:
    """Export a torch model as a user does."""
    inputs = torch.zeros(2 if dynamic else 1, window, 2)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    with warnings.catch_warnings():
        # Torch's own warnings: its exporter uses functions that torch deprecates.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (inputs,),
            path,
            dynamic_shapes=shapes,
            external_data=external,
            verbose=False,
            dynamo=True,
        )
    return path


def model_of(
    nodes: Sequence[NodeProto],
    shape: Shape = (1, 6, 2),
    outputs: Sequence[str] = ("y",),
    *,
    kind: int = TensorProto.FLOAT,
    held: Sequence[TensorProto] = (),
    opset: int = OPSET,
    more: Sequence[tuple[str, Shape, int]] = (),
    output_kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Return a model of the input ``x``, made by hand: no exporter has to run."""
    inputs = [
        helper.make_tensor_value_info(n, k, list(s)) for n, s, k in (("x", shape, kind), *more)
    ]
    output_infos = [helper.make_tensor_value_info(name, output_kind, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", inputs, output_infos, list(held))
    domains = {node.domain for node in nodes} - {""}
    opsets = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(domain, 1) for domain in sorted(domains)),
    ]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def constant(name: str, values: Any, dtype: Any = np.float32) -> TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(values, dtype), name)


def rows_of(
    horizon: int, shape: Shape = (1, 6, 2), kind: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """Return a model of the last value of each channel, `horizon` times, as (1, horizon,
    channels)."""
    nodes = [
        helper.make_node("Slice", ["x", "from", "to", "axis"], ["last"]),
        helper.make_node("Tile", ["last", "times"], ["y"]),
    ]
    held = [
        constant("from", [-1], np.int64), constant("to", [1 << 30], np.int64),
        constant("axis", [-2], np.int64),
        constant("times", [1] * (len(shape) - 2) + [horizon, 1], np.int64),
    ]  # fmt: skip
    return model_of(nodes, shape, kind=kind, held=held, output_kind=kind)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def outside(name: str, location: str, dims: Sequence[int]) -> TensorProto:
    """Return weights that are in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=list(dims))
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor
