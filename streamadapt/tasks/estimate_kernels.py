"""Loss estimates as functions on arrays by key: `estimate` for a new prediction, `learn` for a
label, and the sums of estimated and true losses.

Arrays of predictions are float64. There are two roles: the base's prediction and the served one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.numbers import at_least, at_most, first_largest, sum_like_numpy
from streamadapt.records import Array
from streamadapt.tasks.loss_kernels import LEAST, LOG, loss_of

__all__ = [
    "BINS",
    "DECAY",
    "LARGEST",
    "PRIOR",
    "RECENT",
    "RIDGE",
    "ROLE_COUNT",
    "ConfidenceSettings",
    "ConfidenceState",
    "DirectSettings",
    "DirectState",
    "EstimateRoom",
    "LossSums",
    "confidence_estimate",
    "confidence_learn",
    "count_asked",
    "count_estimated",
    "count_seen",
    "direct_estimate",
    "direct_learn",
    "estimate_room",
    "label_step",
    "losses_of_roles",
    "no_learn",
]

ROLE_COUNT: Final = 2
DECAY: Final = 0.999
"""The factor by which earlier labels lose weight, per label."""
BINS: Final = 24
"""Bins of equal width in log odds, from -7 to 7 (probabilities .0009 to .9991) and beyond."""
PRIOR: Final = 5.0
"""The weight of a bin's uncorrected probabilities, in labels."""
RIDGE: Final = 1.0
LARGEST: Final = 20.0
"""The largest loss that counts, in multiples of the recent loss or of the guard's scale: a wrong
label must not spoil the regression."""
RECENT: Final = 0.02
"""How fast the recent loss follows the labels."""


class EstimateRoom(NamedTuple):
    """Room to work in.

    Attributes
    ----------
    values, terms : ndarray, (experts * columns,), or (classes,)
    predictions : ndarray, (roles, columns)
    losses : ndarray, (roles,)
    true : ndarray, (measures,)
    """

    values: Array
    terms: Array
    predictions: Array
    losses: Array
    true: Array


def estimate_room(experts: int, columns: int, measures: int, *, classify: bool) -> EstimateRoom:
    """Return room for estimates of predictions of this shape; `measures` is 0 without an
    estimate."""
    size = columns if classify else experts * columns
    shapes = size, size, (ROLE_COUNT, columns), ROLE_COUNT, measures
    return EstimateRoom(*(np.zeros(shape) for shape in shapes))


# -- classification: `ConfidenceEstimate`


class ConfidenceSettings(NamedTuple):
    """`edges` are the probabilities between the bins, (bins - 1,)."""

    edges: Array


class ConfidenceState(NamedTuple):
    """Decaying sums of each bin, (keys, roles, bins): labels, and hits less probabilities."""

    counts: Array
    excess: Array


@compiled
def confidence_estimate(p: Any, s: Any, key: int, w: Any, experts: Any, served: Any, scale: Any,  # noqa: PLR0913
                        unit: Any, out: Any) -> None:  # fmt: skip
    """Write the expected log losses of both roles, and their expected accuracies.

    Parameters
    ----------
    experts : ndarray, (experts, 1, classes)
    served : ndarray, (1, classes)
    scale, unit : ndarray, (1, classes) or (1, 1)
        Not used.
    out : ndarray, (4,)
    """
    _expect(p, s, key, 0, w, experts[0, 0], out)
    _expect(p, s, key, 1, w, served[0], out)


@compiled
def _expect(p: Any, s: Any, key: int, role: int, w: Any, given: Any, out: Any) -> None:
    """Write the expected loss and accuracy of one role's probabilities, (classes,)."""
    q, terms = w.values, w.terms
    for j in range(given.shape[0]):
        at = bin_of(p.edges, given[j])
        right = given[j] + s.excess[key, role, at] / (s.counts[key, role, at] + PRIOR)
        q[j] = at_least(right, LEAST)
    whole = sum_like_numpy(q)
    for j in range(given.shape[0]):
        q[j] /= whole
        terms[j] = q[j] * math.log(at_least(given[j], LEAST))
    out[role] = -sum_like_numpy(terms)
    out[ROLE_COUNT + role] = q[first_largest(given)]


