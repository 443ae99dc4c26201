"""Level and slope of every channel, smoothed, and begun anew where it jumps."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.errors import ConfigError
from streamadapt.learners.compiled import CompiledLearner, Steps
from streamadapt.models.contract import Spec, TaskKind
from streamadapt.records import Array

__all__ = ["Holt"]

SIZE_RATE: Final = 0.02
"""How fast the running mean size of the one-step errors follows them."""
FEWEST: Final = 10
"""Entries before anything is called a jump."""


class HoltSettings(NamedTuple):
    """See `Holt`."""

    level: float
    trend: float
    damping: float
    jump: float


class HoltState(NamedTuple):
    """Per key: `state` (4, channels), the rows l, b, s and n of `Holt`; `seen` (), entries."""

    state: Array
    seen: Array


@compiled
def predict(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out_h = l + (phi + ... + phi^h) b`` of the state that the newest entry leads to."""
    _, rows, columns = out.shape
    for j in range(columns):
        level, slope, _, _ = after(p, s, key, x, j)
        power, reach = 1.0, 0.0
        for h in range(rows):
            power *= p.damping
            reach += power
            out[0, h, j] = level + reach * slope


@compiled
def adapt(c: Any, p: Any, s: Any, key: int, w: Any, x: Any) -> None:
    """Take the newest entry in."""
    for j in range(s.state.shape[2]):
        level, slope, size, run = after(p, s, key, x, j)
        s.state[key, 0, j], s.state[key, 1, j] = level, slope
        s.state[key, 2, j], s.state[key, 3, j] = size, run
    s.seen[key] += 1


@compiled
def after(p: Any, s: Any, key: int, x: Any, j: int) -> tuple[float, float, float, float]:
    """Return l, b, s and n of channel j, with the newest entry taken in."""
    value = np.float64(x.window[x.window.shape[0] - 1, j])
    level, slope = s.state[key, 0, j], p.damping * s.state[key, 1, j]
    size, run, seen = s.state[key, 2, j], s.state[key, 3, j], s.seen[key]
    if seen == 0:
        return value, s.state[key, 1, j], size, run
    error = value - level - slope
    bound = p.jump * size if seen > FEWEST and p.jump < math.inf else math.inf
    jumped = abs(error) > bound
    run = 0.0 if jumped else run + 1.0
    level += slope + max(p.level, 1.0 / (run + 1.0)) * error
    slope += 0.0 if jumped else p.trend * error
    size += max(SIZE_RATE, 1.0 / seen) * (min(abs(error), bound) - size)
    return level, slope, size, run


class Holt(CompiledLearner):
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
    steps = Steps(predict, adapt=adapt)

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
        self.level, self.trend = float(level), float(trend)
        self.damping, self.jump = float(damping), float(jump)

    @property
    def names(self) -> tuple[str, ...]:
        """``holt-0.5-0.05``: level and trend."""
        return (f"{self.kind}-{self.level:g}-{self.trend:g}",)

    def settings(self, spec: Spec) -> HoltSettings:
        """Return level, trend, damping and jump."""
        return HoltSettings(self.level, self.trend, self.damping, self.jump)

    def start(self, spec: Spec) -> HoltState:
        """Start with no entry seen."""
        return HoltState(np.zeros((4, spec.channels)), np.zeros((), np.int64))
