"""The device of tensors: CPU or GPU."""

from __future__ import annotations

import torch

from streamadapt.errors import ConfigError

__all__ = ["is_fatal", "resolve_device"]

GPU_FROM_CELLS = 20_000
"""The number of output cells from which ``auto`` takes a GPU. For fewer cells a step is many tiny
kernels, and launching them costs more than the computation on a CPU core."""


def resolve_device(wanted: str | torch.device, *, cells: int) -> torch.device:
    """Return the device for an output of `cells` numbers.

    Raises
    ------
    ConfigError
        If `wanted` is no device, or is a CUDA device that this machine does not have.
    """
    if isinstance(wanted, str) and wanted == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() and cells >= GPU_FROM_CELLS else "cpu"
        )
    try:
        device = torch.device(wanted)
    except RuntimeError as exc:
        raise ConfigError("device", wanted, "auto, cpu, cuda or cuda:N") from exc
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", str(wanted), "cpu or auto: this machine has no CUDA device")
    return device


def is_fatal(error: Exception) -> bool:
    """Whether an error is a fault of the machine, not of the part that raised it; such an error
    ends the run."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError)
