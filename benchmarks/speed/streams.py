"""The streams of the pipelines that are timed, as arrays of items, and their frozen bases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.data import elec2
from benchmarks.scenarios import forecast
from benchmarks.scenarios.elec2 import ELEC2, scaling
from streamadapt import Batch, Linear
from streamadapt.models.fit import fit_supervised

__all__ = ["Items", "electricity", "forecasts", "sensors"]

Array = npt.NDArray[Any]

CHANNELS, WINDOW, LATE = 8, 3, 24
"""Of the regression: channels, entries of a window, and entries until a label arrives."""
HISTORY = 2_000
"""Entries that the regression's base is fitted on."""
STEP_NS = 15 * 60 * 10**9


@dataclass(frozen=True, slots=True)
class Items:
    """Entries and labels in the order of their arrival, one row each.

    Attributes
    ----------
    arrays : dict of str to ndarray
        ``values``, ``times``, ``ids``, ``is_label``, and ``labels`` where there are any.
    base : Linear
        Fitted on entries before them.
    """

    arrays: dict[str, Array]
    base: Linear

    def save(self, folder: Path, name: str) -> dict[str, str]:
        """Write both as files, for a process of its own; return their paths."""
        stream, base = folder / f"{name}.npz", folder / f"{name}.safetensors"
        np.savez(stream, **self.arrays)
        self.base.save(base)
        return {"stream": str(stream), "base": str(base)}


def sensors(entries: int) -> Items:
    """Return a regression stream: the label of an entry arrives as a record of its own, right
    before the entry `LATE` later.

    Channels are autoregressive (.9), the label is a linear function of the window whose weights
    turn slowly, with noise.
    """
    rng = np.random.default_rng(0)
    n = HISTORY + entries
    x = np.zeros((n, CHANNELS))
    noise = rng.normal(size=x.shape)
    for t in range(1, n):
        x[t] = 0.9 * x[t - 1] + noise[t]
    first, second = rng.normal(size=(2, WINDOW, CHANNELS))
    angle = np.arange(n)[:, None] * 1e-4
    padded = np.concatenate([np.zeros((WINDOW - 1, CHANNELS)), x])
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=0).transpose(0, 2, 1)
    flat = windows.reshape(n, -1)
    weights = np.cos(angle) * first.reshape(1, -1) + np.sin(angle) * second.reshape(1, -1)
    y = ((flat * weights).sum(axis=1) + 0.5 * rng.normal(size=n))[:, None]
    times = np.arange(n, dtype=np.int64) * STEP_NS
    values = x.astype(np.float32)
    labels = y.astype(np.float32)
    history = Batch(values[:HISTORY], times[:HISTORY], labels[:HISTORY])
    later = slice(HISTORY, None)
    return Items(
        _interleaved(values[later], times[later], labels[later]), fit_supervised(history, WINDOW)
    )


def _interleaved(values: Array, times: Array, labels: Array) -> dict[str, Array]:
    """Put the label of each entry right before the entry `LATE` later, as an item."""
    n = len(values)
    rows = np.repeat(np.arange(n), 2)
    is_label = np.tile(np.array([True, False]), n)
    told = rows - LATE
    keep = ~is_label | (told >= 0)
    rows, is_label, told = rows[keep], is_label[keep], told[keep]
    return {
        "values": values[rows].astype(np.float64),
        "times": times[rows],
        "ids": np.where(is_label, told, rows),
        "is_label": is_label,
        "labels": np.where(is_label[:, None], labels[told], np.nan).astype(np.float64),
    }


def electricity(folder: Path) -> Items:
    """Return Elec2 after its training part, each entry with its own label inside."""
    batch = elec2(folder)
    assert batch.labels is not None
    n = ELEC2.split(batch)
    values, labels = batch.values[n:].astype(np.float64), batch.labels[n:].astype(np.float64)
    arrays = {"values": values, "times": batch.times[n:], "labels": labels}
    arrays |= {"ids": np.arange(n, len(batch)), "is_label": np.zeros(len(values), np.bool_)}
    return Items(arrays, _classifier(batch.values[:n], batch.labels[:n, 0]))


def _classifier(values: Array, labels: Array) -> Linear:
    """Fit a logistic regression: the cheapest base there is for classes."""
    from sklearn.linear_model import LogisticRegression

    loc, scale = scaling(values)
    z = (torch.from_numpy(values) - loc) / scale
    fitted = LogisticRegression().fit(z.numpy(), labels)
    weights = torch.zeros(values.shape[1] + 1, 2)
    weights[:-1, 1] = torch.from_numpy(fitted.coef_[0])
    weights[-1, 1] = float(fitted.intercept_[0])
    units = {"input_loc": loc, "input_scale": scale}
    units |= {"output_loc": torch.zeros(2), "output_scale": torch.ones(2)}
    return Linear("classification", weights, 1, subtract_last=False, scaling=units)


def forecasts(setting: forecast.Setting, folder: Path) -> Items:
    """Return the stream and the base of a forecast scenario of `benchmarks.quality`."""
    batch = setting.load(folder)
    first = forecast.issue_times(setting, len(batch)).start - setting.window + 1 - setting.warm_up
    values = batch.values[first:].astype(np.float64)
    arrays = {"values": values, "times": batch.times[first:], "ids": np.arange(first, len(batch))}
    arrays["is_label"] = np.zeros(len(values), np.bool_)
    return Items(arrays, setting.fit(batch))
