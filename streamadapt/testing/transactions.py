"""Kafka's transactions in memory: what a broker promises, so that every step of exactly-once can
be killed in a test.

What is kept of Kafka: producer epochs that fence, transactions over several partitions and the
offsets of a group, control markers that take an offset, readers that see committed records only
and are held up by the first open transaction (the last stable offset), the abort of a transaction
that was left open for too long. Left out: what one process cannot show, such as the loss of a
broker.
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
    """A producer's right to write: valid as long as nobody of the same name came after it."""

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
    open_at: dict[StreamPartition, int] = field(
        default_factory=dict
    )  # the transaction's first offset in each
    offsets: dict[str, dict[StreamPartition, int]] = field(default_factory=dict)
    ongoing: bool = False


class TransactionalLog:
    """Topics whose records become visible by transactions.

    Attributes
    ----------
    committed : dict of str to dict of StreamPartition to int
        By group: the positions that transactions have committed.
    """

    def __init__(self) -> None:
        self.committed: dict[str, dict[StreamPartition, int]] = defaultdict(dict)
        self._slots: dict[StreamPartition, list[_Slot]] = defaultdict(list)
        self._aborted: dict[StreamPartition, set[int]] = defaultdict(set)
        self._producers: dict[str, _Producer] = defaultdict(_Producer)

    def open(self, name: str) -> _Session:
        """Begin to write under a name: what an earlier writer of it left open is aborted, and it
        is fenced off."""
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
        """Let positions of a group become its committed ones together with the session's
        records."""
        self._ongoing(session).offsets.setdefault(group, {}).update(positions)

    def commit(self, session: _Session) -> None:
        """Make everything of the session's transaction visible at once."""
        self._end(self._ongoing(session), commit=True)

    def abort(self, session: _Session) -> None:
        """Make everything of the session's transaction void."""
        self._end(self._ongoing(session), commit=False)

    def expire(self, name: str) -> None:
        """Do what the broker does with a transaction that was open for too long: abort it, and
        fence its writer."""
        producer = self._producers[name]
        if producer.ongoing:
            self._end(producer, commit=False)
            producer.epoch += 1

    def stable(self, at: StreamPartition) -> int:
        """Return the last stable offset: the first of an open transaction, or the end."""
        firsts = [p.open_at[at] for p in self._producers.values() if p.ongoing and at in p.open_at]
        return min(firsts, default=len(self._slots[at]))

    def read(self, at: StreamPartition, *, committed: bool = True) -> list[tuple[int, bytes]]:
        """Return offset and value of what a reader sees: of committed records only, or of all."""
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
            # Within the span of a transaction there may be records of others: only its own share
            # its fate.
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
    """Who is fenced has lost its transaction."""
    try:
        yield
    except TransactionLostError:
        raise
    except ConnectorError as error:
        raise TransactionLostError([partition], Loss.TAKEN, str(error)) from error


class LogSink(RecallingSink, TransactionalSink):
    """Write predictions' ids and values to a topic of a `TransactionalLog`.

    Parameters
    ----------
    log : TransactionalLog
    topic : str
    on_step : callable of str, optional
        Called before each step, and after the commit, with its name; tests raise from it.
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
        """Shut out earlier writers; return the committed positions."""
        self._step("begin")
        self._sessions[partition] = self._log.open(self._name(streams[0], partition))
        committed = self._log.committed[self._name(streams[0], partition)]
        wanted = [StreamPartition(stream, partition) for stream in streams]
        return {at: committed[at] for at in wanted if at in committed}

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Write each where its entry came from; in the partition's transaction, if it has been
        begun."""
        for p in predictions:
            self._step("produce")
            at = StreamPartition(self._topic, p.position.partition)
            value = msgspec.json.encode(
                {"id": str(p.position), "served": p.served.tobytes().hex()}
            )
            with _losing(p.position.partition):
                self._log.append(at, value, self._sessions.get(p.position.partition))

    def flush(self) -> None:
        """Nothing waits."""
        self._step("flush")

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        """Commit what was written, and the positions, together."""
        partition = next(iter(positions)).partition
        session = self._sessions[partition]
        with _losing(partition):
            self._step("offsets")
            self._log.add_offsets(session, session.name, positions)
            self._step("commit")
            self._log.commit(session)
            self._step("committed")

    def end(self, partition: int) -> None:
        """Let go of a partition; what is not committed is void."""
        session = self._sessions.pop(partition, None)
        with suppress(ConnectorError):  # fenced: then it is void already
            if session is not None:
                self._log.abort(session)

    def abandon(self, partition: int) -> None:
        """Let go without a word: what is open stays open until somebody begins, or it expires."""
        self._sessions.pop(partition, None)

    def newest(self, stream: str, partition: int) -> int | None:
        """Return the newest entry's offset that a reader finds a prediction of."""
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
        """Nothing is open."""

    def _name(self, stream: str, partition: int) -> str:
        return f"{self._topic}-{stream}-{partition}"
