"""Reading a file of source samples: what the base was trained on, without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.base import Spec

__all__ = ["source_samples"]

NAME = "inputs"


def source_samples(path: str, source: Path | Tensor, spec: Spec, least: int) -> Tensor:
    """Return source samples as a tensor (samples, window, channels), float32, on the spec's device.

    Parameters
    ----------
    path : str
        The setting's name, for errors.
    source : Path or Tensor
        The samples, or a file of them: ``.npy`` (one array), ``.npz`` or ``.safetensors`` (an array called
        ``inputs``); nothing is unpickled. Shape (samples, window, channels), or (samples, channels) where the window
        is 1; original units; in no order.
    least : int
        How many there must be.

    Raises
    ------
    ConfigError
        If the file cannot be read, or holds something else.
    """
    shape = (spec.window, spec.channels)
    wanted = f"(samples, {shape[0]}, {shape[1]}) finite numbers, {least} samples or more"
    tensor = source if isinstance(source, Tensor) else _read(path, Path(source))
    name = f"{tuple(tensor.shape)} numbers" if isinstance(source, Tensor) else f"{source}: {tuple(tensor.shape)}"
    if spec.window == 1 and tensor.ndim == 2:
        tensor = tensor.unsqueeze(1)
    if tensor.ndim != 3 or tuple(tensor.shape[1:]) != shape or len(tensor) < least:
        raise ConfigError(path, name, wanted)
    tensor = tensor.to(device=spec.device, dtype=torch.float32)
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError(path, name, wanted)
    return tensor


def _read(path: str, file: Path) -> Tensor:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)[NAME]
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return torch.from_numpy(np.asarray(arrays[NAME], np.float32))
        if file.suffix == ".npy":
            return torch.from_numpy(np.asarray(np.load(file, allow_pickle=False), np.float32))
    except KeyError:
        raise ConfigError(path, str(file), f"a file with an array called {NAME}") from None
    except (OSError, ValueError, EOFError, SafetensorError) as exc:
        raise ConfigError(path, str(file), f"a readable file of source samples ({exc})") from exc
    raise ConfigError(path, str(file), "a .npy, .npz or .safetensors file")
