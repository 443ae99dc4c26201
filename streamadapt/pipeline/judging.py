"""Scores and health of experts at one matured arrival, as functions on arrays by key."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled, inlined
from streamadapt.numbers import total
from streamadapt.records import Array, Mask
from streamadapt.tasks.loss_kernels import LOG, loss_of

__all__ = ["RATIO", "USUAL_OF", "WINDOW", "HealthState", "ScoreRoom", "all_finite", "empty_room",
           "judge", "score", "stand_in"]  # fmt: skip

WINDOW: Final = 50
"""Matured arrivals over which losses are compared, and for which a broken learner stays out."""
RATIO: Final = 10.0
"""A learner is broken if its loss is more than this number of times the base's."""
USUAL_OF: Final = 500
"""Matured arrivals that the base's usual loss is a mean of, and steps of a gradient's usual
norm."""


class HealthState(NamedTuple):
    """What decides whether an expert is broken; the first axis is the key.

    Attributes
    ----------
    losses : ndarray, (keys, WINDOW, 1 + experts), float64
        The mean losses of the last matured arrivals; the base's come first.
    seen : ndarray, (keys, experts), int64
        Matured arrivals since an expert was last taken out, up to `WINDOW`.
    benched : ndarray, (keys, experts), int64
        Matured arrivals for which the base still stands in.
    usual : ndarray, (keys,), float64
        The running mean of the base's loss.
    count, grace : ndarray, (keys,), int64
        Matured arrivals so far, and those that may be of predictions from before the learners
        were built.
    """

    losses: Array
    seen: Any
    benched: Any
    usual: Array
    count: Any
    grace: Any


class ScoreRoom(NamedTuple):
    """Room for one matured arrival.

    Attributes
    ----------
    known : ndarray, (rows, judged), bool
    cells : ndarray, (judged,), float64
        Losses of one row.
    sums : ndarray, (2 + experts,), float64
        The sum of losses of the base, of each expert, and of what was served.
    means, recent : ndarray, (1 + experts,), float64
        The mean loss of each, and the sum of its last mean losses.
    broken : ndarray, (experts,), bool
    """

    known: Mask
    cells: Array
    sums: Array
    means: Array
    recent: Array
    broken: Mask


def empty_room(experts: int, rows: int, judged: int) -> ScoreRoom:
    """Return room for arrivals of that many experts, the base included."""
    return ScoreRoom(
        np.zeros((rows, judged), np.bool_),
        np.zeros(judged),
        np.zeros(experts + 1),
        np.zeros(experts),
        np.zeros(experts),
        np.zeros(experts - 1, np.bool_),
    )


@compiled
def all_finite(values: Any) -> Any:
    """Return whether all numbers of (rows, columns) are finite."""
    rows, columns = values.shape
    for h in range(rows):
        for j in range(columns):
            if not math.isfinite(values[h, j]):
                return False
    return True


@compiled
def stand_in(s: Any, key: int, experts: Any) -> Any:
    """Put the base in place of each expert that is out or not finite; return how many are not
    finite.

    Parameters
    ----------
    experts : ndarray, (1 + experts, rows, columns)
    """
    size, rows, columns = experts.shape
    bad = 0
    for k in range(1, size):
        fine = all_finite(experts[k])
        if not fine:
            bad += 1
        if s.benched[key, k - 1] > 0 or not fine:
            for h in range(rows):
                for j in range(columns):
                    experts[k, h, j] = experts[0, h, j]
    return bad


@compiled
def score(loss: Any, w: Any, experts: Any, served: Any, target: Any, mask: Any,  # noqa: PLR0913
          weight: float, sums: Any, counts: Any) -> Any:  # fmt: skip
    """Add the losses of one arrival to the sums; write each expert's mean to `w.means`.

    A cell in which a loss overflows is in no sum.

    Parameters
    ----------
    w : ScoreRoom
    experts : ndarray, (1 + experts, rows, columns)
    served, target, mask : ndarray, (rows, columns)
    sums, counts : ndarray, (2 + experts,)
        Of the base, each expert and what was served: the sums so far, and the cells in them.

    Returns
    -------
    bool
        Whether all means are known.
    """
    cells = _mark_known(loss, w.known, mask)
    if cells == 0:
        return False
    if not _add_losses(loss, w, experts, served, target):
        cells = _leave_out_overflows(loss, w, experts, served, target)
        if cells == 0:
            return False
        _add_losses(loss, w, experts, served, target)
    fine = True
    for k in range(w.sums.shape[0]):
        w.sums[k] *= weight
        fine = fine and math.isfinite(sums[k] + w.sums[k])
    if fine:  # the sum would stay infinite forever
        for k in range(w.sums.shape[0]):
            sums[k] += w.sums[k]
            counts[k] += cells
    fine = True
    for k in range(w.means.shape[0]):
        w.means[k] = w.sums[k] / cells
        fine = fine and math.isfinite(w.means[k])
    return fine


