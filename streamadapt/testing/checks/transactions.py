"""What every `TransactionalSink` must do, as small functions: run them over your own, and over a
broker.

A factory makes a new sink on the same empty output each time it is called, and reads what a reader
of committed records sees of a partition: the ids of the predictions, in order.
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
        Returns the ids that a reader of committed records sees of a partition.
    entries, labels : str
        The input's streams, of two partitions; a broker wants them to be there before it takes
        positions of them.
    """

    open: Callable[[], TransactionalSink]
    seen: Callable[[int], Sequence[str]]
    entries: str = "in"
    labels: str = "in-labels"

    @property
    def streams(self) -> list[str]:
        """Both."""
        return [self.entries, self.labels]

    def reached(
        self, partition: int, entries: int, labels: int | None = None
    ) -> dict[StreamPartition, int]:
        """Return positions."""
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
        """Raise `CheckError` unless a reader sees exactly these."""
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
    """One commit, both visible; a new writer is told the positions of both streams."""
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
        _require(
            found == case.reached(0, 3, 7), f"committed 3 and 7, a new writer is told {found}"
        )
    finally:
        again.close()


def check_nothing_shows_before_the_commit(case: TransactionCase) -> None:
    """Written and flushed is not visible; the commit makes it so."""
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
    """What was written since the last commit never shows once the partition is let go."""
    sink = case.open()
    try:
        sink.begin([case.entries], 0)
        case.write(sink, 0, range(2))
        sink.commit(case.reached(0, 2))
        case.write(sink, 0, range(2, 5))
        sink.end(0)
        sink.end(0)
        found = sink.begin([case.entries], 0)
        _require(found == case.reached(0, 2), f"committed 2, told {found}")
        case.write(sink, 0, [2])
        sink.commit(case.reached(0, 3))
    finally:
        sink.close()
    case.check_seen(0, range(3))


def check_a_killed_writer_leaves_nothing(case: TransactionCase) -> None:
    """A transaction that its writer never ended is void for the next one, and holds no reader
    up."""
    killed = case.open()
    try:
        killed.begin([case.entries], 0)
        case.write(killed, 0, range(2))
        killed.commit(case.reached(0, 2))
        case.write(killed, 0, range(2, 6))
        sink = case.open()  # the other is still there, and never heard of again
        try:
            found = sink.begin([case.entries], 0)
            _require(found == case.reached(0, 2), f"committed 2, told {found}")
            case.write(sink, 0, range(2, 4))
            sink.commit(case.reached(0, 4))
            case.check_seen(0, range(4))
        finally:
            sink.close()
    finally:
        with suppress(ConnectorError):
            killed.close()


def check_a_new_writer_fences_the_old(case: TransactionCase) -> None:
    """Whoever was thought dead can commit nothing any more, and is told so."""
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
    """It is told that another engine has fenced it, and whatever it does then, its successor's
    transaction stands."""
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
    """Another process may have another partition; one transaction's end is nothing to the
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
    """Labels only: nothing was predicted, but the positions moved."""
    sink = case.open()
    try:
        sink.begin(case.streams, 0)
        sink.commit(case.reached(0, 0, 5))
        sink.end(0)
        found = sink.begin(case.streams, 0)
        _require(found == case.reached(0, 0, 5), f"committed 0 and 5, told {found}")
    finally:
        sink.close()
    case.check_seen(0, [])


def check_many_transactions(case: TransactionCase) -> None:
    """One after the other, nothing doubled, nothing out of order."""
    sink = case.open()
    try:
        sink.begin([case.entries], 0)
        for i in range(10):
            case.write(sink, 0, range(4 * i, 4 * i + 4))
            sink.commit(case.reached(0, 4 * i + 4))
    finally:
        sink.close()
    case.check_seen(0, range(40))


def _require(holds: bool, said: str) -> None:
    if not holds:
        raise CheckError(said)
