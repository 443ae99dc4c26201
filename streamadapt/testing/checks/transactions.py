"""Checks that every `TransactionalSink` must pass: run them on your own, with a real broker.

A factory returns a `TransactionCase`: it opens new sinks on one output, and reads the ids of the
predictions in a partition, in order, as a reader of committed records sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from streamadapt.engine.ports import TransactionalSink
from streamadapt.errors import ConnectorError, TransactionLostError
from streamadapt.records import Position, Prediction, StreamPartition
from streamadapt.testing.checks.sources import CheckError

__all__ = ["TransactionCase", "check_transactional_sink", "yield_transaction_checks"]


@dataclass(frozen=True)
class TransactionCase:
    """An output of two partitions, empty at first.

    Attributes
    ----------
    open : callable
        Returns a new sink that writes to it, as a new process would.
    seen : callable of int
        Returns the ids that a reader of committed records sees in a partition.
    entries, labels : str
        The input's streams, with two partitions each; they must exist before a broker accepts
        positions of them.
    """

    open: Callable[[], TransactionalSink]
    seen: Callable[[int], Sequence[str]]
    entries: str = "in"
    labels: str = "in-labels"

    @property
    def streams(self) -> list[str]:
        """Both streams."""
        return [self.entries, self.labels]

    def reached(
        self, partition: int, entries: int, labels: int | None = None
    ) -> dict[StreamPartition, int]:
        """Return the positions of a partition."""
        at = {StreamPartition(self.entries, partition): entries}
        return at if labels is None else at | {StreamPartition(self.labels, partition): labels}

    def write(self, sink: TransactionalSink, partition: int, offsets: Sequence[int]) -> None:
        """Write the predictions of some entries, and flush."""
        row = np.zeros((1, 1), np.float32)
        for offset in offsets:
            at = Position(self.entries, partition, offset)
            sink.write(
                [Prediction(at, f"e{offset}", "", offset, row, row, {"base": row}, {"base": 1.0})]
            )
        sink.flush()

    def check_seen(self, partition: int, offsets: Sequence[int]) -> None:
        """Raise `CheckError` unless a reader sees exactly the predictions of these offsets."""
        wanted = [str(Position(self.entries, partition, offset)) for offset in offsets]
        seen = list(self.seen(partition))
        _require(
            seen == wanted, f"partition {partition}: a reader should see {wanted}, it sees {seen}"
        )


Check = Callable[[TransactionCase], None]


def check_transactional_sink(factory: Callable[[], TransactionCase]) -> None:
    """Run every check, each on a new output; raises `CheckError`."""
    for check in yield_transaction_checks():
        check(factory())


def yield_transaction_checks() -> Iterator[Check]:
    """Yield the checks."""
    yield check_commit_shows_predictions_and_positions
    yield check_nothing_shows_before_the_commit
    yield check_end_makes_void
    yield check_a_killed_writer_leaves_nothing
    yield check_a_new_writer_fences_the_old
    yield check_a_fenced_writer_takes_nothing_back
    yield check_partitions_are_apart
    yield check_positions_alone
    yield check_many_transactions


def check_commit_shows_predictions_and_positions(case: TransactionCase) -> None:
    """After a commit both are visible; a new writer gets the positions of both streams."""
    sink = case.open()
    try:
        _require(
            sink.begin(case.streams, 0) == {}, "an output that is new has committed positions"
        )
        case.write(sink, 0, range(3))
        sink.commit(case.reached(0, 3, 7))
    finally:
        sink.close()
    case.check_seen(0, range(3))
    again = case.open()
    try:
        found = again.begin(case.streams, 0)
        _require(found == case.reached(0, 3, 7), f"committed 3 and 7, a new writer got {found}")
    finally:
        again.close()


def check_nothing_shows_before_the_commit(case: TransactionCase) -> None:
    """Predictions that are written and flushed become visible only with the commit."""
    sink = case.open()
    try:
        sink.begin(case.streams, 0)
        case.write(sink, 0, range(2))
        case.check_seen(0, [])
        sink.commit(case.reached(0, 2, 0))
        case.write(sink, 0, range(2, 4))
        case.check_seen(0, range(2))
        sink.commit(case.reached(0, 4, 0))
        case.check_seen(0, range(4))
    finally:
        sink.close()


def check_end_makes_void(case: TransactionCase) -> None:
    """After `end`, predictions written since the last commit never become visible."""
    sink = case.open()
    try:
        sink.begin([case.entries], 0)
        case.write(sink, 0, range(2))
        sink.commit(case.reached(0, 2))
        case.write(sink, 0, range(2, 5))
        sink.end(0)
        sink.end(0)
        found = sink.begin([case.entries], 0)
        _require(found == case.reached(0, 2), f"committed 2, got {found}")
        case.write(sink, 0, [2])
        sink.commit(case.reached(0, 3))
    finally:
        sink.close()
    case.check_seen(0, range(3))


def check_a_killed_writer_leaves_nothing(case: TransactionCase) -> None:
    """The open transaction of a killed writer is void for the next writer, and blocks no
    reader."""
    killed = case.open()
    try:
        killed.begin([case.entries], 0)
        case.write(killed, 0, range(2))
        killed.commit(case.reached(0, 2))
        case.write(killed, 0, range(2, 6))
        sink = case.open()  # the killed writer is not closed, and does nothing more
        try:
            found = sink.begin([case.entries], 0)
            _require(found == case.reached(0, 2), f"committed 2, got {found}")
            case.write(sink, 0, range(2, 4))
            sink.commit(case.reached(0, 4))
            case.check_seen(0, range(4))
        finally:
            sink.close()
    finally:
        with suppress(ConnectorError):
            killed.close()


def check_a_new_writer_fences_the_old(case: TransactionCase) -> None:
    """A writer that was replaced by a newer one can commit nothing, and gets an error."""
    zombie, sink = case.open(), case.open()
    try:
        zombie.begin([case.entries], 0)
        case.write(zombie, 0, range(2))
        sink.begin([case.entries], 0)
        case.write(sink, 0, [0])
        try:
            case.write(zombie, 0, [2])
            zombie.commit(case.reached(0, 3))
        except ConnectorError:
            pass
        else:
            raise CheckError("the old writer's commit went through")
        sink.commit(case.reached(0, 1))
        case.check_seen(0, [0])
    finally:
        sink.close()
        with suppress(ConnectorError):
            zombie.close()


def check_a_fenced_writer_takes_nothing_back(case: TransactionCase) -> None:
    """A fenced writer gets an error that says so, and cannot harm its successor's transaction."""
    zombie, sink = case.open(), case.open()
    try:
        zombie.begin([case.entries], 0)
        case.write(zombie, 0, [0])
        sink.begin([case.entries], 0)
        case.write(sink, 0, [0])
        for goes_on in (True, False):
            try:
                case.write(zombie, 0, [1]) if goes_on else zombie.commit(case.reached(0, 2))
            except TransactionLostError as error:
                _require(
                    error.partitions == (0,),
                    f"the loss is of partition 0, it says {error.partitions}",
                )
                _require("fenced by another engine" in str(error), f"it should say so: {error}")
        zombie.end(0)
        zombie.close()
        case.write(sink, 0, [1])
        sink.commit(case.reached(0, 2))
        case.check_seen(0, range(2))
    finally:
        sink.close()


