"""Recursive least squares, step by step, in kernels: predict, learn, adapt, forget."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from streamadapt.cholesky import factorise, solve
from streamadapt.compiled import compiled, inlined
from streamadapt.learners.base import INNOVATION_RATE
from streamadapt.learners.least_squares import boosted, clipped
from streamadapt.learners.probabilities import clip_to_simplex
from streamadapt.learners.rls.features import fill_features, season_features
from streamadapt.learners.rls.matrices import (
    absorb,
    correct,
    correct_rows,
    forget,
    inflate,
    inform,
    multiply,
    multiply_rows,
    residuals,
    shrink,
)
from streamadapt.learners.season import CycleState, put_in_cycle
from streamadapt.models.contract import MOST_WEIGHT
from streamadapt.records import Array

__all__ = ["RLSRoom", "RLSSettings", "RLSState", "adapt", "inflate_all", "learn", "predict"]

ROBUST_RATE: Final = 0.005
"""`INNOVATION_RATE` of the L1 form."""
SMALLEST: Final = 1e-6
"""Least mean innovation of the L1 form, in scaled units."""


class RLSSettings(NamedTuple):
    """`forgetting` is (experts,); `lags` those of ``cross``; `period` is in ns."""

    forgetting: Array
    clip: float
    ridge: float
    shared: bool
    robust: bool
    level: bool
    calendar: bool
    cross: bool
    season: bool
    lags: Array
    period: int


class RLSState(NamedTuple):
    """Per key, with d features; sets of weights are (experts x groups), or one per expert if
    `shared`. What a form does not have is empty.

    Attributes
    ----------
    covariance : (sets, d, d), unless `shared`
    information : (experts, d, d), if `shared`
    weights : (sets, d, responses)
    innovation : (experts x groups, responses)
        The running means of the errors' sizes.
    turn : (), int64
        The coordinate whose turn the leak is.
    past_inputs : (groups, d, 2 rows)
    past_gains : (experts, groups, d, 2 rows)
    head : (), int64
        The x and gains of the last forecasts, newest first from ``[..., head]`` on. Twice the
        room, and a move to the back of it every `rows` entries, instead of a move by one every
        time.
    past_seasons : (rows, channels, rows + 1), float32
        The season features of the last entries, newest first: by the time a row is known, the
        cycle has gone on.
    cycle : CycleState
    """

    covariance: Array
    information: Array
    weights: Array
    innovation: Array
    turn: Array
    past_inputs: Array
    past_gains: Array
    head: Array
    past_seasons: Array
    cycle: CycleState


class RLSRoom(NamedTuple):
    """`scaled`, `panel`, `season` and `x` (groups, d): of the features. Per group: `left`,
    `known` and `error`, (groups, responses); `root`, (groups,), of an example's weight; `rooted`,
    x times that, and `gain`, (groups, d). `column` (d,), `upper` (d, d) and `solved` (d, groups):
    of the steps."""

    scaled: Array
    panel: Array
    season: Array
    x: Array
    left: Array
    known: Array
    error: Array
    root: Array
    rooted: Array
    gain: Array
    column: Array
    upper: Array
    solved: Array


@inlined
def predict(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = base + scale * x^T v``; for classes brought back to the simplex."""
    if p.season:
        season_features(c, s.cycle, key, p.period, x, w.season)
    fill_features(c, p, w, x)
    groups, responses = w.left.shape
    for e in range(out.shape[0]):
        for g in range(groups):
            multiply(w.x[g], s.weights[key, set_of(p, w, e, g)], w.left[g])
            for r in range(responses):
                h, j = cell_of(c, g, r)
                out[e, h, j] = x.base[h, j] + c.output_scale[j] * w.left[g, r]
        if c.classify:
            clip_to_simplex(out[e, 0])


