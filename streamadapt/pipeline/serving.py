"""The served prediction of one entry, and the fallback to the base if the window has outliers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from streamadapt.guard.base import Mixture
from streamadapt.records import Array, Mask

__all__ = ["Spoken", "fall_back"]


@dataclass(frozen=True, slots=True)
class Spoken:
    """The numbers of a served prediction.

    Attributes
    ----------
    experts : ndarray, (experts, rows, columns), float64
        The first expert is the base's prediction from the unchanged window; the learners'
        predictions are from the window without outliers.
    served : ndarray, (rows, columns), float64
    weights : ndarray, (experts,), float64
    aggregator_outputs : ndarray, (aggregators, rows, columns), float64
        The input of the prediction interval.
    doubted : ndarray, (columns,), bool, or None
        Columns in which the base is served because of outliers; None if there are none.
    """

    experts: Array
    served: Array
    weights: Array
    aggregator_outputs: Array
    doubted: Mask | None = None


def fall_back(
    experts: Array,
    mixture: Mixture,
    raw: tuple[Array, Mask | None] | None,
    flags: Mask | None,
    *,
    forecast: bool,
) -> tuple[Mixture, Spoken]:
    """Serve the base in the columns that outliers of the window affect.

    Parameters
    ----------
    experts : ndarray, (experts, rows, columns)
        The predictions from the window without the outliers.
    raw : pair of array and mask, or None
        The base's prediction from the unchanged window, and the cells of it without a number; None
        if the window has no outliers.
    flags : ndarray, (window, channels), bool, or None
        The outliers of the window. A channel affects its own column of a forecast, and all columns
        of other tasks.
    """
    if raw is None or flags is None:
        return mixture, Spoken(
            experts, mixture.served, mixture.weights, mixture.aggregator_outputs
        )
    base, silent = raw
    if silent is not None:
        base = np.where(silent, np.nan, base)
    reached: Mask = np.asarray(flags.any(axis=0))
    doubted: Mask = reached if forecast else np.ones(experts.shape[-1], np.bool_)
    served = np.where(doubted, base, mixture.served)
    share = float(doubted.mean())
    weights = mixture.weights * (1.0 - share)
    weights[0] += share
    shown = np.concatenate([base[None], experts[1:]])
    return replace(mixture, served=served), Spoken(
        shown, served, weights, mixture.aggregator_outputs, doubted
    )


def unjudged(experts: Array, own: Array, spoken: Spoken) -> tuple[Array, Array, Spoken]:
    """Return the arrays of a prediction that are kept until its target is known, with NaN in the
    doubted columns.

    NaN excludes these cells from learning and from all losses.
    """
    spoken = replace(spoken, aggregator_outputs=own)
    if spoken.doubted is None:
        return experts, own, spoken
    experts, own = experts.copy(), own.copy()
    experts[..., spoken.doubted] = own[..., spoken.doubted] = np.nan
    return experts, own, spoken