@compiled
def _mark_known(loss: Any, known: Any, mask: Any) -> Any:
    """Write what can be judged, (rows, judged): a row of classes only if all its cells are known;
    return how many."""
    rows, columns = mask.shape
    count = 0
    for h in range(rows):
        whole = True
        for j in range(columns):
            whole = whole and mask[h, j]
            if loss.form != LOG:
                known[h, j] = mask[h, j]
                count += 1 if mask[h, j] else 0
        if loss.form == LOG:
            known[h, 0] = whole
            count += 1 if whole else 0
    return count


@inlined
def _loss_at(loss: Any, prediction: Any, target: Any, j: int) -> Any:
    """Return the loss of cell j of a row (columns,), or of a row of classes."""
    if loss.form != LOG:
        return loss_of(loss, prediction[j], target[j])
    truth = 0.0
    for c in range(target.shape[0]):
        truth += prediction[c] * target[c]
    return loss_of(loss, truth, 1.0)


@inlined
def _sum_of(loss: Any, w: Any, prediction: Any, target: Any) -> Any:
    """Return the sum of the known losses of one role, (rows, columns)."""
    rows, judged = w.known.shape
    found = 0.0
    for h in range(rows):
        for j in range(judged):
            w.cells[j] = _loss_at(loss, prediction[h], target[h], j) if w.known[h, j] else 0.0
        found += total(w.cells)
    return found


@compiled
def _add_losses(loss: Any, w: Any, experts: Any, served: Any, target: Any) -> Any:
    """Write the sum of each role; return whether all are finite."""
    size = experts.shape[0]
    fine = True
    for k in range(size):
        w.sums[k] = _sum_of(loss, w, experts[k], target)
        fine = fine and math.isfinite(w.sums[k])
    w.sums[size] = _sum_of(loss, w, served, target)
    return fine and math.isfinite(w.sums[size])


@compiled
def _leave_out_overflows(loss: Any, w: Any, experts: Any, served: Any, target: Any) -> Any:
    """Mark cells with a loss that is not finite as unknown; return how many are left."""
    rows, judged = w.known.shape
    count = 0
    for h in range(rows):
        for j in range(judged):
            fine = math.isfinite(_loss_at(loss, served[h], target[h], j))
            for k in range(experts.shape[0]):
                fine = fine and math.isfinite(_loss_at(loss, experts[k, h], target[h], j))
            w.known[h, j] = w.known[h, j] and fine
            count += 1 if w.known[h, j] else 0
    return count


@compiled
def judge(s: Any, key: int, w: Any) -> Any:
    """Compare the mean losses of one arrival, `w.means`, with the base's; write the experts that
    are broken to `w.broken` and return how many there are.

    An expert is broken if its mean loss over `WINDOW` arrivals is more than `RATIO` times the
    base's, both over these and usually. While an expert is out, it is given the base's loss: what
    matures then may have been predicted before.
    """
    at = s.count[key] % WINDOW
    base = w.means[0]
    s.losses[key, at, 0] = base
    for k in range(w.broken.shape[0]):
        out = s.benched[key, k] > 0 or s.grace[key] > 0
        s.losses[key, at, k + 1] = base if out else w.means[k + 1]
        s.benched[key, k] = max(s.benched[key, k] - 1, 0)
        s.seen[key, k] = min(s.seen[key, k] + 1, WINDOW)
    s.grace[key] = max(s.grace[key] - 1, 0)
    s.count[key] += 1
    s.usual[key] += (base - s.usual[key]) / min(s.count[key], USUAL_OF)
    return _find_broken(s, key, w)


@compiled
def _find_broken(s: Any, key: int, w: Any) -> Any:
    recent, losses = w.recent, s.losses[key]
    for k in range(recent.shape[0]):
        recent[k] = 0.0
    for i in range(losses.shape[0]):
        for k in range(recent.shape[0]):
            recent[k] += losses[i, k]
    bar = RATIO * max(recent[0], WINDOW * s.usual[key])
    found = 0
    for k in range(w.broken.shape[0]):
        judged = s.seen[key, k] == WINDOW and s.usual[key] > 0.0
        w.broken[k] = judged and recent[k + 1] > bar
        found += 1 if w.broken[k] else 0
    return found
