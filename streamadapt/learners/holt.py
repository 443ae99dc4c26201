"""Level and slope of every channel, smoothed, and begun anew where it jumps."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner
from streamadapt.models.contract import BaseOutput, Spec, TaskKind

__all__ = ["Holt"]

SIZE_RATE = 0.02
"""How fast the running mean size of the one-step errors follows them."""
FEWEST = 10
"""Entries before anything is called a jump."""


class _State(NamedTuple):
    """Of every channel, (channels,) each, float64; see `Holt` for the letters."""

    level: Tensor  # l
    slope: Tensor  # b
    size: Tensor  # s
    run: Tensor  # n


class Holt(Learner):
    """Holt's linear method with a damped slope [1]_, its level begun anew at a jump; it knows
    nothing of the base.

    With every entry Z, per channel, in error-correction form::

        e = Z - l - phi b,         a jump:  |e| > jump s
        l <- l + phi b + max(level, 1 / (n + 1)) e,   n entries since the last jump (a jump: l = Z)
        b <- phi b + trend e       (a jump: phi b)
        s <- s + .02 (min(|e|, jump s) - s)           (the mean, while entries are few)
        prediction_h = l + (phi + ... + phi^h) b

    Between jumps it is smoother than the last value and follows a slope; after one it is the last
    value at once, while whatever looks at a window of entries has the jump within it for as long.
    It learns from the entries alone: `learn` does nothing. A step is an entry, whatever time
    passed.

    Costs O(rows x channels) time per entry, 4 channels + 1 numbers.

    Parameters
    ----------
    level : float, in (0, 1]
        Share of the error that goes into the level: 1 is the last value.
    trend : float, in [0, 1]
        Share that goes into the slope, at most `level`.
    damping : float, in (0, 1]
        What is left of the slope after each step of the forecast: 1 is a straight line.
    jump : float, > 1
        Errors beyond so many times their mean size are jumps; ``inf`` for none.

    References
    ----------
    .. [1] Hyndman & Athanasopoulos (2021), Forecasting: principles and practice, sections 8.2 and
       8.5.

    Examples
    --------
    >>> Holt(level=0.3).names
    ('holt-0.3-0.05',)
    """

    kind: ClassVar[str] = "holt"
    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"forecast"})
    needs_labels: ClassVar[bool] = False
    state: Tensor
    seen: Tensor

    def __init__(
        self, level: float = 0.5, trend: float = 0.05, *, damping: float = 0.98, jump: float = 8.0
    ) -> None:
        super().__init__()
        for name, value in (("level", level), ("damping", damping)):
            if not 0.0 < value <= 1.0:
                raise ConfigError(name, value, "a number in (0, 1]")
        if not 0.0 <= trend <= level:
            raise ConfigError("trend", trend, f"a number from 0 to the level's {level:g}")
        if not jump > 1.0:
            raise ConfigError("jump", jump, "a number > 1")
        self.level, self.trend, self.damping, self.jump = level, trend, damping, jump

    @property
    def names(self) -> tuple[str, ...]:
        """``holt-0.5-0.05``: level and trend."""
        return (f"{self.kind}-{self.level:g}-{self.trend:g}",)

    def allocate(self, spec: Spec) -> None:
        """Start with no entry seen."""
        self.register_buffer(
            "state", torch.zeros(4, spec.channels, dtype=torch.float64, device=spec.device)
        )
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64, device=spec.device))
        steps = torch.arange(1, spec.rows + 1, dtype=torch.float64, device=spec.device)
        self._reach = torch.cumsum(self.damping**steps, 0).unsqueeze(1)  # (rows, 1)

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Continue the line."""
        del base
        now = self._after(inputs[-1])
        return (now.level + self._reach * now.slope).float()

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Nothing: targets are entries, and `adapt` sees those."""

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        """Take the newest entry in."""
        del base
        self.state.copy_(torch.stack(self._after(inputs[-1])))
        self.seen.add_(1)

    def _after(self, newest: Tensor) -> _State:
        """Return the state that `newest` (channels,) leads to."""
        seen = int(self.seen)
        newest = newest.double()
        was = _State(*self.state)
        if seen == 0:
            return _State(newest, was.slope, was.size, was.run)
        slope = self.damping * was.slope
        error = newest - was.level - slope
        bound = self.jump * was.size if seen > FEWEST else torch.full_like(was.size, torch.inf)
        jumped = error.abs() > bound
        run = torch.where(jumped, 0.0, was.run + 1.0)
        level = was.level + slope + error * torch.clamp_min(1.0 / (run + 1.0), self.level)
        slope = slope + torch.where(jumped, 0.0, self.trend * error)
        size = was.size + max(SIZE_RATE, 1.0 / seen) * (
            torch.minimum(error.abs(), bound) - was.size
        )
        return _State(level, slope, size, run)
