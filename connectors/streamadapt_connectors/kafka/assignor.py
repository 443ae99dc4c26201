"""Assigns partitions to the members of a consumer group: partition p of entries and labels to the
same member, and with as few moves as possible.

The partitions of topics are divided among the members that read exactly these topics; a group may
have several such sets of members. Each assignment has a mark, and the reason if a member gets no
partition. An assignment without the mark was made by another application.

Rebalancing is incremental and cooperative (KIP-429): members keep the partitions that do not move,
and continue to read them during a rebalance. A partition that moves is first revoked from its
owner, which saves its state, and is assigned to its next owner in a second round.
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

__all__ = ["CoPartitioned", "balanced"]

GENERATION: Final = struct.Struct(">i")
MARK: Final = b"streamadapt"


def balanced(
    partitions: Iterable[int], members: Sequence[str], owned: Mapping[str, Iterable[int]]
) -> dict[str, list[int]]:
    """Return the partitions of each member after all moves.

    The numbers of partitions of two members differ by at most one, and as few partitions as
    possible move.

    Parameters
    ----------
    partitions : iterable of int
    members : sequence of str
        In the order in which they get partitions.
    owned : mapping
        The present partitions of each member; no partition occurs twice.
    """
    every = sorted(set(partitions))
    least, more = divmod(len(every), len(members))
    has = {member: sorted(set(owned.get(member, ())) & set(every)) for member in members}
    # The members with the most partitions may keep one more than the others: this moves the
    # fewest.
    richest = sorted(members, key=lambda member: -len(has[member]))
    room = {member: least + (i < more) for i, member in enumerate(richest)}
    kept = {member: has[member][: room[member]] for member in members}
    free = iter(sorted(set(every) - {p for own in kept.values() for p in own}))
    for member in members:
        while len(kept[member]) < room[member]:
            kept[member].append(next(free))
    return {member: sorted(own) for member, own in kept.items()}


class CoPartitioned(AbstractPartitionAssignor):  # type: ignore[misc]
    """An assignor of kafka-python that uses `balanced`.

    Each consumer has its own object, which stores the consumer's partitions.
    """

    name = "streamadapt-copartitioned"
    version = 1  # version 1 of a subscription contains the partitions that a member owns

    def __init__(self) -> None:
        self._owned: list[Any] = []
        self._generation = -1
        self.refusal = ""
        """The reason why this member gets no partition; empty if it belongs to the group."""
        self.marked = True
        """Whether the newest assignment was made by this class."""

    def supported_protocols(self) -> list[RebalanceProtocol]:
        """Return only the cooperative protocol."""
        return [RebalanceProtocol.COOPERATIVE]

    def forget(self) -> None:
        """Forget the consumer's partitions after they were lost: it must not claim them."""
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
        """Store the assignment and its generation."""
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
        """Assign partitions to members; a partition that moves has no owner for one round."""
        # Static members first: their names, and therefore the order, survive a restart.
        order = sorted(
            members,
            key=lambda m: (m.group_instance_id is None, m.group_instance_id or "", m.member_id),
        )
        by_topics: dict[tuple[str, ...], list[Any]] = defaultdict(list)
        for member in order:
            by_topics[tuple(sorted(member.metadata.topics))].append(member)
        # Members that already own partitions have priority over new members with other topics.
        sets = sorted(by_topics, key=lambda topics: (-len(_owners(by_topics[topics])), topics))
        assignments: dict[str, ConsumerProtocolAssignment] = {}
        taken: dict[str, tuple[str, ...]] = {}
        for topics in sets:
            foreign = next((taken[topic] for topic in topics if topic in taken), None)
            if foreign is None:
                taken |= dict.fromkeys(topics, topics)
                assignments |= self._share(cluster, topics, by_topics[topics])
                continue
            why = (
                f"other members read {', '.join(foreign)}, but this one reads "
                f"{', '.join(topics)}: these partitions cannot be divided between them"
            )
            assignments |= {m.member_id: self._assignment([], why) for m in by_topics[topics]}
        return assignments

    def _share(
        self, cluster: Any, topics: Sequence[str], members: Sequence[Any]
    ) -> dict[str, ConsumerProtocolAssignment]:
        """Divide the partitions of topics among members that all read these topics."""
        names = [member.member_id for member in members]
        owner = _owners(members)
        owned: dict[str, list[int]] = defaultdict(list)
        for partition, name in owner.items():
            owned[name].append(partition)
        # Only what all topics have: partitions are added to one of them first.
        of_topics = [set(cluster.partitions_for_topic(topic) or ()) for topic in topics]
        goal = balanced(set.intersection(*of_topics), names, owned)
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
    """Return the owner of each partition.

    If two members claim a partition, the claim of the older generation is not valid: that member
    was considered dead meanwhile.
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
