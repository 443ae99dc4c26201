"""Consumer groups: the owner's callbacks run on the thread that polls, while the client continues
to send heartbeats."""

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

CHECK_INTERVAL_S: Final = 0.005
MIN_SESSION_MS: Final = 1000
MAX_HEARTBEAT_MS: Final = 1000
"""The longest interval of heartbeats: the answer to a heartbeat tells a member that the group
rebalances."""
LEAVE_MS: Final = 1000


def session_of(timeout: str) -> dict[str, int]:
    """Return kafka-python's settings of a group's session: at least three heartbeats in the
    timeout, of which one must arrive."""
    timeout_ms = duration_ns("source.session_timeout", timeout) // 1_000_000
    if not timeout_ms >= MIN_SESSION_MS:
        raise ConfigError("source.session_timeout", timeout, f"a duration >= {MIN_SESSION_MS} ms")
    interval_ms = min(timeout_ms // 3, MAX_HEARTBEAT_MS)
    return {"session_timeout_ms": timeout_ms, "heartbeat_interval_ms": interval_ms}


@contextmanager
def owners_errors() -> Iterator[None]:
    """Convert errors of the owner to `ConnectorError`: otherwise they would look like errors of an
    unavailable broker, for which the source waits."""
    try:
        yield
    except (KafkaError, OSError) as error:
        raise ConnectorError(
            f"while a partition came or went: {type(error).__name__}: {error}"
        ) from error


def keep_joins(consumer: Any) -> None:
    """Make a consumer use the answer to a join that came between two polls.

    kafka-python 3.0 reads this answer only during a poll. If the join is already done at the next
    poll, it begins another join, which makes all members join again: with short polls the
    rebalance would never end. It also does not read the answer if the reason to join no longer
    exists, for example for a leader that joined after the metadata of a topic had changed. Its
    heartbeats, which stop during a join, would then never resume.
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
    """Return whether a consumer's group is rebalancing, or is about to."""
    return consumer.config["group_id"] is not None and (
        consumer.group_metadata().state is MemberState.REBALANCING
        or bool(consumer._coordinator.need_rejoin())
    )


def settled(consumer: Any) -> bool:
    """Return whether a consumer is a member of its group, with or without partitions."""
    return consumer.group_metadata().state is MemberState.STABLE


def leave(consumer: Any) -> None:
    """Leave a group while the request to join it is unanswered; in other states ``close`` of the
    client leaves the group.

    A broker answers the requests of one connection in their order. On the coordinator's own
    connection, the request to leave would wait behind the join, which the broker may delay until
    its slowest member has joined. The member that has ended would then get partitions, which
    nobody would read until its session expires.
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
    """Polls in a helper thread, and runs the callbacks of the client's thread on the caller's
    thread.

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
        """Run a job in the helper thread and return its result; run callbacks on this thread
        meanwhile, and raise their first error."""
        # If there is a job already, an interrupt came during the last call, and it still runs.
        if self._job is None:
            self._job = self._worker.submit(job)
            self._job.add_done_callback(lambda _: self._inbox.put(None))
        while (request := self._inbox.get()) is not None:
            try:
                request.run()
            except BaseException as error:  # raised below, after the client has finished
                self._error = self._error or error
            finally:
                request.done.set()
        done, self._job = self._job, None
        failure, self._error = self._error, None
        if failure is not None:
            raise failure
        return done.result()

    async def ask(self, run: Callable[[], None]) -> None:
        """Run a callback on the caller's thread, and await its end without blocking the client's
        loop."""
        if self.closing or self._client.net is None:
            return
        request = _Request(run)
        self._inbox.put(request)
        while not request.done.is_set() and not self.closing:
            await self._client.net.sleep(CHECK_INTERVAL_S)


class _Request:
    def __init__(self, run: Callable[[], None]) -> None:
        self.run = run
        self.done = threading.Event()


class RebalanceListener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Passes the group's decisions to the source.

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
        """Set the positions before records are fetched."""
        await self._handover.ask(lambda: self._assigned(assigned))

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Let the owner finish before another member starts."""
        if revoked:
            await self._handover.ask(lambda: self._revoked(revoked, False))

    async def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """Tell the owner that another member may have started already."""
        if lost:
            await self._handover.ask(lambda: self._revoked(lost, True))
