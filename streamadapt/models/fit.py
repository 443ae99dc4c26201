"""Fit the built-in linear base to a history, in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.models.builtin import Linear
from streamadapt.models.contract import MOST_WEIGHT, Prior
from streamadapt.models.features import linear_features
from streamadapt.models.origin import FLOAT32_MAX, column_origin
from streamadapt.models.own_settings import own_settings
from streamadapt.records import Array, Batch, FloatArray

__all__ = ["fit_forecast", "fit_supervised", "scaling_of"]

MOST_STATISTICS = 8_000_000
"""The largest count of numbers in sufficient statistics that are kept (64 MB as float64)."""
ROUNDS = 5
"""Rounds of reweighting towards least absolute deviations; the fifth round changes the mean error
in the fifth digit."""
RELATIVE_RIDGE = 1e-12
"""If a fit has no solution with the given ridge, the ridge is this share of the mean diagonal."""
SMALLEST_RIDGE = 1e-6
"""A penalty of zero must not make a constant channel's sums singular."""


@own_settings
def fit_forecast(
    batch: Batch,
    window: int,
    horizon: int,
    *,
    ridge: float = 0.1,
    subtract_last: bool = True,
    shared_scale: bool = False,
) -> Linear:
    """Fit one ridge regression for all channels, from a channel's window to its next values.

    Parameters
    ----------
    batch : Batch
        A missing value is filled with the last known one; a missing target does not count.
    ridge : float, >= 0
        Penalty on all weights, in scaled units.
    subtract_last : bool
        Subtract the last value from window and target: better for all data whose level drifts.
    shared_scale : bool
        One location and scale for all channels instead of one per channel.

    Raises
    ------
    ConfigError
        If there are not at least ``window + horizon`` rows.
    """
    n, channels = batch.values.shape
    if n < window + horizon:
        raise ConfigError("history", n, f"at least window + horizon = {window + horizon} rows")
    loc, scale = _scaling(batch.values, shared=shared_scale)
    z = torch.from_numpy(_scaled(_fill(batch.values, loc), loc, scale))
    known = torch.from_numpy(np.isfinite(batch.values))
    x = z.unfold(0, window, 1)[: n - window - horizon + 1]  # (m, C, window)
    y = z[window:].unfold(0, horizon, 1)  # (m, C, horizon)
    keep = known[window:].unfold(0, horizon, 1).all(-1)  # (m, C)
    last = x[..., -1:]
    ones = torch.ones_like(last)
    features = (
        torch.cat([x[..., :-1] - last, ones], -1) if subtract_last else torch.cat([x, ones], -1)
    )
    targets = y - last if subtract_last else y
    rows, responses = features[keep], targets[keep]
    weights = _solved(rows.T @ rows, ridge, rows.T @ responses)
    left = targets - features @ weights
    return Linear(
        "forecast",
        weights.float(),
        window,
        subtract_last=subtract_last,
        scaling=_tensors(loc, scale, loc, scale),
        statistics=_forecast_statistics(x, left, keep, ridge)
        if channels * window**2 <= MOST_STATISTICS
        else None,
    )


def _solved(gram: Tensor, ridge: float, moment: Tensor) -> Tensor:
    """Return ``(gram + ridge I)^-1 moment``; with a larger ridge if rounding in the gram matrix
    hides `ridge`.

    Raises
    ------
    ConfigError
        If there is no finite solution.
    """
    identity = torch.eye(len(gram), dtype=torch.float64)
    least = RELATIVE_RIDGE * float(gram.diagonal().mean())
    for penalty in (ridge, max(ridge, least)):
        weights, info = torch.linalg.solve_ex(gram + penalty * identity, moment)
        if not bool(info) and bool(torch.isfinite(weights).all()):
            solution: Tensor = weights
            return solution
    raise ConfigError(
        "history",
        "numbers too far apart for a fit",
        "values of one order of size: look for sentinels",
    )


def _forecast_statistics(x: Tensor, left: Tensor, keep: Tensor, ridge: float) -> Prior:
    # One channel at a time: all channels together would copy the history once more.
    def group(c: int) -> tuple[Tensor, Tensor]:
        rows = keep[:, c]
        return linear_features(x[rows, c].unsqueeze(-1), forecast=True).squeeze(1), left[rows, c]

    return _statistics(group, x.shape[1], ridge)


def _statistics(group: Callable[[int], tuple[Tensor, Tensor]], groups: int, ridge: float) -> Prior:
    """Sum up each group's features (m, d) and the base's residuals (m, responses), with equal and
    with robust weights.

    Robust weights: least absolute deviations of all groups together by iterated reweighting. The
    weight of an example is ``min(1 / .3, 1 / mean_h(|e_h| / m_h))``, where m are the mean sizes of
    the errors e of the previous round.
    """
    sums = [(f.T @ f, f.T @ left, left.abs().sum(0)) for f, left in map(group, range(groups))]
    gram, moment, sizes = (torch.stack(parts) for parts in zip(*sums, strict=True))
    examples = gram[:, -1, -1].sum().clamp_min(1.0)  # the constant's square
    size = sizes.sum(0) / examples
    weights = torch.zeros_like(moment[0])
    robust = Prior(gram, moment)
    for _ in range(ROUNDS):
        rounds = [_reweighted(*group(c), weights, size) for c in range(groups)]
        weighted = [torch.stack(parts) for parts in zip(*rounds, strict=True)]
        robust = Prior(weighted[0], weighted[1])
        weights = _solved(robust.gram.sum(0), max(ridge, SMALLEST_RIDGE), robust.moment.sum(0))
        size = weighted[2].sum(0) / examples
    return Prior(gram, moment, robust)


