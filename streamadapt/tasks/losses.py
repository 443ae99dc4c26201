"""The losses of tasks: the guard minimises them and the statistics report them.

Arrays are float64; predictions are (..., rows, columns), targets (rows, columns). A loss that
judges a row as a whole (log loss of a distribution) returns one column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from streamadapt.errors import ConfigError
from streamadapt.records import Array, Mask

__all__ = ["Absolute", "Log", "Loss", "Pinball", "Squared", "loss_named"]


class Loss(ABC):
    """A loss and its slope."""

    name: ClassVar[str]
    row_wise: ClassVar[bool] = False
    central: ClassVar[bool] = True
    """Whether the mean or the median minimises the loss, so that a regression may estimate
    them."""

    @abstractmethod
    def loss(self, prediction: Array, target: Array) -> Array:
        """Return the loss of each cell, (..., rows, columns), or of each row, (..., rows, 1), if
        `row_wise`."""

    @abstractmethod
    def regret(self, experts: Array, own: Array, target: Array, scale: Array) -> Array:
        """Return the linearised regret of `own` against each expert, in units of `scale`.

        ``r_k = -l'(own) (expert_k - own)``: positive where expert k would have been better (the
        gradient trick, Cesa-Bianchi & Lugosi 2006, section 2.5). Shapes as in `loss`.
        """

    def scale_of(self, errors: Array) -> Array:
        """Return the scale that losses are divided by, given the base's mean absolute error in
        each cell or row."""
        return errors

    def length_of(self, scale: Array) -> Array:
        """Convert a scale of losses to the unit of the predictions."""
        return scale

    def known(self, mask: Mask) -> Mask:
        """Return which entries of `loss` are known, given the known cells (rows, columns)."""
        known: Mask = (
            np.logical_and.reduce(mask, axis=-1, keepdims=True) if self.row_wise else mask
        )
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


class Pinball(Loss):
    """``max(q (y - p), (q - 1) (y - p))``, original units; the q-quantile minimises it (Koenker &
    Bassett 1978).

    For bases that forecast a quantile. The learners still correct means and medians; the guard
    finds out which of them predict the quantile well.

    Parameters
    ----------
    quantile : float, in (0, 1)
    """

    name: ClassVar[str] = "pinball"
    central: ClassVar[bool] = False

    def __init__(self, quantile: float) -> None:
        if not 0.0 < quantile < 1.0:
            raise ConfigError(
                "task.loss", f"{self.name}-{quantile:g}", "a quantile between 0 and 1: pinball-0.9"
            )
        self.quantile = quantile

    def loss(self, prediction: Array, target: Array) -> Array:
        """Return the loss of each cell."""
        short = target - prediction
        return np.maximum(self.quantile * short, (self.quantile - 1.0) * short)

    def regret(self, experts: Array, own: Array, target: Array, scale: Array) -> Array:
        """Return ``(q - [own > y]) (expert - own) / scale``; 0 where own is the target."""
        slope = np.where(own > target, 1.0 - self.quantile, -self.quantile) * (own != target)
        regret: Array = -slope * (experts - own) / scale
        return regret


class Log(Loss):
    """``-ln p_y`` of a distribution over classes and a one-hot target, nats; p is at least
    1e-6."""

    name: ClassVar[str] = "log"
    row_wise: ClassVar[bool] = True
    floor: ClassVar[float] = 1e-6

    def loss(self, prediction: Array, target: Array) -> Array:
        """Return ``-ln p_y``, (..., rows, 1)."""
        of_truth = np.sum(prediction * target, axis=-1, keepdims=True)
        loss: Array = -np.log(np.maximum(of_truth, self.floor))
        return loss

    def regret(self, experts: Array, own: Array, target: Array, scale: Array) -> Array:
        """Return ``(expert_y - own_y) / own_y / scale``: the slope of the log loss is
        ``-1 / own_y``."""
        own_truth = np.maximum(np.sum(own * target, axis=-1, keepdims=True), self.floor)
        regret: Array = (
            (np.sum(experts * target, axis=-1, keepdims=True) - own_truth) / own_truth / scale
        )
        return regret

    def scale_of(self, errors: Array) -> Array:
        """Return ones: a probability needs no scale."""
        return np.ones_like(errors[..., :1])


_LOSSES: dict[str, type[Loss]] = {cls.name: cls for cls in (Absolute, Squared, Log)}


def loss_named(name: Any) -> Loss:
    """Return the loss with this name (``pinball-0.9`` for the quantile .9); raise `ConfigError` if
    there is none."""
    if isinstance(name, str) and name.startswith(f"{Pinball.name}-"):
        try:
            return Pinball(float(name.partition("-")[2]))
        except ValueError:
            pass  # named below
    if name not in _LOSSES:
        raise ConfigError(
            "task.loss",
            name,
            "one of " + ", ".join(sorted(_LOSSES)) + ", or pinball-q: pinball-0.9",
        )
    return _LOSSES[name]()
