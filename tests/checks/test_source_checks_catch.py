"""Each check of a source or a sink rejects an object that breaks only the checked property."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pytest

from streamadapt.engine.ports import PartitionOwner
from streamadapt.records import DeadLetter, Prediction, Record, StreamPartition
from streamadapt.testing import MemoryDeadLetters, MemorySink, MemorySource
from streamadapt.testing.checks import sinks, sources
from streamadapt.testing.checks.sinks import LetterCase, SinkCase
from streamadapt.testing.checks.sources import CheckError


class NeverAsks(MemorySource):
    """Starts everywhere at 0 without asking the owner."""

    def open(self, owner: PartitionOwner) -> None:
        class NoOwner:
            def partitions_assigned(
                self, partitions: Sequence[int]
            ) -> Mapping[StreamPartition, int | None]:
                return {}

            def known_end(self, at: StreamPartition) -> int:
                return 0

            def identity(self, at: StreamPartition) -> str | None:
                return None

            def partitions_placed(
                self,
                starts: Mapping[StreamPartition, int],
                *,
                recreated: Collection[StreamPartition],
            ) -> None: ...

            def partitions_revoked(self, partitions: Sequence[int], *, lost: bool) -> None: ...

        super().open(NoOwner())


class SwapsNeighbours(MemorySource):
    """Delivers each pair in the wrong order."""

    def poll(self, timeout_s: float) -> list[Record]:
        return super().poll(timeout_s)[::-1]


class ResumesOneLate(MemorySource):
    """Takes the requested offset for the last processed one."""

    def open(self, owner: PartitionOwner) -> None:
        super().open(owner)
        for todo in self._todo.values():
            if todo and todo[0][1].position.offset:  # type: ignore[union-attr]
                todo.popleft()


class RefusesTheEnd(MemorySource):
    """Refuses the offset after the last record as out of range."""

    def open(self, owner: PartitionOwner) -> None:
        super().open(owner)
        if not any(self._todo.values()):
            raise CheckError("nothing left to read")


class ReturnsNone(MemorySource):
    """Returns None when there are no records."""

    def poll(self, timeout_s: float) -> list[Record]:
        return super().poll(timeout_s) or None  # type: ignore[return-value]


class IgnoresPause(MemorySource):
    """Delivers records of a paused partition."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"batch": 1}))

    def pause(self, partitions: Collection[StreamPartition]) -> None:
        pass


