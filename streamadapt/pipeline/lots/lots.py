"""Plain items of a pipeline, taken in lots.

An item is plain if nothing about it has to be decided alone: its time is in order, none of its
values may be an outlier, its label is whole, and the base has an answer to it. A lot ends before
the first item that is not plain; the pipeline takes that one alone. Predictions never depend on
where a lot ends.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from streamadapt.guard.compiled import CompiledGuard
from streamadapt.learners.compiled import CompiledLearner, is_as_made
from streamadapt.learners.lots import LEARN
from streamadapt.models.contract import BaseOutput
from streamadapt.pipeline.intervals import Intervals, NoIntervals
from streamadapt.pipeline.lots.entries import Entries
from streamadapt.pipeline.lots.host import Host
from streamadapt.pipeline.lots.items import Items
from streamadapt.pipeline.lots.matching import LotEvents, events_of
from streamadapt.pipeline.lots.room import Room
from streamadapt.pipeline.lots.run import Run
from streamadapt.pipeline.lots.tell import Tell, Told
from streamadapt.pipeline.rollback import UNTIL_SNAPSHOT
from streamadapt.tasks import Forecast, Supervised

__all__ = ["MOST_ITEMS", "Lots"]

MOST_ITEMS: Final = 1024
"""The most items of a lot."""


class Lots:
    """Takes plain items through a pipeline in lots.

    Parameters
    ----------
    pipeline : Host

    Attributes
    ----------
    allowed : bool
        False: every item is taken alone, for tests that compare the two.
    taken : int
        How many items have been taken in lots.
    reach : int
        How many items to look at next: fewer after a lot that ended early, since all of them
        were looked at.
    answer : (Tensor, BaseOutput or Exception) or None
        The inputs and the answer of the base that ended the last lot: it is not asked twice.
    """

    def __init__(self, pipeline: Host) -> None:
        self.pipeline = pipeline
        self._room: Room | None = None
        self._made_for: tuple[Any, ...] = ()
        self.allowed, self.taken, self.reach = True, 0, MOST_ITEMS
        self._suited = (-1, -1)
        self.answer: tuple[Tensor, BaseOutput | Exception] | None = None

    def _intervals_began(self) -> bool:
        """Whether there are no intervals, or some have been issued since they began."""
        intervals = self.pipeline.intervals
        return not isinstance(intervals, Intervals) or intervals.state is not None

    def _suits(self) -> bool:
        """Whether all parts can take a lot: of their classes this does not change, but somebody
        may put a method into one of them."""
        parts = (self.pipeline.guard, *self.pipeline.learners)
        seen = sum(len(vars(part)) for part in parts)
        if self._suited != (seen, len(parts)):
            self._suited = (seen, len(parts)) if self._parts_suit() else (-1, -1)
        return self._suited[0] >= 0

    def _parts_suit(self) -> bool:
        """Whether all parts of the pipeline can take a lot."""
        pipeline, task = self.pipeline, self.pipeline.task
        if isinstance(task, Supervised) and (
            task.negative_after is not None or task.correction_window
        ):
            return False
        return (
            type(task) in (Supervised, Forecast)
            and pipeline.panel is None
            and type(pipeline.intervals) in (NoIntervals, Intervals)
            and is_as_made(pipeline.guard, CompiledGuard, ("mix", "update", "scale"))
            and all(
                isinstance(learner, CompiledLearner) and learner.takes_lots
                for learner in pipeline.learners
            )
        )

    @property
    def ready(self) -> bool:
        """Whether the next items may be taken in a lot: all scales are known, and nothing is in
        doubt."""
        pipeline, task = self.pipeline, self.pipeline.task
        return (
            self.allowed
            and self.answer is None  # of the next entry, which is not plain
            and pipeline.spec is not None
            and pipeline.spec.device.type == "cpu"
            and self._intervals_began()
            and pipeline.settled
            and task.clock.plain
            and pipeline.screen.plain
            and task.window is not None
            and task.window.full
            and bool(task.window.seen.all())
            and not pipeline.monitors.feeds_back
            and pipeline.health is not None
            and not pipeline.health.lost.any()
            and self._suits()
        )

    def take_answer(self, inputs: Tensor) -> BaseOutput | None:
        """Return the base's answer to these inputs, if it ended a lot; raise it, if it is an
        error."""
        kept, self.answer = self.answer, None
        if kept is None or not torch.equal(kept[0], inputs):
            return None
        if isinstance(kept[1], Exception):
            raise kept[1]
        return kept[1]

    @property
    def channels(self) -> int:
        """How many values an entry has; once the pipeline is ready."""
        window = self.pipeline.task.window
        assert window is not None
        return int(window.values.shape[1])

    def room(self, wanted: int) -> Room:
        """Return the arrays of the pipeline, for that many events where possible; new ones when
        it has been built again."""
        pipeline, room = self.pipeline, self._room
        parts = (pipeline.spec, pipeline.health, pipeline.guard, pipeline.scores)
        if room is None or any(
            one is not other for one, other in zip(parts, self._made_for, strict=True)
        ):
            room, self._made_for = Room(pipeline, wanted), parts
        elif wanted > room.size < room.most:
            room = Room(pipeline, wanted, room.places)
        self._room = room
        return room

    def __getstate__(self) -> dict[str, Any]:
        """Leave the arrays out: a copy makes its own."""
        return vars(self) | {"_room": None, "_made_for": (), "answer": None}

    def take(self, items: Items) -> Told | None:
        """Process the first items, as far as they are plain; None if the first is not."""
        if not items.ids:
            return None
        room, pipeline = self.room(len(items)), self.pipeline
        items = items.first(min(room.most, self.reach))
        room.places.recycle()
        is_entry = ~np.array(items.is_label, np.bool_)
        taken = None
        if is_entry.any():
            taken = Entries(pipeline, room, items.values[is_entry], items.times[is_entry])
        task = pipeline.task
        assert isinstance(task, Supervised | Forecast)
        events = events_of(room, task, items, taken)
        if taken is not None:
            taken.shorten(events.entries)  # so that the base is asked for no others
            with pipeline.timing.stage("predict"):
                answered = taken.ask_base()
            if answered < taken.count:
                taken.shorten(answered)
                events = events_of(room, task, items, taken)
        events.finish()
        if taken is not None:
            taken.shorten(events.entries)
        whole = events.count == len(items)
        self.reach = min(2 * self.reach, MOST_ITEMS) if whole else max(2 * events.count, 1)
        if events.count == 0:
            return None
        if taken is not None and taken.count:
            taken.commit()
        events.commit()
        self.taken += events.count
        return self._run(events, room)

    def _run(self, events: LotEvents, room: Room) -> Told:
        """Take the pipeline through the events, in runs that end where snapshots are due."""
        pipeline, first = self.pipeline, 0
        health, keeper = pipeline.health, pipeline.keeper
        assert health is not None
        told = Told(events.count)
        while first < len(events.kinds):
            learned = min(keeper.until_snapshot, UNTIL_SNAPSHOT - health.count % UNTIL_SNAPSHOT)
            stop = min(first + room.size, len(events.kinds))
            targets = np.flatnonzero(events.kinds[first:stop] == LEARN)
            if len(targets) >= learned:
                stop = first + int(targets[learned - 1]) + 1
            events.write(first, stop)
            run = Run(pipeline, room, stop - first)
            with pipeline.timing.stage("learn"):
                run.learn()
                run.guard()
            with pipeline.timing.stage("predict"):
                Tell(pipeline, room, events, first, stop).all(told)
            first = stop
        pipeline.stats.pending = pipeline.task.pending
        return told
