"""The three guarantees: how a partition's outputs, its checkpoint and its restart fit together.

``at-least-once`` replays from the checkpoint and says again what came after it.
``effectively-once`` asks the output how far it had come, and replays silently up to there.
``exactly-once`` makes outputs and positions visible in one transaction after the checkpoint, and
believes a checkpoint only if its positions were committed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection
from typing import Final

from streamadapt.clock import Clock, SystemClock
from streamadapt.engine.conditions import Condition
from streamadapt.engine.partition import Lane
from streamadapt.engine.ports import RecallingSink, Sink, TransactionalSink
from streamadapt.errors import CheckpointError, ConfigError, ConnectorError, TransactionLostError
from streamadapt.records import Position, Prediction, StreamPartition
from streamadapt.state.fence import FencedError
from streamadapt.state.manifest import CheckpointInfo

__all__ = [
    "GUARANTEES",
    "AtLeastOnce",
    "Delivery",
    "EffectivelyOnce",
    "ExactlyOnce",
    "check_guarantee",
    "delivery_of",
]

_LOG = logging.getLogger("streamadapt")

EXACTLY: Final = "exactly-once"
RENEW_S: Final = 6 * 3600.0
"""A broker forgets the positions of a group that has committed none for long (Kafka: 7 days)."""
AT_LEAST: Final = 2
"""Times the time between two checkpoints, that a transaction may be open: writing the checkpoint
takes time, too."""


class Delivery:
    """What a guarantee does when a partition comes, after each of its checkpoints, and when it
    goes.

    Parameters
    ----------
    sink : Sink
    """

    renew_s: float | None = None
    """After so long a checkpoint is due although nothing has come."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def resume(self, lane: Lane, digest: str) -> CheckpointInfo | None:
        """Load the partition's state; return what the checkpoint says, None if it starts from
        nothing."""
        return lane.restore(digest, self._committed_before(lane))

    def reached(self, at: StreamPartition) -> int:
        """Return one past the newest record of a partition that the output or its broker knows of;
        0 for none."""
        del at
        return 0

    def anew(self, lane: Lane, at: StreamPartition) -> None:
        """One of the partition's streams was made anew: what was said of its offsets is not about
        these."""

    def saved(self, lane: Lane) -> None:
        """The checkpoint is on the disk, and every prediction before it is delivered."""

    def let_go(self, lane: Lane, *, lost: bool = False) -> None:
        """The partition is somebody else's from here on; with `lost` it may have been for a
        while."""

    def fall_silent(self, lane: Lane) -> None:
        """The partition has another owner: let go, and say nothing more about it to anybody."""
        self.let_go(lane, lost=True)

    def _committed_before(self, lane: Lane) -> dict[StreamPartition, int] | None:
        """Return what was committed, if the newest checkpoint is of an exactly-once run: else it
        might not count."""
        info = None if lane.store is None else lane.store.newest()
        if info is None or info.guarantee != EXACTLY:
            return None
        if not isinstance(self._sink, TransactionalSink):
            raise CheckpointError(
                f"{info.path}: written with guarantee = {EXACTLY!r}: whether its predictions "
                f"are visible, the output's "
                "transactions know, and this sink has none; use the old sink, or another "
                "checkpoint path"
            )
        committed = self._sink.begin(lane.streams, lane.partition)
        self._sink.end(lane.partition)
        return committed or None


class AtLeastOnce(Delivery):
    """Nothing more than the checkpoint's own order."""


