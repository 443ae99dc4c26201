"""The signals that a pipeline offers to drift monitors: one number per entry or per matured
arrival.

==============  ===================================================================================
signal          meaning
==============  ===================================================================================
``loss``        the base's mean loss over the cells that matured at an arrival, in units of its
                usual loss (see `UsualError`), so that one threshold suits every unit
``error``       1 if the base was wrong, else 0: another class than the label, or a loss above the
                usual loss
``residual``    target less base over the matured cells, signed, in units of the base's usual mean
                absolute error; for classes, one less the probability of the true class
``input``       the mean over channels of the newest values, scaled as for learners
``confidence``  classification: the largest of the base's probabilities
``embedding``   the distance of the base's embedding from its usual place: the root mean square
                over features of ``(e - m) / s``, with m and s the mean and standard deviation of
                the first `REFERENCE` entries
==============  ===================================================================================

``loss``, ``residual`` and ``input`` also exist by channel: by column of the outputs, by channel of
the inputs. A learner may offer further signals (`Learner.signal_names`), such as the dictionary's
reconstruction error.
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
"""The signals of the pipeline itself."""
BY_CHANNEL = ("loss", "residual", "input")
"""The signals that have a value per channel."""
REFERENCE = 500
"""The number of first entries that define the usual embedding, and the usual losses."""
FARTHEST = 20.0
"""An error is clipped at this many mean errors before it enters the mean, because the mean is kept
forever."""
WARM = 20
"""The number of losses of a cell after which its usual loss is known."""


def by_column(values: Array, known: Mask) -> Array:
    """Return the mean of each column of (rows, columns) over its known rows; NaN if no row is
    known."""
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    mean: Array = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def zero_one_error(base: Array, target: Array, relative: float, kind: TaskKind) -> float:
    """Return 1 if the base was wrong, 0 if it was right, NaN if nothing matured."""
    if np.isnan(relative):
        return relative
    if kind == "classification":
        return float((base.argmax(-1) != target.argmax(-1)).any())
    return float(relative > 1.0)


def residual(base: Array, target: Array, known: Mask, length: Array, kind: TaskKind) -> Array:
    """Return the base's residual by column, (columns,); for classes one value, ``1 - p`` of the
    true class.

    Parameters
    ----------
    known : ndarray, (rows, columns), bool, or (rows, 1) for classes
    length : ndarray, (rows, columns)
        The unit of the residual, in units of the outputs; not used for classes.
    """
    if kind == "classification":
        return by_column(1.0 - (base * target).sum(axis=-1, keepdims=True), known)
    return by_column((target - base) / length, known)


def confidence(output: Tensor) -> float:
    """Return the largest probability of a distribution, averaged over rows."""
    return float(output.amax(-1).mean())


class UsualError:
    """The base's mean absolute error in each cell over its first `REFERENCE` known targets; after
    these it does not change.

    A scale that kept following the base's errors, like the guard's scale, would make a lasting
    change look short, and a base that stays wrong look normal: ADWIN would miss both.
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
        """Update the means with the absolute errors (rows, columns) of one arrival; call `usual`
        first."""
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
    """The distance of an embedding from those of the first `REFERENCE` entries; NaN for these
    entries.

    Running mean and variance by Welford (1962), Technometrics 4. After `REFERENCE` entries they do
    not change, because a reference that follows the stream would hide a slow drift.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Array = np.zeros(0)
        self.squares: Array = np.zeros(0)

    def __call__(self, embedding: Tensor) -> float:
        """Return the distance of one embedding, (features,), in standard deviations of a
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
        # A constant feature has no unit.
        varies = deviation > 1e-12 * (1.0 + np.abs(self.mean))
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
