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

from streamadapt.compiled import Kernel
from streamadapt.drift.signal_kernels import (
    REFERENCE,
    WARM,
    Signals,
    SignalSettings,
    UsualState,
    empty_signals,
    empty_usual,
    signal_room,
    signals,
)
from streamadapt.models.contract import TaskKind
from streamadapt.records import Array, Mask
from streamadapt.tasks.loss_kernels import loss_settings
from streamadapt.tasks.losses import Loss

__all__ = [
    "BY_CHANNEL",
    "REFERENCE",
    "SIGNALS",
    "WARM",
    "EmbeddingDistance",
    "UsualError",
    "confidence",
]

SIGNALS = ("loss", "error", "residual", "input", "confidence", "embedding")
"""The signals of the pipeline itself."""
BY_CHANNEL = ("loss", "residual", "input")
"""The signals that have a value per channel."""


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
        self.state = empty_usual(1, 0, 0)

    def signals(
        self, base: Array, target: Array, mask: Mask, loss: Loss, kind: TaskKind
    ) -> Signals:
        """Return the signals of one matured arrival, and learn from it.

        Parameters
        ----------
        base, target, mask : ndarray, (rows, columns)
        """
        if self.state.mean.shape[1:] != target.shape:
            self.state = empty_usual(1, *target.shape)
        rows, judged = target.shape[0], 1 if loss.row_wise else target.shape[1]
        out = empty_signals(judged)
        _signals.call(
            SignalSettings(loss_settings(loss), kind == "classification"),
            self.state,
            0,
            signal_room(rows, judged),
            *(np.array(each, np.float64, order="C") for each in (base, target)),
            np.array(mask, np.bool_, order="C"),
            out,
        )
        return out

    def state_dict(self) -> dict[str, Any]:
        """Return the means."""
        count, mean = self.state.count[0], self.state.mean[0]
        return {"arrays": None if mean.size == 0 else [count.copy(), mean.copy()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        if state["arrays"] is not None:
            count, mean = state["arrays"]
            self.state = UsualState(
                np.array(count, np.int64)[None], np.array(mean, np.float64)[None]
            )


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


_signals = Kernel(signals)
