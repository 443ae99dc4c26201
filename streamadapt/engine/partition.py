"""One partition: its pipeline, its place in the streams, and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from streamadapt.engine.local_time import LocalClock
from streamadapt.engine.merge import HELD, Arrived, Merge
from streamadapt.errors import CheckpointError, EntryError, LabelError, StreamadaptError
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.pipeline.pipeline import Pipeline
from streamadapt.records import (
    DeadLetter,
    Entry,
    Label,
    Position,
    Prediction,
    Record,
    Skipped,
    StreamPartition,
)
from streamadapt.state.folder import Folder
from streamadapt.state.key_store import DirectoryKeyStore
from streamadapt.state.manifest import CheckpointInfo
from streamadapt.state.store import CheckpointStore, Loaded
from streamadapt.tasks.event_clock import MAX_BEHIND_NS, EventClock

__all__ = ["PartitionRunner"]


class PartitionRunner:
    """Runs one partition: its pipeline, merge order, positions and checkpoints.

    Parameters
    ----------
    partition : int
    streams : sequence of str
        The stream of the entries, then, if there is one, the stream of the labels.
    pipeline : Pipeline or KeyedPipeline
        A fresh one; `restore` loads its state.
    store : CheckpointStore or None
        None: nothing is saved.
    wait_s : float, s
        See `Merge`.
    max_ahead_ns, max_behind_ns : int, ns
        See `Merge`.
    max_held : int, records
        See `Merge`.
    keys_path : Folder, optional
        Where evicted keys are stored, in a sub-folder for this partition. Default: in the store's
        folder, or in a temporary one without a store.

    Attributes
    ----------
    out_of_order : str
        The position of the newest entry that was processed with a newer time than its own.
    emitted : int
        Number of predictions handed out, without those that a replay suppressed.
    is_new : callable of Position and Prediction, or None
        Whether to write a prediction that was made when the record at the position was read. A
        replay suppresses predictions that are known to be in the output. None: all are written.
    entered : dict of StreamPartition to int
        Start positions that the source chose itself and that no commit covers yet; a restart from
        the last commit begins there.
    began : bool
        Whether the partition ever started: its state was loaded, and the source got its positions.
    recreated : set of StreamPartition
        Partitions of `entered` whose stream was deleted and created again.
    """

    def __init__(  # noqa: PLR0913 - settings of the engine, which has one runner for each partition
        self,
        partition: int,
        streams: Sequence[str],
        pipeline: Pipeline | KeyedPipeline,
        store: CheckpointStore | None,
        wait_s: float,
        max_ahead_ns: int,
        keys_path: Folder | None = None,
        *,
        max_behind_ns: int = MAX_BEHIND_NS,
        max_held: int = HELD,
    ) -> None:
        self.partition = partition
        self.streams = tuple(streams)
        self.pipeline = pipeline
        self.store = store
        keyed = isinstance(pipeline, KeyedPipeline)
        self.merge = Merge(
            len(self.streams),
            wait_s,
            max_behind_ns,
            max_ahead_ns,
            refuses=not keyed,
            max_held=max_held,
        )
        # The merge judges jumps in time, since it knows the records that follow.
        if isinstance(pipeline, Pipeline):
            pipeline.task.clock.doubts = False
        self.clocks = {stream: LocalClock() for stream in self.streams}
        self.positions: dict[StreamPartition, int] = {}
        self.identities: dict[StreamPartition, str] = {}
        self.since_checkpoint = 0
        self.emitted = 0
        self.out_of_order = ""
        self.is_new: Callable[[Position, Prediction], bool] | None = None
        self.began = False
        self.entered: dict[StreamPartition, int] = {}
        self.recreated: set[StreamPartition] = set()
        self._refused: list[DeadLetter] = []
        self._record: Record | None = None
        pipeline.on_rejected = self._reject
        if isinstance(pipeline, KeyedPipeline) and pipeline.store is None:
            pipeline.store = self._key_store(keys_path)

    def _key_store(self, root: Folder | None) -> DirectoryKeyStore:
        if root is not None:
            root = root.child(f"{self.streams[0]}-{self.partition}")
        elif self.store is not None:
            root = self.store.folder.child("keys")
        if self.store is None:
            return DirectoryKeyStore(root, keep=0)
        check_owner = self.store.check_owner if self.store.leased else None
        return DirectoryKeyStore(root, keep=self.store.keep, check_owner=check_owner)

    @property
    def entries_at(self) -> StreamPartition:
        """The partition of the entries' stream."""
        return StreamPartition(self.streams[0], self.partition)

    @property
    def waiting(self) -> int:
        """Number of records that were read and are not yet processed."""
        return len(self.merge)

    def restore(
        self, digest: str, not_beyond: Mapping[StreamPartition, int] | None = None
    ) -> CheckpointInfo | None:
        """Load the newest checkpoint, if there is one; checkpoints with a position beyond
        `not_beyond` are dropped."""
        if self.store is None:
            return None
        self.acquire()
        loaded = self.store.load_latest(digest, not_beyond)
        if loaded is None:
            return None
        self._take_over(loaded)
        for stream, known in loaded.state.get("local_times", {}).items():
            if stream in self.clocks:
                self.clocks[stream].load(known)
        self.positions = dict(loaded.positions)
        self.identities = dict(loaded.info.identities)
        return loaded.info

    def acquire(self) -> None:
        """Become the only writer of the partition's checkpoints, until `close`. Idempotent."""
        if self.store is not None:
            self.store.acquire()

    def _take_over(self, loaded: Loaded) -> None:
        try:
            self.pipeline.load_state_dict(loaded.state)
        except StreamadaptError:
            raise
        except Exception as exc:  # the checksums are right, but the state is of something else
            reason = f"{type(exc).__name__}: {str(exc)[:200]}"
            raise CheckpointError(
                f"{loaded.info.path}: it holds the state of something else than this pipeline "
                f"({reason}); use another checkpoint path to start without a checkpoint"
            ) from exc
        self.merge.start_from(self.event_clock)

    def wanted(self) -> dict[StreamPartition, int | None]:
        """Return the offset to read each stream from; None is the source's own start."""
        at = (StreamPartition(stream, self.partition) for stream in self.streams)
        return {place: self.positions.get(place) for place in at}

    def _reject(self, item: Entry | Label, error: EntryError) -> None:
        record = self._record
        if record is None:  # a panel's row that waited in the checkpoint, at the end of the stream
            record = Record(item.position, None, None, item.time)
        stage = "label" if isinstance(error, LabelError) else "process"
        self._refused.append(DeadLetter(record, error.reason.value, stage, error.detail))

    def process(self, released: Iterable[Arrived]) -> tuple[list[Prediction], list[DeadLetter]]:
        """Run released records through the pipeline and move the positions past them."""
        predictions: list[Prediction] = []
        for arrived in released:
            raised = self.pipeline.stats.times["raised"]
            self._record = arrived.record
            if isinstance(arrived.item, Skipped):
                pass  # only the position moves
            elif isinstance(arrived.item, DeadLetter):
                self.pipeline.stats.rejected[arrived.item.reason] += 1
                if arrived.record.position.stream in self.streams[1:]:
                    self.pipeline.stats.rejected_labels[arrived.item.reason] += 1
                self._refused.append(arrived.item)
            else:
                found = _with_origin(arrived.record, self.pipeline.observe((arrived.item,)))
                predictions += self._new(arrived.record.position, found)
            at = arrived.record.position
            self.clocks[at.stream].passed(at.offset)
            if self.pipeline.stats.times["raised"] > raised:
                self.out_of_order = str(at)
            self.positions[StreamPartition(at.stream, at.partition)] = at.offset + 1
            self.since_checkpoint += 1
        letters, self._refused = self._refused, []
        return predictions, letters

    def finish(self) -> tuple[list[Prediction], list[DeadLetter]]:
        """Process the rows that still wait, at the end of the input; return their predictions and
        dead letters."""
        place = self.entries_at
        found = self.pipeline.flush()
        letters, self._refused = self._refused, []
        self.since_checkpoint += bool(found or letters)
        return self._new(Position(*place, self.positions.get(place, 0)), found), letters

    def _new(self, read: Position, predictions: list[Prediction]) -> list[Prediction]:
        is_new = self.is_new
        found = predictions if is_new is None else [p for p in predictions if is_new(read, p)]
        self.emitted += len(found)
        return found

    def placed(self, starts: Mapping[StreamPartition, int]) -> None:
        """Store start positions that the source chose itself: if the source were asked again, it
        could choose others."""
        own = {at: offset for at, offset in starts.items() if at.partition == self.partition}
        self.positions.update(own)
        self.entered.update(own)
        self.since_checkpoint += bool(own)

    def read_up_to(self, at: StreamPartition, offset: int) -> None:
        """Move a position past offsets that hold no record, unless a record still waits."""
        if not self.waiting and offset > self.positions.get(at, 0):
            self.positions[at] = offset
            self.since_checkpoint += 1

    def stream_recreated(self, at: StreamPartition) -> None:
        """Drop the waiting records of a stream that was deleted and created again.

        Their offsets would be mistaken for positions in the new stream. The entries' times may
        start again, too.
        """
        stream = self.streams.index(at.stream)
        self.merge.forget(stream)
        self.clocks[at.stream] = LocalClock()
        if stream == 0:
            self.event_clock.begin_again()

    @property
    def event_clock(self) -> EventClock:
        """The event clock of the entries; one for all keys together if there are keys."""
        return (
            self.pipeline.clock
            if isinstance(self.pipeline, KeyedPipeline)
            else self.pipeline.task.clock
        )

    def check_owner(self) -> None:
        """Raise `FencedError` if another engine has taken over this partition's checkpoints.

        Called between two checkpoints; the check is skipped if the last one was recent.
        """
        if self.store is not None:
            self.store.check_owner_throttled()

    def must_own(self) -> None:
        """Raise `FencedError` as `check_owner` does, but never skip the check."""
        if self.store is not None:
            self.store.check_owner()

    def lease(self) -> Callable[[], None]:
        """Return what raises `FencedError` as `check_owner` does, from any thread, also when the
        runner is closed."""
        return (lambda: None) if self.store is None else self.store.lease()

    def save(
        self, digest: str, on_step: Callable[[str], None] | None = None
    ) -> CheckpointInfo | None:
        """Write a checkpoint of the state and the positions it has reached."""
        self.since_checkpoint = 0
        if self.store is None:
            return None
        state = self.pipeline.state_dict()
        clocks = {stream: known for stream, clock in self.clocks.items() if (known := clock.state)}
        if clocks:  # of streams with local times
            state["local_times"] = clocks
        info = self.store.save(
            state,
            self.positions,
            config_digest=digest,
            summary=self.summary(),
            on_step=on_step,
            identities=self.identities,
        )
        if isinstance(self.pipeline, KeyedPipeline):
            self.pipeline.checkpointed()
        return info

    def summary(self) -> Mapping[str, Any]:
        """Return the statistics as plain values."""
        return self.pipeline.stats.state_dict()

    def close(self) -> None:
        """Release the folders."""
        if isinstance(self.pipeline, KeyedPipeline) and self.pipeline.store is not None:
            self.pipeline.store.close()
        if self.store is not None:
            self.store.close()


def _with_origin(record: Record, predictions: list[Prediction]) -> list[Prediction]:
    """Copy a record's headers to its prediction, and its raw key if that is not plain text."""
    if not record.headers and _is_text(record.key):
        return predictions
    return [
        replace(p, raw_key=record.key, headers=record.headers)
        if p.position == record.position
        else p
        for p in predictions
    ]


def _is_text(key: bytes | None) -> bool:
    if key is None or (key and key.isascii()):
        return True
    try:
        return bool(key.decode())
    except UnicodeDecodeError:
        return False
