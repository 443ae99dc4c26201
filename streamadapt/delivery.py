"""The three guarantees: how a partition's outputs, its checkpoint and its restart fit together.

``at-least-once`` replays from the checkpoint and says again what came after it. ``effectively-once`` asks the output
how far it had come, and replays silently up to there. ``exactly-once`` makes outputs and positions visible in one
transaction after the checkpoint, and believes a checkpoint only if its positions were committed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from streamadapt.entry import Position, Prediction
from streamadapt.errors import ConfigError
from streamadapt.lane import Lane
from streamadapt.manifest import CheckpointInfo
from streamadapt.ports import RecallingSink, Sink, StreamPartition, TransactionalSink

__all__ = ["GUARANTEES", "AtLeastOnce", "Delivery", "EffectivelyOnce", "ExactlyOnce", "check_guarantee", "delivery_of"]

_LOG = logging.getLogger("streamadapt")


class Delivery:
    """What a guarantee does when a partition comes, after each of its checkpoints, and when it goes."""

    def resume(self, lane: Lane, digest: str) -> CheckpointInfo | None:
        """Load the partition's state; return what the checkpoint says, None if it starts from nothing."""
        return lane.restore(digest)

    def saved(self, lane: Lane) -> None:
        """The checkpoint is on the disk, and every prediction before it is delivered."""

    def let_go(self, lane: Lane) -> None:
        """The partition is somebody else's from here on."""


class AtLeastOnce(Delivery):
    """Nothing more than the checkpoint's own order."""


class EffectivelyOnce(Delivery):
    """Say nothing that the output holds already.

    Parameters
    ----------
    sink : RecallingSink
    """

    def __init__(self, sink: RecallingSink) -> None:
        self._sink = sink

    def resume(self, lane: Lane, digest: str) -> CheckpointInfo | None:
        """Load the state, and have the lane keep silent up to the newest prediction in the output."""
        info = lane.restore(digest)
        newest = self._sink.newest(lane.streams[0], lane.partition)
        if newest is not None:
            at = Position(lane.streams[0], lane.partition, newest)
            _LOG.info("partition %d: the output has come to %s; up to there the replay is silent", lane.partition, at)

            def is_new(read: Position, prediction: Prediction) -> bool:
                del read
                return prediction.position.offset > newest

            lane.is_new = is_new
        return info


class ExactlyOnce(Delivery):
    """Commit outputs and positions together, after the checkpoint.

    Parameters
    ----------
    sink : TransactionalSink
    """

    def __init__(self, sink: TransactionalSink) -> None:
        self._sink = sink
        self._committed: dict[int, Mapping[StreamPartition, int]] = {}

    def resume(self, lane: Lane, digest: str) -> CheckpointInfo | None:
        """Shut out older writers, drop checkpoints that were not committed, keep silent about what was."""
        committed = self._sink.begin(lane.streams, lane.partition)
        info = lane.restore(digest, not_beyond=committed)
        self._committed[lane.partition] = committed

        def is_new(read: Position, prediction: Prediction) -> bool:
            del prediction  # its id need not be an offset (a panel's row has its time there)
            return read.offset >= committed.get(StreamPartition(read.stream, read.partition), 0)

        lane.is_new = is_new
        return info

    def saved(self, lane: Lane) -> None:
        """Commit, if there is anything new."""
        before = self._committed.get(lane.partition, {})
        # After a rollback the replay is behind what was committed: nothing was written, and no reader may be sent back.
        ahead = {at: max(offset, before.get(at, 0)) for at, offset in lane.positions.items()}
        if ahead != before:
            self._sink.commit(ahead)
            self._committed[lane.partition] = ahead

    def let_go(self, lane: Lane) -> None:
        """What is not committed is void."""
        self._committed.pop(lane.partition, None)
        self._sink.end(lane.partition)


GUARANTEES: Final = ("at-least-once", "effectively-once", "exactly-once")


def check_guarantee(guarantee: str, sink: type) -> None:
    """Raise `ConfigError` if a config's ``guarantee`` is none, or a sink of this class cannot give it."""
    if guarantee not in GUARANTEES:
        raise ConfigError("guarantee", guarantee, f"one of {', '.join(GUARANTEES)}")
    if guarantee == "effectively-once" and not issubclass(sink, RecallingSink):
        raise ConfigError("guarantee", guarantee, "at-least-once: this sink cannot tell what it has written before")
    if guarantee == "exactly-once" and not issubclass(sink, TransactionalSink):
        raise ConfigError("guarantee", guarantee, "another guarantee: this sink has no transactions")


def delivery_of(guarantee: str, sink: Sink, every_s: float) -> Delivery:
    """Return what a config's ``guarantee`` names.

    Parameters
    ----------
    every_s : float, s
        Between two checkpoints.

    Raises
    ------
    ConfigError
        See `check_guarantee`; or if a transaction may not be open for as long as `every_s`.
    """
    check_guarantee(guarantee, type(sink))
    if guarantee == "effectively-once":
        assert isinstance(sink, RecallingSink), "checked"
        return EffectivelyOnce(sink)
    if guarantee == "exactly-once":
        assert isinstance(sink, TransactionalSink), "checked"
        limit_s = sink.transaction_timeout_s
        if limit_s is not None and not every_s < limit_s:
            raise ConfigError("checkpoint.every", f"{every_s:g}s", f"less than sink.transaction_timeout, {limit_s:g}s")
        return ExactlyOnce(sink)
    return AtLeastOnce()