def _reweighted(
    f: Tensor, left: Tensor, weights: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    error = (left - f @ weights).abs()
    q = (1.0 / (error / size.clamp_min(1e-9)).mean(1, keepdim=True)).clamp_max(MOST_WEIGHT)
    return (f * q).T @ f, (f * q).T @ left, error.sum(0)


@own_settings
def fit_supervised(batch: Batch, window: int, *, ridge: float = 0.1) -> Linear:
    """Fit a ridge regression from the last `window` entries' values to the labels.

    Raises
    ------
    ConfigError
        If there are no labels, or fewer labelled rows than features.
    """
    if batch.labels is None:
        raise ConfigError("history", "no labels", "a label column")
    if len(batch) < window:
        raise ConfigError("history", len(batch), f"at least window = {window} rows")
    loc, scale = _scaling(batch.values, shared=False)
    label_loc, label_scale = _scaling(batch.labels, shared=False)
    z = torch.from_numpy(_scaled(_fill(batch.values, loc), loc, scale))
    # (m, window * C + 1)
    x = linear_features(z.unfold(0, window, 1).transpose(1, 2), forecast=False).squeeze(1)
    y = torch.from_numpy(_scaled(batch.labels, label_loc, label_scale)[window - 1 :])
    keep = torch.isfinite(y).all(-1)
    x, y = x[keep], y[keep]
    if len(x) < x.shape[1]:
        raise ConfigError(
            "history", len(x), f"at least {x.shape[1]} labelled rows, one for each feature"
        )
    weights = _solved(x.T @ x, ridge, x.T @ y)
    statistics = _statistics(lambda _: (x, y - x @ weights), 1, ridge)
    return Linear(
        "regression",
        weights.float(),
        window,
        subtract_last=False,
        scaling=_tensors(loc, scale, label_loc, label_scale),
        statistics=statistics,
    )


def scaling_of(values: FloatArray) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column, (columns,), float32; 1 for a constant
    column.

    Raises
    ------
    ConfigError
        If a column has no value, or an infinite value.
    """
    loc, scale = _scaling(values, shared=False)
    return torch.from_numpy(loc.copy()), torch.from_numpy(scale.copy())


def _scaled(values: FloatArray, loc: FloatArray, scale: FloatArray) -> Array:
    """Return ``(values - loc) / scale``, float64; also computed in float64 if float32 would lose
    changes."""
    if column_origin(values.astype(np.float64)).any():
        exact: Array = (values.astype(np.float64) - loc.astype(np.float64)) / scale.astype(
            np.float64
        )
        return exact
    rounded: Array = ((values.astype(np.float32) - loc) / scale).astype(np.float64)
    return rounded


def _scaling(
    values: FloatArray, *, shared: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Location and scale per column, or one pair for all; a constant column has scale 1."""
    if not np.isfinite(values).any(axis=0).all():
        raise ConfigError(
            "history", "a column without any value", "at least one value in each column"
        )
    axis = None if shared else 0
    loc = np.broadcast_to(np.nanmean(values, axis=axis, dtype=np.float64), values.shape[1:])
    with np.errstate(over="ignore"):
        std = np.nanstd(values, axis=axis, dtype=np.float64)
    if not np.isfinite(std).all():  # numpy squares in the values' own type, which may overflow
        std = np.nanstd(values.astype(np.float64), axis=axis)
    scale = np.broadcast_to(std, values.shape[1:])
    if not np.isfinite(loc).all():
        raise ConfigError(
            "history", "an infinite value", "finite values, and NaN for a missing one"
        )
    if (np.abs(values) > FLOAT32_MAX).any():
        raise ConfigError(
            "history", float(np.nanmax(np.abs(values))), f"values up to {FLOAT32_MAX:.4g}"
        )
    far = column_origin(values.astype(np.float64)) != 0.0
    # A smaller standard deviation is only rounding.
    least = np.where(far.any() if shared else far, 1e-12, 1e-6) * (1.0 + np.abs(loc))
    return loc.astype(np.float32), np.where(scale > least, scale, 1.0).astype(np.float32)


def _fill(values: FloatArray, loc: FloatArray) -> FloatArray:
    """Replace a missing value by the last known one of its column; before the first one, by the
    column's mean."""
    index = np.where(np.isfinite(values), np.arange(len(values))[:, None], -1)
    np.maximum.accumulate(index, axis=0, out=index)
    filled = values[index.clip(0), np.arange(values.shape[1])]
    return np.where(index >= 0, filled, loc)


def _tensors(
    loc: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    output_loc: npt.NDArray[np.float32],
    output_scale: npt.NDArray[np.float32],
) -> dict[str, Tensor]:
    arrays = {
        "input_loc": loc,
        "input_scale": scale,
        "output_loc": output_loc,
        "output_scale": output_scale,
    }
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