def check_partitions_are_apart(case: TransactionCase) -> None:
    """Two processes may own two partitions; the end of one transaction does not affect the
    other."""
    one, two = case.open(), case.open()
    try:
        one.begin([case.entries], 0)
        two.begin([case.entries], 1)
        case.write(one, 0, range(3))
        case.write(two, 1, range(2))
        two.commit(case.reached(1, 2))
        case.check_seen(1, range(2))
        case.check_seen(0, [])
        one.commit(case.reached(0, 3))
        case.check_seen(0, range(3))
    finally:
        one.close()
        two.close()


def check_positions_alone(case: TransactionCase) -> None:
    """Positions can be committed without predictions, as when only labels arrived."""
    sink = case.open()
    try:
        sink.begin(case.streams, 0)
        sink.commit(case.reached(0, 0, 5))
        sink.end(0)
        found = sink.begin(case.streams, 0)
        _require(found == case.reached(0, 0, 5), f"committed 0 and 5, got {found}")
    finally:
        sink.close()
    case.check_seen(0, [])


def check_many_transactions(case: TransactionCase) -> None:
    """Many transactions in a row: nothing is doubled, nothing is out of order."""
    sink = case.open()
    try:
        sink.begin([case.entries], 0)
        for i in range(10):
            case.write(sink, 0, range(4 * i, 4 * i + 4))
            sink.commit(case.reached(0, 4 * i + 4))
    finally:
        sink.close()
    case.check_seen(0, range(40))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise CheckError(message)
