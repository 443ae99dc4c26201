"""Many streams in one topic: every key has a whole pipeline of its own; those used least recently
are put away.

A pipeline that is put away leaves memory for a `KeyStore` and comes back, bit for bit, with the
next entry or label of its key. What is put away when depends on the order of the records alone, so
that a replay does it again, under the same names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from streamadapt.arguments import ShowsArguments
from streamadapt.errors import CheckpointError, ConfigError, EntryError, LabelError, Reason
from streamadapt.models.turns import Turn
from streamadapt.pipeline.coerce import coerced, coerced_entry
from streamadapt.pipeline.entry_labels import count_refused
from streamadapt.pipeline.label_routes import Routes
from streamadapt.pipeline.pipeline import Pipeline, Rejected
from streamadapt.pipeline.stats import Stats
from streamadapt.pipeline.timing import NO_TIMING, Timing
from streamadapt.records import Entry, Label, Prediction
from streamadapt.state.key_store import KeyStore
from streamadapt.state.pack import pack, unpack
from streamadapt.tasks import Supervised
from streamadapt.tasks.event_clock import EventClock, Verdict

__all__ = ["MAX_KEYS", "MAX_STORED", "KeyedPipeline"]

Bytes = npt.NDArray[np.uint8]

MAX_KEYS = 1000
"""Keys in memory."""
MAX_STORED = 100_000
"""Keys put away."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """A key that was put away: where to, how many of its predictions wait, and its newest entry's
    time."""

    number: int
    checksum: str
    pending: int
    time: int

    @property
    def name(self) -> str:
        return f"{self.number:012d}"


class KeyedPipeline(ShowsArguments):
    """One pipeline for each `Entry.key`, made when the key first comes; to be used like a
    `Pipeline`.

    Each key's predictions and state are, to the bit, those of a pipeline that sees this key's
    entries and labels alone. The base is one object for all. A label carries only an id, and goes
    to the key whose entry had it: where labels are joined by id, an id must be unique among all
    keys. A record that is refused changes nothing, also not what is in memory; but where a known
    key's entry has a wrong time, its clock remembers that, since others may agree with it. Several
    threads may use it, as they may a `Pipeline`: calls wait for each other.

    Each key has its own clock (`EventClock`). What is not far ahead of the time of all keys
    together is no leap of one of them, however long it has been silent.

    Parameters
    ----------
    make_pipeline : callable () -> Pipeline
        Every call returns an equal, fresh one, without a panel. Give it a base made once
        (`as_base`): the first pipeline's is used for all, but one that is made anew for every key
        costs its making.
    max_keys : int, >= 1
        At most so many keys are in memory (and in a checkpoint); beyond it the one used least
        recently is put away.
    store : KeyStore, optional
        Where to. **Without one, what is put away is forgotten**: its key starts from nothing when
        it comes back. It is counted in ``stats.keys["forgotten"]``. The engine always gives one.
    max_stored : int, >= 1
        At most so many keys are put away (about 100 bytes of memory and of checkpoint each);
        beyond it the one used least recently is forgotten.
    on_rejected : callable, optional
        As of `Pipeline`.

    Attributes
    ----------
    clock : EventClock
        Of all keys together.
    stats : Stats
        Of all keys together; ``weights`` and ``signals`` are those of the newest prediction,
        ``keys`` counts the keys.

    Examples
    --------
    >>> from streamadapt import Entry, Forecast, Persistence, Pipeline
    >>> pipeline = KeyedPipeline(lambda: Pipeline(Forecast(1, 1), Persistence(1)))
    >>> items = [Entry([t], time=t, key=key) for t in range(3) for key in ("a", "b")]
    >>> [prediction.key for prediction in pipeline.observe(items)]
    ['a', 'b', 'a', 'b', 'a', 'b']
    """

    def __init__(
        self,
        make_pipeline: Callable[[], Pipeline],
        max_keys: int = MAX_KEYS,
        store: KeyStore | None = None,
        *,
        max_stored: int = MAX_STORED,
        on_rejected: Rejected | None = None,
    ) -> None:
        for name, value in (("max_keys", max_keys), ("max_stored", max_stored)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"keys.{name}", value, "a whole number >= 1")
        self.make_pipeline = make_pipeline
        self.max_keys = max_keys
        self.max_stored = max_stored
        self.store = store
        self.on_rejected = on_rejected
        self.timing: Timing = NO_TIMING
        self.stats = Stats()
        self._turn = Turn("the pipeline of keys")
        self.template = make_pipeline()
        if self.template.panel is not None:
            raise ConfigError(
                "keys",
                "panel",
                "one of the two: in a panel a key is a sensor, not a stream of its own",
            )
        self.task = self.template.task
        self.base = self.template.base
        self.names = self.template.names
        # Of all keys together.
        self.clock = EventClock(self.task.clock.max_behind_ns, self.task.clock.max_ahead_ns)
        self._routes = (
            Routes(self.task.ttl, 2 * self.task.max_pending)
            if isinstance(self.task, Supervised)
            else None
        )
        self._resident: OrderedDict[str, Pipeline] = OrderedDict()  # used least recently first
        self._stored: OrderedDict[str, _Stored] = OrderedDict()  # likewise
        self._packed: dict[
            str, Bytes
        ] = {}  # keys in memory that nothing came for since they were last packed
        self._written = 0  # states put away so far: the names that they have
        self._pending = 0
        self._begun = False

    @property
    def resident(self) -> list[str]:
        """The keys in memory, the one used least recently first."""
        return list(self._resident)

    def observe(self, items: Iterable[Entry | Label]) -> list[Prediction]:
        """Take entries and labels of any keys in, in order; see `Pipeline.observe`.

        Raises
        ------
        EntryError
            At the first bad item, if there is no `on_rejected`; that item changed nothing.
        CheckpointError
            If a key cannot be put away or brought back (a full disk, a damaged file). Start again
            from the last checkpoint then: the item may have been learned from.
        """
        predictions: list[Prediction] = []
        for item in items:
            with self._turn:
                try:
                    predictions += self._step(self._taken(item), item)
                except EntryError as error:
                    if self.on_rejected is None:
                        raise
                    self.on_rejected(item, error)
        return predictions

    def _taken(self, item: Entry | Label) -> Entry | Label:
        try:
            return coerced(item)
        except EntryError as error:
            self.stats.rejected[error.reason.value] += 1
            raise

    def _step(self, item: Entry | Label, given: Entry | Label) -> list[Prediction]:
        key = self._key_of(item)
        pipeline = self._resident.get(key) or self._fetch(key)
        pipeline.timing = self.timing
        pipeline.on_rejected = None if self.on_rejected is None else partial(self._rejected, given)
        before = pipeline.task.pending
        if pipeline.task.clock.restarts < self.clock.restarts:
            pipeline.task.clock.begin_again(self.clock.restarts)
        if pipeline.task.clock.newest is not None:  # a key's first entry is taken as it comes
            leaps = isinstance(item, Entry) and self.clock.judge(item.time) is Verdict.LEAP
            pipeline.task.clock.others = item.time if leaps else self.clock.newest
        try:
            # refused: it raises, and what was fetched is dropped again
            predictions = pipeline.observe((item,))
            self._pending += pipeline.task.pending - before
        except EntryError as error:
            if error.reason in (Reason.BAD_TIME, Reason.TIME_BACKWARDS):
                self._doubted(key, pipeline, item.time)
            raise
        finally:
            self.stats.pending = self._pending
        self._admit(key, pipeline)
        if self._routes is not None and isinstance(item, Entry):
            self._routes.add(item.id, key, item.time, self._newest)
        if isinstance(item, Entry):
            self._note_time(item.time)
        self._put_away()
        return predictions

    def _rejected(self, given: Entry | Label, item: Entry | Label, error: EntryError) -> None:
        """Pass on what is wrong with a label alone: its entry is taken.

        Anything else is for `observe`.
        """
        del item
        if not isinstance(error, LabelError) or self.on_rejected is None:
            raise error
        self.on_rejected(given, error)

    def _note_time(self, time: int) -> None:
        """Note the time of an accepted entry: all keys together have come so far, if others
        agree."""
        if self.clock.judge(time) in (Verdict.AHEAD, Verdict.BEHIND):
            self.clock.refuse(time)
        else:
            if self.clock.judge(time) is Verdict.LEAP:
                self.stats.times["leap"] += 1
            self.clock.take(time)
        self.stats.last_time = self.clock.newest or 0

    def _doubted(self, key: str, pipeline: Pipeline, time: int) -> None:
        """Keep what the clocks of a known key and of all keys remember of an entry with a wrong
        time."""
        self.clock.refuse(time)
        if key in self._stored:
            self._admit(key, pipeline)
            self._put_away()
        self._packed.pop(key, None)

    def flush(self) -> list[Prediction]:
        """Return nothing: entries of a key never wait."""
        return []

    def predict(self, entry: Entry) -> Prediction:
        """Predict for an entry's key, learning and changing nothing; a key that was put away is
        only looked at.

        Raises
        ------
        EntryError, ConfigError, BusyError
            As `Pipeline.predict`; `ConfigError` also for a key that nothing has come for.
        CheckpointError
            If a key that was put away cannot be read.
        """
        with self._turn:
            entry = coerced_entry(entry)
            if entry.key not in self._resident and entry.key not in self._stored:
                raise ConfigError(
                    "predict",
                    entry.key[:60],
                    "a window that is full: nothing has come for this key yet",
                )
            return (self._resident.get(entry.key) or self._fetch(entry.key)).predict(entry)

    # -- which key

    def _key_of(self, item: Entry | Label) -> str:
        if isinstance(item, Entry):
            owner = None if self._routes is None else self._routes.find(item.id, self._newest)
            if owner is not None and owner != item.key:
                detail = "the id was used before, by another key: labels are joined by id alone"
                raise self._refused(Reason.DUPLICATE_ID, detail, item)
            return item.key
        if self._routes is None:
            raise self._refused(
                Reason.UNKNOWN_LABEL, "this task learns from no labels that come apart", item
            )
        owner = self._routes.find(item.id, self._newest)
        if owner is None:
            raise self._refused(
                Reason.UNKNOWN_LABEL, f"no key has an entry with id {item.id[:60]!r}", item
            )
        return owner

    def _refused(self, reason: Reason, detail: str, item: Entry | Label) -> EntryError:
        error = EntryError(reason, detail, item.position)
        count_refused(self.stats, item, error)
        return error

    def _newest(self, key: str) -> int | None:
        """Event time of a key's newest entry; None if nothing is known of it."""
        if (pipeline := self._resident.get(key)) is not None:
            return pipeline.task.last_time
        return stored.time if (stored := self._stored.get(key)) is not None else None

    # -- in memory, and put away

    def _fetch(self, key: str) -> Pipeline:
        """Return the pipeline of a key that is not in memory: new, or as it was put away."""
        stored = self._stored.get(key)
        if stored is None:
            return self._made(None)
        return self._made(unpack(self._opened().get(stored.name, stored.checksum)))

    def _made(self, state: dict[str, Any] | None) -> Pipeline:
        pipeline = self.make_pipeline()
        pipeline.base = self.base
        # An error is logged once, not once for each key.
        pipeline.faults.join(self.template.faults)
        if state is not None:
            pipeline.load_state_dict({**state, "stats": Stats().state_dict()})
        pipeline.count_in(self.stats)
        return pipeline

    def _admit(self, key: str, pipeline: Pipeline) -> None:
        """Take a key as the one used last."""
        stored = self._stored.pop(key, None)
        if stored is not None:
            self._opened().release(stored.name)
            self.stats.keys["restored"] += 1
        self._resident[key] = pipeline
        self._resident.move_to_end(key)
        self._packed.pop(key, None)
        self._count()

    def _put_away(self) -> None:
        while len(self._resident) > self.max_keys:
            key, pipeline = next(iter(self._resident.items()))
            if self.store is None:
                self._forget(pipeline.task.pending)
            else:
                stored = _Stored(
                    self._written + 1, "", pipeline.task.pending, pipeline.task.last_time
                )
                checksum = self._opened().put(stored.name, self._pack(key).tobytes())
                self._written += 1
                self._stored[key] = _Stored(stored.number, checksum, stored.pending, stored.time)
                self.stats.keys["evicted"] += 1
            del self._resident[key]
            self._packed.pop(key, None)
        while len(self._stored) > self.max_stored:
            _, stored = self._stored.popitem(last=False)
            self._opened().release(stored.name)
            self._forget(stored.pending)
        self._count()

    def _forget(self, pending: int) -> None:
        self._pending -= pending
        self.stats.pending = self._pending
        self.stats.keys["forgotten"] += 1

    def _count(self) -> None:
        self.stats.keys["resident"] = len(self._resident)
        self.stats.keys["stored"] = len(self._stored)

    def _pack(self, key: str) -> Bytes:
        """A key's packed state: what has not changed since the last checkpoint is not packed
        again."""
        if key not in self._packed:
            self._packed[key] = np.frombuffer(pack(self._state_of(self._resident[key])), np.uint8)
        return self._packed[key]

    def _state_of(self, pipeline: Pipeline) -> dict[str, Any]:
        """A key's own state: the statistics are everybody's, and would be copied for each."""
        pipeline.count_in(Stats())
        try:
            state = pipeline.state_dict()
        finally:
            pipeline.count_in(self.stats)
        del state["stats"]
        return state

    def _opened(self) -> KeyStore:
        if self.store is None:
            raise CheckpointError(
                "keys: the state refers to keys that were put away; give the store that has them"
            )
        if not self._begun:
            self._begun = True
            self.store.begin({stored.name for stored in self._stored.values()})
        return self.store

    # -- state

    def checkpointed(self) -> None:
        """Tell the store that what `state_dict` last returned is saved for good; call it after
        every checkpoint."""
        with self._turn:
            if self.store is not None:
                self._opened().checkpointed()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state; of the keys that were put away, their names and checksums in the
        store."""
        with self._turn:
            return self._state()

    def _state(self) -> dict[str, Any]:
        if self.store is not None:
            self._opened().sync()
        rows = list(self._stored.values())
        return {
            "names": list(self.names),
            "resident": [[key, self._pack(key)] for key in self._resident],
            "stored": {
                "keys": list(self._stored),
                "numbers": np.array([row.number for row in rows], np.int64),
                "checksums": np.frombuffer(
                    b"".join(bytes.fromhex(row.checksum) for row in rows), np.uint8
                ).copy(),
                "pending": np.array([row.pending for row in rows], np.int64),
                "times": np.array([row.time for row in rows], np.int64),
            },
            "written": self._written,
            "pending": self._pending,
            "clock": self.clock.state_dict(),
            "routes": None if self._routes is None else self._routes.state_dict(),
            "stats": self.stats.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, in one made alike and not yet used.

        Raises
        ------
        CheckpointError
            If the state is of other experts, or the store lacks what it refers to.
        """
        with self._turn:
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        if "resident" not in state or list(state["names"]) != self.names:
            raise CheckpointError(
                f"the checkpoint is of the experts {state['names']} and not of keys with "
                f"{self.names}"
            )
        self.stats.load_state_dict(state["stats"])
        self._packed = {key: np.array(packed, np.uint8) for key, packed in state["resident"]}
        self._resident = OrderedDict(
            (key, self._made(unpack(data.tobytes()))) for key, data in self._packed.items()
        )
        stored, sums = (
            state["stored"],
            np.asarray(state["stored"]["checksums"], np.uint8).tobytes(),
        )
        rows = zip(
            stored["keys"], stored["numbers"], stored["pending"], stored["times"], strict=True
        )
        length = len(sums) // len(stored["keys"]) if stored["keys"] else 0
        self._stored = OrderedDict(
            (
                key,
                _Stored(
                    int(number), sums[i * length : (i + 1) * length].hex(), int(pending), int(time)
                ),
            )
            for i, (key, number, pending, time) in enumerate(rows)
        )
        self._written = int(state["written"])
        self._pending = int(state["pending"])
        if "clock" in state:  # an earlier version had none
            self.clock.load_state_dict(state["clock"])
        if self._routes is not None:
            self._routes.load_state_dict(state["routes"])
        self._begun = False
        if self._stored or self.store is not None:
            self._opened()
