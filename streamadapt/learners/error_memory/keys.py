"""What an error memory looks entries up by: the base's embedding, the inputs, a channel's window,
the whole panel's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from streamadapt.learners.base import require_shape
from streamadapt.models.contract import BaseOutput, Spec

__all__ = ["ChannelKey", "EmbeddingKey", "InputsKey", "Key", "PanelKey"]

NS = 1e9
SHORTEST = 1e-100
OLDEST = 0.3
"""Weight of the oldest step of a channel's window; it grows evenly to 1 at the newest."""
LEVEL = 0.7
"""Weight of a channel's newest value beside the shape of its window."""
LAGS = (1, 3, 6)
"""Steps over which a panel's changes are looked at."""
CHANGE = 1.5
"""Weight of a panel's changes, and of the time of day, beside its values."""
MOST_DIRECTIONS = 64
"""A panel of more channels is looked at in so many random directions."""
WORTH = 8
"""A panel's values weigh as much as so many channels do, however many it has."""


class Key(nn.Module, ABC):
    """Turns one entry into a key per group.

    Attributes
    ----------
    groups, features : int
        Keys are (groups, features), float64.
    """

    groups: int
    features: int

    @abstractmethod
    def forward(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the key."""


class EmbeddingKey(Key):
    """The base's embedding, at length one; an embedding of zeros stays one."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        assert spec.embedding is not None
        self.groups, self.features = 1, spec.embedding

    def forward(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return (1, embedding)."""
        del inputs
        assert base.embedding is not None
        require_shape("base.embedding", base.embedding, (self.features,))
        return _normalised(base.embedding.double().unsqueeze(0))


class InputsKey(Key):
    """The scaled window and a 1, at length one.

    The 1 makes the angle between two keys tell the size of the inputs and not only their
    direction.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.groups, self.features = 1, spec.window * spec.channels + 1

    def forward(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return (1, window * channels + 1)."""
        del base
        return _normalised(_with_one(_scaled(inputs, self.spec).reshape(1, -1)))


class ChannelKey(Key):
    """The recent window of each channel by itself.

    With Z the scaled values, t the newest step and m = `length`: ``w_i (Z_{t-i} - Z_t)`` for i =
    m-1..1, w rising evenly from `OLDEST` to 1 at i = 0; ``LEVEL Z_t``; sine and cosine of the time
    of day; a 1 where `one`.

    Parameters
    ----------
    length : int
        Steps of the window, <= spec.window.
    period : float, seconds
        A day, or what takes its place.
    one : bool
        Whether a constant follows: hyperplanes through the origin then cut the other features
        anywhere.
    """

    def __init__(self, spec: Spec, *, length: int, period: float, one: bool) -> None:
        super().__init__()
        self.spec, self.length, self.period, self.one = spec, length, period, one
        self.groups, self.features = spec.channels, length + 2 + one
        self._weights = torch.linspace(
            OLDEST, 1.0, length, dtype=torch.float64, device=spec.device
        )[:-1, None]

    def forward(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return (channels, length + 2), or one more."""
        recent = _scaled(inputs, self.spec)[-self.length :]  # (length, channels)
        last = recent[-1:]
        phase = (
            _phase(base.times, self.period, self.spec.device).unsqueeze(1).expand(2, self.groups)
        )
        key = torch.cat([self._weights * (recent[:-1] - last), LEVEL * last, phase]).T
        return _with_one(key) if self.one else key


class PanelKey(Key):
    """The newest values of all channels, their changes and the time of day: one key for the whole
    panel.

    With g_t the scaled values in m directions, times ``sqrt(min(WORTH, channels) / m)``: g_t,
    ``CHANGE (g_t - g_{t-l})`` for each of `LAGS` that the window holds, and `CHANGE` times sine
    and cosine of the time of day; a 1 where `one`. The directions are the channels themselves, and
    above `MOST_DIRECTIONS` channels as many random orthogonal ones: principal components would
    need a history, which no learner is given.

    Parameters are those of `ChannelKey`.
    """

    directions: Tensor | None

    def __init__(self, spec: Spec, *, period: float, one: bool) -> None:
        super().__init__()
        self.spec, self.period, self.one = spec, period, one
        self.lags = [lag for lag in LAGS if lag < spec.window]
        m = min(spec.channels, MOST_DIRECTIONS)
        self.groups, self.features = 1, m * (1 + len(self.lags)) + 2 + one
        self.scale = math.sqrt(min(WORTH, spec.channels) / m)
        directions = None
        if spec.channels > m:
            drawn = torch.randn(spec.channels, m, generator=spec.generator(), dtype=torch.float64)
            directions = torch.linalg.qr(drawn).Q.to(spec.device)
        self.register_buffer("directions", directions)

    def forward(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return (1, features)."""
        recent = self.scale * _scaled(inputs, self.spec)[-1 - max(self.lags, default=0) :]
        if self.directions is not None:
            recent = recent @ self.directions
        now = recent[-1]
        changes = [CHANGE * (now - recent[-1 - lag]) for lag in self.lags]
        key = torch.cat(
            [now, *changes, CHANGE * _phase(base.times, self.period, self.spec.device)]
        ).unsqueeze(0)
        return _with_one(key) if self.one else key


def _scaled(inputs: Tensor, spec: Spec) -> Tensor:
    require_shape("inputs", inputs, (spec.window, spec.channels))
    return ((inputs - spec.input_loc) / spec.input_scale).double()


def _with_one(key: Tensor) -> Tensor:
    return torch.cat([key, key.new_ones(len(key), 1)], dim=1)


def _normalised(key: Tensor) -> Tensor:
    unit: Tensor = key / torch.linalg.vector_norm(key, dim=1, keepdim=True).clamp_min(SHORTEST)
    return unit


def _phase(times: Tensor | None, period: float, device: torch.device) -> Tensor:
    """Sine and cosine of the newest event time within its period, (2,), float64; 0 where there are
    no times."""
    if times is None:
        return torch.zeros(2, dtype=torch.float64, device=device)
    nanoseconds = round(period * NS)
    phase = torch.remainder(times[-1], nanoseconds).double() * (2.0 * math.pi / nanoseconds)
    return torch.stack([phase.sin(), phase.cos()])
