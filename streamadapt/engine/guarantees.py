"""The three guarantees: how a partition's outputs, its checkpoint and its restart fit together.

``at-least-once`` replays from the checkpoint and writes the later predictions again.
``effectively-once`` reads the newest prediction in the output, and writes nothing up to it during
the replay. ``exactly-once`` makes outputs and positions visible in one transaction after the
checkpoint, and trusts a checkpoint only if its positions were committed.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from streamadapt.clock import Clock, SystemClock
from streamadapt.engine.conditions import Condition
from streamadapt.engine.partition import PartitionRunner
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
"""Positions are committed at least this often: a broker deletes the positions of a group that has
not committed for a long time (Kafka: 7 days)."""
AT_LEAST: Final = 2
"""The transaction timeout must be at least this many checkpoint intervals, since writing the
checkpoint takes time, too."""


class Delivery:
    """What a guarantee does when a partition is assigned, after each checkpoint, and when the
    partition is revoked.

    Parameters
    ----------
    sink : Sink
    """

    renew_s: float | None = None
    """Time after which a checkpoint is due even if no record was processed; None for no limit."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def resume(self, runner: PartitionRunner, digest: str) -> CheckpointInfo | None:
        """Load the partition's state; return the checkpoint's facts, None if there is no
        checkpoint."""
        return runner.restore(digest, self._committed_before(runner))

    def known_end(self, at: StreamPartition) -> int:
        """Return the offset after the newest record of a partition that the output or its broker
        knows; 0 for none."""
        del at
        return 0

    def stream_recreated(self, runner: PartitionRunner, at: StreamPartition) -> None:
        """Forget what was known about the offsets of a stream that was deleted and created
        again."""

    def saved(self, runner: PartitionRunner) -> None:
        """Called when the checkpoint is on disk and every prediction before it is delivered."""

    def release(self, runner: PartitionRunner, *, lost: bool = False) -> None:
        """Give up the partition: another engine owns it from now on; with `lost` it may have
        owned it for a while."""

    def fall_silent(self, runner: PartitionRunner) -> None:
        """Give up a partition that has another owner, without a message to anyone."""
        self.release(runner, lost=True)

    def _committed_before(self, runner: PartitionRunner) -> dict[StreamPartition, int] | None:
        """Return the committed positions if the newest checkpoint is of an exactly-once run; in
        such a run a checkpoint counts only if its positions were committed."""
        info = None if runner.store is None else runner.store.newest()
        if info is None or info.guarantee != EXACTLY:
            return None
        if not isinstance(self._sink, TransactionalSink):
            raise CheckpointError(
                f"{info.path}: written with guarantee = {EXACTLY!r}: only the output's "
                "transactions show whether its predictions are visible, and this sink has no "
                "transactions; use the old sink, or another checkpoint path"
            )
        committed = self._sink.begin(runner.streams, runner.partition)
        self._sink.end(runner.partition)
        return committed or None


class AtLeastOnce(Delivery):
    """Write predictions before each checkpoint; a replay writes later ones a second time."""


class EffectivelyOnce(Delivery):
    """Write no prediction that the output already holds.

    Parameters
    ----------
    sink : RecallingSink
    """

    def __init__(self, sink: RecallingSink) -> None:
        super().__init__(sink)
        self._recalling = sink
        self._reached: dict[StreamPartition, int] = {}
        # also of partitions that were lost: the sink may hold some
        self._leases: dict[int, Callable[[], None]] = {}
        self._silent = False
        sink.check_before_sending(self._check_owners)

    def resume(self, runner: PartitionRunner, digest: str) -> CheckpointInfo | None:
        """Load the state, and make the runner write nothing up to the newest prediction in the
        output."""
        if runner.partition in self._leases:
            self._flush_former_turn()
        info = super().resume(runner, digest)
        self._leases[runner.partition] = runner.lease()
        at = runner.entries_at
        newest = self._recalling.newest(*at)
        if newest is not None:
            runner.is_new = _after(at, newest)
            if _ids_are_offsets(runner):
                self._reached[at] = newest + 1
        return info

    def fall_silent(self, runner: PartitionRunner) -> None:
        """Stop the sink from sending what it still holds.

        After a restart this engine predicts it again, or the new owner of the partition does.
        """
        self._silent = True
        super().fall_silent(runner)

    def _flush_former_turn(self) -> None:
        """Deliver the predictions of an earlier time as the owner, while this can be checked.

        Afterwards the new token of this engine would hide that another engine was the owner in
        between.
        """
        try:
            self._sink.flush()
        except TransactionLostError as error:
            # The output rejects a record: a restart continues without it.
            raise ConnectorError(str(error)) from error

    def _check_owners(self, partitions: Collection[int]) -> None:
        if self._silent:
            raise FencedError("fenced by another engine: what the sink still holds is not sent")
        for partition in partitions:
            if lease := self._leases.get(partition):
                lease()

    def known_end(self, at: StreamPartition) -> int:
        """Return the offset after the newest entry whose prediction is in the output."""
        return self._reached.get(at, 0)

    def stream_recreated(self, runner: PartitionRunner, at: StreamPartition) -> None:
        """Write all predictions of the new stream."""
        if at == runner.entries_at:
            runner.is_new = None
            self._reached.pop(at, None)


