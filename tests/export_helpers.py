"""Exported programs for tests."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn


def save(model: nn.Module, path: Path, *, form: str = "static", window: int = 6) -> Path:
    batch = 3 if form == "dynamic" else 1
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if form == "dynamic" else None
    with warnings.catch_warnings():
        # torch's own: its serialisers use what other parts of it deprecate.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="The tensor attributes .* were assigned", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*enable_nested_tensor.*", category=UserWarning)
        program = torch.export.export(model, (torch.ones(batch, window, 2),), dynamic_shapes=shapes)
        torch.export.save(program.run_decompositions() if form == "decomposed" else program, path)
    return path
