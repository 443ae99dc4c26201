"""Explains the refusals of a broker: which right or setting is wrong, for which resource, and what
to do."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

from streamadapt.config.secrets import scrubbed

__all__ = ["HOPELESS", "Access", "Refusals", "names_in", "source_accesses"]

HOPELESS: Final = (
    "TopicAuthorizationFailed",
    "GroupAuthorizationFailed",
    "TransactionalIdAuthorizationFailed",
    "ClusterAuthorizationFailed",
    "InvalidTransactionTimeout",
    "InvalidSessionTimeout",
    "InvalidGroupId",
    "GroupMaxSizeReached",
    "InvalidTopicError",
    "UnsupportedVersion",
    "UnsupportedForMessageFormat",
)
"""Errors that neither waiting nor another attempt can solve; kafka-python reports many of them
only in the text of another error."""


GIVE: Final = "kafka-acls --add --allow-principal User:NAME --operation"


class Access(NamedTuple):
    """An operation of an engine on a resource of the cluster.

    Attributes
    ----------
    operation : str
        The name that ``kafka-acls`` uses: ``Read``, ``Write`` or ``Create``.
    kind : str
        ``topic``, ``group`` or ``transactional-id``.
    name : str
    setting : str
        The setting with the name, such as ``source.topic``.
    """

    operation: str
    kind: str
    name: str
    setting: str

    def __str__(self) -> str:
        verb = {"Read": "read", "Write": "write to", "Create": "create"}[self.operation]
        if self.kind == "transactional-id":
            verb = "use"
        elif self.kind == "group":
            verb = "join and commit to"
        return f"{verb} the {self.kind.replace('-', ' ')} {self.name!r} ({self.setting})"

    @property
    def command(self) -> str:
        """The command with which an operator gives the right."""
        return f"{GIVE} {self.operation} --{self.kind} {self.name}"


def source_accesses(topics: Sequence[str], group: str | None) -> list[Access]:
    """Return the operations of a source on its topics, and on its group if it has one."""
    settings = ("source.topic", "source.label_topic")
    accesses = [
        Access("Read", "topic", topic, setting)
        for topic, setting in zip(topics, settings, strict=False)
    ]
    if group is None:
        return accesses
    return [*accesses, Access("Read", "group", group, "source.group")]


class Refusals:
    """Converts errors of kafka-python to one line for the operator.

    Parameters
    ----------
    servers : sequence of str
    accesses : sequence of Access
        The operations on the cluster; an error without a resource is about one of these.
    transaction_timeout_s : float, s, or None
        The value of ``sink.transaction_timeout``.
    """

    def __init__(
        self,
        servers: Sequence[str],
        accesses: Sequence[Access],
        transaction_timeout_s: float | None = None,
    ) -> None:
        self._where = f"kafka {','.join(servers)}"
        self._accesses = list(accesses)
        self._timeout_s = transaction_timeout_s

    def explain(self, error: BaseException, shown: Collection[str] = ()) -> str | None:
        """Return what was refused and what to do; None if the error is not about a right or a
        setting.

        Parameters
        ----------
        error : BaseException
        shown : collection of str
            Topics that exist on the broker.
        """
        for cause in _carried(error):
            name = next(
                (name for name in HOPELESS if name in f"{type(cause).__name__} {cause!r}"), None
            )
            if name is not None:
                sentence = self._sentence(name, names_in(cause), shown)
                return scrubbed(f"{self._where}: {sentence} [{name.removesuffix('Error')}]")
        return None

    def _sentence(self, name: str, names: set[str], shown: Collection[str]) -> str:
        if name == "ClusterAuthorizationFailed":
            return self._no_right_to_produce()
        kinds = {
            "TopicAuthorizationFailed": "topic",
            "GroupAuthorizationFailed": "group",
            "TransactionalIdAuthorizationFailed": "transactional-id",
        }
        return (
            self._no_right(kinds[name], names, shown)
            if name in kinds
            else self._wrong_setting(name)
        )

    def _no_right(self, kind: str, names: set[str], shown: Collection[str]) -> str:
        of_kind = [one for one in self._accesses if one.kind == kind]
        concerned = [one for one in of_kind if one.name in names] or of_kind
        if not concerned:
            named = ", ".join(sorted(names)) or "the broker does not report its name"
            return f"no right to use a {kind.replace('-', ' ')}: {named}"
        what = ", or to ".join(dict.fromkeys(map(str, concerned)))
        unsure = ""
        if kind == "topic" and not any(
            one.name in shown or one.operation == "Create" for one in concerned
        ):
            unsure = ", or it does not exist (without that right the broker does not reveal which)"
        commands = "; ".join(dict.fromkeys(one.command for one in concerned))
        return f"no right to {what}{unsure}. An administrator gives the right with: {commands}"

    def _no_right_to_produce(self) -> str:
        topics = [
            one
            for one in self._accesses
            if one.kind == "topic" and one.operation in ("Write", "Create")
        ]
        what = ", or to ".join(map(str, topics)) or "do this on the cluster"
        commands = "; ".join(
            [one.command for one in topics] or [f"{GIVE} IdempotentWrite --cluster"]
        )
        before = f" (before Kafka 2.8 also: {GIVE} IdempotentWrite --cluster)" if topics else ""
        return f"no right to {what}. An administrator gives the right with: {commands}{before}"

    def _wrong_setting(self, name: str) -> str:
        topics = ", ".join(
            f"{one.setting} {one.name!r}" for one in self._accesses if one.kind == "topic"
        )
        if name == "InvalidTransactionTimeout":
            now = "" if self._timeout_s is None else f" ({self._timeout_s:g} s)"
            return (
                f"sink.transaction_timeout{now} is above the broker's "
                "transaction.max.timeout.ms (15 minutes by default): lower sink."
                "transaction_timeout, or raise the broker's setting"
            )
        if name == "InvalidSessionTimeout":
            return (
                "source.session_timeout is outside of what the broker allows (its "
                "group.min.session.timeout.ms to group.max.session.timeout.ms, 6 s to 30 minutes "
                "by default)"
            )
        if name == "GroupMaxSizeReached":
            return (
                "the group of source.group is full: the broker's group.max.size is the largest "
                "number of its members"
            )
        if name == "InvalidGroupId":
            return "the broker does not accept the name in source.group"
        if name == "InvalidTopicError":
            return (
                f"the broker does not accept the name of a topic: {topics} (letters, digits, "
                f"'.', '_' and '-')"
            )
        return f"the broker's version does not support a request that is needed here ({topics})"


def names_in(error: BaseException) -> set[str]:
    """Return the names of resources in the arguments of an error of kafka-python."""
    return set(_names(error.args))


def _names(argument: object) -> Iterator[str]:
    if isinstance(argument, str):
        yield argument
    elif isinstance(argument, set | frozenset | list | tuple):
        for one in argument:
            yield from _names(one)


def _carried(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its explicit causes and the errors in its arguments, but not its
    contexts."""
    waiting, seen = [error], set()
    while waiting:
        cause = waiting.pop()
        if id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            waiting += [
                one for one in (cause.__cause__, *cause.args) if isinstance(one, BaseException)
            ]
