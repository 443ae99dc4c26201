"""Who of a consumer group gets which partitions: those of entries and labels together, moved as
few as can be.

Members that read the same topics share those out among themselves; a group may have several such
sets of members. With each assignment goes a mark, or why a member gets nothing: without the mark
it was somebody else who shared out.

Incremental cooperative rebalancing (Kafka's KIP-429): everybody keeps what stays theirs and goes
on with it while the group settles. A partition that is to move is first taken from its owner, who
saves its state, and given to its next owner in a second round.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor, RebalanceProtocol
from kafka.protocol.consumer.metadata import (
    ConsumerProtocolAssignment,
    ConsumerProtocolSubscription,
)

__all__ = ["CoPartitioned", "shared_out"]

GENERATION: Final = struct.Struct(">i")
MARK: Final = b"streamadapt"


def shared_out(
    partitions: Iterable[int], members: Sequence[str], owned: Mapping[str, Iterable[int]]
) -> dict[str, list[int]]:
    """Return who should have which partitions, once all moves are done.

    Nobody has two more than another, and as many partitions as possible stay where they are.

    Parameters
    ----------
    partitions : iterable of int
    members : sequence of str
        In the order in which they are served.
    owned : mapping
        What each member has now; no partition twice.
    """
    wanted = sorted(set(partitions))
    least, more = divmod(len(wanted), len(members))
    has = {member: sorted(set(owned.get(member, ())) & set(wanted)) for member in members}
    # Who has the most may keep one more than the others: that moves the fewest.
    richest = sorted(members, key=lambda member: -len(has[member]))
    room = {member: least + (i < more) for i, member in enumerate(richest)}
    kept = {member: has[member][: room[member]] for member in members}
    free = iter(sorted(set(wanted) - {p for own in kept.values() for p in own}))
    for member in members:
        while len(kept[member]) < room[member]:
            kept[member].append(next(free))
    return {member: sorted(own) for member, own in kept.items()}


class CoPartitioned(AbstractPartitionAssignor):  # type: ignore[misc]
    """kafka-python's interface to `shared_out`.

    One object per consumer: it knows what the consumer has.
    """

    name = "streamadapt-copartitioned"
    version = 1  # of the subscription: with the partitions that a member has

    def __init__(self) -> None:
        self._owned: list[Any] = []
        self._generation = -1
        self.refusal = ""
        """Why this member gets nothing; empty if it is one of the group."""
        self.marked = True
        """Whether the newest assignment was made by this class."""

    def supported_protocols(self) -> list[RebalanceProtocol]:
        """Only the cooperative one."""
        return [RebalanceProtocol.COOPERATIVE]

    def forget(self) -> None:
        """What the consumer had is lost: it must not be claimed."""
        self._owned = []

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolSubscription:
        """Return the data that this member sends to the group's leader."""
        by_topic: dict[str, list[int]] = defaultdict(list)
        for at in self._owned:
            by_topic[at.topic].append(at.partition)
        place = ConsumerProtocolSubscription.TopicPartition
        return ConsumerProtocolSubscription(
            version=self.version,
            topics=sorted(topics),
            user_data=GENERATION.pack(self._generation),
            owned_partitions=[
                place(topic=topic, partitions=sorted(own)) for topic, own in by_topic.items()
            ],
        )

    def on_assignment(self, assignment: Any, generation: int) -> None:
        """Remember what was given, and when."""
        self._owned = list(assignment.partitions())
        self._generation = generation
        user_data = bytes(assignment.user_data or b"")
        self.marked = user_data.startswith(MARK)
        self.refusal = (
            user_data.removeprefix(MARK).decode("utf-8", "replace") if self.marked else ""
        )

    def assign(
        self, cluster: Any, members: Sequence[Any]
    ) -> dict[str, ConsumerProtocolAssignment]:
        """Assign partitions; one that moves is unassigned for one round."""
        # Static members first: their names survive a restart, and so does the order.
        order = sorted(
            members,
            key=lambda m: (m.group_instance_id is None, m.group_instance_id or "", m.member_id),
        )
        by_topics: dict[tuple[str, ...], list[Any]] = defaultdict(list)
        for member in order:
            by_topics[tuple(sorted(member.metadata.topics))].append(member)
        # Those who read something go before those who come with other topics.
        sets = sorted(by_topics, key=lambda topics: (-len(_owners(by_topics[topics])), topics))
        given: dict[str, ConsumerProtocolAssignment] = {}
        taken: dict[str, tuple[str, ...]] = {}
        for topics in sets:
            foreign = next((taken[topic] for topic in topics if topic in taken), None)
            if foreign is None:
                taken |= dict.fromkeys(topics, topics)
                given |= self._share(cluster, topics, by_topics[topics])
                continue
            why = (
                f"others in it read {', '.join(foreign)}, and this one {', '.join(topics)}: "
                f"that cannot be shared out"
            )
            given |= {m.member_id: self._assignment([], why) for m in by_topics[topics]}
        return given

    def _share(
        self, cluster: Any, topics: Sequence[str], members: Sequence[Any]
    ) -> dict[str, ConsumerProtocolAssignment]:
        """Share out the topics of members that all read the same ones."""
        names = [member.member_id for member in members]
        owner = _owners(members)
        owned: dict[str, list[int]] = defaultdict(list)
        for partition, name in owner.items():
            owned[name].append(partition)
        # Only what all topics have: partitions are added to one of them first.
        of_topics = [set(cluster.partitions_for_topic(topic) or ()) for topic in topics]
        goal = shared_out(set.intersection(*of_topics), names, owned)
        shares = {}
        for name, wanted in goal.items():
            # A partition that another member still has comes in the next round.
            free = [partition for partition in wanted if owner.get(partition, name) == name]
            shares[name] = self._assignment([(topic, free) for topic in topics if free])
        return shares

    def _assignment(
        self, places: list[tuple[str, list[int]]], refusal: str = ""
    ) -> ConsumerProtocolAssignment:
        return ConsumerProtocolAssignment(self.version, places, MARK + refusal.encode())


def _owners(members: Sequence[Any]) -> dict[int, str]:
    """Return who has each partition.

    Of two that claim it, the one with the older word was thought dead meanwhile.
    """
    claims: dict[int, tuple[int, str]] = {}
    for member in members:
        data = bytes(member.metadata.user_data or b"")
        generation = GENERATION.unpack(data)[0] if len(data) == GENERATION.size else -1
        for place in getattr(member.metadata, "owned_partitions", None) or ():
            for partition in place.partitions:
                before = claims.get(partition)
                if before is None or before[0] < generation:
                    claims[partition] = (generation, member.member_id)
    return {partition: name for partition, (_, name) in claims.items()}