@compiled
def bin_of(edges: Any, x: Any) -> Any:
    """Return the number of edges below x, by bisection; all of them for NaN."""
    low, high = 0, edges.shape[0]
    while low < high:
        middle = (low + high) // 2
        if edges[middle] >= x:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def confidence_learn(p: Any, s: Any, key: int, w: Any, predictions: Any, target: Any, losses: Any,  # noqa: PLR0913
                     extra: Any, weight: float, out: Any) -> None:  # fmt: skip
    """Count a label in its bins; write the true losses and accuracies.

    Parameters
    ----------
    predictions : ndarray, (2, classes)
    target : ndarray, (classes,)
    losses : ndarray, (2,)
    extra : ndarray, (0,)
        Not used.
    weight : float
    out : ndarray, (4,)
    """
    counts, excess = s.counts[key], s.excess[key]
    for role in range(ROLE_COUNT):
        for b in range(BINS):
            counts[role, b] *= DECAY
            excess[role, b] *= DECAY
    truth = first_largest(target)
    for role in range(ROLE_COUNT):
        for j in range(target.shape[0]):
            at = bin_of(p.edges, predictions[role, j])
            counts[role, at] += weight
            excess[role, at] += weight * (target[j] - predictions[role, j])
        out[role] = losses[role]
        out[ROLE_COUNT + role] = 1.0 if first_largest(predictions[role]) == truth else 0.0


# -- regression: `DirectEstimate`


class DirectSettings(NamedTuple):
    """`ridge` is the first information of each weight."""

    ridge: float


class DirectState(NamedTuple):
    """The regression of each role.

    Attributes
    ----------
    recent : ndarray, (keys, roles)
        The recent mean loss, NaN before the first label.
    count : ndarray, (keys,), int64
        Labels.
    weights : ndarray, (keys, roles, 3)
    information : ndarray, (keys, roles, 6)
        00, 01, 02, 11, 12, 22
    """

    recent: Array
    count: Any
    weights: Array
    information: Array


@compiled
def direct_estimate(p: Any, s: Any, key: int, w: Any, experts: Any, served: Any, scale: Any,  # noqa: PLR0913
                    unit: Any, out: Any) -> None:  # fmt: skip
    """Write the expected losses of both roles, NaN before the first label, and what `direct_learn`
    needs: the scale, the distance, and the recent losses in units of the scale.

    Parameters
    ----------
    experts : ndarray, (experts, 1, columns)
    served : ndarray, (1, columns)
    scale, unit : ndarray, (1, columns) or (1, 1)
    out : ndarray, (6,)
    """
    size = scale.shape[1]
    usual = sum_like_numpy(scale[0]) / size
    distance = _distance(w, experts, served, unit)
    for role in range(ROLE_COUNT):
        recent, b = s.recent[key, role], s.weights[key, role]
        loss = recent
        if recent == recent:
            relative = b[0] + b[1] * distance + b[2] * recent / usual
            loss = (relative if relative > 0.0 else 0.0) * usual
        out[role] = loss
        out[ROLE_COUNT + 2 + role] = recent / usual
    out[ROLE_COUNT], out[ROLE_COUNT + 1] = usual, distance


@compiled
def _distance(w: Any, experts: Any, served: Any, unit: Any) -> Any:
    """Return the experts' mean distance from the served prediction, in units."""
    size, _, columns = experts.shape
    for k in range(size):
        for j in range(columns):
            away = abs(experts[k, 0, j] - served[0, j]) / unit[0, j if unit.shape[1] > 1 else 0]
            w.values[k * columns + j] = at_most(away, LARGEST)
    return sum_like_numpy(w.values) / (size * columns)


