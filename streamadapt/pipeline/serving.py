"""What a pipeline says about one entry, and how it falls back to the base where it was given
absurd values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from streamadapt.guard.two_layer import Mixture
from streamadapt.records import Array, Mask

__all__ = ["Spoken", "fall_back"]


@dataclass(frozen=True, slots=True)
class Spoken:
    """What goes out with a prediction.

    Attributes
    ----------
    experts : ndarray, (experts, rows, columns), float64
        The first is what the base says of the window as it is; learners are not shown absurd
        values.
    served : ndarray, (rows, columns), float64
    weights : ndarray, (experts,), float64
    aggregator_outputs : ndarray, (aggregators, rows, columns), float64
        What the interval is told from.
    doubted : ndarray, (columns,), bool, or None
        Columns in which the base is served, for the sake of absurd values; None where there are
        none.
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
    """Serve the base in the columns that absurd values reach.

    Parameters
    ----------
    experts : ndarray, (experts, rows, columns)
        As they say it of the window without the absurd values.
    raw : pair of array and mask, or None
        What the base says of the window as it is, and where that is no number; None if nothing in
        it is absurd.
    flags : ndarray, (window, channels), bool, or None
        The absurd cells of the window. A channel is a column of a forecast; elsewhere it reaches
        all columns.
    """
    if raw is None or flags is None:
        return mixture, Spoken(
            experts, mixture.served, mixture.weights, mixture.aggregator_outputs
        )
    said, silent = raw
    if silent is not None:
        said = np.where(silent, np.nan, said)
    reached: Mask = np.asarray(flags.any(axis=0))
    doubted: Mask = reached if forecast else np.ones(experts.shape[-1], np.bool_)
    served = np.where(doubted, said, mixture.served)
    share = float(doubted.mean())
    weights = mixture.weights * (1.0 - share)
    weights[0] += share
    shown = np.concatenate([said[None], experts[1:]])
    return replace(mixture, served=served), Spoken(
        shown, served, weights, mixture.aggregator_outputs, doubted
    )


def unjudged(experts: Array, own: Array, spoken: Spoken) -> tuple[Array, Array, Spoken]:
    """Return what is kept of a prediction until its target is known: NaN, as where a base says
    nothing, if doubted.

    Nobody learns from such cells, and no loss counts them.
    """
    spoken = replace(spoken, aggregator_outputs=own)
    if spoken.doubted is None:
        return experts, own, spoken
    experts, own = experts.copy(), own.copy()
    experts[..., spoken.doubted] = own[..., spoken.doubted] = np.nan
    return experts, own, spoken