@dataclass
class _Commit:
    """The last commit of one partition.

    Attributes
    ----------
    positions : dict of StreamPartition to int
        The committed positions.
    first : dict of StreamPartition to int
        What was committed when the partition was assigned: predictions up to there are not
        written again.
    emitted : int
        The runner's count of predictions at that time.
    at_s : float, s, monotonic
    """

    positions: dict[StreamPartition, int] = field(default_factory=dict)
    first: dict[StreamPartition, int] = field(default_factory=dict)
    emitted: int = 0
    at_s: float = 0.0


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
        self._commits: defaultdict[int, _Commit] = defaultdict(_Commit)

    def resume(self, runner: PartitionRunner, digest: str) -> CheckpointInfo | None:
        """Fence off older writers, drop checkpoints that were not committed, and do not write
        committed predictions again."""
        # The fencing token is taken before `begin`. Suppose that this process is stopped between
        # the two calls and another engine takes over: it then finds a higher token and ends. In
        # the opposite order it would fence off its successor.
        runner.acquire()
        committed = self._transactions.begin(runner.streams, runner.partition)
        runner.must_own()
        commit = self._commits[runner.partition]
        commit.emitted = runner.emitted
        if not committed:
            return self._resume_unknown(runner, digest)
        info = runner.restore(digest, committed)
        commit.positions, commit.first = dict(committed), dict(committed)
        commit.at_s = self._clock.monotonic()
        first = commit.first

        def is_new(read: Position, prediction: Prediction) -> bool:
            del prediction  # its id need not be an offset (a panel's row has its time there)
            return read.offset >= first.get(StreamPartition(read.stream, read.partition), 0)

        runner.is_new = is_new
        return info

    def _resume_unknown(self, runner: PartitionRunner, digest: str) -> CheckpointInfo | None:
        """Resume where no position is committed: at the first start, after another guarantee, or
        after the broker deleted the positions.

        The newest prediction is then read from the output, if the sink can do that. Positions are
        committed at once, so that from now on everything uncommitted is known not to count.
        """
        at = runner.entries_at
        newest = self._sink.newest(*at) if isinstance(self._sink, RecallingSink) else None
        before = None if runner.store is None else runner.store.newest()
        limits = None
        if before is not None and before.guarantee == EXACTLY:
            self._say_expired(runner, "nothing" if newest is None else str(Position(*at, newest)))
            if newest is not None:
                limits = dict.fromkeys(
                    (StreamPartition(stream, runner.partition) for stream in runner.streams),
                    sys.maxsize,
                )
                limits[at] = newest + 1
        info = runner.restore(digest, limits)
        if newest is not None:
            runner.is_new = _after(at, newest)
        self._commit(runner, {at: 0} | runner.positions)
        return info

    def _say_expired(self, runner: PartitionRunner, reached: str) -> None:
        name = self._transactions.name_of(runner.streams, runner.partition)
        text = (
            f"partition {runner.partition}: there are checkpoints of an exactly-once run, but the "
            f"output's broker knows of no committed "
            f"offsets{' of the group ' + repr(name) if name else ''}: either this is another "
            f"output, or the offsets were deleted or have expired (the brokers' "
            f"offsets.retention.minutes; keep it above the time that an engine may be stopped); "
            f"the newest prediction in the output is of {reached}, and predictions after it are "
            f"written again"
        )
        conditions = self._sink.conditions
        if conditions is None:
            _LOG.warning("%s", text)
        else:
            conditions.happened(Condition.OFFSETS_EXPIRED, text)

    def known_end(self, at: StreamPartition) -> int:
        """Return the committed position."""
        return self._commits[at.partition].positions.get(at, 0)

    def stream_recreated(self, runner: PartitionRunner, at: StreamPartition) -> None:
        """Forget the positions that were committed for the old stream."""
        commit = self._commits[runner.partition]
        commit.positions.pop(at, None)
        commit.first.pop(at, None)
        if at == runner.entries_at:
            runner.is_new = None

    def saved(self, runner: PartitionRunner) -> None:
        """Commit if there is anything new, or if the last commit is old."""
        last = self._commits[runner.partition]
        # During a replay the runner is behind the committed positions: nothing was written, and
        # the committed positions must not go back.
        ahead = dict(last.positions)
        for at, offset in runner.positions.items():
            ahead[at] = max(offset, ahead.get(at, 0))
        emitted = runner.emitted > last.emitted
        stale = self._clock.monotonic() - last.at_s >= RENEW_S
        if ahead and (emitted or stale or ahead != last.positions):
            self._commit(runner, ahead)

    def _commit(self, runner: PartitionRunner, positions: dict[StreamPartition, int]) -> None:
        self._transactions.commit(positions)
        last = self._commits[runner.partition]
        last.positions, last.emitted = dict(positions), runner.emitted
        last.at_s = self._clock.monotonic()
        runner.entered.clear()
        runner.recreated.clear()

    def release(self, runner: PartitionRunner, *, lost: bool = False) -> None:
        """Give up the partition; everything uncommitted is void."""
        self._commits.pop(runner.partition, None)
        if lost:
            self._transactions.abandon(runner.partition)
        else:
            self._transactions.end(runner.partition)


def _after(at: StreamPartition, newest: int) -> Callable[[Position, Prediction], bool]:
    _LOG.info(
        "partition %d: the newest prediction in the output is of %s; the replay writes nothing "
        "up to it",
        at[1],
        Position(*at, newest),
    )

    def is_new(read: Position, prediction: Prediction) -> bool:
        del read
        return prediction.position.offset > newest

    return is_new


def _ids_are_offsets(runner: PartitionRunner) -> bool:
    """Whether prediction ids contain the entries' offsets; those of a panel's rows contain times
    instead."""
    return getattr(runner.pipeline, "panel", None) is None


GUARANTEES: Final = ("at-least-once", "effectively-once", EXACTLY)


def check_guarantee(guarantee: str, sink: type) -> None:
    """Raise `ConfigError` if a config's ``guarantee`` is unknown, or a sink of this class cannot
    give it."""
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
    """Return the `Delivery` that a config's ``guarantee`` names.

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