@compiled
def direct_learn(p: Any, s: Any, key: int, w: Any, predictions: Any, target: Any, losses: Any,  # noqa: PLR0913
                 extra: Any, weight: float, out: Any) -> None:  # fmt: skip
    """Make one step of the regression; write the true losses.

    Parameters
    ----------
    predictions : ndarray, (2, columns)
        Not used.
    target : ndarray, (columns,)
        Not used.
    losses : ndarray, (2,)
    extra : ndarray, (4,)
        What `direct_estimate` wrote behind the estimates.
    weight : float
    out : ndarray, (2,)
    """
    finite = math.isfinite(extra[0])
    for role in range(ROLE_COUNT):
        out[role] = losses[role]
        finite = finite and math.isfinite(losses[role])
    if not finite:
        return  # there was no estimate, or a loss is not finite
    usual, distance = extra[0], extra[1]
    s.count[key] += 1
    follow = at_least(1.0 / s.count[key], RECENT)
    for role in range(ROLE_COUNT):
        recent, loss = s.recent[key, role], losses[role]
        if recent == recent:
            loss = at_most(loss, LARGEST * at_least(recent, usual))
            s.recent[key, role] = recent + follow * (loss - recent)
        else:
            s.recent[key, role] = loss
        m = extra[2 + role]
        if math.isfinite(distance) and math.isfinite(m):
            # Else the prediction is from before the first label.
            step(s.weights[key, role], s.information[key, role], distance, m, loss / usual, weight)


@compiled
def step(b: Any, information: Any, d: Any, m: Any, y: Any, weight: float) -> None:
    """Make one step of recursive least squares on (1, d, m), solved by cofactors.

    Without a solution in floating point it changes nothing.

    Parameters
    ----------
    b : ndarray, (3,)
        The weights, changed.
    information : ndarray, (6,)
        Changed.
    d, m, y, weight : float
    """
    leak = (1.0 - DECAY) * RIDGE
    i00 = DECAY * information[0] + (weight + leak)
    i01 = DECAY * information[1] + weight * d
    i02 = DECAY * information[2] + weight * m
    i11 = DECAY * information[3] + (weight * d * d + leak)
    i12 = DECAY * information[4] + weight * d * m
    i22 = DECAY * information[5] + (weight * m * m + leak)
    c00, c01, c02 = i11 * i22 - i12 * i12, i02 * i12 - i01 * i22, i01 * i12 - i02 * i11
    c11, c12, c22 = i00 * i22 - i02 * i02, i01 * i02 - i00 * i12, i00 * i11 - i01 * i01
    determinant = i00 * c00 + i01 * c01 + i02 * c02
    if not (determinant > 0.0 and math.isfinite(determinant)):
        return
    gain = weight * (y - b[0] - b[1] * d - b[2] * m) / determinant
    b0 = b[0] + gain * (c00 + c01 * d + c02 * m)
    b1 = b[1] + gain * (c01 + c11 * d + c12 * m)
    b2 = b[2] + gain * (c02 + c12 * d + c22 * m)
    if math.isfinite(b0) and math.isfinite(b1) and math.isfinite(b2):
        b[0], b[1], b[2] = b0, b1, b2
        information[0], information[1], information[2] = i00, i01, i02
        information[3], information[4], information[5] = i11, i12, i22


# -- sums, for the statistics


class LossSums(NamedTuple):
    """Sums by key.

    Attributes
    ----------
    estimated, foreseen, seen : ndarray, (keys, measures)
        `Stats.estimated`, `Stats.foreseen`, `Stats.seen`.
    asked : ndarray, (keys, roles)
        `Stats.asked_loss`.
    estimated_count, seen_count, asked_weight : ndarray, (keys,)
    """

    estimated: Array
    foreseen: Array
    seen: Array
    asked: Array
    estimated_count: Array
    seen_count: Array
    asked_weight: Array


