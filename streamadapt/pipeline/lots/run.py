"""A run of events through the learners, one after the other, and then through health and guard."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamadapt.guard.base import Mixture
from streamadapt.guard.compiled import CompiledGuard
from streamadapt.learners.compiled import CompiledLearner
from streamadapt.learners.lots import ADAPT, LEARN
from streamadapt.pipeline.lots.guard_loop import (
    BAD_EXPERT,
    BAD_MIXTURE,
    BROKEN,
    CODES,
    guard_loop,
)
from streamadapt.pipeline.lots.host import Host
from streamadapt.pipeline.lots.room import Room

__all__ = ["Run"]


class Run:
    """Takes learners, health and guard of a pipeline through the first events of a room.

    Parameters
    ----------
    pipeline : Host
    room : Room
        Its arrays hold the events.
    stop : int
        How many there are.
    """

    def __init__(self, pipeline: Host, room: Room, stop: int) -> None:
        self.pipeline, self.room, self.stop = pipeline, room, stop
        assert pipeline.health is not None
        self.health = pipeline.health
        room.box()

        # By learner: before each gradient step, its event, the usual norm and the number of steps.
        self.steps: dict[int, list[tuple[int, float, int]]] = {}
        self.out: list[tuple[int, int]] = []  # events whose gradient was too long, and the learner

    def learn(self) -> None:
        """Take every learner through the events, and count its examples."""
        updates, room = self.pipeline.stats.updates, self.room
        learned = {
            "rows": int(np.count_nonzero(room.lot.kinds[: self.stop] == LEARN)),
            "path": int(np.count_nonzero(room.path.kinds[: self.stop] == LEARN)),
        }
        for i, learner in enumerate(self.pipeline.learners):
            self._take(i, 0)
            count = learned[learner.matures] if learner.needs_labels else 0
            for name in room.names[i] if count else ():
                updates[name]["ok"] += count

    def _take(self, i: int, start: int) -> None:
        """Take learner i through the events from `start` on."""
        learner, first = self.pipeline.learners[i], self.room.firsts[i]
        assert isinstance(learner, CompiledLearner)
        box = self.room.lot_box if learner.matures == "rows" else self.room.path_box
        if learner.makes_gradient_steps:
            self._take_by_example(i, learner, start, first)
        else:
            learner.run(box, start, self.stop, first)

    def _take_by_example(self, i: int, learner: CompiledLearner, start: int, first: int) -> None:
        """Look at the gradient after each example; a learner with one that is too long is set
        back, and `guard` lets the base stand in for it from that event on."""
        rows = learner.matures == "rows"
        lot, box = (
            (self.room.lot, self.room.lot_box) if rows else (self.room.path, self.room.path_box)
        )
        health, steps = self.health, self.steps.setdefault(i, [])
        self.out = [(n, other) for n, other in self.out if other != i or n < start]
        while steps and steps[-1][0] >= start:
            _, health.usual_norm[i], health.steps[i] = steps.pop()
        for n in (start + np.flatnonzero(lot.kinds[start : self.stop] == LEARN)).tolist():
            learner.run(box, start, n + 1, first)
            start = n + 1
            norm = learner.take_gradient_norm()
            if norm is None:
                continue
            steps.append((n, float(health.usual_norm[i]), int(health.steps[i])))
            if not health.is_usual(i, norm):
                health.restore(i)
                self.out.append((n, i))
        learner.run(box, start, self.stop, first)

    def guard(self) -> None:
        """Take health and guard through the events; a learner that is set back takes the rest
        again."""
        guard, start, seen = self.pipeline.guard, 0, -1
        assert isinstance(guard, CompiledGuard)
        loop = guard_loop(guard.steps)
        self.pipeline.scores.go_on_from(self.pipeline.stats)
        while start < self.stop:
            self._bench_out(start)
            stop = min((n for n, _ in self.out if n > start), default=self.stop)
            count = self.health.count
            found = loop.call(
                self.room.guard_box, guard.parts, self.room.judging_box, start, stop, seen
            )
            n, code = divmod(found, CODES)
            complete = n + 1 if code == BROKEN else n
            self._count_updates(start, complete)
            start, seen = complete, -1
            if code == BAD_EXPERT:
                self._set_back_bad(n)
                seen = n
            elif code == BAD_MIXTURE:
                self._serve_the_base(n)
                start = n + 1
            elif code == BROKEN:
                self._set_back(np.flatnonzero(self.room.judging.room.broken), n + 1)
            if self.health.count != count:
                self.health.keep_snapshots()
        self.pipeline.scores.store(self.pipeline.stats)

    def _bench_out(self, event: int) -> None:
        """Let the base stand in for learners whose gradient at an event was too long."""
        for n, i in self.out:
            if n == event:
                self.pipeline.count_restored(self.health.bench(i))
        self.out = [(n, i) for n, i in self.out if n != event]

    def _count_updates(self, start: int, stop: int) -> None:
        learned = self.room.lot.kinds[start:stop] == LEARN
        self.pipeline.keeper.count_updates(int(learned.sum()))

    def _set_back_bad(self, n: int) -> None:
        """Set learners back of which an expert predicted no number for entry n."""
        lots = (self.room.lot, self.room.path)
        kinds = [int(lot.kinds[n]) for lot in lots]
        for lot in lots:
            lot.kinds[n] = ADAPT  # it was predicted from the state before
        self._set_back(np.flatnonzero(self.room.judging.room.broken), n)
        for lot, kind in zip(lots, kinds, strict=True):
            lot.kinds[n] = kind

    def _set_back(self, experts: Any, start: int) -> None:
        """Restore the learners of experts, and let them take the events from `start` on."""
        health = self.health
        fresh = [int(k) + 1 for k in experts if health.benched[k] == 0]
        for k in experts:
            health.set_back(int(k))
        self.pipeline.count_restored(fresh)
        for i in sorted({health.owner[int(k)] for k in experts}):
            self._take(i, start)

    def _serve_the_base(self, n: int) -> None:
        """Note that the guard is broken, and serve the base for entry n."""
        room, keeper = self.room, self.pipeline.keeper
        at = int(room.lot.at[n])
        mixture: Mixture = keeper.mix(room.places.experts[at], commit=True)
        room.places.own[at, room.kept :] = mixture.aggregator_outputs
        room.guard_lot.shares[n] = mixture.weights
        room.guard_lot.scales[n] = keeper.scale()