@inlined
def learn(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """Learn what has become known, with the gain of the entry that it belongs to."""
    some = fill_left(c, w, x, y)
    if not some and (p.robust or not c.forecast):
        return  # else the past keeps step with the entries, known or not
    if p.season:
        # As it was when the newest forecast was issued, or the one now whole.
        newest_or_oldest = s.past_seasons.shape[1] - 1 if p.robust else 0
        copy_season(s.past_seasons[key, newest_or_oldest], w.season)
    fill_features(c, p, w, x)
    if p.robust:
        learn_robustly(p, s, key, w, y)
    else:
        learn_squares(c, p, s, key, w, y)
    if not p.shared:
        s.turn[key] = (s.turn[key] + 1) % w.x.shape[1]


@compiled
def adapt(c: Any, p: Any, s: Any, key: int, w: Any, x: Any) -> None:
    """Remember the newest entry's season, and its values for the next one's."""
    if not p.season:
        return
    season_features(c, s.cycle, key, p.period, x, w.season)
    for h in range(s.past_seasons.shape[1] - 1, 0, -1):
        copy_season(s.past_seasons[key, h - 1], s.past_seasons[key, h])
    copy_season(w.season, s.past_seasons[key, 0])
    put_in_cycle(s.cycle, key, p.period, x)


@compiled
def inflate_all(c: Any, p: Any, s: Any, key: int, w: Any, keep: float) -> None:
    """``P^-1 <- keep P^-1 + (1 - keep) ridge I``; the weights stay."""
    for n in range(s.covariance.shape[1]):
        inflate(s.covariance[key, n], keep, p.ridge, w.column)
    for n in range(s.information.shape[1]):
        shrink(s.information[key, n], keep, (1.0 - keep) * p.ridge)


@compiled
def set_of(p: Any, w: Any, e: int, g: int) -> int:
    """Return the row of the weights of an expert and a group."""
    return e if p.shared else e * w.x.shape[0] + g


@compiled
def cell_of(c: Any, g: int, r: int) -> Any:
    """Return the row and the column of a group's response: of a forecast, a group is a column."""
    return (r, g) if c.forecast else (0, r)


@compiled
def fill_left(c: Any, w: Any, x: Any, y: Any) -> bool:
    """Write the base's errors, in scaled units and by groups, to ``w.left``; return whether any is
    known."""
    some = False
    for g in range(w.left.shape[0]):
        for r in range(w.left.shape[1]):
            h, j = cell_of(c, g, r)
            w.known[g, r] = y.known[h, j]
            w.left[g, r] = 0.0
            if y.known[h, j]:
                w.left[g, r] = (y.target[h, j] - x.base[h, j]) / c.output_scale[j]
                some = True
    return some


@compiled
def copy_season(source: Any, season: Any) -> None:
    """``season <- source``."""
    for i in range(season.shape[0]):
        for h in range(season.shape[1]):
            season[i, h] = source[i, h]


@inlined
def learn_squares(c: Any, p: Any, s: Any, key: int, w: Any, y: Any) -> None:
    """``v_h <- v_h + k_h clip(e_h)``."""
    head = put_inputs(s, key, w) if c.forecast else 0
    for g in range(w.root.shape[0]):
        w.root[g] = math.sqrt(y.weight)
    for e in range(p.forgetting.shape[0]):
        fill_gains(p, s, key, w, e, y.boost)
        if c.forecast:
            put_gains(s, key, w, e, head)
        for g in range(w.x.shape[0]):
            v = s.weights[key, set_of(p, w, e, g)]
            innovation = s.innovation[key, e * w.x.shape[0] + g]
            if c.forecast:
                multiply_rows(s.past_inputs[key, g], head, v, w.error[g])
            else:
                multiply(w.x[g], v, w.error[g])
            residuals(w.left[g], w.known[g], w.error[g])
            follow(innovation, INNOVATION_RATE, w.known[g], w.error[g])
            if not c.classify:  # where an error is at most 1, and a rare one is news
                clip(w.error[g], p.clip, innovation)
        for g in range(w.x.shape[0]):
            v = s.weights[key, set_of(p, w, e, g)]
            if c.forecast:
                correct_rows(v, s.past_gains[key, e, g], head, w.error[g])
            else:
                correct(v, w.gain[g], w.error[g])


@compiled
def learn_robustly(p: Any, s: Any, key: int, w: Any, y: Any) -> None:
    """``v_h <- v_h + q P x e_h``."""
    for e in range(p.forgetting.shape[0]):
        for g in range(w.x.shape[0]):
            multiply(w.x[g], s.weights[key, set_of(p, w, e, g)], w.error[g])
            residuals(w.left[g], w.known[g], w.error[g])
            innovation = s.innovation[key, e * w.x.shape[0] + g]
            q = robust_weight(w.known[g], w.error[g], innovation) * y.weight
            w.root[g] = math.sqrt(q)
            follow(innovation, ROBUST_RATE, w.known[g], w.error[g])
            for r in range(innovation.shape[0]):
                innovation[r] = max(innovation[r], SMALLEST)
        fill_gains(p, s, key, w, e, y.boost)
        for g in range(w.x.shape[0]):
            correct(s.weights[key, set_of(p, w, e, g)], w.gain[g], w.error[g])


@compiled
def robust_weight(known: Any, error: Any, innovation: Any) -> float:
    """``q = min(MOST_WEIGHT, 1 / mean_h(|e_h| / m_h))`` over the known errors; 0 if there are
    none."""
    count, total = 0, 0.0
    for r in range(error.shape[0]):
        if known[r]:
            count += 1
            total += abs(error[r]) / innovation[r]
    if count == 0:
        return 0.0
    return MOST_WEIGHT if total * MOST_WEIGHT <= count else count / total


@compiled
def follow(innovation: Any, rate: float, known: Any, error: Any) -> None:
    """``m_h <- m_h + rate (|e_h| - m_h)`` where e_h is known."""
    for r in range(error.shape[0]):
        if known[r]:
            innovation[r] += rate * (abs(error[r]) - innovation[r])


@compiled
def clip(error: Any, times: float, innovation: Any) -> None:
    """Clip each error at `times` its mean size."""
    for r in range(error.shape[0]):
        error[r] = clipped(error[r], times, innovation[r])


@compiled
def fill_gains(p: Any, s: Any, key: int, w: Any, e: int, boost: float) -> None:
    """``P^-1 <- forgetting P^-1 + q x x^T + leak``, ``k = q P x``, with ``sqrt(q)`` in
    ``w.root``."""
    groups, d = w.x.shape
    for g in range(groups):
        for i in range(d):
            w.rooted[g, i] = w.x[g, i] * w.root[g]
    forgetting = boosted(p.forgetting[e], boost)
    leak = (1.0 - forgetting) * p.ridge
    if p.shared:
        inform(s.information[key, e], forgetting, leak, w.rooted)
        solve_gains(s.information[key, e], w)
    else:
        for g in range(groups):
            if p.robust and w.root[g] == 0.0:  # a channel without a target forgets nothing
                for i in range(d):
                    w.gain[g, i] = 0.0
            else:
                covariance = s.covariance[key, set_of(p, w, e, g)]
                forget(covariance, forgetting, leak * d, s.turn[key], w.column)
                absorb(covariance, w.rooted[g], w.gain[g])
    for g in range(groups):
        for i in range(d):
            w.gain[g, i] *= w.root[g]


@compiled
def solve_gains(information: Any, w: Any) -> None:
    """``gain = M^-1 x`` for every group; 0 where M has lost its positive definiteness to
    rounding."""
    groups, d = w.x.shape
    for i in range(d):
        for j in range(i, d):
            w.upper[i, j] = information[i, j]
    fine = factorise(w.upper)
    for i in range(d):
        for g in range(groups):
            w.solved[i, g] = w.rooted[g, i] if fine else 0.0
    if fine:
        solve(w.upper, w.solved)
    for g in range(groups):
        for i in range(d):
            w.gain[g, i] = w.solved[i, g]


@compiled
def put_inputs(s: Any, key: int, w: Any) -> Any:
    """Put the newest x in front of the last forecasts'; return its place, the new head."""
    rows, head = s.past_inputs.shape[3] // 2, s.head[key]
    if head == 0:
        head = rows + 1
        for g in range(s.past_inputs.shape[1]):
            move_back(s.past_inputs[key, g], head)
        for e in range(s.past_gains.shape[1]):
            for g in range(s.past_gains.shape[2]):
                move_back(s.past_gains[key, e, g], head)
    head -= 1
    s.head[key] = head
    for g in range(w.x.shape[0]):
        for i in range(w.x.shape[1]):
            s.past_inputs[key, g, i, head] = w.x[g, i]
    return head


@compiled
def move_back(past: Any, head: int) -> None:
    """Move what lies in front to `head` and behind it."""
    for i in range(past.shape[0]):
        for h in range(past.shape[1] - head):
            past[i, head + h] = past[i, h]


@compiled
def put_gains(s: Any, key: int, w: Any, e: int, head: int) -> None:
    """Put the newest gains in front of an expert's."""
    for g in range(w.x.shape[0]):
        for i in range(w.x.shape[1]):
            s.past_gains[key, e, g, i, head] = w.gain[g, i]
