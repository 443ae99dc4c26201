"""The loop: poll, decode, merge, observe, emit, checkpoint, drain."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from streamadapt.clock import Clock, SystemClock
from streamadapt.engine.conditions import Standing
from streamadapt.engine.guarantees import delivery_of
from streamadapt.engine.lost_partitions import LostPartitions
from streamadapt.engine.metrics import Metrics, NullMetrics, StageTiming
from streamadapt.engine.metrics_start import zeros_of
from streamadapt.engine.partition import Lane
from streamadapt.engine.ports import DeadLetterSink, Sink, Source
from streamadapt.engine.reject_limit import BAD_SHARE_OF, BadShare
from streamadapt.engine.rounds import Lot, Turns
from streamadapt.engine.run_log import RunLog
from streamadapt.engine.settings import EngineSettings
from streamadapt.engine.summary import summarise
from streamadapt.engine.tally import Tally
from streamadapt.engine.time_watch import TimeWatch
from streamadapt.errors import EntryError, Loss, TransactionLostError
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.pipeline.pipeline import Pipeline
from streamadapt.records import (
    DeadLetter,
    Entry,
    Label,
    Prediction,
    Record,
    Skipped,
    StreamPartition,
)
from streamadapt.state.fence import FencedError
from streamadapt.state.folder import folder_of
from streamadapt.state.manifest import CheckpointInfo
from streamadapt.state.store import CheckpointStore

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
    opened : bool
        Whether `run` has opened the source, and restored what that one assigned at once.
    drained : bool
        Whether `run` has processed and saved what it had to: what is left is to close.
    closing : bool
        Whether a sink, the source or a folder is just being closed.
    run_log : RunLog
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
        self.delivery = delivery_of(
            self.settings.guarantee, sink, self.settings.checkpoint_every_s, self.clock
        )
        self.on_checkpoint_step: Callable[[str], None] | None = None
        self.lanes: dict[int, Lane] = {}
        self._lost = LostPartitions()
        self.stopping = False
        self.beat = 0
        self.opened = False
        self.drained = False
        self.closing = False
        self._thread: threading.Thread | None = None
        self._finished = False
        self.run_log = RunLog(self.clock)
        self._tally = Tally()
        self._ended = False
        self._behind: dict[
            StreamPartition, int
        ] = {}  # records not yet processed, where that is known
        self._stopped_at: float | None = None
        self._index = {stream: i for i, stream in enumerate(source.streams)}
        self._bad_share = BadShare(self.settings.max_bad_share)
        self.metrics.standings(self.standings)
        for one in (sink, dead_letters):
            one.break_off_when(self._given_up)
        self._last_checkpoint = self.clock.monotonic()
        self._turns = Turns(self.clock, self.settings.turn_s)
        self._timing = StageTiming(self.clock, self.metrics)
        self._paused: frozenset[StreamPartition] = frozenset()
        self._drifts_logged: dict[int, int] = {}
        self._time_watches: dict[int, TimeWatch] = {}
        self._state = ""

    def stop(self) -> None:
        """Ask `run` to drain and return; may be called from a signal handler or another thread.

        It is heard after the record at hand, and by sinks that heed `Sink.break_off_when`: what
        they still wait for `EngineSettings.drain_s` later is given up with an error, and a restart
        replays from the last checkpoint.
        """
        if self._stopped_at is None:
            self._stopped_at = self.clock.monotonic()
        self.stopping = True

    def _given_up(self) -> bool:
        return (
            self._stopped_at is not None
            and self.clock.monotonic() - self._stopped_at >= self.settings.drain_s
        )

    def run(self) -> dict[str, Any]:
        """Run until `stop`, or until a finite source has ended and everything was processed.

        Returns
        -------
        dict
            `summary()`.

        Raises
        ------
        ConnectorError, CheckpointError
            What waiting cannot mend; nothing past the last checkpoint is lost, a restart replays
            it.
        """
        self._thread, self._finished = threading.current_thread(), False
        try:
            return self._run()
        finally:
            self._finished = True

    @property
    def alive(self) -> bool:
        """Whether `run` has not begun, or has not ended yet and its thread is alive."""
        return not self._finished and (self._thread is None or self._thread.is_alive())

    def _run(self) -> dict[str, Any]:
        try:
            self.source.open(self)
            self.opened = True
            while not self.stopping and not self.step():
                pass
            while not self._last_checkpoint_done():
                while not self.stopping and not self.step():
                    pass
            self.drained = True
            summary = self.summary()
        except BaseException as failure:
            if isinstance(
                failure, FencedError
            ):  # not a word more about what somebody else may own by now
                for lane in [*self.lanes.values(), *self._lost.lanes]:
                    self.delivery.fall_silent(lane)
            for error in self._close():
                _LOG.error("while closing after that: %s", error)
            raise
        for error in self._close():
            raise error
        _LOG.info(
            "stopped: %d entries, %d predictions", summary["entries"], summary["predictions"]
        )
        return summary

    def _last_checkpoint_done(self) -> bool:
        """Write the last checkpoint; False if a transaction was lost over it, and what it covers
        is to be done again.

        Nothing new since the last one: another like it would only push older ones out.
        """
        try:
            if any(lane.since_checkpoint for lane in self.lanes.values()):
                self.checkpoint()
        except TransactionLostError as error:
            if self.stopping:
                raise
            self._lose(error)
            return False
        return True

    def look(self) -> None:
        """Look at source, sink and dead letters: looking is what puts into the log what is wrong.

        From any thread.
        """
        for side in (self.source, self.sink, self.dead_letters):
            _ = side.trouble

    @property
    def trouble(self) -> str:
        """Why no work can be done for now, in words for an operator; empty if nothing is known.

        From any thread.
        """
        sides = (self.sink, self.dead_letters, self.source)
        return next((why for side in sides if (why := side.trouble)), "") or self._lost.trouble

    def standings(self) -> dict[str, Standing]:
        """Return how source, sink and dead letters do at this moment, for metrics.

        From any thread.
        """
        found = {
            "source": self.source.standing,
            "sink": self.sink.standing,
            "dead_letters": self.dead_letters.standing,
        }
        if why := self._lost.trouble:
            found["sink"] = replace(found["sink"], trouble=found["sink"].trouble or why)
        return found

    def step(self) -> bool:
        """Poll once and process what came; True when a finite source is done.

        Tests drive the engine with this.
        """
        try:
            if len(self._lost):
                self._begin_again()
            return self._round()
        except TransactionLostError as error:
            self._lose(error)
            return False

    def _round(self) -> bool:
        self.beat += 1
        waiting = any(lane.merge.ready for lane in self.lanes.values())
        records = self.source.poll(0.0 if waiting else self.settings.poll_s)
        now = self.clock.monotonic()
        if records:
            with self._timing.stage("decode"):
                self._take_in(records, now)
        lag = self.source.lag()
        ended = self._watch_source(lag) == "ended"
        for lane in list(self.lanes.values()):
            for i, stream in enumerate(lane.streams):
                left = lag.get(StreamPartition(stream, lane.partition))
                lane.merge.note_lag(i, left, now)
        self._take_turns(now, ended)
        for at, offset in self.source.read_up_to().items():
            if at.partition in self.lanes:
                self.lanes[at.partition].read_up_to(at, offset)
        self.look()
        self._note_lag(lag)
        self.run_log.tick(self._figures)
        self._apply_backpressure()
        if self._checkpoint_is_due():
            self.checkpoint()
        idle = not len(self._lost) and not any(lane.waiting for lane in self.lanes.values())
        done = self._ended = ended and idle
        for lane in self.lanes.values() if done else ():
            self._hand_out(
                lane, *lane.finish()
            )  # nothing comes any more; a plain stop cannot know that
        return done

    # -- one round

    def _take_in(self, records: Sequence[Record], now: float) -> None:
        for record in records:
            at = record.position
            lane = self.lanes.get(at.partition)
            if lane is None:
                # a partition that was revoked during this very poll: its new owner reads the
                # record
                continue
            item: Entry | Label | DeadLetter
            if record.value is None and self.source.skips_tombstones:
                item = Skipped(record, "", "decode", "")
            else:
                item = self._decoded(lane, record)
            lane.merge.offer(self._index[at.stream], record, item, now)

    def _decoded(self, lane: Lane, record: Record) -> Entry | Label | DeadLetter:
        at = record.position
        try:
            return lane.clocks[at.stream].take(at.offset, self.codec.decode(record))
        except EntryError as error:
            return DeadLetter(record, error.reason.value, "decode", error.detail)

    def _take_turns(self, now: float, ended: bool) -> None:
        busy = [lane.partition for lane in self.lanes.values() if len(lane.merge)]
        self._turns.round(
            busy, lambda partition, until: self._advance(self.lanes[partition], now, until, ended)
        )
        for partition in busy:
            self._time_watches[partition].look_held(self.lanes[partition].merge.held)

    def _advance(self, lane: Lane, now: float, until: float, ended: bool) -> bool:
        """Process what may be processed, in small lots, until the time is up; return whether there
        may be more."""
        while not self.stopping:
            late = lane.merge.late_labels
            lot = Lot(
                lane.merge, self.clock, now, until, ended=ended, stopping=lambda: self.stopping
            )
            if lot:
                self._process(lane, lot)
            for _ in range(lane.merge.late_labels - late):
                self.metrics.late_label()
            if not lot.count:
                return False
            if self.clock.monotonic() >= until:
                return True
        return False

    def _process(self, lane: Lane, released: Lot) -> None:
        self.beat += 1
        lane.check_owner()  # a process that was stopped for a while must not speak before it knows
        predictions, letters = lane.process(released)
        self._hand_out(lane, predictions, letters)
        self._tally.add(lane, released.handed, letters)
        self._bad_share.add(released.count, letters)

    def _hand_out(
        self, lane: Lane, predictions: Sequence[Prediction], letters: Sequence[DeadLetter]
    ) -> None:
        with self._timing.stage("emit"):
            self._emit(predictions, letters)
        self._log_drifts(lane, predictions)
        self._time_watches[lane.partition].look(lane.pipeline.stats, letters, lane.out_of_order)
        self.metrics.pipeline(lane.partition, lane.pipeline.stats)

    def _emit(self, predictions: Sequence[Prediction], letters: Sequence[DeadLetter]) -> None:
        if predictions:
            self.sink.write(predictions)
            letters = [*letters, *self.sink.refused()]
        if letters:
            self.dead_letters.write(letters)
            self.run_log.refused(letters)
            for letter in letters:
                self.metrics.dead_letter(letter.reason, letter.stage)
                _LOG.debug(
                    "dead letter %s %s: %s", letter.record.position, letter.reason, letter.detail
                )

    def _log_drifts(self, lane: Lane, predictions: Sequence[Prediction]) -> None:
        stats = lane.pipeline.stats
        total = sum(stats.drifts.values())
        fresh = total - self._drifts_logged.get(lane.partition, 0)
        self._drifts_logged[lane.partition] = total
        for name, time in stats.drift_log[-fresh:] if fresh else ():
            _LOG.info("drift %s partition=%d event_time_ns=%d", name, lane.partition, time)
        for p in predictions:
            for done in p.reactions:
                _LOG.info(
                    "reaction %s partition=%d event_time_ns=%d", done, lane.partition, p.time
                )

    def _watch_source(self, lag: Mapping[StreamPartition, int]) -> str:
        state = self.source.state
        if state != self._state:
            _LOG.info("source is %s", state)
            self._state = state
        self.metrics.source_state(state)
        self._note_lag(lag)
        return state

    def _note_lag(self, left: Mapping[StreamPartition, int]) -> None:
        """Count what is not processed: what the source still has, and what waits here for its
        turn."""
        self._behind = {
            at: left[at] + len(lane.merge.queues[i])
            for lane in self.lanes.values()
            for i, at in enumerate(
                StreamPartition(stream, lane.partition) for stream in lane.streams
            )
            if at in left
        }
        self.metrics.lag(self._behind)

    def _figures(self) -> dict[str, Any]:
        lanes = [*self.lanes.values(), *self._lost.lanes]
        facts = self._tally.facts(lanes, ended=self._ended)
        losses: dict[str, tuple[float, int]] = {}
        for lane in lanes:
            stats = lane.pipeline.stats
            for role, cells in stats.loss_cells.items():
                total, before = losses.get(role, (0.0, 0))
                losses[role] = total + stats.loss_sum[role], before + cells
        lag = sum(self._behind.values()) if self._behind else None
        return {name: facts[name] for name in ("entries", "predictions")} | {
            "lag": lag,
            "losses": losses,
        }

    def _apply_backpressure(self) -> None:
        paused = {
            StreamPartition(stream, lane.partition)
            for lane in self.lanes.values()
            for stream, queue in zip(lane.streams, lane.merge.queues, strict=True)
            if len(queue) >= self.settings.max_buffer
        } | {
            StreamPartition(stream, lane.partition)
            for lane in self._lost.lanes
            for stream in lane.streams
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
        """Flush what was written, save every partition, then tell the source: in this order, or
        entries are lost."""
        self._save(list(self.lanes.values()))
        self._last_checkpoint = self.clock.monotonic()

    def _save(self, lanes: Sequence[Lane]) -> None:
        self._step_reached("flush")
        self.sink.flush()
        self._emit((), self.sink.refused())
        self.dead_letters.flush()
        identities = self.source.identities()
        for lane in lanes:
            lane.identities |= {
                at: known for at, known in identities.items() if at.partition == lane.partition
            }
            start = self.clock.monotonic()
            info = lane.save(self.settings.config_digest, self._step_reached)
            end = self.clock.monotonic()
            self.metrics.stage("checkpoint", end - start)
            if info is not None:
                self.metrics.checkpoint(lane.partition, end - start, info.size_bytes, end)
                _LOG.debug("checkpoint partition=%d sequence=%d", lane.partition, info.sequence)
            self._step_reached("commit")
            self.delivery.saved(lane)
            self._lost.committed(lane.partition)
            self._step_reached("committed")
            self.source.commit(lane.positions)

    def _step_reached(self, name: str) -> None:
        self.beat += 1
        if self.on_checkpoint_step is not None:
            self.on_checkpoint_step(name)

    # -- partitions come and go (PartitionOwner)

    def partitions_assigned(
        self, partitions: Sequence[int]
    ) -> Mapping[StreamPartition, int | None]:
        """Load what is known of each partition and say where to read on."""
        wanted: dict[StreamPartition, int | None] = {}
        if count := self.source.partition_count:
            self.sink.expect_partitions(count)
            self.dead_letters.expect_partitions(count)
        for partition in partitions:
            self.beat += 1
            lane = self.lanes.get(partition) or self._lost.get(partition)
            if lane is None:
                lane = self._open_lane(partition)
            wanted.update(lane.wanted())
        return wanted

    def _open_lane(self, partition: int) -> Lane:
        lane = self._make_lane(partition, self._make_store(partition))
        try:
            info = self.delivery.resume(lane, self.settings.config_digest)
        except TransactionLostError as error:
            self._lost.add(lane, error, self.clock.monotonic())
            # read from where the source would start; `_begin_again` says where it really goes on
            return lane
        except BaseException:
            lane.close()  # nobody else will: an engine has only the lanes that came up
            raise
        self._take_up(lane, info)
        return lane

    def _make_store(self, partition: int) -> CheckpointStore | None:
        if self.settings.checkpoint_path is None:
            return None
        folder = folder_of(self.settings.checkpoint_path).child(
            f"{self.source.streams[0]}-{partition}"
        )
        return CheckpointStore(
            folder,
            keep=self.settings.keep,
            shared=self.source.shared,
            guarantee=self.settings.guarantee,
        )

    def _make_lane(self, partition: int, store: CheckpointStore | None) -> Lane:
        pipeline = self.make_pipeline()
        pipeline.timing = self._timing
        wait_s, max_ahead_ns = self.settings.label_wait_s, self.settings.max_ahead_ns
        keys_path = (
            None
            if self.settings.keys_path is None
            else folder_of(self.settings.keys_path, "keys.path")
        )
        return Lane(
            partition, self.source.streams, pipeline, store, wait_s, max_ahead_ns, keys_path,
            max_behind_ns=self.settings.max_behind_ns, max_held=self.settings.max_buffer,
        )  # fmt: skip

    def _take_up(self, lane: Lane, info: CheckpointInfo | None) -> None:
        partition, stats = lane.partition, lane.pipeline.stats
        self.metrics.expect(partition, zeros_of(lane.pipeline))
        if lane.store is not None:
            self.metrics.damaged_checkpoints(partition, lane.store.damaged)
            lane.store.damaged = 0
        else:
            self.metrics.damaged_checkpoints(partition, 0)
        lane.began = True
        self.lanes[partition] = lane
        self._time_watches[partition] = TimeWatch(partition, stats)
        self._tally.opened(lane)
        self._drifts_logged[partition] = sum(stats.drifts.values())
        self.metrics.pipeline(partition, stats)
        places = " ".join(f"{at}@{offset}" for at, offset in lane.positions.items())
        _LOG.info(
            "partition %d: %s",
            partition,
            f"resumes at {places}" if info else "starts without a checkpoint",
        )

    # -- a transaction is lost

    def _lose(self, error: TransactionLostError) -> None:
        """Stop the partitions whose transactions are void; `_begin_again` takes them up from their
        last commit."""
        for partition in error.partitions:
            if error.cause in (Loss.TAKEN, Loss.EXPIRED) and partition in self.lanes:
                self.lanes[partition].must_own()  # else it is no matter of beginning again
            lane = self.lanes.pop(partition, None)
            if lane is not None:
                self.metrics.transaction_lost(partition, error.cause.value)
                self.delivery.let_go(lane, lost=True)
                self._lost.add(lane, error, self.clock.monotonic())
        self._apply_backpressure()

    def _begin_again(self) -> None:
        """Take lost partitions up again: the state of the last commit, and the source back where
        it was then.

        Raises
        ------
        FencedError
            If the partition's checkpoints are another engine's now: then so is its transaction.
        """
        while (old := self._lost.due(self.clock.monotonic())) is not None:
            self.beat += 1
            old.must_own()
            lane = self._lost.fresh(old.partition) or self._make_lane(old.partition, old.store)
            try:
                info = self.delivery.resume(lane, self.settings.config_digest)
            except TransactionLostError as error:
                self._lost.failed(old.partition, lane, error, self.clock.monotonic())
                return  # whatever keeps the broker from answering may hold up the others as long
            self._lost.pop(old.partition)
            self._take_up(lane, info)
            self._enter_again(lane, old)
            self.source.seek(lane.wanted())

    def _enter_again(self, lane: Lane, old: Lane) -> None:
        """Keep a start that the source chose and no commit covers yet: asked again, it could say
        another.

        Where the partition had never begun, the source chose in place of positions that nobody
        could tell it.
        """
        for at in old.made_anew:
            lane.anew(at)
            self.delivery.anew(lane, at)
        lane.made_anew = set(old.made_anew)
        lane.placed(
            {at: n for at, n in old.entered.items() if old.began or at not in lane.positions}
        )

    def reached(self, at: StreamPartition) -> int:
        """Tell what the guarantee knows of a stream's records."""
        return self.delivery.reached(at)

    def identity(self, at: StreamPartition) -> str | None:
        """Tell what the stream of the checkpoint's position was."""
        lane = self.lanes.get(at.partition) or self._lost.get(at.partition)
        return None if lane is None else lane.identities.get(at)

    def partitions_placed(
        self, starts: Mapping[StreamPartition, int], *, anew: Collection[StreamPartition]
    ) -> None:
        """Go by the source's own starts."""
        for at in anew:
            offset = starts.get(at, 0)
            _LOG.warning(
                "%s was deleted and created again: it is read from %d, and all of it is new",
                at,
                offset,
            )
            if at.partition in self.lanes:
                self.lanes[at.partition].anew(at)
                self.delivery.anew(self.lanes[at.partition], at)
        for lane in [*self.lanes.values(), *self._lost.lanes]:
            lane.made_anew |= {at for at in anew if at.partition == lane.partition}
            lane.placed(starts)

    def partitions_revoked(self, partitions: Sequence[int], *, lost: bool) -> None:
        """Save and let go; with ``lost`` only let go, since somebody else may own them already."""
        lanes = [self.lanes.pop(p) for p in partitions if p in self.lanes]
        void = [lane for p in partitions if (lane := self._lost.forget(p)) is not None]
        try:
            if lanes and not lost:
                void += self._save_and_lose(lanes)
        finally:
            for lane in [*lanes, *(lane for lane in void if lane not in lanes)]:
                self._tally.closed(lane)
                self.delivery.let_go(lane, lost=lost or lane in void)
                lane.close()
                self.metrics.forget(lane.partition)
                _LOG.info("partition %d: %s", lane.partition, "lost" if lost else "handed over")

    def _save_and_lose(self, lanes: Sequence[Lane]) -> list[Lane]:
        """Save what is handed over; return those whose transactions were lost: their next owner
        does it again."""
        left, void = list(lanes), list[Lane]()
        while left:
            try:
                self._save(left)
                break
            except TransactionLostError as error:
                _LOG.warning("while partitions are handed over: %s", error)
                gone = [lane for lane in left if lane.partition in error.partitions]
                if not gone and not any(p in self.lanes for p in error.partitions):
                    raise
                self._lose(error)  # it may have hit others, too
                for lane in gone:
                    self.delivery.let_go(lane, lost=True)
                    left.remove(lane)
                void += gone
        return void

    # -- the end

    def summary(self) -> dict[str, Any]:
        """Return the statistics of all partitions as plain values.

        Returns
        -------
        dict
            See `streamadapt.engine.summary.summarise`; ``run``: see `Tally.facts`, and
            ``all_may_be_refused``, whether `EngineSettings.max_bad_share` says so; ``records``:
            read by this run; ``lag``: partition -> records not yet processed, where that is known;
            ``out_of_order``: an entry that came out of order.
        """
        lanes = [*self.lanes.values(), *self._lost.lanes]
        run = self._tally.facts(lanes, ended=self._ended)
        run["all_may_be_refused"] = self.settings.max_bad_share >= 1.0
        lag = {str(at): behind for at, behind in self._behind.items()}
        examples = [example for watch in self._time_watches.values() if (example := watch.example)]
        told = {
            "records": run["records"],
            "run": run,
            "lag": lag,
            "out_of_order": examples[0] if examples else "",
        }
        return summarise([lane.pipeline.stats for lane in self.lanes.values()]) | told

    def _close(self) -> list[Exception]:
        """Close everything, the group last: who takes over must find all that was said.

        Return what went wrong.
        """
        errors = []
        lanes = [*self.lanes.values(), *self._lost.lanes]
        for close in (
            self.sink.close,
            self.dead_letters.close,
            self.source.close,
            *(lane.close for lane in lanes),
        ):
            try:
                self.closing = True
                close()
                self.closing = False
            except Exception as error:  # everything gets its chance to close
                self.closing = False
                errors.append(error)
        return errors
