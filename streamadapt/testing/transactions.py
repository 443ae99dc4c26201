"""Kafka's transactions in memory, so that a test can stop exactly-once delivery at every step.

Simulated: producer epochs that fence off older writers, transactions over several partitions and
a group's offsets, control markers that take an offset, readers that see only committed records up
to the first open transaction (the last stable offset), and the abort of a transaction that was
open for too long. Not simulated: faults that need several processes, such as the loss of a broker.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from streamadapt.engine.ports import RecallingSink, TransactionalSink
from streamadapt.errors import ConnectorError, Loss, TransactionLostError
from streamadapt.records import Position, Prediction, StreamPartition

__all__ = ["LogSink", "TransactionalLog"]


@dataclass(frozen=True)
class _Session:
    """A producer's right to write; valid until a newer producer opens the same name."""

    name: str
    epoch: int


@dataclass
class _Slot:
    """One offset of a partition."""

    value: bytes | None  # None: a marker
    session: _Session | None  # None: not in a transaction


@dataclass
class _Producer:
    epoch: int = 0
    # The transaction's first offset in each.
    open_at: dict[StreamPartition, int] = field(default_factory=dict)
    offsets: dict[str, dict[StreamPartition, int]] = field(default_factory=dict)
    ongoing: bool = False


class TransactionalLog:
    """Topics whose records become visible by transactions.

    Attributes
    ----------
    committed : dict of str to dict of StreamPartition to int
        Group -> the positions that its transactions have committed.
    """

    def __init__(self) -> None:
        self.committed: dict[str, dict[StreamPartition, int]] = defaultdict(dict)
        self._slots: dict[StreamPartition, list[_Slot]] = defaultdict(list)
        self._aborted: dict[StreamPartition, set[int]] = defaultdict(set)
        self._producers: dict[str, _Producer] = defaultdict(_Producer)

    def open(self, name: str) -> _Session:
        """Begin to write under a name: an earlier writer of that name is fenced off, and its open
        transaction is aborted."""
        producer = self._producers[name]
        self._end(producer, commit=False)
        producer.epoch += 1
        return _Session(name, producer.epoch)

    def append(self, at: StreamPartition, value: bytes, session: _Session | None = None) -> int:
        """Write one record, in the session's transaction or in none; return its offset."""
        if session is not None:
            producer = self._ongoing(session)
            producer.open_at.setdefault(at, len(self._slots[at]))
        self._slots[at].append(_Slot(value, session))
        return len(self._slots[at]) - 1

    def add_offsets(
        self, session: _Session, group: str, positions: Mapping[StreamPartition, int]
    ) -> None:
        """Add a group's positions to the session's transaction."""
        self._ongoing(session).offsets.setdefault(group, {}).update(positions)

    def commit(self, session: _Session) -> None:
        """Make all records of the session's transaction visible in one step."""
        self._end(self._ongoing(session), commit=True)

    def abort(self, session: _Session) -> None:
        """Abort the session's transaction."""
        self._end(self._ongoing(session), commit=False)

    def expire(self, name: str) -> None:
        """Abort a transaction that was open for too long, and fence off its writer, as the broker
        does."""
        producer = self._producers[name]
        if producer.ongoing:
            self._end(producer, commit=False)
            producer.epoch += 1

    def stable(self, at: StreamPartition) -> int:
        """Return the last stable offset: the first offset of an open transaction, or the end."""
        firsts = [p.open_at[at] for p in self._producers.values() if p.ongoing and at in p.open_at]
        return min(firsts, default=len(self._slots[at]))

    def read(self, at: StreamPartition, *, committed: bool = True) -> list[tuple[int, bytes]]:
        """Return offset and value of the records that a reader sees: committed ones, or all."""
        end = self.stable(at) if committed else len(self._slots[at])
        hidden = self._aborted[at] if committed else ()
        slots = self._slots[at][:end]
        return [
            (i, slot.value)
            for i, slot in enumerate(slots)
            if slot.value is not None and i not in hidden
        ]

    def _ongoing(self, session: _Session) -> _Producer:
        producer = self._producers[session.name]
        if session.epoch != producer.epoch:
            raise ConnectorError(
                f"{session.name}: fenced by another engine: epoch {session.epoch}, the newest "
                f"is {producer.epoch}"
            )
        producer.ongoing = True
        return producer

    def _end(self, producer: _Producer, *, commit: bool) -> None:
        for at, first in producer.open_at.items():
            slots = self._slots[at]
            # Between a transaction's records there may be records of other writers: only its own
            # records are committed or aborted.
            own = {i for i in range(first, len(slots)) if self._is_of(slots[i], producer)}
            if not commit:
                self._aborted[at] |= own
            slots.append(_Slot(None, None))
        if commit:
            for group, positions in producer.offsets.items():
                self.committed[group].update(positions)
        producer.open_at, producer.offsets, producer.ongoing = {}, {}, False

    def _is_of(self, slot: _Slot, producer: _Producer) -> bool:
        return slot.session is not None and self._producers[slot.session.name] is producer


