"""Consumer groups: the owner's callbacks run on the thread that polls, while the client keeps
sending heartbeats."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, Final

from kafka import TopicPartition
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.coordinator.base import MemberState
from kafka.errors import KafkaError
from kafka.protocol.consumer import LeaveGroupRequest

from streamadapt.config.durations import duration_ns
from streamadapt.errors import ConfigError, ConnectorError
from streamadapt_connectors.kafka.client import Client

__all__ = [
    "Handover",
    "RebalanceListener",
    "keep_joins",
    "leave",
    "owners_errors",
    "rebalancing",
    "session_of",
    "settled",
]

LOOK_S: Final = 0.005
LEAST_SESSION_MS: Final = 1000
MOST_HEARTBEAT_MS: Final = 1000
"""A member learns from the answer to a heartbeat that the group shares its partitions out
again."""
LEAVE_MS: Final = 1000


def session_of(timeout: str) -> dict[str, int]:
    """Return kafka-python's settings of a group's session: three heartbeats in the time, one of
    which must come."""
    timeout_ms = duration_ns("source.session_timeout", timeout) // 1_000_000
    if not timeout_ms >= LEAST_SESSION_MS:
        raise ConfigError(
            "source.session_timeout", timeout, f"a duration >= {LEAST_SESSION_MS} ms"
        )
    beat_ms = min(timeout_ms // 3, MOST_HEARTBEAT_MS)
    return {"session_timeout_ms": timeout_ms, "heartbeat_interval_ms": beat_ms}


@contextmanager
def owners_errors() -> Iterator[None]:
    """Let nothing that the owner raises pass for a broker that is away, which would be waited
    for."""
    try:
        yield
    except (KafkaError, OSError) as error:
        raise ConnectorError(
            f"while a partition came or went: {type(error).__name__}: {error}"
        ) from error


def keep_joins(consumer: Any) -> None:
    """Have a consumer use the answer to a join that came between two polls.

    kafka-python 3.0 only looks for it during a poll. If it finds the join done at the next one, it
    begins another, which makes all members join again: with short polls the group never settles.
    It also does not look if the reason to join no longer exists, as for a leader that joined after
    the metadata of a topic had changed. Its heartbeats, which stop for a join, would never resume.
    """
    coordinator = consumer._coordinator
    needed = coordinator.need_rejoin
    join, complete = coordinator._do_join_and_sync_async, coordinator._on_join_complete_async
    kept: list[tuple[Any, bytes]] = []

    async def join_once() -> bytes:
        if kept and kept[0][0] is coordinator._generation:
            return kept[0][1]
        kept.clear()
        assignment: bytes = await join()
        kept.append((coordinator._generation, assignment))
        return assignment

    async def completed(*args: Any) -> None:
        kept.clear()
        await complete(*args)

    coordinator._do_join_and_sync_async, coordinator._on_join_complete_async = join_once, completed
    coordinator.need_rejoin = lambda: coordinator.rejoining or needed()


def rebalancing(consumer: Any) -> bool:
    """Whether a consumer's group is about to share its partitions out, or at it."""
    return consumer.config["group_id"] is not None and (
        consumer.group_metadata().state is MemberState.REBALANCING
        or bool(consumer._coordinator.need_rejoin())
    )


def settled(consumer: Any) -> bool:
    """Whether a consumer is in its group, also where it was given no partition."""
    return consumer.group_metadata().state is MemberState.STABLE


def leave(consumer: Any) -> None:
    """Leave a group whose answer to our request to join is still to come; otherwise ``close`` of
    the client does it.

    A broker answers the requests of one connection in their order. On the coordinator's own, the
    word that we leave would wait behind the join, which the broker may hold back for as long as
    its slowest member takes. The member that has gone would then be given partitions, which nobody
    reads until its session ends.
    """
    coordinator, member = consumer._coordinator, consumer.group_metadata()
    if member.state is not MemberState.REBALANCING:
        return
    node = str(coordinator.coordinator_id).rpartition("-")[2]
    if member.member_id and node.isdigit():
        identity = LeaveGroupRequest.MemberIdentity(
            member_id=member.member_id, group_instance_id=None
        )
        request = LeaveGroupRequest(
            group_id=member.group_id, member_id=member.member_id, members=[identity]
        )

        async def send() -> None:
            await consumer._manager.wait_for(
                consumer._manager.send(request, node_id=int(node)), LEAVE_MS
            )

        with suppress(KafkaError):
            consumer._net.run(send)
    coordinator.reset_generation()


class Handover:
    """Poll in a helper thread and run on the caller's thread what the client's own thread asks
    for.

    kafka-python calls its listeners on the thread that also sends the heartbeats, while the caller
    is blocked in ``poll``. An owner that writes a checkpoint there would stop the heartbeats, and
    would use its models from a second thread.
    """

    def __init__(self, worker: ThreadPoolExecutor, client: Client) -> None:
        self._worker = worker
        self._client = client
        self._inbox: SimpleQueue[_Request | None] = SimpleQueue()
        self._job: Future[Any] | None = None
        self._error: BaseException | None = None
        self.closing = False

    def call(self, job: Callable[[], Any]) -> Any:
        """Return ``job()``, run in the helper thread; requests that come up meanwhile run here,
        first their errors."""
        # Else an interrupt came in between, and the old one is still running.
        if self._job is None:
            self._job = self._worker.submit(job)
            self._job.add_done_callback(lambda _: self._inbox.put(None))
        while (request := self._inbox.get()) is not None:
            try:
                request.run()
            except BaseException as error:  # raised below, once the client has settled
                self._error = self._error or error
            finally:
                request.done.set()
        done, self._job = self._job, None
        failure, self._error = self._error, None
        if failure is not None:
            raise failure
        return done.result()

    async def ask(self, run: Callable[[], None]) -> None:
        """Have `run` run on the caller's thread; await its end without blocking the client's
        loop."""
        if self.closing or self._client.net is None:
            return
        request = _Request(run)
        self._inbox.put(request)
        while not request.done.is_set() and not self.closing:
            await self._client.net.sleep(LOOK_S)


class _Request:
    def __init__(self, run: Callable[[], None]) -> None:
        self.run = run
        self.done = threading.Event()


class RebalanceListener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Pass on what the group decides.

    Parameters
    ----------
    handover : Handover
    assigned : callable
        Called with the topic partitions.
    revoked : callable
        Called with the topic partitions and whether they are lost.
    """

    def __init__(
        self,
        handover: Handover,
        assigned: Callable[[Collection[TopicPartition]], None],
        revoked: Callable[[Collection[TopicPartition], bool], None],
    ) -> None:
        self._handover = handover
        self._assigned = assigned
        self._revoked = revoked

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Place the source before anything is fetched."""
        await self._handover.ask(lambda: self._assigned(assigned))

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Let the owner finish before somebody else starts."""
        if revoked:
            await self._handover.ask(lambda: self._revoked(revoked, False))

    async def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """Tell the owner that somebody else may have started already."""
        if lost:
            await self._handover.ask(lambda: self._revoked(lost, True))