class EffectivelyOnce(Delivery):
    """Say nothing that the output holds already.

    Parameters
    ----------
    sink : RecallingSink
    """

    def __init__(self, sink: RecallingSink) -> None:
        super().__init__(sink)
        self._recalling = sink
        self._reached: dict[StreamPartition, int] = {}
        self._leases: dict[
            int, Callable[[], None]
        ] = {}  # also of partitions that were lost: the sink may hold some
        self._silent = False
        sink.check_before_sending(self._check_owners)

    def resume(self, lane: Lane, digest: str) -> CheckpointInfo | None:
        """Load the state, and have the lane keep silent up to the newest prediction in the
        output."""
        if lane.partition in self._leases:
            self._flush_former_turn()
        info = super().resume(lane, digest)
        self._leases[lane.partition] = lane.lease()
        at = lane.entries_at
        newest = self._recalling.newest(*at)
        if newest is not None:
            lane.is_new = _after(at, newest)
            if _ids_are_offsets(lane):
                self._reached[at] = newest + 1
        return info

    def fall_silent(self, lane: Lane) -> None:
        """The sink sends nothing that it still holds: a restart says it, or the partition's new
        owner."""
        self._silent = True
        super().fall_silent(lane)

    def _flush_former_turn(self) -> None:
        """Deliver what this engine said in a former turn as the owner, while it can be told
        whether that still counts.

        Afterwards its own new token would hide that somebody else was the owner in between.
        """
        try:
            self._sink.flush()
        except (
            TransactionLostError
        ) as error:  # the output refuses a record: a restart does without it
            raise ConnectorError(str(error)) from error

    def _check_owners(self, partitions: Collection[int]) -> None:
        if self._silent:
            raise FencedError("fenced by another engine: what the sink still holds is not sent")
        for partition in partitions:
            if lease := self._leases.get(partition):
                lease()

    def reached(self, at: StreamPartition) -> int:
        """Return one past the newest entry that there is a prediction of."""
        return self._reached.get(at, 0)

    def anew(self, lane: Lane, at: StreamPartition) -> None:
        """Everything is new."""
        if at == lane.entries_at:
            lane.is_new = None
            self._reached.pop(at, None)


class ExactlyOnce(Delivery):
    """Commit outputs and positions together, after the checkpoint.

    Parameters
    ----------
    sink : TransactionalSink
    clock : Clock
    """

    renew_s = RENEW_S

    def __init__(self, sink: TransactionalSink, clock: Clock) -> None:
        super().__init__(sink)
        self._transactions = sink
        self._clock = clock
        self._committed: dict[int, dict[StreamPartition, int]] = {}
        self._before: dict[
            int, dict[StreamPartition, int]
        ] = {}  # what was committed when the partition came
        self._said: dict[int, int] = {}
        self._at: dict[int, float] = {}

    def resume(self, lane: Lane, digest: str) -> CheckpointInfo | None:
        """Shut out older writers, drop checkpoints that were not committed, keep silent about what
        was."""
        # The token comes first: who is stopped between the two, and is taken over meanwhile, then
        # finds a higher one and does not speak; the other way round it would fence its successor
        # off.
        lane.acquire()
        committed = self._transactions.begin(lane.streams, lane.partition)
        lane.must_own()
        self._said[lane.partition] = lane.said
        if not committed:
            return self._resume_unknown(lane, digest)
        info = lane.restore(digest, committed)
        self._committed[lane.partition] = dict(committed)
        said = self._before[lane.partition] = dict(committed)
        self._at[lane.partition] = self._clock.monotonic()

        def is_new(read: Position, prediction: Prediction) -> bool:
            del prediction  # its id need not be an offset (a panel's row has its time there)
            return read.offset >= said.get(StreamPartition(read.stream, read.partition), 0)

        lane.is_new = is_new
        return info

    def _resume_unknown(self, lane: Lane, digest: str) -> CheckpointInfo | None:
        """Nothing was ever committed: at the very first start, after another guarantee, or where
        it was forgotten.

        Then the output itself tells how far it has come, if it can. A commit comes first of all,
        so that from here on what was not committed is known not to count.
        """
        at = lane.entries_at
        newest = self._sink.newest(*at) if isinstance(self._sink, RecallingSink) else None
        before = None if lane.store is None else lane.store.newest()
        limits = None
        if before is not None and before.guarantee == EXACTLY:
            self._say_expired(lane, "nothing" if newest is None else str(Position(*at, newest)))
            if newest is not None:
                limits = dict.fromkeys(
                    (StreamPartition(stream, lane.partition) for stream in lane.streams),
                    sys.maxsize,
                )
                limits[at] = newest + 1
        info = lane.restore(digest, limits)
        if newest is not None:
            lane.is_new = _after(at, newest)
        self._commit(lane, {at: 0} | lane.positions)
        return info

    def _say_expired(self, lane: Lane, reached: str) -> None:
        name = self._transactions.name_of(lane.streams, lane.partition)
        text = (
            f"partition {lane.partition}: there are checkpoints of an exactly-once run, but the "
            f"output's broker knows "
            f"of no committed offsets{' of the group ' + repr(name) if name else ''}: the "
            f"output is another one, or "
            "they were deleted or have expired (the brokers' offsets.retention.minutes; keep it "
            "above the time that "
            f"an engine may be stopped); the output has come to {reached}, which decides what "
            f"is said again"
        )
        conditions = self._sink.conditions
        if conditions is None:
            _LOG.warning("%s", text)
        else:
            conditions.happened(Condition.OFFSETS_EXPIRED, text)

    def reached(self, at: StreamPartition) -> int:
        """Return the committed position."""
        return self._committed.get(at.partition, {}).get(at, 0)

    def anew(self, lane: Lane, at: StreamPartition) -> None:
        """What was committed of it is not about these offsets."""
        for known in (self._committed, self._before):
            known.get(lane.partition, {}).pop(at, None)
        if at == lane.entries_at:
            lane.is_new = None

    def saved(self, lane: Lane) -> None:
        """Commit, if there is anything new, or if it is long ago that there was."""
        before = self._committed.get(lane.partition, {})
        # After a rollback the replay is behind what was committed: nothing was written, and no
        # reader may be sent back.
        ahead = {
            **before,
            **{at: max(offset, before.get(at, 0)) for at, offset in lane.positions.items()},
        }
        said = lane.said > self._said.get(lane.partition, 0)
        stale = self._clock.monotonic() - self._at.get(lane.partition, 0.0) >= RENEW_S
        if ahead and (said or stale or ahead != before):
            self._commit(lane, ahead)

    def _commit(self, lane: Lane, positions: dict[StreamPartition, int]) -> None:
        self._transactions.commit(positions)
        self._committed[lane.partition] = dict(positions)
        self._said[lane.partition] = lane.said
        self._at[lane.partition] = self._clock.monotonic()
        lane.entered.clear()
        lane.made_anew.clear()

    def let_go(self, lane: Lane, *, lost: bool = False) -> None:
        """What is not committed is void."""
        for known in (self._committed, self._before, self._said, self._at):
            known.pop(lane.partition, None)
        if lost:
            self._transactions.abandon(lane.partition)
        else:
            self._transactions.end(lane.partition)


