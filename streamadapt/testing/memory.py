"""Sources, sinks and clocks in memory, for short and readable tests of a pipeline or an engine.

``MemorySource([e0, e1, CRASH, e2])`` delivers two entries and then simulates a crash; when it is
opened again, it continues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from streamadapt.engine.ports import DeadLetterSink, PartitionOwner, RecallingSink, Source
from streamadapt.errors import ConnectorError, EntryError, Reason
from streamadapt.records import (
    DeadLetter,
    Entry,
    FloatArray,
    Label,
    Position,
    Prediction,
    Record,
    StreamPartition,
)

__all__ = [
    "CRASH",
    "IdentityCodec",
    "ManualClock",
    "MemoryDeadLetters",
    "MemorySink",
    "MemorySource",
    "SimulatedCrash",
    "encode",
]


class SimulatedCrash(BaseException):
    """A simulated crash of the process; not an `Exception`, so that no handler catches it."""


class _Crash:
    def __repr__(self) -> str:
        return "CRASH"


CRASH: Final = _Crash()
"""An item in a `MemorySource`'s list: `poll` raises `SimulatedCrash` there, once; the item has no
offset."""

Item = Entry | Label | Record | bytes | _Crash


class MemorySource(Source):
    """A source that delivers the items of a list.

    Parameters
    ----------
    items : sequence of Entry, Label, Record, bytes or CRASH
        Partition and order are kept. An entry or label goes to the partition in its `position`
        (offsets are counted per partition, from 0); bytes go to partition 0, with their offset as
        time; a `Record` is delivered unchanged.
    labels : the same, or None
        The second stream; None for a source without one.
    streams : tuple of str
        Names of the two streams.
    batch : int
        Largest number of records of each stream that one poll returns.
    finite : bool
        Whether `state` becomes ``ended``; otherwise `append` may add more at any time.
    shared : bool
        Whether the source acts as a member of a group, in which another member may have taken
        over its partitions.
    identity : str or None
        The identity of its streams: if the owner's positions belong to another identity,
        everything is new and read from 0.
    """

    def __init__(
        self,
        items: Sequence[Item],
        labels: Sequence[Item] | None = None,
        *,
        streams: tuple[str, str] = ("memory", "memory-labels"),
        batch: int = 100,
        finite: bool = True,
        shared: bool = False,
        identity: str | None = None,
    ) -> None:
        self._shared = shared
        self._identity = identity
        self._streams = streams[:1] if labels is None else streams
        self._batch = batch
        self._finite = finite
        self._ends: dict[StreamPartition, int] = {}
        self._scripts: dict[str, list[Record | _Crash]] = {stream: [] for stream in self._streams}
        self._todo: dict[str, deque[tuple[int, Record | _Crash]]] = {}
        self._crashed: set[tuple[str, int]] = set()
        self._paused: frozenset[StreamPartition] = frozenset()
        self._owner: PartitionOwner | None = None
        self._owned: tuple[int, ...] = ()
        self._rebalance: tuple[tuple[int, ...], bool] | None = None
        self.committed: dict[StreamPartition, int] = {}
        self.append(*items)
        if labels is not None:
            self.append(*labels, stream=streams[1])

    def append(self, *items: Item, stream: str | None = None) -> None:
        """Add items at the end of `stream` (default: the stream of the entries)."""
        name = stream or self._streams[0]
        for item in items:
            step = item if isinstance(item, _Crash) else self._record(item, name)
            self._scripts[name].append(step)
            todo = self._todo.get(name)
            if todo is not None and (
                isinstance(step, _Crash) or step.position.partition in self._owned
            ):
                todo.append((len(self._scripts[name]) - 1, step))

    def append_gap(self, count: int, partition: int = 0, *, stream: str | None = None) -> None:
        """Add `count` offsets without a record at the end of a partition, like a transaction's
        markers."""
        at = StreamPartition(stream or self._streams[0], partition)
        self._ends[at] = self._ends.get(at, 0) + count

    def rebalance(self, partitions: Sequence[int], *, lost: bool = False) -> None:
        """Make the next poll revoke all partitions and assign exactly `partitions`, as a consumer
        group does."""
        self._rebalance = (tuple(partitions), lost)

    @property
    def partitions(self) -> list[int]:
        """All partitions with records; at least partition 0."""
        return sorted({p.partition for p in self._ends} | {0})

    @property
    def streams(self) -> Sequence[str]:
        """The entries' stream, then, if there is one, the labels'."""
        return self._streams

    def open(self, owner: PartitionOwner) -> None:
        """Start, or restart after a crash, at the positions of `owner`."""
        self._owner = owner
        self._paused = frozenset()
        self._assign(self.partitions)

    def poll(self, timeout_s: float) -> list[Record]:
        """Return the next records; never waits."""
        if self._owner is None:
            raise ConnectorError("memory source: poll before open")
        if self._rebalance is not None:
            (wanted, lost), self._rebalance = self._rebalance, None
            if self._owned:
                self._owner.partitions_revoked(self._owned, lost=lost)
            self._assign(wanted)
            return []
        return [record for stream in self._streams for record in self._take(stream)]

    def pause(self, partitions: Collection[StreamPartition]) -> None:
        """Stop delivering exactly these partitions."""
        self._paused = frozenset(partitions)

    def seek(self, starts: Mapping[StreamPartition, int | None]) -> None:
        """Continue from other offsets."""
        moved = {at.partition for at in starts} & set(self._owned)
        for stream, script in self._scripts.items():
            todo = dict(self._todo[stream])
            for i, step in enumerate(script):
                if isinstance(step, Record) and step.position.partition in moved:
                    todo.pop(i, None)
                    if self._wanted(stream, i, step, starts):
                        todo[i] = step
            self._todo[stream] = deque(sorted(todo.items()))

    def lag(self) -> dict[StreamPartition, int]:
        """Return the number of records not yet delivered."""
        counts = {StreamPartition(stream, p): 0 for stream in self._streams for p in self._owned}
        for todo in self._todo.values():
            for _, step in todo:
                if isinstance(step, Record):
                    counts[StreamPartition(step.position.stream, step.position.partition)] += 1
        return counts

    def read_up_to(self) -> dict[StreamPartition, int]:
        """Return the ends of the partitions in streams without undelivered records."""
        done = [
            StreamPartition(s, p)
            for s in self._streams
            if not self._todo.get(s)
            for p in self._owned
        ]
        return {at: self._ends[at] for at in done if at in self._ends}

    def identities(self) -> dict[StreamPartition, str]:
        """Return the identity of the constructor for every stream."""
        if self._identity is None:
            return {}
        return {
            StreamPartition(stream, p): self._identity
            for stream in self._streams
            for p in self._owned
        }

    @property
    def partition_count(self) -> int:
        """Number of partitions with records; at least 1."""
        return len(self.partitions)

    @property
    def shared(self) -> bool:
        """The value that the constructor was given."""
        return self._shared

    @property
    def state(self) -> str:
        """``ended`` once a finite source has delivered everything."""
        left = any(self._todo.values()) or self._rebalance is not None
        return "ended" if self._finite and self._owner is not None and not left else "connected"

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        """Store the committed positions in `committed`."""
        self.committed.update(positions)

    def close(self) -> None:
        """Stop; `open` restarts the source."""
        self._owner = None
        self._todo = {}
        self._owned = ()

    def _record(self, item: Entry | Label | Record | bytes, stream: str) -> Record:
        if isinstance(item, Record):
            at = StreamPartition(item.position.stream, item.position.partition)
            self._ends[at] = item.position.offset + 1
            return item
        at = StreamPartition(stream, 0 if isinstance(item, bytes) else item.position.partition)
        offset = self._ends.get(at, 0)
        self._ends[at] = offset + 1
        position = Position(stream, at.partition, offset)
        if isinstance(item, bytes):
            return Record(position, None, item, offset)
        key = item.key.encode() if isinstance(item, Entry) and item.key else None
        return Record(position, key, encode(item), item.time)

    def _assign(self, partitions: Sequence[int]) -> None:
        assert self._owner is not None, "only called while open"
        starts = self._owner.partitions_assigned(list(partitions)) if partitions else {}
        self._owned = tuple(partitions)
        starts = dict(starts) | self._begun_again(starts)
        for at, start in starts.items():
            if start is not None and not 0 <= start <= self._ends.get(at, 0):
                raise ConnectorError(
                    f"{at}: position {start} is outside of the stream's 0 to "
                    f"{self._ends.get(at, 0)}"
                )
        self._todo = {stream: deque() for stream in self._streams}
        for stream, script in self._scripts.items():
            for i, step in enumerate(script):
                if self._wanted(stream, i, step, starts):
                    self._todo[stream].append((i, step))

    def _begun_again(
        self, starts: Mapping[StreamPartition, int | None]
    ) -> dict[StreamPartition, int | None]:
        """Return new starts for streams that were created again, and report them to the owner."""
        assert self._owner is not None, "only called while open"
        recreated = [
            at
            for at in starts
            if self._identity and self._owner.identity(at) not in (None, self._identity)
        ]
        if recreated:
            self._owner.partitions_placed(dict.fromkeys(recreated, 0), recreated=recreated)
        return dict.fromkeys(recreated, 0)

    def _wanted(
        self,
        stream: str,
        i: int,
        step: Record | _Crash,
        starts: Mapping[StreamPartition, int | None],
    ) -> bool:
        if isinstance(step, _Crash):
            return (stream, i) not in self._crashed
        at = StreamPartition(step.position.stream, step.position.partition)
        return at.partition in self._owned and step.position.offset >= (starts.get(at) or 0)

    def _take(self, stream: str) -> list[Record]:
        todo, taken = self._todo[stream], list[Record]()
        held: list[tuple[int, Record | _Crash]] = []
        while todo and len(taken) < self._batch:
            i, step = todo[0]
            if isinstance(step, _Crash):
                if taken:
                    break
                self._crashed.add((stream, i))
                raise SimulatedCrash(f"{stream}, item {i}")
            todo.popleft()
            at = StreamPartition(step.position.stream, step.position.partition)
            if at in self._paused:
                held.append((i, step))
            else:
                taken.append(step)
        todo.extendleft(reversed(held))
        return taken


class IdentityCodec:
    """Decodes the output of `encode` bit for bit; the position is that of the record."""

    def decode(self, record: Record) -> Entry | Label:
        """Return the entry or label, or raise `EntryError`."""
        if not record.value:
            raise EntryError(Reason.EMPTY_VALUE, "$: empty", record.position)
        try:
            data = _WIRE.decode(record.value)
        except msgspec.ValidationError as error:
            raise EntryError(Reason.WRONG_TYPE, str(error), record.position) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EntryError(Reason.NOT_JSON, str(error), record.position) from None
        label = None if data.label is None else _row(data.label)
        if data.values is not None:
            return Entry(_row(data.values), data.time, data.id, data.key, label, record.position)
        if label is None:
            raise EntryError(Reason.MISSING_FIELD, "$.values: missing", record.position)
        return Label(data.id, label, data.time, record.position)


class _Wire(msgspec.Struct, omit_defaults=True):
    time: int
    id: str = ""
    key: str = ""
    values: list[float | None] | None = None
    label: list[float | None] | None = None


_WIRE: Final = msgspec.json.Decoder(_Wire)


def encode(item: Entry | Label) -> bytes:
    """Return `item` as the JSON that `IdentityCodec` decodes; NaN becomes null, and numbers stay
    exact."""
    if isinstance(item, Label):
        return msgspec.json.encode(_Wire(item.time, item.id, label=item.value.tolist()))
    label = None if item.label is None else item.label.tolist()
    return msgspec.json.encode(_Wire(item.time, item.id, item.key, item.values.tolist(), label))


def _row(values: list[float | None]) -> FloatArray:
    return np.array([np.nan if v is None else v for v in values], np.float64)


class _MemoryWriter:
    """Base of both sinks in memory: counts flushes, and makes some of them fail.

    Parameters
    ----------
    fail_flush : collection of int
        Which flushes raise `ConnectorError`, counted from 1.
    """

    def __init__(self, fail_flush: Collection[int] = ()) -> None:
        self._fail_flush = frozenset(fail_flush)
        self._attempts = 0
        self.flushed = 0
        self.closed = False

    def flush(self) -> None:
        """Count the flush, or raise if its number is in `fail_flush`."""
        self._attempts += 1
        if self._attempts in self._fail_flush:
            raise ConnectorError(f"memory sink: flush {self._attempts} is set to fail")
        self.flushed += 1

    def close(self) -> None:
        """Flush once. Idempotent."""
        if not self.closed:
            self.closed = True
            self.flush()


class MemorySink(_MemoryWriter, RecallingSink):
    """Keeps predictions in the list `predictions`; `flushed` counts successful flushes.

    Parameters
    ----------
    fail_flush : collection of int
        Which flushes raise `ConnectorError`, counted from 1.
    written : sequence of Prediction
        Predictions of an earlier run that are already in the output.
    """

    def __init__(
        self, fail_flush: Collection[int] = (), written: Sequence[Prediction] = ()
    ) -> None:
        super().__init__(fail_flush)
        self.predictions: list[Prediction] = list(written)

    def newest(self, stream: str, partition: int) -> int | None:
        """Return the offset of the newest prediction of a partition."""
        of = (p.position for p in reversed(self.predictions))
        return next(
            (at.offset for at in of if (at.stream, at.partition) == (stream, partition)), None
        )

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Append the predictions to the list."""
        self.predictions.extend(predictions)


class MemoryDeadLetters(_MemoryWriter, DeadLetterSink):
    """Keeps dead letters in the list `letters`; `flushed` counts successful flushes."""

    def __init__(self, fail_flush: Collection[int] = ()) -> None:
        super().__init__(fail_flush)
        self.letters: list[DeadLetter] = []

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Append the dead letters to the list."""
        self.letters.extend(letters)


class ManualClock:
    """A clock that moves only when `advance` is called.

    Parameters
    ----------
    time_ns : int, ns since the Unix epoch
    monotonic : float, seconds
    """

    def __init__(self, time_ns: int = 0, monotonic: float = 0.0) -> None:
        self._time_ns = time_ns
        self._monotonic = monotonic

    def time_ns(self) -> int:
        """Wall-clock time, ns since the Unix epoch."""
        return self._time_ns

    def monotonic(self) -> float:
        """Seconds that only go forward."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let `seconds` >= 0 pass on both clocks."""
        if not seconds >= 0:
            raise ValueError(f"time only goes forward, got {seconds} s")
        self._monotonic += seconds
        self._time_ns += round(seconds * 1e9)
