"""Scaling for a base that has none of its own: from a file that ``streamadapt fit`` wrote, or from
the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.models.builtin import Linear
from streamadapt.models.contract import Base, TaskKind
from streamadapt.models.fit import scaling_of
from streamadapt.models.weights import check_fitted, read_tensors
from streamadapt.records import Batch

__all__ = ["Scaling", "give_scaling"]

FORMAT = "streamadapt-scaling-1"
_INPUTS, _OUTPUTS = ("input_loc", "input_scale"), ("output_loc", "output_scale")
_NAMES = (*_INPUTS, *_OUTPUTS)


def give_scaling(base: Base, given: Any, kind: TaskKind, channels: int | None = None) -> None:
    """Set the scaling of a base to the value of ``base.scaling``.

    Parameters
    ----------
    base : Base
        A base without a scaling of its own.
    given : str or mapping
        A file that `Scaling.save` wrote, or a table of lists of numbers: ``input_loc`` and
        ``input_scale`` with one for each channel, ``output_loc`` and ``output_scale`` with one for
        each output of a regression.
    channels : int, optional
        The number of channels of an entry, if it is known.

    Raises
    ------
    ConfigError
        If the file or the table lacks one of these or has others, or the base has a scaling.
    """
    if isinstance(base, Linear):
        raise ConfigError(
            "base.scaling", given, "no such key here: a linear base has the scaling of its fit"
        )
    tensors = _tensors(given)
    _check_names(tensors)
    for loc, scale in (_INPUTS, _OUTPUTS):
        if scale in tensors:
            _check_pair(loc, tensors[loc], scale, tensors[scale])
    if channels not in (None, len(tensors["input_scale"])):
        raise ConfigError(
            "base.scaling",
            len(tensors["input_scale"]),
            f"{channels} channels, as fields.values has",
        )
    if kind == "forecast":  # a forecast predicts the inputs
        tensors |= {out: tensors[of] for out, of in zip(_OUTPUTS, _INPUTS, strict=True)}
    for name, tensor in tensors.items():
        setattr(base, name, tensor)


def _tensors(given: Any) -> dict[str, Tensor]:
    """Return the tensors of a file or a table, by name."""
    if isinstance(given, str):
        check_fitted(Path(given), "base.scaling")
        tensors, metadata = read_tensors(Path(given), "base.scaling")
        if metadata.get("format") != FORMAT:
            raise ConfigError(
                "base.scaling",
                given,
                "a file that streamadapt fit wrote for a base that is not linear",
            )
        return tensors
    if isinstance(given, Mapping):
        return {
            str(name): _numbers(f"base.scaling.{name}", numbers) for name, numbers in given.items()
        }
    raise ConfigError(
        "base.scaling", given, "a file's name, or a table with input_loc and input_scale"
    )


def _check_names(tensors: Mapping[str, Tensor]) -> None:
    """Raise `ConfigError` unless there are both of the inputs, and both or none of the
    outputs."""
    names = set(tensors)
    if names not in (set(_INPUTS), set(_NAMES)):
        raise ConfigError(
            "base.scaling",
            sorted(names),
            "input_loc and input_scale, or these and both of the outputs",
        )


def _check_pair(loc: str, locs: Tensor, scale: str, scales: Tensor) -> None:
    """Raise `ConfigError` unless there is one scale above 0 for each location."""
    if locs.shape != scales.shape or scales.ndim != 1:
        raise ConfigError(
            f"base.scaling.{scale}", list(scales.shape), f"as many numbers as {loc} has"
        )
    if not bool((scales > 0.0).all()):
        raise ConfigError(f"base.scaling.{scale}", scales.tolist()[:8], "numbers > 0")


def _numbers(path: str, given: Any) -> Tensor:
    if (
        not isinstance(given, Sequence)
        or isinstance(given, str)
        or not given
        or not all(
            isinstance(number, int | float) and not isinstance(number, bool) for number in given
        )
    ):
        raise ConfigError(path, given, "a list of numbers")
    tensor = torch.tensor([float(number) for number in given], dtype=torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError(path, given, "finite numbers")
    return tensor


class Scaling:
    """The scaling of a history: mean and standard deviation of each channel, and of a regression's
    labels.

    Parameters
    ----------
    batch : Batch
    kind : {"forecast", "regression", "classification"}

    Raises
    ------
    ConfigError
        If a column has no value, or an infinite value.
    """

    def __init__(self, batch: Batch, kind: TaskKind) -> None:
        loc, scale = scaling_of(batch.values)
        self.tensors = {"input_loc": loc, "input_scale": scale}
        if kind == "regression":
            if batch.labels is None:
                raise ConfigError("history", "no labels", "a label column")
            self.tensors |= dict(zip(_OUTPUTS, scaling_of(batch.labels), strict=True))

    def save(self, file: Path) -> None:
        """Write the scaling as a safetensors file, for `give_scaling`."""
        save_file(self.tensors, file, {"format": FORMAT})