class DropsPausedRecords(MemorySource):
    """Loses the records of a paused partition."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"batch": 1}))

    def pause(self, partitions: Collection[StreamPartition]) -> None:
        if partitions:
            self._todo["memory"].clear()


class LagIsConstant(MemorySource):
    """Reports the same lag forever."""

    def lag(self) -> dict[StreamPartition, int]:
        return dict.fromkeys(super().lag(), 6)


class PassesTheEnd(MemorySource):
    """Reports the end of a partition as the position read."""

    def read_up_to(self) -> dict[StreamPartition, int]:
        return dict(self._ends)


class NewIdentityEachTime(MemorySource):
    """Returns an identity of its own, not of the stream."""

    def identities(self) -> dict[StreamPartition, str]:
        return {at: str(id(self)) for at in self.lag()}


class CommitSeeks(MemorySource):
    """Seeks to the position that it commits."""

    def commit(self, positions: Mapping[StreamPartition, int]) -> None:
        for todo in self._todo.values():
            todo.clear()


class SeeksEverywhere(MemorySource):
    """Seeks in every partition, not only in the given ones."""

    def seek(self, starts: Mapping[StreamPartition, int | None]) -> None:
        stream = self.streams[0]
        super().seek({StreamPartition(stream, p): 0 for p in self.partitions} | dict(starts))


class SeeksPastTheFirst(MemorySource):
    """Skips the first record if it chose the start itself."""

    def seek(self, starts: Mapping[StreamPartition, int | None]) -> None:
        super().seek({at: (start or 0) + (start is None) for at, start in starts.items()})


class ClosesOnce(MemorySource):
    """Fails when it is closed again."""

    closed = False

    def close(self) -> None:
        if self.closed:
            raise CheckError("closed twice")
        self.closed = True
        super().close()


SOURCES: dict[str, list[type[MemorySource]]] = {
    "check_owner_is_asked_first": [NeverAsks],
    "check_every_record_in_order": [SwapsNeighbours],
    "check_resume_at_exact_offset": [ResumesOneLate],
    "check_position_at_end_is_fine": [RefusesTheEnd],
    "check_empty_poll": [ReturnsNone],
    "check_pause_holds_back_and_loses_nothing": [IgnoresPause, DropsPausedRecords],
    "check_lag_counts_what_is_left": [LagIsConstant],
    "check_read_up_to_passes_no_record": [PassesTheEnd],
    "check_identities_stay": [NewIdentityEachTime],
    "check_commit_moves_nothing": [CommitSeeks],
    "check_seek_goes_back_and_forth": [SeeksEverywhere, SeeksPastTheFirst],
    "check_close_is_idempotent": [ClosesOnce],
}


class ForgetsTheLast(MemorySink):
    """Delivers all but the last write."""

    def write(self, predictions: Sequence[Prediction]) -> None:
        super().write(predictions[:-1] if len(predictions) == 7 else predictions)


class DeliversTwice(MemorySink):
    """Delivers the predictions again with each flush."""

    def flush(self) -> None:
        super().flush()
        self.predictions += self.predictions[:1]


class InventsOne(MemorySink):
    """Delivers the last prediction again when it receives none."""

    def write(self, predictions: Sequence[Prediction]) -> None:
        if not predictions:
            raise CheckError("nothing to write")
        super().write(predictions)


class BuffersForever(MemorySink):
    """Does not flush when it is closed."""

    def write(self, predictions: Sequence[Prediction]) -> None:
        self.buffer = list(predictions)

    def close(self) -> None:
        pass


SINKS: dict[str, type[MemorySink]] = {
    "check_flush_delivers_everything_in_order": ForgetsTheLast,
    "check_flush_again_delivers_nothing_twice": DeliversTwice,
    "check_empty_write_and_flush": InventsOne,
    "check_close_flushes_and_is_idempotent": BuffersForever,
}


class ReadsText(MemoryDeadLetters):
    """Assumes that every value is text."""

    def write(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            r = letter.record
            value = None if r.value is None else r.value.decode(errors="replace").encode()
            record = Record(r.position, r.key, value, r.time)
            super().write([DeadLetter(record, letter.reason, letter.stage, letter.detail)])


class LosesWhenClosed(MemoryDeadLetters):
    """Drops its buffer when it is closed."""

    def close(self) -> None:
        self.letters.clear()


LETTERS: dict[str, type[MemoryDeadLetters]] = {
    "check_letters_are_untouched": ReadsText,
    "check_letters_close_flushes_and_is_idempotent": LosesWhenClosed,
}


def factory_of(kind: type[MemorySource]) -> sources.SourceFactory:
    def factory(logs: Sequence[Sequence[bytes]]) -> Callable[[], MemorySource]:
        def make() -> MemorySource:
            longest = max(map(len, logs))
            records = [
                Record(source_position(p, i), None, log[i], i)
                for i in range(longest)
                for p, log in enumerate(logs)
                if i < len(log)
            ]
            return kind(records)

        return make

    return factory


def source_position(partition: int, offset: int) -> Any:
    from streamadapt.records import Position

    return Position("memory", partition, offset)


def sink_case(kind: type[MemorySink]) -> Callable[[], SinkCase]:
    def make() -> SinkCase:
        sink = kind()
        return SinkCase(sink, lambda: [str(p.position) for p in sink.predictions])

    return make


def letter_case(kind: type[MemoryDeadLetters]) -> Callable[[], LetterCase]:
    def make() -> LetterCase:
        sink = kind()
        return LetterCase(
            sink, lambda: [(x.record.key, x.record.value, x.reason) for x in sink.letters]
        )

    return make


def test_every_check_has_its_broken_object() -> None:
    assert [c.__name__ for c in sources.yield_source_checks()] == list(SOURCES)
    assert [c.__name__ for c in sinks.yield_sink_checks()] == list(SINKS)
    assert [c.__name__ for c in sinks.yield_dead_letter_checks()] == list(LETTERS)


@pytest.mark.parametrize("check", [*sources.yield_source_checks()], ids=lambda c: c.__name__)
@pytest.mark.parametrize("partitions", [1, 2, 3])
def test_the_memory_source_passes(check: Any, partitions: int) -> None:
    check(factory_of(MemorySource), partitions)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in SOURCES.items() for kind in kinds]
)
def test_broken_sources_are_caught(name: str, kind: type[MemorySource]) -> None:
    with pytest.raises(CheckError):
        getattr(sources, name)(factory_of(kind), 2)


def test_memory_sinks_pass() -> None:
    sinks.check_sink(sink_case(MemorySink))
    sinks.check_dead_letter_sink(letter_case(MemoryDeadLetters))


@pytest.mark.parametrize("name", SINKS)
def test_broken_sinks_are_caught(name: str) -> None:
    with pytest.raises(CheckError):
        getattr(sinks, name)(sink_case(SINKS[name]))


@pytest.mark.parametrize("name", LETTERS)
def test_broken_dead_letter_sinks_are_caught(name: str) -> None:
    with pytest.raises(CheckError):
        getattr(sinks, name)(letter_case(LETTERS[name]))