@compiled
def count_estimated(sums: Any, key: int, estimates: Any) -> None:
    """Add the estimates of a new prediction, if there are any: they are not NaN."""
    if estimates.shape[0] > 0 and estimates[0] == estimates[0]:
        for i in range(sums.estimated.shape[1]):
            sums.estimated[key, i] += estimates[i]
        sums.estimated_count[key] += 1.0


@compiled
def count_asked(sums: Any, key: int, losses: Any, weight: Any) -> None:
    """Add the losses of a requested label; `weight` is one over the probability of the request,
    times the weight of the label."""
    for role in range(ROLE_COUNT):
        sums.asked[key, role] += weight * losses[role]
    sums.asked_weight[key] += weight


@compiled
def count_seen(sums: Any, key: int, estimates: Any, true: Any, share: Any) -> None:
    """Add the estimates and the true measures of a label, if there was an estimate.

    Parameters
    ----------
    estimates : ndarray, (measures, or more)
    true : ndarray, (measures,)
    share : float
        The weight of the label, less if it is known in part.
    """
    if estimates.shape[0] > 0 and estimates[0] == estimates[0]:
        for i in range(true.shape[0]):
            sums.foreseen[key, i] += share * estimates[i]
            sums.seen[key, i] += share * true[i]
        sums.seen_count[key] += share


@compiled
def losses_of_roles(loss: Any, predictions: Any, target: Any, mask: Any, losses: Any) -> Any:
    """Write the mean loss of each role over the known columns; return the known share of them.

    Parameters
    ----------
    loss : LossSettings
    predictions : ndarray, (2, columns)
    target : ndarray, (columns,)
    mask : ndarray, (columns,), bool
    losses : ndarray, (2,)
    """
    columns, count = mask.shape[0], 0
    for j in range(columns):
        count += 1 if mask[j] else 0
    if count == 0 or (loss.form == LOG and count < columns):
        return 0.0
    for role in range(ROLE_COUNT):
        total, truth = 0.0, 0.0
        for j in range(columns):
            if loss.form == LOG:
                truth += predictions[role, j] * target[j]
            elif mask[j]:
                total += loss_of(loss, predictions[role, j], target[j])
        losses[role] = loss_of(loss, truth, 1.0) if loss.form == LOG else total / count
    return count / columns


@compiled
def no_learn(p: Any, s: Any, key: int, w: Any, predictions: Any, target: Any, losses: Any,  # noqa: PLR0913
             extra: Any, weight: float, out: Any) -> None:  # fmt: skip
    """Do nothing: there is no estimate."""


@cache
def label_step(learn: Callable[..., None]) -> Callable[..., None]:
    """Return a function for one label: losses of both roles, sums, and a step of an estimate.

    Parameters
    ----------
    learn : callable
        `confidence_learn`, `direct_learn` or `no_learn`.

    Returns
    -------
    callable (loss, p, s, key, w, sums, base, served, target, mask, asked, estimates, weight)
        `asked` is the probability of the request, 0 if the label was not requested; `estimates`
        is what `estimate` wrote, (length,); the others are (columns,).
    """

    @compiled
    def run(loss: Any, p: Any, s: Any, key: int, w: Any, sums: Any, base: Any,  # noqa: PLR0913
            served: Any, target: Any, mask: Any, asked: float, estimates: Any,
            weight: float) -> None:  # fmt: skip
        for j in range(base.shape[0]):
            w.predictions[0, j], w.predictions[1, j] = base[j], served[j]
        known = losses_of_roles(loss, w.predictions, target, mask, w.losses)
        if known == 0.0:
            return
        share = weight * known
        if asked > 0.0:
            count_asked(sums, key, w.losses, share / asked)
        extra = estimates[w.true.shape[0] :]
        learn(p, s, key, w, w.predictions, target, w.losses, extra, weight, w.true)
        count_seen(sums, key, estimates, w.true, share)

    return run
