"""Read source samples: inputs of the data that the base was trained on, without labels."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Final

import numpy as np
import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.files import open_regular, read_most
from streamadapt.models.contract import Spec
from streamadapt.models.weights import read_tensors

__all__ = ["source_samples"]

NAME: Final = "inputs"
MAX_BYTES: Final = 1 << 32
"""The largest array of source samples that is read: 4 GiB."""


def source_samples(path: str, source: Path | Tensor, spec: Spec, least: int) -> Tensor:
    """Return source samples as a tensor (samples, window, channels), float32, on the spec's
    device.

    Parameters
    ----------
    path : str
        The setting's name, for errors.
    source : Path or Tensor
        The samples, or a file of them: ``.npy`` (one array), ``.npz`` or ``.safetensors`` (an
        array called ``inputs``); nothing is unpickled. Shape (samples, window, channels), or
        (samples, channels) if the window is 1; original units; in any order.
    least : int
        The smallest number of samples.

    Raises
    ------
    ConfigError
        If the file cannot be read, or has other contents.
    """
    shape = (spec.window, spec.channels)
    expected = f"(samples, {shape[0]}, {shape[1]}) finite numbers, {least} samples or more"
    tensor = source if isinstance(source, Tensor) else _read(path, Path(source))
    name = (
        f"{tuple(tensor.shape)} numbers"
        if isinstance(source, Tensor)
        else f"{source}: {tuple(tensor.shape)}"
    )
    if spec.window == 1 and tensor.ndim == 2:
        tensor = tensor.unsqueeze(1)
    if tensor.ndim != 3 or tuple(tensor.shape[1:]) != shape or len(tensor) < least:
        raise ConfigError(path, name, expected)
    tensor = tensor.to(device=spec.device, dtype=torch.float32)
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError(path, name, expected)
    return tensor


def _read(path: str, file: Path) -> Tensor:
    try:
        if file.suffix == ".safetensors":
            return read_tensors(file, path, finite=False)[0][NAME]
        if file.suffix == ".npz":
            with open_regular(file) as opened, zipfile.ZipFile(opened) as archive:
                names = [member.filename for member in archive.infolist()]
                if names.count(f"{NAME}.npy") > 1:
                    raise ValueError(f"{NAME}.npy occurs twice")
                with archive.open(f"{NAME}.npy") as member:
                    return _array(member)
        if file.suffix == ".npy":
            with open_regular(file) as opened:
                return _array(opened)
    except KeyError:
        raise ConfigError(path, str(file), f"a file with an array called {NAME}") from None
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as exc:
        raise ConfigError(path, str(file), f"a readable file of source samples ({exc})") from exc
    raise ConfigError(path, str(file), "a .npy, .npz or .safetensors file")


def _array(file: IO[bytes]) -> Tensor:
    """Read one array after a check of its type and size, since a compressed file may expand to a
    thousand times its size."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # 3 differs only for field names that are not Latin-1
        raise ValueError(f"version {version} of the format")
    header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, kind = header(file)
    if kind.kind not in "biuf":
        raise ValueError(f"an array of {kind}")
    size = math.prod(shape) * kind.itemsize
    if size > MAX_BYTES or min(shape, default=0) < 0:
        raise ValueError(f"an array of {shape}, {size} bytes; at most {MAX_BYTES} bytes are read")
    data = read_most(file, size)
    if len(data) < size:
        raise ValueError(f"the array ends after {len(data)} of {size} bytes")
    array = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.array(array, np.float32))
