"""Loops over the events of a run for what does not change learners or guard: loss estimates,
intervals, and the signals of drift monitors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

from streamadapt.compiled import Kernel
from streamadapt.drift.signal_kernels import signals
from streamadapt.learners.lots import ENTRY, LEARN
from streamadapt.pipeline import interval_kernels
from streamadapt.pipeline.lots.guard_loop import gather
from streamadapt.tasks.estimate_kernels import count_estimated, label_step
from streamadapt.tasks.loss_kernels import length_of

__all__ = ["interval_loop", "note_loop", "signal_loop"]


@cache
def note_loop(estimate: Callable[..., None], learn: Callable[..., None]) -> Kernel:
    """Return the kernel that takes a loss estimate through the first `stop` events of a run.

    Its arguments are the loss, the estimate's settings, state and room, `LossSums`, a `GuardLot`,
    the notes (places, length), room (1, judged), and `stop`.
    """
    step = label_step(learn)

    def run(loss: Any, p: Any, s: Any, w: Any, sums: Any, lot: Any, notes: Any,  # noqa: PLR0913
            unit: Any, stop: int) -> None:  # fmt: skip
        kinds, at, rows_at, weights = lot.kinds, lot.at, lot.rows_at, lot.weights
        experts, own, scales = lot.experts, lot.own, lot.scales
        targets, known = lot.targets, lot.known
        last = own.shape[1] - 1
        for n in range(stop):
            if kinds[n] == ENTRY:
                row = at[n]
                for j in range(unit.shape[1]):
                    unit[0, j] = length_of(loss, scales[n, 0, j])
                estimate(p, s, 0, w, experts[row], own[row, last], scales[n], unit, notes[row])
                count_estimated(sums, 0, notes[row])
            elif kinds[n] == LEARN:
                row = rows_at[n, 0]
                step(loss, p, s, 0, w, sums, experts[row, 0, 0], own[row, last, 0],
                     targets[n, 0], known[n, 0], 0.0, notes[row], weights[n])  # fmt: skip

    return Kernel(run, "loss estimates over a lot")


def _intervals(p: Any, s: Any, lot: Any, kept: Any, counts: Any, stop: int) -> None:
    kinds, at, rows_at, own = lot.kinds, lot.at, lot.rows_at, lot.own
    targets, known, weights = lot.targets, lot.known, lot.weights
    last = own.shape[1] - 1
    for n in range(stop):
        if kinds[n] == ENTRY:
            interval_kernels.issue(p, s, 0, own[at[n], last], own[at[n]])
        elif kinds[n] == LEARN:
            gather(own, 0, rows_at[n], kept)
            interval_kernels.learn(p, s, 0, kept, targets[n], known[n], weights[n], counts)


interval_loop: Final = Kernel(_intervals, "intervals over a lot")


def _signals(p: Any, s: Any, w: Any, out: Any, lot: Any, base: Any, means: Any,  # noqa: PLR0913
             losses: Any, residuals: Any, stop: int) -> None:  # fmt: skip
    """Write the signals of all targets that became known, one row for each."""
    kinds, rows_at, experts = lot.kinds, lot.rows_at, lot.experts
    targets, known = lot.targets, lot.known
    row = 0
    for n in range(stop):
        if kinds[n] == LEARN:
            gather(experts, 0, rows_at[n], base)
            signals(p, s, 0, w, base[0], targets[n], known[n], out)
            for i in range(means.shape[1]):
                means[row, i] = out.means[i]
            for j in range(losses.shape[1]):
                losses[row, j], residuals[row, j] = out.losses[j], out.residuals[j]
            row += 1


signal_loop: Final = Kernel(_signals, "signals over a lot")
