"""What a pipeline says about one entry, and how it falls back to the base where it was given absurd values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from streamadapt.entry import FloatArray
from streamadapt.guard import Mixture
from streamadapt.learners.base import BaseOutput
from streamadapt.losses import Array, Mask

__all__ = ["Spoken", "fall_back"]


@dataclass(frozen=True, slots=True)
class Spoken:
    """What goes out with a prediction.

    Attributes
    ----------
    experts : ndarray, (experts, rows, columns), float64
        The first is what the base says of the window as it is; learners are not shown absurd values.
    served : ndarray, (rows, columns), float64
    weights : ndarray, (experts,), float64
    doubted : ndarray, (columns,), bool, or None
        Columns in which the base is served, for the sake of absurd values; None where there are none.
    bounds : two ndarrays, (rows, columns), or two None
        The interval's.
    """

    experts: Array
    served: Array
    weights: Array
    doubted: Mask | None = None
    bounds: tuple[FloatArray, FloatArray] | tuple[None, None] = (None, None)


def fall_back(
    experts: Array,
    mixture: Mixture,
    raw: tuple[BaseOutput, Mask | None] | None,
    flags: Mask | None,
    *,
    forecast: bool,
) -> tuple[Spoken, Mixture]:
    """Serve the base in the columns that absurd values reach.

    Parameters
    ----------
    experts : ndarray, (experts, rows, columns)
        As they say it of the window without the absurd values.
    raw : pair of BaseOutput and mask, or None
        What the base says of the window as it is, and where that is no number; None if nothing in it is absurd.
    flags : ndarray, (window, channels), bool, or None
        The absurd cells of the window. A channel is a column of a forecast; elsewhere it reaches all columns.
    """
    if raw is None or flags is None:
        return Spoken(experts, mixture.served, mixture.weights), mixture
    said, silent = raw[0].output.cpu().double().numpy(), raw[1]
    if silent is not None:
        said = np.where(silent, np.nan, said)
    reached: Mask = flags.any(axis=0)
    doubted: Mask = reached if forecast else np.ones(experts.shape[-1], np.bool_)
    served = np.where(doubted, said, mixture.served)
    share = float(doubted.mean())
    weights = mixture.weights * (1.0 - share)
    weights[0] += share
    shown = np.concatenate([said[None], experts[1:]])
    return Spoken(shown, served, weights, doubted), replace(mixture, served=served)