@contextmanager
def _losing(partition: int) -> Iterator[None]:
    """Convert a fencing error into `TransactionLostError`."""
    try:
        yield
    except TransactionLostError:
        raise
    except ConnectorError as error:
        raise TransactionLostError([partition], Loss.TAKEN, str(error)) from error


class LogSink(RecallingSink, TransactionalSink):
    """Writes the ids and values of predictions to a topic of a `TransactionalLog`.

    Parameters
    ----------
    log : TransactionalLog
    topic : str
    on_step : callable of str, optional
        Called with a step's name before each step and after the commit; tests raise from it.
    """

    def __init__(
        self,
        log: TransactionalLog,
        topic: str = "predictions",
        on_step: Callable[[str], None] | None = None,
    ) -> None:
        self._log = log
        self._topic = topic
        self._step = on_step or (lambda name: None)
        self._sessions: dict[int, _Session] = {}

    def begin(self, streams: Sequence[str], partition: int) -> dict[StreamPartition, int]:
        """Fence off earlier writers; return the committed positions."""
        self._step("begin")
        self._sessions[partition] = self._log.open(self._name(streams[0], partition))
        committed = self._log.committed[self._name(streams[0], partition)]
        wanted = [StreamPartition(stream, partition) for stream in streams]
        return {at: committed[at] for at in wanted if at in committed}

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Write each prediction to its entry's partition; within the partition's transaction
        after `begin`."""
        for p in predictions:
            self._step("produce")
            at = StreamPartition(self._topic, p.position.partition)
            value = msgspec.json.encode(
                {"id": str(p.position), "served": p.served.tobytes().hex()}
            )
            with _losing(p.position.partition):
                self._log.append(at, value, self._sessions.get(p.position.partition))

    def flush(self) -> None:
        """Do nothing: there is no buffer."""
        self._step("flush")

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        """Commit the predictions and the positions in one step."""
        partition = next(iter(positions)).partition
        session = self._sessions[partition]
        with _losing(partition):
            self._step("offsets")
            self._log.add_offsets(session, session.name, positions)
            self._step("commit")
            self._log.commit(session)
            self._step("committed")

    def end(self, partition: int) -> None:
        """Give up a partition; uncommitted predictions are void."""
        session = self._sessions.pop(partition, None)
        with suppress(ConnectorError):  # fenced: the transaction is already void
            if session is not None:
                self._log.abort(session)

    def abandon(self, partition: int) -> None:
        """Give up a partition without an abort: its transaction stays open until another writer
        begins or it expires."""
        self._sessions.pop(partition, None)

    def newest(self, stream: str, partition: int) -> int | None:
        """Return the offset of the newest entry whose prediction a reader sees."""
        for _, name in reversed(self.seen(partition)):
            at = Position.parse(name)
            if at is not None and (at.stream, at.partition) == (stream, partition):
                return at.offset
        return None

    def seen(self, partition: int, *, committed: bool = True) -> list[tuple[str, str]]:
        """Return value and id of each prediction that a reader sees."""
        at = StreamPartition(self._topic, partition)
        found = [
            msgspec.json.decode(value) for _, value in self._log.read(at, committed=committed)
        ]
        return [(one["served"], one["id"]) for one in found]

    def close(self) -> None:
        """Do nothing: there are no open resources."""

    def _name(self, stream: str, partition: int) -> str:
        return f"{self._topic}-{stream}-{partition}"
