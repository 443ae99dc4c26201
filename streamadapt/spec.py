"""Making the `Spec` that learners are built with, and saving it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamadapt.base import Base
from streamadapt.learners.base import Spec
from streamadapt.losses import Array
from streamadapt.tasks import Task, Window

__all__ = ["rescaled", "spec_from_state", "spec_state", "spec_with_scaling"]

_NUMBERS = ("kind", "window", "channels", "rows", "columns", "seed", "embedding")
_SCALING = ("input_loc", "input_scale", "output_loc", "output_scale")


def spec_with_scaling(task: Task, window: Window, base: Base, columns: int, device: torch.device, seed: int) -> Spec:
    """Make the spec from the first full window; what the base shows is not known yet.

    The scaling is the base's own where it has one; otherwise it is taken from the first window (outputs of supervised
    tasks, of which nothing is known yet, are left in their own unit).
    """
    values = window.values
    loc, std = values.mean(axis=0), values.std(axis=0)
    scale = np.where(std > 1e-6 * (1.0 + np.abs(loc)), std, 1.0).astype(np.float32)
    forecast = task.kind == "forecast"
    fallback = {
        "input_loc": torch.from_numpy(loc),
        "input_scale": torch.from_numpy(scale),
        "output_loc": torch.from_numpy(loc) if forecast else torch.zeros(columns),
        "output_scale": torch.from_numpy(scale) if forecast else torch.ones(columns),
    }
    scaling = {name: _or(getattr(base, name), fallback[name]).to(device) for name in _SCALING}
    if task.kind == "classification":
        scaling["output_loc"], scaling["output_scale"] = (
            t.to(device) for t in (torch.zeros(columns), torch.ones(columns))
        )
    return Spec(
        task.kind, values.shape[0], values.shape[1], task.rows, columns, **scaling, device=device, seed=seed,
        prior=base.prior(), embedding=None, model=base,
    )  # fmt: skip


def rescaled(spec: Spec, scaling: Mapping[str, Array]) -> Spec:
    """Return a spec with other locations and scales, of some of `_SCALING`, in original units."""
    found: dict[str, Any] = {name: torch.from_numpy(values).float().to(spec.device) for name, values in scaling.items()}
    return replace(spec, **found)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    return other if tensor is None else tensor.float()


def spec_state(spec: Spec) -> dict[str, Any]:
    """Return what must be saved: shapes and scaling."""
    numbers = {name: getattr(spec, name) for name in _NUMBERS}
    return numbers | {name: getattr(spec, name).clone() for name in _SCALING}


def spec_from_state(state: dict[str, Any], device: torch.device, base: Base) -> Spec:
    """Make the spec again on `device`."""
    numbers = {name: state[name] for name in _NUMBERS}
    scaling = {name: state[name].to(device) for name in _SCALING}
    return Spec(**numbers, **scaling, device=device, prior=base.prior(), model=base)
