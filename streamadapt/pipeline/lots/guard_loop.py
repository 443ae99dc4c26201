"""The loop that takes health and guard through the events of a lot, after the learners."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import Kernel, compiled
from streamadapt.guard.arrivals import Matured
from streamadapt.guard.compiled import Steps
from streamadapt.learners.lots import ENTRY, LEARN
from streamadapt.pipeline.judging import (
    HealthState,
    ScoreRoom,
    all_finite,
    judge,
    score,
    stand_in,
)
from streamadapt.records import Array
from streamadapt.tasks.loss_kernels import scale_of

__all__ = ["BAD_EXPERT", "BAD_MIXTURE", "BROKEN", "DONE", "GuardLot", "Judging",
           "guard_loop"]  # fmt: skip

DONE: Final = 0
BAD_EXPERT: Final = 1
"""An expert's prediction is not finite: the event has not begun."""
BAD_MIXTURE: Final = 2
"""What the guard would serve is not finite: nothing of the event is kept."""
BROKEN: Final = 3
"""An expert's losses are too large; the event is complete."""
CODES: Final = 4


class GuardLot(NamedTuple):
    """Events in their order, and the places of predictions.

    Attributes
    ----------
    kinds : ndarray, (events,), int64
    at : ndarray, (events,), int64
        `ENTRY`: the place of its prediction.
    rows_at : ndarray, (events, rows), int64
        `LEARN`: the place from which each row of what matured was predicted; -1 for none.
    outputs : ndarray, (events, experts, rows, columns), float64
        What the learners predicted; not the base.
    targets, known : ndarray, (events, rows, columns)
        Original units.
    weights : ndarray, (events,), float64
    shares : ndarray, (events, 1 + experts), float64
        `ENTRY`: each expert's share of what is served.
    scales : ndarray, (events, rows, judged), float64
        `ENTRY`: what the guard divides losses by.
    experts : ndarray, (places, 1 + experts, rows, columns), float64
    own : ndarray, (places, kept + aggregators, rows, columns), float64
        First the rows that an interval keeps.
    """

    kinds: Any
    at: Any
    rows_at: Any
    outputs: Array
    targets: Array
    known: Any
    weights: Array
    shares: Array
    scales: Array
    experts: Array
    own: Array


class Judging(NamedTuple):
    """What the loop needs beside the guard's parts.

    Attributes
    ----------
    health : HealthState
    room : ScoreRoom
    experts, own : ndarray, (1 + experts or aggregators, rows, columns)
        Room for what matured.
    origin : ndarray, (columns,), float64
    sums, counts : ndarray, (2 + experts,)
        The losses of the base, of each expert and of what was served, and their numbers of cells.
    kept : int
        How many rows an interval keeps.
    """

    health: HealthState
    room: ScoreRoom
    experts: Array
    own: Array
    origin: Array
    sums: Array
    counts: Any
    kept: int


@compiled
def take_outputs(outputs: Any, origin: Any, experts: Any) -> None:
    """Write the learners' outputs, (experts, rows, columns), behind the base's, rounded to float32
    as learners predict, in original units."""
    size, rows, columns = outputs.shape
    for k in range(size):
        for h in range(rows):
            for j in range(columns):
                experts[k + 1, h, j] = np.float64(np.float32(outputs[k, h, j])) + origin[j]


@compiled
def mark_bad(experts: Any, broken: Any) -> Any:
    """Write which experts are not finite, (experts,); return how many."""
    found = 0
    for k in range(broken.shape[0]):
        broken[k] = not all_finite(experts[k + 1])
        found += 1 if broken[k] else 0
    return found


@compiled
def gather(places: Any, first: int, rows_at: Any, out: Any) -> None:
    """Collect each row of what matured from the place that it was predicted at.

    Parameters
    ----------
    places : ndarray, (places, any number, rows, columns)
    first : int
        Where to begin on its second axis.
    rows_at : ndarray, (rows,)
    out : ndarray, (any number, rows, columns)
    """
    size, rows, columns = out.shape
    for h in range(rows):
        at = rows_at[h]
        for k in range(size):
            for j in range(columns):
                out[k, h, j] = places[at, first + k, h, j] if at >= 0 else 0.0


@compiled
def write_scale(c: Any, error: Any, out: Any) -> None:
    """Write what losses are divided by, (rows, judged)."""
    for h in range(out.shape[0]):
        for j in range(out.shape[1]):
            usual = error[h, j] if error[h, j] > 0.0 else c.floor[h, j]
            out[h, j] = scale_of(c.loss, usual)


@compiled
def is_finite_mixture(own: Any, shares: Any) -> Any:
    """Return whether all that the guard wrote is finite."""
    fine = True
    for k in range(own.shape[0]):
        fine = fine and all_finite(own[k])
    for k in range(shares.shape[0]):
        fine = fine and math.isfinite(shares[k])
    return fine


@cache
def guard_loop(steps: Steps) -> Kernel:
    """Return the kernel that takes a guard through the events [start, stop).

    Its arguments are a `GuardLot`, the guard's `Parts`, `Judging`, `start`, `stop`, and an event
    whose experts have been looked at, or -1. It returns ``4 n + code``: the event n that it
    stopped at, and why.
    """
    mix, learn = steps

    def run(lot: Any, parts: Any, judging: Any, start: int, stop: int, seen: int) -> int:
        c, p, s, w = parts.shared, parts.settings, parts.state, parts.room
        health, room, sums, counts = judging.health, judging.room, judging.sums, judging.counts
        experts, own, kept, origin = judging.experts, judging.own, judging.kept, judging.origin
        kinds, at, rows_at, outputs = lot.kinds, lot.at, lot.rows_at, lot.outputs
        targets, known, weights = lot.targets, lot.known, lot.weights
        shares, scales, issued, mixtures = lot.shares, lot.scales, lot.experts, lot.own
        for n in range(start, stop):
            if kinds[n] == ENTRY:
                predicted, mixed = issued[at[n]], mixtures[at[n], kept:]
                if n != seen:
                    take_outputs(outputs[n], origin, predicted)
                    if mark_bad(predicted, room.broken) > 0:
                        return CODES * n + BAD_EXPERT
                stand_in(health, 0, predicted)
                mix(c, p, s, 0, w, predicted, mixed, shares[n])
                if not is_finite_mixture(mixed, shares[n]):
                    return CODES * n + BAD_MIXTURE
                write_scale(c, s.error[0], scales[n])
            elif kinds[n] == LEARN:
                gather(issued, 0, rows_at[n], experts)
                gather(mixtures, kept, rows_at[n], own)
                served, target, mask = own[own.shape[0] - 1], targets[n], known[n]
                broken = 0
                if score(c.loss, room, experts, served, target, mask, weights[n], sums, counts):
                    broken = judge(health, 0, room)
                learn(c, p, s, 0, w, Matured(experts, own, target, mask, weights[n]))
                if broken > 0:
                    return CODES * n + BROKEN
        return CODES * stop

    return Kernel(run, "health and guard over a lot")