def _after(at: StreamPartition, newest: int) -> Callable[[Position, Prediction], bool]:
    _LOG.info(
        "partition %d: the output has come to %s; up to there the replay is silent",
        at[1],
        Position(*at, newest),
    )

    def is_new(read: Position, prediction: Prediction) -> bool:
        del read
        return prediction.position.offset > newest

    return is_new


def _ids_are_offsets(lane: Lane) -> bool:
    """Whether predictions are named after the entries' offsets: a panel's rows have their times
    there."""
    return getattr(lane.pipeline, "panel", None) is None


GUARANTEES: Final = ("at-least-once", "effectively-once", EXACTLY)


def check_guarantee(guarantee: str, sink: type) -> None:
    """Raise `ConfigError` if a config's ``guarantee`` is none, or a sink of this class cannot give
    it."""
    if guarantee not in GUARANTEES:
        raise ConfigError("guarantee", guarantee, f"one of {', '.join(GUARANTEES)}")
    if guarantee == "effectively-once" and not issubclass(sink, RecallingSink):
        raise ConfigError(
            "guarantee",
            guarantee,
            "at-least-once: this sink cannot tell what it has written before",
        )
    if guarantee == EXACTLY and not issubclass(sink, TransactionalSink):
        raise ConfigError(
            "guarantee", guarantee, "another guarantee: this sink has no transactions"
        )


def delivery_of(
    guarantee: str, sink: Sink, every_s: float, clock: Clock | None = None
) -> Delivery:
    """Return what a config's ``guarantee`` names.

    Parameters
    ----------
    every_s : float, s
        Between two checkpoints.
    clock : Clock, optional

    Raises
    ------
    ConfigError
        See `check_guarantee`; or if a transaction may not be open for `AT_LEAST` times `every_s`.
    """
    check_guarantee(guarantee, type(sink))
    if guarantee == "effectively-once":
        assert isinstance(sink, RecallingSink), "checked"
        return EffectivelyOnce(sink)
    if guarantee == EXACTLY:
        assert isinstance(sink, TransactionalSink), "checked"
        limit_s = sink.transaction_timeout_s
        if limit_s is not None and not AT_LEAST * every_s <= limit_s:
            expected = (
                f"at most half of sink.transaction_timeout, {limit_s:g}s: writing a "
                f"checkpoint takes time, too"
            )
            raise ConfigError("checkpoint.every", f"{every_s:g}s", expected)
        return ExactlyOnce(sink, clock or SystemClock())
    return AtLeastOnce(sink)
