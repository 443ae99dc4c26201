"""The regression features of the linear base and of recursive least squares."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["feature_count", "linear_features"]


def feature_count(window: int, channels: int, *, forecast: bool) -> int:
    """Return the number of features that `linear_features` makes, the constant included."""
    return window if forecast else window * channels + 1


def linear_features(scaled: Tensor, *, forecast: bool) -> Tensor:
    """Turn a scaled window into rows of features.

    Parameters
    ----------
    scaled : Tensor, (..., window, channels)

    Returns
    -------
    Tensor, (..., groups, features)
        Forecast: one group per channel, with the window less its last value (without that value
        itself, which would be a column of zeros) and a 1. Otherwise: one group, with the whole
        window flattened (oldest first) and a 1.
    """
    if forecast:
        last = scaled[..., -1:, :]
        # (..., window - 1, C) -> (..., C, window - 1)
        columns = (scaled[..., :-1, :] - last).transpose(-1, -2)
    else:
        columns = scaled.flatten(-2).unsqueeze(-2)  # (..., window, C) -> (..., 1, window * C)
    return torch.cat([columns, columns.new_ones((*columns.shape[:-1], 1))], dim=-1)
