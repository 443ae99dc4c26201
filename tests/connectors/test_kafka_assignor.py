"""Assignment of a group's partitions: fair, few moves, entries with their labels, in two
rounds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.protocol.consumer.metadata import (
    ConsumerProtocolAssignment,
    ConsumerProtocolSubscription,
)
from streamadapt_connectors.kafka.assignor import CoPartitioned, balanced

TOPICS = ["entries", "labels"]


@st.composite
def groups(draw: Any) -> tuple[int, list[str], dict[str, list[int]]]:
    """Return partitions, members, and each member's partitions: some have no owner, some are
    beyond the topic."""
    count = draw(st.integers(0, 12))
    members = [f"m{i}" for i in range(draw(st.integers(1, 6)))]
    owned: dict[str, list[int]] = {}
    for p in range(count + 2):
        who = draw(st.sampled_from([*members, None]))
        if who is not None:
            owned.setdefault(who, []).append(p)
    return count, members, owned


@given(groups())
def test_every_partition_is_assigned_once_evenly_with_few_moves(
    group: tuple[int, list[str], dict[str, list[int]]],
) -> None:
    count, members, owned = group
    found = balanced(range(count), members, owned)
    assert sorted(p for own in found.values() for p in own) == list(range(count))
    sizes = [len(own) for own in found.values()]
    assert max(sizes) - min(sizes) <= 1
    least, more = divmod(count, len(members))
    has = {m: [p for p in owned.get(m, []) if p < count] for m in members}
    stays = sum(len(set(found[m]) & set(has[m])) for m in members)
    # The most that any even assignment can leave in place: the members with most keep one more.
    richest = sorted((len(own) for own in has.values()), reverse=True)
    assert stays == sum(min(n, least + (i < more)) for i, n in enumerate(richest))
    assert balanced(range(count), members, found) == found


class Group:
    """Members that join through the wire format, and accept the leader's assignment."""

    def __init__(self, count: int) -> None:
        self.cluster = SimpleNamespace(partitions_for_topic=lambda topic: set(range(count)))
        self.members: dict[str, CoPartitioned] = {}
        self.generation = 0

    def rebalance(self) -> dict[str, list[int]]:
        self.generation += 1
        members = []
        for name, assignor in self.members.items():
            wire = assignor.metadata(TOPICS).encode()
            metadata = ConsumerProtocolSubscription.decode(wire)
            members.append(
                SimpleNamespace(member_id=name, group_instance_id=None, metadata=metadata)
            )
        leader = next(iter(self.members.values()))
        found = {}
        for name, assignment in leader.assign(self.cluster, members).items():
            received = ConsumerProtocolAssignment.decode(assignment.encode())
            by_topic = {
                t: sorted(at.partition for at in received.partitions() if at.topic == t)
                for t in TOPICS
            }
            assert by_topic["entries"] == by_topic["labels"]
            assert all(isinstance(at, TopicPartition) for at in received.partitions())
            self.members[name].on_assignment(received, self.generation)
            found[name] = by_topic["entries"]
        return found


def test_a_moving_partition_has_no_owner_for_one_round() -> None:
    group = Group(4)
    group.members["a"] = CoPartitioned()
    assert group.rebalance() == {"a": [0, 1, 2, 3]}
    group.members["b"] = CoPartitioned()
    assert group.rebalance() == {"a": [0, 1], "b": []}
    assert group.rebalance() == {"a": [0, 1], "b": [2, 3]}
    group.members["c"] = CoPartitioned()
    first, second = group.rebalance(), group.rebalance()
    assert first["c"] == []
    assert [len(second[name]) for name in "abc"] == [2, 1, 1]
    assert group.rebalance() == second
    del group.members["a"]
    assert sorted(p for own in group.rebalance().values() for p in own) == [0, 1, 2, 3]


@pytest.mark.parametrize("notified", [True, False])
def test_a_member_considered_dead_claims_no_partition(notified: bool) -> None:
    """Whether it knows that it lost its partitions or not: their new owner keeps them."""
    group = Group(2)
    zombie = group.members["a"] = CoPartitioned()
    assert group.rebalance() == {"a": [0, 1]}
    del group.members["a"]
    group.members["b"] = CoPartitioned()
    assert group.rebalance() == {"b": [0, 1]}
    if notified:
        zombie.forget()
    group.members["a2"] = zombie
    first = group.rebalance()
    assert first["a2"] == []
    assert len(first["b"]) == 1
    second = group.rebalance()
    assert sorted(second["a2"] + second["b"]) == [0, 1]
    assert len(second["a2"]) == 1
