"""Make the `Spec` that learners are built with, and save it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamadapt.models.contract import Base, Spec
from streamadapt.models.origin import column_origin, less_origin, too_coarse
from streamadapt.records import Array, FloatArray
from streamadapt.tasks import Task, Window

__all__ = ["original_scaling", "rescaled", "spec_from_state", "spec_state", "spec_with_scaling"]

_NUMBERS = ("kind", "window", "channels", "rows", "columns", "seed", "embedding")
_SCALING = ("input_loc", "input_scale", "output_loc", "output_scale")
_ORIGINS = ("input_origin", "output_origin")
CHANGE = 1.0 / 128.0
"""The assumed change of a channel, as a share of its standard deviation, if only that is known: a
running total changes far less than its standard deviation."""


def spec_with_scaling(
    task: Task, window: Window, base: Base, columns: int, device: torch.device, seed: int
) -> Spec:
    """Make the spec from the first full window; the base's embedding is not known yet.

    The scaling is the base's own if it has one; otherwise it is computed from the first window
    (outputs of supervised tasks are not known yet and keep their unit). Locations are less the
    origin.
    """
    origin, output_origin = _origins(task, window, base)
    values = less_origin(window.values, origin)
    loc, std = _moments(values)
    scale = np.where(std > 1e-6 * (1.0 + np.abs(loc)), std, 1.0).astype(np.float32)
    forecast = task.kind == "forecast"
    fallback = {
        "input_loc": torch.from_numpy(loc),
        "input_scale": torch.from_numpy(scale),
        "output_loc": torch.from_numpy(loc)
        if forecast
        else torch.zeros(columns, dtype=torch.float32),
        "output_scale": torch.from_numpy(scale)
        if forecast
        else torch.ones(columns, dtype=torch.float32),
    }
    less = {"input_loc": origin, "output_loc": output_origin}
    scaling = {
        name: _or(getattr(base, name), fallback[name], less.get(name)).to(device)
        for name in _SCALING
    }
    if task.kind == "classification":
        scaling["output_loc"], scaling["output_scale"] = (
            make(columns, dtype=torch.float32, device=device) for make in (torch.zeros, torch.ones)
        )
    return Spec(
        task.kind, values.shape[0], values.shape[1], task.rows, columns, **scaling, device=device,
        seed=seed, prior=base.prior(), embedding=None, model=base,
        input_origin=_tensor(origin, device), output_origin=_tensor(output_origin, device),
    )  # fmt: skip


def rescaled(spec: Spec, scaling: Mapping[str, Array]) -> Spec:
    """Return a spec with other locations and scales, of some of `_SCALING`, in original units;
    origins stay."""
    found: dict[str, Any] = {}
    for name, values in scaling.items():
        origin = {"input_loc": spec.input_origin, "output_loc": spec.output_origin}.get(name)
        less = values if origin is None else values - origin.cpu().numpy()
        found[name] = torch.from_numpy(less.astype(np.float32)).to(spec.device)
    return replace(spec, **found)


def original_scaling(spec: Spec) -> dict[str, Array]:
    """Return a spec's locations and scales, float64, in original units."""
    found = {name: getattr(spec, name).cpu().double().numpy() for name in _SCALING}
    for name, origin in (("input_loc", spec.input_origin), ("output_loc", spec.output_origin)):
        if origin is not None:
            found[name] = found[name] + origin.cpu().numpy()
    return found


def _moments(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return mean and standard deviation of each column, finite for all finite values."""
    with np.errstate(over="ignore", invalid="ignore"):
        loc, std = values.mean(axis=0), values.std(axis=0)
    if np.isfinite(loc).all() and np.isfinite(std).all():
        return loc, std
    wide = values.astype(np.float64)  # the squares of large numbers overflow float32
    return wide.mean(axis=0).astype(np.float32), wide.std(axis=0).astype(np.float32)


def _origins(task: Task, window: Window, base: Base) -> tuple[Array | None, Array | None]:
    """Return the origins of inputs and outputs; None if all are 0, and for classes.

    Learners of classes adapt the base's own module, which takes float32 in original units.
    """
    if task.kind == "classification":
        return None, None
    unit = None if base.input_scale is None else base.input_scale.cpu().double().numpy() * CHANGE
    inputs = column_origin(window.values, unit)
    if task.kind == "forecast":
        outputs = inputs
    elif base.output_loc is None or base.output_scale is None:
        # the first label tells it, see `streamadapt.models.origin.agreed_origin`
        return _unless_zero(inputs), None
    else:
        loc, scale = (t.cpu().double().numpy() for t in (base.output_loc, base.output_scale))
        outputs = np.where(too_coarse(loc, scale * CHANGE), loc, 0.0)
    return _unless_zero(inputs), _unless_zero(outputs)


def _unless_zero(origin: Array) -> Array | None:
    return origin if origin.any() else None


def _tensor(origin: Array | None, device: torch.device) -> Tensor | None:
    return None if origin is None else torch.from_numpy(origin).to(device)


def _or(tensor: Tensor | None, other: Tensor, origin: Array | None) -> Tensor:
    if tensor is None:
        return other
    return (
        tensor.float()
        if origin is None
        else (tensor.double().cpu() - torch.from_numpy(origin)).float()
    )


def spec_state(spec: Spec) -> dict[str, Any]:
    """Return the saved form of a spec: shapes and scaling."""
    numbers = {name: getattr(spec, name) for name in _NUMBERS}
    origins = {
        name: tensor.clone() for name in _ORIGINS if (tensor := getattr(spec, name)) is not None
    }
    return numbers | {name: getattr(spec, name).clone() for name in _SCALING} | origins


def spec_from_state(state: dict[str, Any], device: torch.device, base: Base) -> Spec:
    """Make the spec from its saved form, on `device`."""
    numbers = {name: state[name] for name in _NUMBERS}
    scaling = {name: state[name].to(device) for name in _SCALING}
    origins = {name: state[name].to(device) for name in _ORIGINS if state.get(name) is not None}
    return Spec(**numbers, **scaling, **origins, device=device, prior=base.prior(), model=base)
