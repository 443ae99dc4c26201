"""The losses that a task is judged by: what the guard mixes for and what the statistics report.

Arrays are float64; predictions are (..., rows, columns), targets (rows, columns). A loss that judges a row as a whole
(log loss of a distribution) returns one column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from streamadapt.errors import ConfigError

__all__ = ["Absolute", "Array", "Log", "Loss", "Squared", "loss_named"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Loss(ABC):
    """A loss and its slope."""

    name: ClassVar[str]
    row_wise: ClassVar[bool] = False

    @abstractmethod
    def loss(self, prediction: Array, target: Array) -> Array:
        """Return the loss of each cell, (..., rows, columns), or of each row, (..., rows, 1), if `row_wise`."""

    @abstractmethod
    def regret(self, experts: Array, own: Array, target: Array, scale: Array) -> Array:
        """Return the linearised regret of `own` against each expert, in units of `scale`.

        ``r_k = -l'(own) (expert_k - own)``: positive where expert k would have been better (the gradient trick,
        Cesa-Bianchi & Lugosi 2006, section 2.5). Shapes as in `loss`.
        """

    def scale_of(self, errors: Array) -> Array:
        """Return what losses are divided by, given the base's mean absolute error in each cell or row."""
        return errors

    def length_of(self, scale: Array) -> Array:
        """Return a scale of losses in the predictions' own unit."""
        return scale

    def known(self, mask: Mask) -> Mask:
        """Return which entries of `loss` are known, given the known cells (rows, columns)."""
        known: Mask = np.logical_and.reduce(mask, axis=-1, keepdims=True) if self.row_wise else mask
        return known


class Absolute(Loss):
    """``|p - y|``, original units."""

    name: ClassVar[str] = "absolute"

    def loss(self, prediction: Array, target: Array) -> Array:
        """Return the absolute errors."""
        return np.abs(prediction - target)

    def regret(self, experts: Array, own: Array, target: Array, scale: Array) -> Array:
        """Return ``-sign(own - y) (expert - own) / scale``."""
        return -np.sign(own - target) * (experts - own) / scale


class Squared(Loss):
    """``(p - y)^2``, original units squared."""

    name: ClassVar[str] = "squared"

    def loss(self, prediction: Array, target: Array) -> Array:
        """Return the squared errors."""
        return np.square(prediction - target)

    def regret(self, experts: Array, own: Array, target: Array, scale: Array) -> Array:
        """Return ``-2 (own - y) (expert - own) / scale``."""
        return -2.0 * (own - target) * (experts - own) / scale

    def scale_of(self, errors: Array) -> Array:
        """Return the squared mean absolute error: the loss's own unit."""
        return np.square(errors)

    def length_of(self, scale: Array) -> Array:
        """Return the root."""
        root: Array = np.sqrt(scale)
        return root


class Log(Loss):
    """``-ln p_y`` of a distribution over classes against a one-hot target, nats; p is floored at 1e-6."""

    name: ClassVar[str] = "log"
    row_wise: ClassVar[bool] = True
    floor: ClassVar[float] = 1e-6

    def loss(self, prediction: Array, target: Array) -> Array:
        """Return ``-ln p_y``, (..., rows, 1)."""
        of_truth = np.sum(prediction * target, axis=-1, keepdims=True)
        loss: Array = -np.log(np.maximum(of_truth, self.floor))
        return loss

    def regret(self, experts: Array, own: Array, target: Array, scale: Array) -> Array:
        """Return ``(expert_y - own_y) / own_y / scale``: the slope of the log loss is ``-1 / own_y``."""
        own_truth = np.maximum(np.sum(own * target, axis=-1, keepdims=True), self.floor)
        regret: Array = (np.sum(experts * target, axis=-1, keepdims=True) - own_truth) / own_truth / scale
        return regret

    def scale_of(self, errors: Array) -> Array:
        """Return ones: a probability needs no scale."""
        return np.ones_like(errors[..., :1])


_LOSSES: dict[str, type[Loss]] = {cls.name: cls for cls in (Absolute, Squared, Log)}


def loss_named(name: Any) -> Loss:
    """Return the loss called `name`; `ConfigError` if there is none."""
    if name not in _LOSSES:
        raise ConfigError("task.loss", name, "one of " + ", ".join(sorted(_LOSSES)))
    return _LOSSES[name]()
