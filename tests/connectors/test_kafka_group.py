"""Consumer groups: sharing, handover, and which thread does what.

The embedded broker needs 5 to 23 s for a join.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import pytest
from kafka_helpers import produce, until
from streamadapt_connectors.kafka import KafkaSource
from streamadapt_connectors.kafka.group import keep_joins

from streamadapt.records import StreamPartition
from streamadapt.testing.checks.sources import Owner

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

Topic = Callable[..., str]


def numbered(count: int) -> list[bytes]:
    return [b"%d" % i for i in range(count)]


class Member(Owner):
    """One process of a group: a thread that polls, and resumes where the last owner of a partition
    stopped."""

    def __init__(
        self, source: KafkaSource, positions: dict[int, int], seen: list[tuple[int, int]]
    ) -> None:
        super().__init__()
        self._starts = positions  # shared by all members, in place of the checkpoints
        self.streams = source.streams
        self.own: list[int] = []
        self.wrong: list[str] = []
        self._source = source
        self._seen = seen
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def partitions_assigned(
        self, partitions: Sequence[int]
    ) -> Mapping[StreamPartition, int | None]:
        self._note("assigned")
        self.own = sorted({*self.own, *partitions})
        return super().partitions_assigned(partitions)

    def partitions_revoked(self, partitions: Sequence[int], *, lost: bool) -> None:
        self._note("revoked")
        self.own = [p for p in self.own if p not in partitions]
        super().partitions_revoked(partitions, lost=lost)

    def leave(self) -> None:
        self._stop.set()
        self._thread.join()

    def _note(self, what: str) -> None:
        if threading.current_thread() is not self._thread:
            self.wrong.append(f"{what} on another thread")

    def _run(self) -> None:
        self._source.open(self)
        while not self._stop.is_set():
            for record in self._source.poll(0.1):
                stream, partition, offset = record.position
                if partition not in self.own:
                    self.wrong.append(f"{record.position} without owning it")
                if stream == self.streams[0]:
                    self._seen.append((partition, offset))
                    self._starts[partition] = offset + 1
        self._source.commit(
            {StreamPartition(self.streams[0], p): self._starts[p] for p in self.own}
        )
        self._source.close()


def test_two_members_of_a_group_share_and_hand_over(kafka_servers: str, topic: Topic) -> None:
    entries, labels = topic(2, "entries"), topic(2, "labels")
    positions: dict[int, int] = {}
    seen: list[tuple[int, int]] = []

    def join() -> Member:
        return Member(KafkaSource(kafka_servers, entries, labels, f"g-{entries}"), positions, seen)

    def five_more_each() -> None:
        for name in (labels, entries):
            produce(kafka_servers, name, [numbered(5), numbered(5)])

    def wait(holds: Callable[[], bool]) -> None:
        until(holds, lambda: time.sleep(0.05))

    five_more_each()
    members = [join()]
    try:
        wait(lambda: len(seen) == 10)
        assert members[0].assigned == [[0, 1]]
        members.append(join())
        wait(
            lambda: len(members[0].own) == 1 and sorted(members[0].own + members[1].own) == [0, 1]
        )
        # The other partition stayed, and was read without a pause.
        assert members[0].revoked == [[1]]
        five_more_each()
        wait(lambda: len(seen) == 20)
        members[0].leave()
        wait(lambda: members[1].own == [0, 1])
        five_more_each()
        wait(lambda: len(seen) == 30)
    finally:
        for member in members:
            member.leave()
    for partition in (0, 1):
        assert [offset for p, offset in seen if p == partition] == list(range(15))
    assert [member.wrong for member in members] == [[], []]


def test_an_error_of_the_owner_in_a_rebalance_is_raised(kafka_servers: str, topic: Topic) -> None:
    class Fails(Owner):
        def partitions_assigned(self, partitions):  # type: ignore[no-untyped-def]
            raise RuntimeError("no checkpoint")

    name = topic()
    source = KafkaSource(kafka_servers, name, group=f"g-{name}")
    source.open(Fails())
    try:
        with pytest.raises(RuntimeError, match="no checkpoint"):
            until(lambda: False, lambda: source.poll(0.2))
    finally:
        source.close()


def test_a_join_is_completed_even_if_its_reason_has_gone() -> None:
    """A poll was too short for the join; heartbeats start again at its end."""
    coordinator = SimpleNamespace(
        need_rejoin=lambda: False,
        rejoining=True,
        _do_join_and_sync_async=None,
        _on_join_complete_async=None,
    )
    keep_joins(SimpleNamespace(_coordinator=coordinator))
    assert coordinator.need_rejoin()
    coordinator.rejoining = False
    assert not coordinator.need_rejoin()
