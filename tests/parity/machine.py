"""What the bits of a result may depend on besides the code."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

LIBRARIES = ("torch", "numpy", "river", "scipy")


def machine() -> dict[str, str]:
    """Return processor, Python and libraries."""
    return {
        "processor": _processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    """Return the name of the processor; torch's and numpy's libraries choose their code by it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
