"""What recursive least squares regresses on: the window, and what else it was asked to look at."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from streamadapt.learners.base import require_shape
from streamadapt.models.contract import BaseOutput, Spec
from streamadapt.models.features import feature_count, linear_features

__all__ = ["EXTRAS", "Extra", "Features"]

FEATURE_LIMIT = 1e4
"""Scaled inputs are clipped here: beyond it one outlier would leave P no digits for the other
directions."""
DAY_NS = 86_400_000_000_000
MOST_CHANNELS = 50
"""A panel of at least so many channels is seen through its mean, a smaller one channel by
channel."""
EXTRA_SCALE = 0.01
"""What is looked at beyond the window is scaled by this, so that the ridge weighs ten thousand
times more on it: no history is known for it, and a guess from the first entries would do harm."""
PANEL_LAGS, MEAN_LAGS = (1, 3), (3, 9)
"""How many entries ago the differences start: those of all channels, those of a large panel's
mean."""

Extra = Literal["level", "calendar", "cross", "season"]
EXTRAS: tuple[Extra, ...] = get_args(Extra)


class Features:
    """Turns a window into the rows x that a learner's weights are applied to; it has no state.

    First what the linear bases are fitted on (`streamadapt.models.features.linear_features`, the
    constant its last), so that their statistics are the leading block of ours; then, in this
    order:

    * the base's probabilities, the last class left out (classification): what a wrong base is
      unlearned by;
    * ``level``, forecasts: the channel's own last value, which the plain features leave out;
    * ``calendar``: sine and cosine of one and two turns a day (UTC) of the newest entry's event
      time;
    * ``cross``, forecasts: of every channel the last value and its change over one and over three
      entries. From `MOST_CHANNELS` channels on: the mean of all channels times the square root of
      their number (their first principal component, where all move together), its change over
      three and over nine entries, and the channel's own last value. Changes over more entries than
      the window holds are left out;
    * ``season``, forecasts: what the channel did one period ago, Z_{t-S+h} - Z_{t-S} for every
      step h of the horizon, and Z_{t-S} - Z_t; zeros where that was not seen. For windows shorter
      than a period.

    Parameters
    ----------
    spec : Spec
    extras : tuple of {"level", "calendar", "cross", "season"}

    Attributes
    ----------
    plain, count : int
        How many features stand in the leading block, and in all.
    """

    def __init__(self, spec: Spec, extras: tuple[Extra, ...]) -> None:
        self.spec = spec
        self.forecast = spec.kind == "forecast"
        self.extras = extras
        self.plain = feature_count(spec.window, spec.channels, forecast=self.forecast)
        lags = MEAN_LAGS if spec.channels >= MOST_CHANNELS else PANEL_LAGS
        self._lags = [lag for lag in lags if lag < spec.window]
        sees_base = spec.kind == "classification"
        self._bare = not extras and not sees_base
        self.count = (
            self.plain + (spec.columns - 1 if sees_base else 0) + sum(map(self._width, extras))
        )
        groups = spec.columns if self.forecast else 1
        self._one = torch.ones(groups, 1, dtype=torch.float32, device=spec.device)

    def _width(self, extra: Extra) -> int:
        if extra == "calendar":
            return 4
        if extra == "season":
            return self.spec.rows + 1
        if extra == "level":
            return 0 if "cross" in self.extras else 1  # which has it already
        panel = self.spec.channels < MOST_CHANNELS
        return (1 + len(self._lags)) * (self.spec.channels if panel else 1) + (0 if panel else 1)

    def __call__(self, inputs: Tensor, base: BaseOutput, season: Tensor | None = None) -> Tensor:
        """Return x, (groups, count), float64; a group is a channel of a forecast, or all there is.

        `season` is what `season` returned for this entry.
        """
        spec = self.spec
        require_shape("inputs", inputs, (spec.window, spec.channels))
        scaled = (
            torch.sub(inputs, spec.input_loc)
            .div_(spec.input_scale)
            .clamp_(-FEATURE_LIMIT, FEATURE_LIMIT)
        )
        if self._bare:
            return linear_features(scaled, forecast=self.forecast).double()
        parts = [linear_features(scaled, forecast=self.forecast)]
        if spec.kind == "classification":
            parts.append(base.output[:, :-1])
        groups = len(parts[0])
        for extra in self.extras:
            if extra == "calendar":
                parts.append(self._calendar(base).expand(groups, -1))
            elif extra == "cross":
                parts += self._cross(scaled * EXTRA_SCALE, groups)
            elif extra == "season":
                assert season is not None
                parts.append(season)
            elif "cross" not in self.extras:
                parts.append((scaled[-1] * EXTRA_SCALE).unsqueeze(1))
        return torch.cat(parts, dim=1).double()

    def season(self, newest: Tensor, ago: Tensor | None) -> Tensor:
        """Return the ``season`` features (channels, rows + 1) of an entry.

        `newest` is its values (channels,), `ago` is Z_{t-S} and what followed, (1 + rows,
        channels), or None.
        """
        spec = self.spec
        if ago is None:
            return torch.zeros(
                spec.channels, spec.rows + 1, dtype=torch.float32, device=spec.device
            )
        changes = torch.cat([ago[1:] - ago[0], (ago[0] - newest).unsqueeze(0)]) / spec.input_scale
        return changes.T * EXTRA_SCALE

    def _calendar(self, base: BaseOutput) -> Tensor:
        time = 0 if base.times is None else int(base.times[-1])
        turn = 2.0 * math.pi * (time % DAY_NS) / DAY_NS
        waves = (math.sin(turn), math.cos(turn), math.sin(2.0 * turn), math.cos(2.0 * turn))
        return torch.tensor(
            [wave * EXTRA_SCALE for wave in waves], dtype=torch.float32, device=self.spec.device
        )

    def _cross(self, scaled: Tensor, groups: int) -> list[Tensor]:
        panel = self.spec.channels < MOST_CHANNELS
        seen = scaled if panel else scaled.mean(1, keepdim=True) * math.sqrt(self.spec.channels)
        rows = torch.cat([seen[-1], *(seen[-1] - seen[-1 - lag] for lag in self._lags)])
        own = [] if panel else [scaled[-1].unsqueeze(1)]
        return [rows.expand(groups, -1), *own]
