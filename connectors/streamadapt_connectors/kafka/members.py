"""Lists the members of a consumer group, for error messages."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.protocol.api_message import ApiMessage

from streamadapt_connectors.kafka.client import Client, Reach

__all__ = ["Group", "group_of"]

MAX_SHOWN: Final = 10

_PLACES: Final = [
    {"name": "TopicId", "type": "uuid", "versions": "0+"},
    {"name": "TopicName", "type": "string", "versions": "0+"},
    {"name": "Partitions", "type": "[]int32", "versions": "0+"},
]
_ASSIGNMENT: Final = [
    {"name": "TopicPartitions", "type": "[]TopicPartitions", "versions": "0+", "fields": _PLACES}
]
_MEMBER: Final = [
    {"name": "MemberId", "type": "string", "versions": "0+"},
    {
        "name": "InstanceId",
        "type": "string",
        "versions": "0+",
        "nullableVersions": "0+",
        "default": "null",
    },
    {
        "name": "RackId",
        "type": "string",
        "versions": "0+",
        "nullableVersions": "0+",
        "default": "null",
    },
    {"name": "MemberEpoch", "type": "int32", "versions": "0+"},
    {"name": "ClientId", "type": "string", "versions": "0+"},
    {"name": "ClientHost", "type": "string", "versions": "0+"},
    {"name": "SubscribedTopicNames", "type": "[]string", "versions": "0+"},
    {
        "name": "SubscribedTopicRegex",
        "type": "string",
        "versions": "0+",
        "nullableVersions": "0+",
        "default": "null",
    },
    {"name": "Assignment", "type": "Assignment", "versions": "0+", "fields": _ASSIGNMENT},
    {"name": "TargetAssignment", "type": "Assignment", "versions": "0+", "fields": _ASSIGNMENT},
]
_GROUP: Final = [
    {"name": "ErrorCode", "type": "int16", "versions": "0+"},
    {
        "name": "ErrorMessage",
        "type": "string",
        "versions": "0+",
        "nullableVersions": "0+",
        "default": "null",
    },
    {"name": "GroupId", "type": "string", "versions": "0+"},
    {"name": "GroupState", "type": "string", "versions": "0+"},
    {"name": "GroupEpoch", "type": "int32", "versions": "0+"},
    {"name": "AssignmentEpoch", "type": "int32", "versions": "0+"},
    {"name": "AssignorName", "type": "string", "versions": "0+"},
    {"name": "Members", "type": "[]Member", "versions": "0+", "fields": _MEMBER},
    {"name": "AuthorizedOperations", "type": "int32", "versions": "0+", "default": "-2147483648"},
]


def _message(kind: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    name = f"ConsumerGroupDescribe{kind.capitalize()}"
    versions = {"validVersions": "0", "flexibleVersions": "0+"}
    return {"apiKey": 69, "type": kind, "name": name, "fields": fields, **versions}


# kafka-python 3.0 has no class for this message (KIP-848). A class reads the layout of its message
# from a file with the class's name, or from `json_patch`.
class DescribeGroupsRequest(ApiMessage):  # type: ignore[misc]
    """``ConsumerGroupDescribe``, version 0."""

    json_patch = classmethod(
        lambda cls, json: _message(
            "request",
            [
                {"name": "GroupIds", "type": "[]string", "versions": "0+"},
                {"name": "IncludeAuthorizedOperations", "type": "bool", "versions": "0+"},
            ],
        )
    )


class DescribeGroupsResponse(ApiMessage):  # type: ignore[misc]
    """The answer to `DescribeGroupsRequest`."""

    json_patch = classmethod(
        lambda cls, json: _message(
            "response",
            [
                {"name": "ThrottleTimeMs", "type": "int32", "versions": "0+"},
                {"name": "Groups", "type": "[]DescribedGroup", "versions": "0+", "fields": _GROUP},
            ],
        )
    )


class Group:
    """The broker's description of a group.

    Attributes
    ----------
    protocol : str
        The name of the assignor, by which members agree on their partitions; ``consumer`` with the
        new consumer protocol (KIP-848); empty while the group has no members.
    members : list of str
        One text for each member: client id, host, and its topics if they are known.
    """

    def __init__(self, name: str, protocol: str, members: list[str]) -> None:
        self.name = name
        self.protocol = protocol
        self.members = members

    def __str__(self) -> str:
        shown = self.members[:MAX_SHOWN]
        more = (
            f" and {len(self.members) - len(shown)} more" if len(self.members) > len(shown) else ""
        )
        return "; ".join(shown) + more if shown else "the broker lists none"


def group_of(reach: Reach, name: str) -> Group | None:
    """Ask the broker for the members of a group; None if it does not answer. Takes at most some
    seconds."""
    client = Client()
    configs = {k: v for k, v in reach.common().items() if k != "reconnect_backoff_max_ms"}
    try:
        admin = KafkaAdminClient(kafka_client=client, request_timeout_ms=5000, **configs)
    except kafka_errors.KafkaError:
        client.close()
        return None
    try:
        with suppress(kafka_errors.KafkaError, OSError, ValueError, KeyError, IndexError):
            return _classic(name, admin.describe_groups([name])[name]) or _new(name, admin)
        return None
    finally:
        admin.close()
        client.close()


def _classic(name: str, description: Mapping[str, Any]) -> Group | None:
    if description["error"] is not None or description["group_state"] == "Dead":
        return None
    members = []
    for member in description["members"]:
        data = member["member_metadata"]  # decoded if the member is a consumer
        topics = data.get("topics") if isinstance(data, Mapping) else getattr(data, "topics", None)
        members.append(_named(member["client_id"], member["client_host"], topics))
    return Group(name, str(description["protocol_data"]), members)


def _new(name: str, admin: Any) -> Group | None:
    async def ask() -> Any:
        node = (await admin._find_coordinator_ids([name]))[name]
        request = DescribeGroupsRequest(group_ids=[name], include_authorized_operations=False)
        return await admin._manager.send(request, node_id=node)

    described = admin._manager.run(ask).groups[0]
    if described.error_code:
        return None
    members = [
        _named(m.client_id, m.client_host, m.subscribed_topic_names) for m in described.members
    ]
    return Group(name, "consumer", members)


def _named(client: str, host: str, topics: Any) -> str:
    reads = f" (reads {', '.join(sorted(topics))})" if topics else ""
    return f"{client} at {str(host).lstrip('/')}{reads}"
