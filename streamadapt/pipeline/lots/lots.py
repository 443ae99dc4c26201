"""Plain items of a pipeline, taken in lots.

An item is plain if nothing about it has to be decided alone: its time is in order, none of its
values may be an outlier, and the base has an answer to it. A lot ends before the first item that is
not plain; the pipeline takes that one alone. What is predicted never depends on where a lot ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamadapt.errors import EntryError
from streamadapt.guard.compiled import CompiledGuard
from streamadapt.learners.compiled import CompiledLearner
from streamadapt.pipeline.coerce import coerced
from streamadapt.pipeline.intervals import Intervals, NoIntervals
from streamadapt.pipeline.lots.entries import Entries
from streamadapt.pipeline.lots.events import LotEvents, Predicted, events_of, split
from streamadapt.pipeline.lots.room import Room
from streamadapt.pipeline.lots.run import Run
from streamadapt.pipeline.lots.tell import Tell
from streamadapt.pipeline.rollback import UNTIL_SNAPSHOT
from streamadapt.records import Entry, Label, Prediction
from streamadapt.tasks import Forecast, Supervised

if TYPE_CHECKING:  # the pipeline imports this package
    from streamadapt.pipeline.pipeline import Pipeline

__all__ = ["Lots"]

Refused = list[tuple[Entry | Label, EntryError]]


class Lots:
    """Takes plain items through a pipeline in lots.

    Parameters
    ----------
    pipeline : Pipeline

    Attributes
    ----------
    allowed : bool
        False: every item is taken alone, for tests that compare the two.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._room: Room | None = None
        self._made_for: tuple[Any, ...] = ()
        self.allowed = True

    def _parts_suit(self) -> bool:
        """Whether all parts of the pipeline can take a lot."""
        pipeline, task = self.pipeline, self.pipeline.task
        return (
            type(task) in (Supervised, Forecast)
            and getattr(task, "negative_after", None) is None
            and pipeline.panel is None
            and type(pipeline.intervals) in (NoIntervals, Intervals)
            and _is_as_made(pipeline.guard, CompiledGuard, ("mix", "update", "scale"))
            and all(
                _is_as_made(learner, CompiledLearner, ("predict", "learn", "adapt"))
                and not learner.signal_names
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
            and pipeline.spec is not None
            and pipeline.settled
            and self._parts_suit()
            and task.clock.plain
            and pipeline.screen.plain
            and task.window is not None
            and task.window.full
            and bool(task.window.seen.all())
            and not pipeline.monitors.feeds_back
            and pipeline.health is not None
            and not pipeline.health.lost.any()
        )

    def room(self) -> Room:
        """Return the arrays of the pipeline; new ones when it has been built again."""
        pipeline = self.pipeline
        parts = (pipeline.spec, pipeline.health, pipeline.guard, pipeline.scores)
        if self._room is None or any(
            one is not other for one, other in zip(parts, self._made_for, strict=True)
        ):
            self._room, self._made_for = Room(pipeline), parts
        return self._room

    def take(self, items: Sequence[Any], predictions: list[Prediction]) -> tuple[int, Refused]:
        """Process the first items, as far as they are plain, and add their predictions.

        Returns
        -------
        int
            How many items have been processed.
        list of (item, EntryError)
            Labels that were refused among them.
        """
        if not self.ready:
            return 0, []
        room, plain = self.room(), self._plain(items)
        entries = [item for item in plain if isinstance(item, Entry)]
        room.places.recycle()
        taken = Entries(self.pipeline, room, entries) if entries else None
        count, events, refused = self._match(plain, taken)
        if taken is not None:
            taken.shorten(events.entries)
            taken.commit()
        self._run(events, predictions)
        return count, refused

    def _plain(self, items: Sequence[Any]) -> list[Entry | Label]:
        """Return the first items, in the pipeline's types, that can be taken without a refusal of
        their entries."""
        task, room = self.pipeline.task, self.room()
        window = task.window
        assert window is not None
        width, found, ids = (window.values.shape[1],), [], set()
        supervised = isinstance(task, Supervised)
        for given in items[: room.size]:
            try:
                item = coerced(given)
            except EntryError:
                break
            if isinstance(item, Entry):
                if item.values.shape != width or item.refused is not None:
                    break
                if supervised and (item.id in ids or task.was_used(item.id)):
                    break
                if item.label is not None and task.label_fault(item) is not None:
                    break
                ids.add(item.id)
            found.append(item)
        return found

    def _match(
        self, items: Sequence[Entry | Label], taken: Entries | None
    ) -> tuple[int, LotEvents, Refused]:
        """Match labels and entries; return how many items there are before the first that is not
        plain, their events, and the labels that were refused."""
        pipeline, task = self.pipeline, self.pipeline.task
        assert isinstance(task, Supervised | Forecast)
        count = 0 if taken is None else taken.count
        values = np.zeros((0, 0)) if taken is None else taken.values[:count]
        rows = [] if taken is None else taken.rows.tolist()
        times = [] if taken is None else taken.times.tolist()
        events, refused = events_of(self.room(), task, values), []
        for i, item in enumerate(items):
            if isinstance(item, Label):
                try:
                    events.take_label(item)
                except EntryError as error:
                    if pipeline.on_rejected is None:
                        return i, events, refused
                    refused.append((item, error))
                continue
            n = events.entries
            if n == count:
                return i, events, refused
            events.take_entry(Predicted(i, item, rows[n], times[n]))
            events.entries += 1
        return len(items), events, refused

    def _run(self, events: LotEvents, predictions: list[Prediction]) -> None:
        """Take the pipeline through the events, in runs that end where snapshots are due."""
        pipeline, room, first = self.pipeline, self.room(), 0
        health, keeper = pipeline.health, pipeline.keeper
        assert health is not None
        while first < len(events.events):
            learned = min(
                keeper.until_snapshot, UNTIL_SNAPSHOT - health.count % UNTIL_SNAPSHOT
            )
            stop = split(events.events, first, room.size, learned)
            events.write(first, stop)
            run = Run(pipeline, room, stop - first)
            with pipeline.timing.stage("learn"):
                run.learn()
                run.guard()
            tell = Tell(pipeline, room, events.events[first:stop])
            with pipeline.timing.stage("predict"):
                tell.all()
                predictions += tell.predictions()
            first = stop
        pipeline.stats.pending = pipeline.task.pending


def _is_as_made(part: object, made: type, methods: Sequence[str]) -> bool:
    """Return whether a part is a `made` whose methods are not replaced: kernels stand for them."""
    return isinstance(part, made) and all(
        getattr(type(part), name) is getattr(made, name) and name not in vars(part)
        for name in methods
    )
