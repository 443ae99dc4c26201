"""Shared by the tests of the liquid learner: a stream with uneven times, and sizes with different
scales."""

from __future__ import annotations

from typing import Any

import torch
from core_helpers import base, spec_of
from torch import Tensor

from streamadapt.learners import BaseOutput, Spec
from streamadapt.learners.liquid.learner import Network

CPU = torch.device("cpu")
SECOND = 10**9
SMALL = Network(backbone=(6,))


def stream(n: int, window: int, channels: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return windows and the event times of their entries, unevenly spaced."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(n + window - 1, channels, generator=g)
    times = (torch.rand(n + window - 1, generator=g, dtype=torch.float64) * 3.0 + 0.2).cumsum(0)
    stamps = (times * SECOND).long()
    return [(values[i : i + window].clone(), stamps[i : i + window].clone()) for i in range(n)]


def base_output_at(times: Tensor | None, output: Tensor) -> BaseOutput:
    return base(output)._replace(times=times)


def scaled_spec(
    kind: Any = "regression", window: int = 3, rows: int = 1, columns: int = 2
) -> Spec:
    s = spec_of(kind, window, 2, rows, columns)
    numbers = torch.arange(2.0)
    return Spec(
        kind, window, 2, rows, columns, 1.0 + numbers, 2.0 + numbers,
        3.0 - torch.arange(float(columns)), 0.5 + torch.arange(float(columns)), s.device, 5,
    )  # fmt: skip
