"""The loop: poll, decode, merge, observe, emit, checkpoint, drain."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from streamadapt.badshare import BAD_SHARE_OF, BadShare
from streamadapt.checkpoint import CheckpointStore
from streamadapt.delivery import delivery_of
from streamadapt.engine_settings import EngineSettings
from streamadapt.entry import Entry, Label, Prediction
from streamadapt.errors import EntryError
from streamadapt.folder import folder_of
from streamadapt.keyed import KeyedPipeline
from streamadapt.lane import Lane
from streamadapt.merge import Arrived
from streamadapt.metrics import Metrics, NullMetrics, StageTiming
from streamadapt.pipeline import Pipeline
from streamadapt.ports import (
    Clock,
    DeadLetter,
    DeadLetterSink,
    Record,
    Sink,
    Source,
    StreamPartition,
    SystemClock,
)
from streamadapt.report import summarise
from streamadapt.rounds import Lot, Turns

__all__ = ["BAD_SHARE_OF", "Codec", "Engine", "EngineSettings"]

_LOG = logging.getLogger("streamadapt")


class Codec(Protocol):
    """Turns records into entries and labels."""

    def decode(self, record: Record) -> Entry | Label:
        """Decode one record; raises `EntryError`."""
        ...


class Engine:
    """Runs one pipeline per partition between a source and a sink, under one of three guarantees.

    Parameters
    ----------
    source : Source
    make_pipeline : callable () -> Pipeline or KeyedPipeline
        Called once per partition; every call must return an equal, fresh one.
    sink : Sink
    codec : Codec
    dead_letters : DeadLetterSink
    settings : EngineSettings
    metrics : Metrics, optional
    clock : Clock, optional

    Attributes
    ----------
    on_checkpoint_step : callable of str, or None
        Called at every named step of a checkpoint; tests raise from it.
    beat : int
        Counts up with every poll and every lot of records: a watchdog's proof that the loop moves.
    """

    def __init__(
        self,
        source: Source,
        make_pipeline: Callable[[], Pipeline | KeyedPipeline],
        sink: Sink,
        codec: Codec,
        dead_letters: DeadLetterSink,
        *,
        settings: EngineSettings | None = None,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.source = source
        self.make_pipeline = make_pipeline
        self.sink = sink
        self.codec = codec
        self.dead_letters = dead_letters
        self.settings = settings or EngineSettings()
        self.metrics = metrics or NullMetrics()
        self.clock = clock or SystemClock()
        self.delivery = delivery_of(self.settings.guarantee, sink, self.settings.checkpoint_every_s, self.clock)
        self.on_checkpoint_step: Callable[[str], None] | None = None
        self.lanes: dict[int, Lane] = {}
        self.stopping = False
        self.beat = 0
        self._index = {stream: i for i, stream in enumerate(source.streams)}
        self._bad_share = BadShare(self.settings.max_bad_share)
        self._last_checkpoint = self.clock.monotonic()
        self._turns = Turns(self.clock, self.settings.turn_s)
        self._timing = StageTiming(self.clock, self.metrics)
        self._paused: frozenset[StreamPartition] = frozenset()
        self._drifts_logged: dict[int, int] = {}
        self._state = ""

    def stop(self) -> None:
        """Ask `run` to drain and return; may be called from a signal handler or another thread."""
        self.stopping = True

    def run(self) -> dict[str, Any]:
        """Run until `stop`, or until a finite source has ended and everything was processed.

        Returns
        -------
        dict
            `summary()`.

        Raises
        ------
        ConnectorError, CheckpointError
            What waiting cannot mend; nothing past the last checkpoint is lost, a restart replays it.
        """
        try:
            self.source.open(self)
            while not self.stopping and not self.step():
                pass
            # Nothing new since the last one: another like it would only push older ones out.
            if any(lane.since_checkpoint for lane in self.lanes.values()):
                self.checkpoint()
            summary = self.summary()
        except BaseException:
            for error in self._close():
                _LOG.error("while closing after that: %s", error)
            raise
        for error in self._close():
            raise error
        _LOG.info("stopped: %d entries, %d predictions", summary["entries"], summary["predictions"])
        return summary

    def step(self) -> bool:
        """Poll once and process what came; True when a finite source is done. Tests drive the engine with this."""
        self.beat += 1
        waiting = any(lane.merge.ready for lane in self.lanes.values())
        records = self.source.poll(0.0 if waiting else self.settings.poll_s)
        now = self.clock.monotonic()
        if records:
            with self._timing.stage("decode"):
                self._take_in(records)
        lag = self.source.lag()
        ended = self._watch_source(lag) == "ended"
        for lane in list(self.lanes.values()):
            for i, stream in enumerate(lane.streams):
                left = lag.get(StreamPartition(stream, lane.partition))
                lane.merge.note_lag(i, left, now)
                for record, item in lane.lookaheads[i].release(behind=bool(left) and not ended):
                    lane.merge.offer(i, record, item, now)
        busy = [lane.partition for lane in self.lanes.values() if len(lane.merge)]
        self._turns.round(busy, lambda partition, until: self._advance(self.lanes[partition], now, until, ended))
        for at, offset in self.source.read_up_to().items():
            if at.partition in self.lanes:
                self.lanes[at.partition].read_up_to(at, offset)
        for sink in (self.sink, self.dead_letters):
            _ = sink.trouble  # looking is what puts it into the log
        self._apply_backpressure()
        if self._checkpoint_is_due():
            self.checkpoint()
        done = ended and not any(lane.waiting for lane in self.lanes.values())
        for lane in self.lanes.values() if done else ():
            self._hand_out(lane, lane.finish(), ())  # nothing comes any more; a plain stop cannot know that
        return done

    # -- one round

    def _take_in(self, records: Sequence[Record]) -> None:
        for record in records:
            at = record.position
            lane = self.lanes.get(at.partition)
            if lane is None:
                continue  # a partition that was revoked during this very poll: its new owner reads the record
            item: Entry | Label | DeadLetter
            try:
                item = self.codec.decode(record)
            except EntryError as error:
                item = DeadLetter(record, error.reason.value, "decode", error.detail)
            lane.lookaheads[self._index[at.stream]].push(record, item)

    def _advance(self, lane: Lane, now: float, until: float, ended: bool) -> bool:
        """Process what may be processed, in small lots, until the time is up; return whether there may be more."""
        while not self.stopping:
            late = lane.merge.late_labels
            lot = Lot(lane.merge, self.clock, now, until, ended=ended, stopping=lambda: self.stopping)
            if lot:
                self._process(lane, lot)
            for _ in range(lane.merge.late_labels - late):
                self.metrics.late_label()
            if not lot.count:
                return False
            if self.clock.monotonic() >= until:
                return True
        return False

    def _process(self, lane: Lane, released: Iterable[Arrived]) -> None:
        self.beat += 1
        lane.check_owner()  # a process that was stopped for a while must not speak before it knows
        before = lane.since_checkpoint
        predictions, letters = lane.process(released)
        self._hand_out(lane, predictions, letters)
        self._bad_share.add(lane.since_checkpoint - before, letters)

    def _hand_out(self, lane: Lane, predictions: Sequence[Prediction], letters: Sequence[DeadLetter]) -> None:
        with self._timing.stage("emit"):
            self._emit(predictions, letters)
        self._log_drifts(lane, predictions)
        self.metrics.pipeline(lane.partition, lane.pipeline.stats)

    def _emit(self, predictions: Sequence[Prediction], letters: Sequence[DeadLetter]) -> None:
        if predictions:
            self.sink.write(predictions)
        if letters:
            self.dead_letters.write(letters)
            for letter in letters:
                self.metrics.dead_letter(letter.reason, letter.stage)
                _LOG.debug("dead letter %s %s: %s", letter.record.position, letter.reason, letter.detail)

    def _log_drifts(self, lane: Lane, predictions: Sequence[Prediction]) -> None:
        stats = lane.pipeline.stats
        total = sum(stats.drifts.values())
        fresh = total - self._drifts_logged.get(lane.partition, 0)
        self._drifts_logged[lane.partition] = total
        for name, time in stats.drift_log[-fresh:] if fresh else ():
            _LOG.info("drift %s partition=%d event_time_ns=%d", name, lane.partition, time)
        for p in predictions:
            for done in p.reactions:
                _LOG.info("reaction %s partition=%d event_time_ns=%d", done, lane.partition, p.time)

    def _watch_source(self, lag: Mapping[StreamPartition, int]) -> str:
        state = self.source.state
        if state != self._state:
            _LOG.info("source is %s", state)
            self._state = state
        self.metrics.source_state(state)
        self.metrics.lag(lag)
        return state

    def _apply_backpressure(self) -> None:
        paused = {
            StreamPartition(stream, lane.partition)
            for lane in self.lanes.values()
            for stream, queue in zip(lane.streams, lane.merge.queues, strict=True)
            if len(queue) >= self.settings.max_buffer
        }
        if paused != self._paused:
            self._paused = frozenset(paused)
            self.source.pause(self._paused)

    # -- checkpoints

    def _checkpoint_is_due(self) -> bool:
        every = self.settings.checkpoint_every_entries
        done = max((lane.since_checkpoint for lane in self.lanes.values()), default=0)
        if every is not None and done >= every:
            return True
        since_s = self.clock.monotonic() - self._last_checkpoint
        renew_s = self.delivery.renew_s
        if renew_s is not None and since_s >= renew_s:
            return bool(self.lanes)
        return done > 0 and since_s >= self.settings.checkpoint_every_s

    def checkpoint(self) -> None:
        """Flush what was written, save every partition, then tell the source: in this order, or entries are lost."""
        self._save(list(self.lanes.values()))
        self._last_checkpoint = self.clock.monotonic()

    def _save(self, lanes: Sequence[Lane]) -> None:
        self._step_reached("flush")
        self.sink.flush()
        self.dead_letters.flush()
        identities = self.source.identities()
        for lane in lanes:
            lane.identities |= {at: known for at, known in identities.items() if at.partition == lane.partition}
            start = self.clock.monotonic()
            info = lane.save(self.settings.config_digest, self._step_reached)
            end = self.clock.monotonic()
            self.metrics.stage("checkpoint", end - start)
            if info is not None:
                self.metrics.checkpoint(lane.partition, end - start, info.size_bytes, end)
                _LOG.debug("checkpoint partition=%d sequence=%d", lane.partition, info.sequence)
            self._step_reached("commit")
            self.delivery.saved(lane)
            self._step_reached("committed")
            self.source.commit(lane.positions)

    def _step_reached(self, name: str) -> None:
        self.beat += 1
        if self.on_checkpoint_step is not None:
            self.on_checkpoint_step(name)

    # -- partitions come and go (PartitionOwner)

    def partitions_assigned(self, partitions: Sequence[int]) -> Mapping[StreamPartition, int | None]:
        """Load what is known of each partition and say where to read on."""
        wanted: dict[StreamPartition, int | None] = {}
        if count := self.source.partition_count:
            self.sink.expect_partitions(count)
            self.dead_letters.expect_partitions(count)
        for partition in partitions:
            self.beat += 1
            lane = self.lanes.get(partition)
            if lane is None:
                lane = self._open_lane(partition)
            wanted.update(lane.wanted())
        return wanted

    def _open_lane(self, partition: int) -> Lane:
        store = None
        if self.settings.checkpoint_path is not None:
            folder = folder_of(self.settings.checkpoint_path).child(f"{self.source.streams[0]}-{partition}")
            store = CheckpointStore(
                folder, keep=self.settings.keep, shared=self.source.shared, guarantee=self.settings.guarantee
            )
        pipeline = self.make_pipeline()
        pipeline.timing = self._timing
        wait_s, most_ahead_ns = self.settings.label_wait_s, self.settings.max_ahead_ns
        keys_path = None if self.settings.keys_path is None else folder_of(self.settings.keys_path, "keys.path")
        lane = Lane(partition, self.source.streams, pipeline, store, wait_s, most_ahead_ns, keys_path)
        try:
            info = self.delivery.resume(lane, self.settings.config_digest)
        except BaseException:
            lane.close()  # nobody else will: an engine has only the lanes that came up
            raise
        self.metrics.damaged_checkpoints(partition, 0 if store is None else store.damaged)
        self.lanes[partition] = lane
        self._drifts_logged[partition] = sum(pipeline.stats.drifts.values())
        self.metrics.pipeline(partition, pipeline.stats)
        places = " ".join(f"{at}@{offset}" for at, offset in lane.positions.items())
        _LOG.info("partition %d: %s", partition, f"resumes at {places}" if info else "starts without a checkpoint")
        return lane

    def reached(self, at: StreamPartition) -> int:
        """Tell what the guarantee knows of a stream's records."""
        return self.delivery.reached(at)

    def identity(self, at: StreamPartition) -> str | None:
        """Tell what the stream of the checkpoint's position was."""
        return self.lanes[at.partition].identities.get(at) if at.partition in self.lanes else None

    def partitions_placed(self, starts: Mapping[StreamPartition, int], *, anew: Collection[StreamPartition]) -> None:
        """Go by the source's own starts."""
        for at in anew:
            offset = starts.get(at, 0)
            _LOG.warning("%s was deleted and created again: it is read from %d, and all of it is new", at, offset)
            if at.partition in self.lanes:
                self.lanes[at.partition].anew(at)
                self.delivery.anew(self.lanes[at.partition], at)
        for lane in self.lanes.values():
            lane.placed(starts)

    def partitions_revoked(self, partitions: Sequence[int], *, lost: bool) -> None:
        """Save and let go; with ``lost`` only let go, since somebody else may own them already."""
        lanes = [self.lanes.pop(p) for p in partitions if p in self.lanes]
        try:
            if lanes and not lost:
                self._save(lanes)
        finally:
            for lane in lanes:
                self.delivery.let_go(lane)
                lane.close()
                self.metrics.forget(lane.partition)
                _LOG.info("partition %d: %s", lane.partition, "lost" if lost else "handed over")

    # -- the end

    def summary(self) -> dict[str, Any]:
        """Return the statistics of all partitions as plain values; see `streamadapt.report.summarise`."""
        return summarise([lane.pipeline.stats for lane in self.lanes.values()])

    def _close(self) -> list[Exception]:
        """Close everything, the group last: who takes over must find all that was said. Return what went wrong."""
        errors = []
        lanes = self.lanes.values()
        for close in (self.sink.close, self.dead_letters.close, self.source.close, *(lane.close for lane in lanes)):
            try:
                close()
            except Exception as error:  # everything gets its chance to close
                errors.append(error)
        return errors
