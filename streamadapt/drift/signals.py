"""The scalars that a pipeline offers to drift monitors, one value per entry or per matured
arrival.

==============  ===================================================================================
signal          what it is
==============  ===================================================================================
``loss``        the base's mean loss over the cells that matured at an arrival, in units of what it
                used to be (see `UsualError`), so that one threshold suits every unit
``error``       1 where the base was wrong, else 0: another class than the label, or a loss above
                what it used to be
``residual``    target less base over the matured cells, signed, in units of the base's mean
                absolute error as it used to be; of classes, one less the probability of the true
                one
``input``       the mean over channels of the newest values, scaled as learners see them
``confidence``  classification: the greatest of the base's probabilities
``embedding``   how far the base's embedding is from where it used to be: the root mean square over
                features of ``(e - m) / s``, m and s the mean and standard deviation of the first
                `REFERENCE` entries
==============  ===================================================================================

``loss``, ``residual`` and ``input`` also come by channel: of outputs the columns, of inputs the
channels. A learner may offer signals of its own beside them (`Learner.signal_names`), such as the
dictionary's reconstruction error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from streamadapt.models.contract import TaskKind
from streamadapt.records import Array, Mask

__all__ = [
    "BY_CHANNEL",
    "REFERENCE",
    "SIGNALS",
    "EmbeddingDistance",
    "UsualError",
    "by_column",
    "confidence",
    "residual",
    "zero_one_error",
]

SIGNALS = ("loss", "error", "residual", "input", "confidence", "embedding")
"""What the pipeline itself can watch."""
BY_CHANNEL = ("loss", "residual", "input")
"""Those that have a value per channel."""
REFERENCE = 500
"""Entries that say where embeddings used to be, and losses what they used to be."""
FARTHEST = 20.0
"""An error counts for at most so many mean ones in the mean: what it comes to is kept for good."""
WARM = 20
"""Losses of a cell before there is a usual one to compare with."""


def by_column(values: Array, known: Mask) -> Array:
    """Average (rows, columns) over the known rows of each column; NaN where none is known."""
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    mean: Array = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def zero_one_error(base: Array, target: Array, relative: float, kind: TaskKind) -> float:
    """Return 1 where the base was wrong, 0 where it was right, NaN if nothing matured."""
    if np.isnan(relative):
        return relative
    if kind == "classification":
        return float((base.argmax(-1) != target.argmax(-1)).any())
    return float(relative > 1.0)


def residual(base: Array, target: Array, known: Mask, length: Array, kind: TaskKind) -> Array:
    """Return what the base left over by column, (columns,); of classes one value, ``1 - p`` of the
    true one.

    Parameters
    ----------
    known : ndarray, (rows, columns), bool, or (rows, 1) of classes
    length : ndarray, (rows, columns)
        The unit, in the outputs' own; not used of classes.
    """
    if kind == "classification":
        return by_column(1.0 - (base * target).sum(axis=-1, keepdims=True), known)
    return by_column((target - base) / length, known)


def confidence(output: Tensor) -> float:
    """Return the greatest probability of a distribution, averaged over rows."""
    return float(output.amax(-1).mean())


class UsualError:
    """The base's mean absolute error in each cell over its first `REFERENCE` known targets; then
    it stays as it is.

    A scale that went on following the base's errors, as the guard's does, would make a lasting
    change look like a short one, and a base that stays wrong look normal: ADWIN would miss both.
    """

    def __init__(self) -> None:
        self.count = np.zeros((0, 0), np.int64)
        self.mean: Array = np.zeros((0, 0))

    def usual(self, shape: tuple[int, ...]) -> Array:
        """Return the mean errors, (rows, columns), original units; NaN in cells with fewer than
        `WARM`."""
        if self.mean.shape != shape:
            self.count, self.mean = np.zeros(shape, np.int64), np.zeros(shape)
        return np.where((self.count >= WARM) & (self.mean > 0.0), self.mean, np.nan)

    def follow(self, errors: Array, mask: Mask) -> None:
        """Take the absolute errors (rows, columns) of one arrival in; call `usual` first."""
        learning = mask & (self.count < REFERENCE)
        if learning.any():
            bound = np.where(
                (self.count >= WARM) & (self.mean > 0.0), FARTHEST * self.mean, np.inf
            )
            self.count += learning
            errors = np.minimum(errors, bound)
            self.mean += np.where(learning, (errors - self.mean) / np.maximum(self.count, 1), 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the means."""
        return {"arrays": None if self.mean.size == 0 else [self.count.copy(), self.mean.copy()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        if state["arrays"] is not None:
            self.count, self.mean = (np.array(array) for array in state["arrays"])


class EmbeddingDistance:
    """The distance of embeddings from those of the first `REFERENCE` entries; NaN until these are
    seen.

    Running mean and variance by Welford (1962), Technometrics 4; then they stay as they are, since
    a reference that follows the stream would hide a slow drift.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Array = np.zeros(0)
        self.squares: Array = np.zeros(0)

    def __call__(self, embedding: Tensor) -> float:
        """Take one embedding, (features,); return its distance, in standard deviations of a
        feature."""
        e = embedding.cpu().double().numpy()
        if not np.isfinite(e).all():
            return np.nan
        if self.count < REFERENCE:
            if self.count == 0:
                self.mean, self.squares = np.zeros_like(e), np.zeros_like(e)
            self.count += 1
            off = e - self.mean
            self.mean = self.mean + off / self.count
            self.squares = self.squares + off * (e - self.mean)
            return np.nan
        deviation = np.sqrt(self.squares / (self.count - 1))
        varies = deviation > 1e-12 * (
            1.0 + np.abs(self.mean)
        )  # a feature that never moved has no unit
        if not varies.any():
            return np.nan
        return float(np.sqrt(np.mean(np.square((e - self.mean)[varies] / deviation[varies]))))

    def state_dict(self) -> dict[str, Any]:
        """Return the reference."""
        arrays = None if self.count == 0 else [self.mean.copy(), self.squares.copy()]
        return {"count": self.count, "arrays": arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.count = int(state["count"])
        if state["arrays"] is not None:
            self.mean, self.squares = (np.array(array) for array in state["arrays"])
